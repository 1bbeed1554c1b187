"""docs/guarantees.md: every line names tests, and each of them is there."""

from __future__ import annotations

import re

import pytest

from tests.proxy.conftest import ROOT

PAGE = (ROOT / "docs" / "guarantees.md").read_text()


def rows(text: str) -> list[str]:
    return [
        line for line in text.splitlines() if line.startswith("|") and not re.match(r"\| (promise|fault)|\|---", line)
    ]


_PROMISES, _, _FAULTS = PAGE.partition("\n## Faults of a fleet\n")
PROMISES, FAULTS = rows(_PROMISES), rows(_FAULTS)


@pytest.mark.parametrize("line", [*PROMISES, *FAULTS], ids=lambda line: line.split("|")[1].strip())
def test_each_promise_is_proved_by_tests_that_exist(line: str) -> None:
    named = re.findall(r"`((?:tests|usage_plugin/testing)/[\w/]+\.py)(?:::(\w+))?`", line)
    assert named, "a promise without a test"
    for path, name in named:
        text = (ROOT / path).read_text()
        assert not name or re.search(rf"(def {name}\(|^{name} = |^class {name}\b)", text, re.MULTILINE), (
            f"{path}::{name}"
        )


def test_each_promise_says_what_holds_everywhere() -> None:
    assert {line.count("|") for line in PROMISES} == {8}
    assert len(PROMISES) > 20


def test_each_fault_says_what_is_lost_with_each_engine() -> None:
    assert {line.count("|") for line in FAULTS} == {6}
    assert len(FAULTS) > 10
