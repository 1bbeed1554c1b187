"""docs/guarantees.md: every line names tests, and each of them is there."""

from __future__ import annotations

import re

import pytest

from tests.proxy.conftest import ROOT

PAGE = (ROOT / "docs" / "guarantees.md").read_text()
PROMISES = [line for line in PAGE.splitlines() if line.startswith("|") and not re.match(r"\| promise|\|---", line)]


@pytest.mark.parametrize("line", PROMISES, ids=lambda line: line.split("|")[1].strip())
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
