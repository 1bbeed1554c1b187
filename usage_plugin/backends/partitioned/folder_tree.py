"""The tree of folders and files: which there are, and how to walk through them without listing all at once.

{2 hex}/{user}/{YYYY-MM}/events_{YYYY-MM-DD}.jsonl    the truth
{2 hex}/{user}/{YYYY-MM}/daily_{YYYY-MM-DD}.json      derived from it
{2 hex}/{user}/monthly_{YYYY-MM}.json                 derived from the month's days
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.backends.partitioned.folder_names import folder_name, shelf_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHELF = re.compile(r"[0-9a-f]{2}")
_MONTH = re.compile(r"\d{4}-\d{2}")
_DAY = re.compile(r"events_(\d{4}-\d{2}-\d{2})\.jsonl")


class Month(NamedTuple):
    """A user's month: the user's folder, and the month's first day."""

    user: Path
    first: date

    @property
    def last(self) -> date:
        """Its last day."""
        return (self.first + timedelta(days=31)).replace(day=1) - timedelta(days=1)

    @property
    def folder(self) -> Path:
        """Where its days are."""
        return self.user / self.first.isoformat()[:7]

    @property
    def record(self) -> Path:
        """The file of its sums."""
        return self.user / f"monthly_{self.first.isoformat()[:7]}.json"

    def day(self, day: date) -> Day:
        """Name a day of it."""
        return Day(self, day)

    def days(self) -> list[Day]:
        """List the days that have a file."""
        found = (_DAY.fullmatch(name) for name in _names(self.folder))
        return [Day(self, date.fromisoformat(match[1])) for match in found if match]


class Day(NamedTuple):
    """A user's day."""

    month: Month
    date: date

    @property
    def events(self) -> Path:
        """The file of its lines."""
        return self.month.folder / f"events_{self.date.isoformat()}.jsonl"

    @property
    def record(self) -> Path:
        """The file of its sums."""
        return self.month.folder / f"daily_{self.date.isoformat()}.json"


class Tree:
    """All users' folders."""

    def __init__(self, root: Path) -> None:
        """Take the folder above them."""
        self.root = root

    def user(self, user: str) -> Path:
        """Name a user's folder."""
        return self.root / shelf_of(user) / folder_name(user)

    def day(self, user: str, day: date) -> Day:
        """Name a user's day."""
        return Month(self.user(user), day.replace(day=1)).day(day)

    def users(self, user: str | None = None, *, since: Path | None = None) -> Iterator[Path]:
        """Walk through all users' folders, always in the same order; or name one user's.

        Args:
            user: the only one.
            since: begin at this folder.
        """
        if user is not None:
            yield self.user(user)
            return
        for shelf in sorted(name for name in _names(self.root) if _SHELF.fullmatch(name)):
            if since is None or shelf >= since.parent.name:
                for name in sorted(_names(self.root / shelf)):
                    if since is None or (shelf, name) >= (since.parent.name, since.name):
                        yield self.root / shelf / name

    def months_of(self, user: Path) -> list[Month]:
        """List a user's months, in order."""
        names = sorted(name for name in _names(user) if _MONTH.fullmatch(name))
        return [Month(user, date.fromisoformat(f"{name}-01")) for name in names]

    def dates(self, first: date, last: date, user: str | None = None, *, newest_first: bool = False) -> Iterator[date]:
        """List the days that anybody has, of those from first to last, a month at a time."""
        months = {
            month.first
            for folder in self.users(user)
            for month in self.months_of(folder)
            if first.replace(day=1) <= month.first <= last
        }
        for start in sorted(months, reverse=newest_first):
            days = {day.date for folder in self.users(user) for day in Month(folder, start).days()}
            yield from sorted((day for day in days if first <= day <= last), reverse=newest_first)

    def size(self) -> int:
        """Add up how many bytes the files have."""
        total = 0
        for folder, _, names in os.walk(self.root):
            for name in names:
                with suppress(FileNotFoundError):
                    total += Path(folder, name).stat().st_size
        return total


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []
