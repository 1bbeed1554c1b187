"""docs/plugin-hooks.md: every hook with its signature, when it is called, and an example that is tested."""

from __future__ import annotations

import inspect
import re

import pytest

from tests.docs.test_docs import blocks
from tests.proxy.conftest import ROOT
from usage_plugin.plugins.manager import HOOKS, TRACE_VARIABLE
from usage_plugin.tracking.notifications import publishers

PAGE = (ROOT / "docs" / "plugin-hooks.md").read_text()
SECTIONS = dict(re.findall(r"^### `(\w+\([^`]*)`\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
EXAMPLES = re.findall(r"^From \[[^]]+\]\(\.\./([^)]+)\):\n\n```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def signature_of(hook: str) -> str:
    return f"{hook}{inspect.signature(HOOKS[hook])}".replace("'", "")


def test_every_hook_has_a_heading_and_every_heading_a_hook() -> None:
    """Each heading is the literal signature of a hook."""
    assert sorted(SECTIONS) == sorted(map(signature_of, HOOKS))


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_says_what_people_ask(hook: str) -> None:
    """A section has a version and an example; it or its chapter explains calls, threads and exceptions."""
    section = SECTIONS[signature_of(hook)]
    assert re.match(r"\nSince \d+\.\d+\. ", section)
    assert re.search(rf"```python\n(.*\n)*? *@hookimpl\n *def {hook}\(", section)
    kind = "## Hooks that register" if hook.startswith("usage_register") else "## Hooks that are notified"
    introduction = PAGE[PAGE.index(kind) :].split("###")[0]
    assert "thread" in introduction
    assert "raises" in introduction
    assert re.search(r"called", section + introduction)


def test_every_example_is_a_part_of_a_file() -> None:
    """Every example is a literal part of a tested file."""
    assert len(EXAMPLES) == PAGE.count("```python")
    for path, code in EXAMPLES:
        assert code in (ROOT / path).read_text(), path


def test_the_smallest_plugin_is_the_readmes() -> None:
    """The README's plugin is run by tests/plugins."""
    assert blocks(ROOT / "docs" / "plugin-hooks.md", "py") == blocks(ROOT / "README.md", "python")


def test_the_numbers_are_those_of_the_code() -> None:
    """Bounds and timeouts match the code."""
    assert f"{publishers.MOST_WAITING:,} notifications and {publishers.MOST_BYTES // 10**6} MB" in PAGE
    assert f"for {publishers.HANG_TIMEOUT:.0f} seconds" in PAGE
    assert f"it has {publishers.DRAINING:.0f} seconds" in PAGE
    assert f"`{TRACE_VARIABLE}=1`" in PAGE
