"""Runs a contract on what is broken on purpose, in a pytest of its own, and says what failed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Broken = tuple[str, str]
"""A contract's class, and the test that must fail in it."""


def failures_in(module: Path, broken: Sequence[Broken]) -> dict[Broken, str]:
    """Run those tests, and give what each that failed says."""
    chosen = [f"{module}::{contract}::{test}" for contract, test in broken]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rf", "--tb=line", "--hypothesis-profile=first failure", *chosen],
        cwd=module.parents[2], capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "1000"},
    )  # fmt: skip
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    failed = re.findall(r"^FAILED \S+?::(\w+)::(\w+)(?:\[.*\])?(?: - (.*))?$", done.stdout, re.MULTILINE)
    return {(contract, test): message for contract, test, message in failed}


def assert_noticed(failures: dict[Broken, str], broken: Broken) -> None:
    """The test failed, and not because the sabotage itself is broken."""
    assert broken in failures, "it passed"
    assert not failures[broken].startswith(("NameError", "TypeError", "AttributeError")), failures[broken]
