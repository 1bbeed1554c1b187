"""Stands for Chroma where it is not installed: vectors in a dictionary, compared one by one.

The tests that use it are run again with the real one, by `test_chroma.py`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from usage_plugin.contrib.chroma.vector_store import MOST_AT_ONCE, Vector
from usage_plugin.domain.behaviour import distance
from usage_plugin.domain.usage import UsageTotals

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from datetime import date
    from pathlib import Path


class PlainVectors:
    """The interface of `VectorStore`, in memory."""

    def __init__(self) -> None:
        self._all: dict[tuple[str, date], Vector] = {}
        self._seen: dict[date, UsageTotals] = {}

    def put(self, week: date, vectors: Sequence[Vector]) -> None:
        assert len(vectors) <= MOST_AT_ONCE
        assert {one.week for one in vectors} <= {week}
        self._all.update({(one.user, one.week): one for one in vectors})

    def totals(self, week: date, users: Collection[str]) -> dict[str, UsageTotals]:
        assert len(users) <= MOST_AT_ONCE
        return {one.user: one.totals for one in self.of(users, [week])}

    def of(self, users: Collection[str], weeks: Collection[date]) -> list[Vector]:
        return [self._all[user, week] for user in users for week in weeks if (user, week) in self._all]

    def in_week(self, week: date) -> Iterator[list[Vector]]:
        found = [one for one in self._all.values() if one.week == week]
        for at in range(0, len(found), MOST_AT_ONCE):
            yield found[at : at + MOST_AT_ONCE]

    def newest_week(self, user: str) -> date | None:
        return max((one.week for one in self._all.values() if one.user == user), default=None)

    def near(self, one: Vector, most: int) -> list[Vector]:
        others = [other for other in self._all.values() if other.week == one.week and other.user != one.user]
        return sorted(others, key=lambda other: distance(one.numbers, other.numbers))[:most]

    def keep_weeks(self, weeks: Collection[date]) -> None:
        self._all = {key: one for key, one in self._all.items() if one.week in weeks}
        self._seen = {week: totals for week, totals in self._seen.items() if week in weeks}

    def forget(self, user: str) -> int:
        before = len(self._all)
        self._all = {key: one for key, one in self._all.items() if one.user != user}
        return before - len(self._all)

    def seen(self, week: date) -> UsageTotals | None:
        return self._seen.get(week)

    def note_seen(self, week: date, totals: UsageTotals) -> None:
        self._seen[week] = totals


class PlainFolders:
    """Opens the vectors of folders; each is open once at a time."""

    def __init__(self) -> None:
        self._folders: dict[Path, PlainVectors] = {}
        self._open: set[Path] = set()

    @contextmanager
    def open(self, folder: Path) -> Iterator[PlainVectors]:
        assert folder not in self._open, "waits for itself"
        folder.mkdir(parents=True, exist_ok=True)
        self._open.add(folder)
        try:
            yield self._folders.setdefault(folder, PlainVectors())
        finally:
            self._open.remove(folder)
