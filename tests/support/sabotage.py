"""Run a contract on deliberately broken implementations, in a separate pytest, and return its failures."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Broken = tuple[str, str]
"""A contract's class, and the test that must fail in it."""


PATIENCE = 240
"""Seconds after which the contract counts as stuck; it takes about twenty."""

# Broken code may leave threads and processes that never end, so none of them is waited for.
_RUN = "import os, sys, pytest; code = pytest.main(); sys.stdout.flush(); os._exit(code)"


def failures_in(module: Path, broken: Sequence[Broken], folder: Path) -> dict[Broken, str]:
    """Run those tests and return the message of each failure; their output goes to a file in the folder."""
    chosen = [f"{module}::{contract}::{test}" for contract, test in broken]
    # With CI set, pytest would compute complete differences of compared values, for minutes.
    options = [
        "-v",
        "-rfE",
        "-p",
        "no:cacheprovider",
        "--tb=line",
        "--assert=plain",
        "--hypothesis-profile=first failure",
        "-o",
        "timeout=60",
    ]
    output = folder / "output.txt"
    with output.open("w") as out:
        running = subprocess.Popen(
            [sys.executable, "-c", _RUN, *options, *chosen], cwd=module.parents[2], stdout=out, stderr=out,
            start_new_session=True, env={**os.environ, "COLUMNS": "1000"},
        )  # fmt: skip
        try:
            code: int | str = running.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            code = "stuck"
        finally:
            with suppress(ProcessLookupError):  # if no child of it is left
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()
    printed = output.read_text()
    assert code == pytest.ExitCode.TESTS_FAILED, f"{code}\n{printed}"
    failed = re.findall(r"^(?:FAILED|ERROR) \S+?::(\w+)::(\w+)(?:\[.*\])?(?: - (.*))?$", printed, re.MULTILINE)
    return {(contract, test): message for contract, test, message in failed}


def assert_noticed(failures: dict[Broken, str], broken: Broken) -> None:
    """Check that the test failed, and not because of an error in the sabotage itself."""
    assert broken in failures, "it passed"
    assert not failures[broken].startswith(("NameError", "TypeError", "AttributeError")), failures[broken]
