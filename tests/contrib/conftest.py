"""A history in a real store, and the plugin chroma; with Chroma where it is installed, else with `plain_vectors`."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
from datetime import date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.conftest import Commands
from tests.contrib.plain_vectors import PlainFolders
from usage_plugin.config import load_config
from usage_plugin.contrib import chroma
from usage_plugin.contrib.chroma.indexer import Indexer
from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.windows import to_instant
from usage_plugin.runtime import Parts, open_reader
from usage_plugin.testing.builders import NOON, make_event

if TYPE_CHECKING:
    from pathlib import Path

    from usage_plugin.contrib.chroma.vector_store import Vector
    from usage_plugin.domain.usage import UsageEvent

THIS_WEEK = date(2026, 11, 23)
LAST_WEEK = THIS_WEEK - timedelta(days=7)
CONFIG = """\
model_list: []
usage_plugin:
  data_dir: ./data
  timezone: {zone}
  privacy: {{user: {privacy}}}
  plugins: [{{name: chroma, options: {{weeks: 12}}}}]
"""


def at(day: date, hour: int, minute: int = 0) -> int:
    return to_instant(datetime(day.year, day.month, day.day, hour, minute, tzinfo=timezone.utc))


def requests(user: str, day: date, count: int, hour: int = 9, **fields: Any) -> list[UsageEvent]:
    """Record a number of requests of a user, a second apart."""
    return [make_event(user=user, started_at=at(day, hour) + n * 1_000_000, **fields) for n in range(count)]


class Place:
    """A YAML with the plugin turned on, and a store in which things are recorded."""

    def __init__(self, folder: Path, zone: str, privacy: str) -> None:
        self.config_path = folder / "config.yaml"
        self.config_path.write_text(CONFIG.format(zone=zone, privacy=privacy))
        self.config = load_config(self.config_path)
        self.parts = Parts(self.config)
        self.pseudonyms = self.parts.make_pseudonyms()
        self.parts.open_ledger().close()
        self._numbers = itertools.count(1)
        self.run = Commands(self.config_path)

    @property
    def plugin(self) -> chroma.Plugin:
        (found,) = (one.found for one in self.parts.plugins.loaded if one.found.source == "optional")
        assert isinstance(found.implements, chroma.Plugin)
        return found.implements

    async def record(self, events: list[UsageEvent]) -> None:
        async with self.parts.open_store() as store:
            await store.append("test", [(next(self._numbers), event) for event in events])

    def record_now(self, events: list[UsageEvent]) -> None:
        asyncio.run(self.record(events))

    async def catch_up(self, weeks: int = 12) -> list[tuple[date, int, int]]:
        """Return the reported progress."""
        told: list[tuple[date, int, int]] = []
        async with open_reader(self.config) as reader:
            following = Indexer(
                reader.tracker, self.config.timezone, self.plugin.open_vectors, lambda *how: told.append(how)
            )
            await following.catch_up(weeks)
        return told

    def vectors(self, week: date) -> dict[str, Vector]:
        with self.plugin.open_vectors() as vectors:
            return {one.user: one for page in vectors.in_week(week) for one in page}


@pytest.fixture(autouse=True)
def _vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Monday, 23 November 2026, 12:00 UTC; and dictionaries where there is no Chroma."""
    monkeypatch.setattr(SystemClock, "now", lambda _: NOON)
    if importlib.util.find_spec("chromadb") is None:
        monkeypatch.setattr(chroma, "check_installed", lambda: None)
        monkeypatch.setattr(chroma, "open_vectors", PlainFolders().open)


@pytest.fixture
def zone() -> str:
    return "UTC"


@pytest.fixture
def privacy() -> str:
    return "plain"


@pytest.fixture
def place(tmp_path: Path, zone: str, privacy: str) -> Place:
    return Place(tmp_path, zone, privacy)
