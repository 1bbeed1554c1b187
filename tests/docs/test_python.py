"""docs/python.md: every snippet runs as printed, in its own process, with the output in its comments."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.docs.test_docs import blocks
from tests.proxy.conftest import ROOT, clean_environment
from tests.support.guarding import python_path
from usage_plugin import api
from usage_plugin.api.validation import UsageFacts

if TYPE_CHECKING:
    from pathlib import Path

PAGE = ROOT / "docs" / "python.md"
SNIPPETS = blocks(PAGE, "python")


def run(code: list[Any], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *code], cwd=folder, capture_output=True, text=True, check=False, timeout=250,
        env={**clean_environment(), "PYTHONPATH": python_path(ROOT), "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_each_snippet_says_what_its_comments_say(number: int, tmp_path: Path) -> None:
    """The comment after each `print` is its output."""
    expected = re.findall(r"print\(.*\)  # (.*)", SNIPPETS[number])
    assert expected
    assert run(["-c", SNIPPETS[number]], tmp_path).splitlines() == expected


def test_the_page_has_every_method_and_every_word() -> None:
    """Every public method and argument is on the page."""
    page = PAGE.read_text()
    methods = [name for name in vars(api.UsageTracker) if not name.startswith("_")]
    for name in {*methods, *UsageFacts.__annotations__} - {"record_outcome", "keep", "now", "casefold"}:
        assert f"`{name}" in page, name


def test_the_example_keeps_to_its_budget(tmp_path: Path) -> None:
    """Of five steps at 0.012 and at most 0.02 three fit into 0.05; a second run goes on from there."""
    command = [ROOT / "examples" / "batch_job.py", "--data-dir", str(tmp_path), "--steps", "5"]
    first = run(command, tmp_path)
    assert "Step 3: 0.012 USD, 0.036 USD today" in first
    assert "Stopped after 3 steps: ann has used 0.036 of 0.05 USD today (limit daily)" in first
    assert first.endswith("daily: 0.036 of 0.05 USD spent, 0.014 left\n")
    assert run(command, tmp_path).startswith("Stopped after 0 steps")
