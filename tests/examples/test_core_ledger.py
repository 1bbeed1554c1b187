"""The example of a ledger with a core of its own keeps the contract, and works in a tracker."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from tests.proxy.conftest import ROOT
from tests.support.environments import call
from tests.support.guarding import python_path
from tests.support.waiting import eventually
from usage_plugin.api import open_tracker
from usage_plugin.ledgers.sqlite.file import LedgerFile

EXAMPLE = ROOT / "examples" / "core_ledger"
VERBS = ("shorten_log", "check_place")


def test_it_keeps_the_contract_from_the_tree(tmp_path: Path) -> None:
    """All promises of a core and of erasure, tested as its author does."""
    said = call(
        *(sys.executable, "-m", "pytest", "-q", "-c", EXAMPLE / "pyproject.toml", "-p", "no:cacheprovider"),
        EXAMPLE / "tests",
        cwd=tmp_path,
        PYTHONPATH=python_path(EXAMPLE, ROOT),
    )
    assert " passed" in said
    assert "skipped" not in said


async def test_a_tracker_maintains_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keeper shortens both logs and both places are checked, while requests are recorded as usual."""
    plugin = shutil.copy(EXAMPLE / "usage_plugin_core_ledger.py", tmp_path)
    maintained: set[tuple[str, str]] = set()
    for verb in VERBS:
        maintain = getattr(LedgerFile, verb)

        def recorded(file: LedgerFile, verb: str = verb, maintain: Callable[[LedgerFile], None] = maintain) -> None:
            maintain(file)
            maintained.add((verb, file.path.name))

        monkeypatch.setattr(LedgerFile, verb, recorded)
    section = {
        "data_dir": str(tmp_path / "usage"),
        "plugins": [{"path": str(plugin)}],
        "ledger": {"backend": "core"},
        "limits": [{"name": "daily", "per": "user", "window": "day", "max_cost": "1.00"}],
    }
    async with open_tracker(section) as tracker:
        await tracker.record_usage("ann", cost="0.25", model="gpt", provider="openai")
        assert await tracker.get_user_daily_usage("ann") == Decimal("0.25")
        await eventually(lambda: maintained == {(verb, name) for verb in VERBS for name in ("core.db", "ledger.db")})
