"""The contract of stores can fail: each of its promises is broken on purpose, and noticed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.store.sabotaged import SABOTAGES
from usage_plugin.testing.durability import Durability
from usage_plugin.testing.store_contract import StoreContract, promises

MODULE = Path(__file__).with_name("sabotaged.py")
BROKEN = sorted((contract, test) for test, contracts in SABOTAGES.items() for contract in contracts)


@pytest.fixture(scope="module")
def failures() -> dict[tuple[str, str], str]:
    """What each promise says of the stores that break it; one pytest for all, in a process of its own."""
    chosen = [f"{MODULE}::{contract}::{test}" for contract, test in BROKEN]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rf", "--tb=line", "--hypothesis-profile=first failure", *chosen],
        cwd=MODULE.parents[2], capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "1000"},
    )  # fmt: skip
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    failed = re.findall(r"^FAILED \S+?::(\w+)::(\w+)(?:\[.*\])?(?: - (.*))?$", done.stdout, re.MULTILINE)
    return {(contract, test): message for contract, test, message in failed}


@pytest.mark.parametrize(("contract", "test"), BROKEN)
def test_a_broken_store_is_noticed(failures: dict[tuple[str, str], str], contract: str, test: str) -> None:
    """The promise that a store breaks fails, and not because the sabotage itself is broken."""
    assert (contract, test) in failures, "it passed"
    assert not failures[contract, test].startswith(("NameError", "TypeError", "AttributeError"))


def test_each_promise_can_be_broken() -> None:
    """There is no promise that nothing breaks."""
    assert set(SABOTAGES) == {*promises(StoreContract), *promises(Durability)}
