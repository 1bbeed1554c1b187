"""The tree of folders and files, and iteration over it without a list of all files.

{2 hex}/{user}/{YYYY-MM}/events_{YYYY-MM-DD}.jsonl    the source of truth
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
    """A user's month: the user's folder, and the first day of the month."""

    user: Path
    first: date

    @property
    def last(self) -> date:
        """The last day of the month."""
        return (self.first + timedelta(days=31)).replace(day=1) - timedelta(days=1)

    @property
    def folder(self) -> Path:
        """The folder of the days."""
        return self.user / self.first.isoformat()[:7]

    @property
    def record(self) -> Path:
        """The file of the sums."""
        return self.user / f"monthly_{self.first.isoformat()[:7]}.json"

    def day(self, day: date) -> Day:
        """Return a day of the month."""
        return Day(self, day)

    def days(self) -> list[Day]:
        """Return the days that have a file."""
        found = (_DAY.fullmatch(name) for name in _names(self.folder))
        return [Day(self, date.fromisoformat(match[1])) for match in found if match]


class Day(NamedTuple):
    """A user's day."""

    month: Month
    date: date

    @property
    def events(self) -> Path:
        """The file of the lines."""
        return self.month.folder / f"events_{self.date.isoformat()}.jsonl"

    @property
    def record(self) -> Path:
        """The file of the sums."""
        return self.month.folder / f"daily_{self.date.isoformat()}.json"


class Tree:
    """All users' folders."""

    def __init__(self, root: Path) -> None:
        """Use the root folder."""
        self.root = root

    def user(self, user: str) -> Path:
        """Return a user's folder."""
        return self.root / shelf_of(user) / folder_name(user)

    def day(self, user: str, day: date) -> Day:
        """Return a user's day."""
        return Month(self.user(user), day.replace(day=1)).day(day)

    def users(self, user: str | None = None, *, since: Path | None = None) -> Iterator[Path]:
        """Yield all users' folders, always in the same order, or the folder of one user.

        Args:
            user: The only user.
            since: The folder to start at.
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
        """Return a user's months, in order."""
        names = sorted(name for name in _names(user) if _MONTH.fullmatch(name))
        return [Month(user, date.fromisoformat(f"{name}-01")) for name in names]

    def dates(self, first: date, last: date, user: str | None = None, *, newest_first: bool = False) -> Iterator[date]:
        """Yield the days of any user from first to last, a month at a time."""
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
        """Return the total size of the files in bytes."""
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
