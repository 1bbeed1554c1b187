"""Profiles in the ledger's file: rows of JSON, numbered in the order of their last change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usage_plugin.domain.profiles import ProfileStore, UserProfile, decode_profile, encode_profile
from usage_plugin.ledgers.sqlite.file import translated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usage_plugin.ledgers.sqlite.file import LedgerFile


class SqliteProfileStore(ProfileStore):
    """Profiles in an open file."""

    def __init__(self, file: LedgerFile) -> None:
        """Use an open file."""
        self._path, self._execute, self._writing = file.path, file.execute, file.writing

    def put(self, profiles: Sequence[UserProfile]) -> None:
        """Store profiles that are newer than those in the file."""
        rows = [(profile.user, profile.updated_at, encode_profile(profile)) for profile in profiles]
        with self._writing():
            for row in rows:
                changed = self._execute(
                    "INSERT INTO profiles (number, user, updated_at, profile)"
                    " SELECT number + 1, ?, ?, ? FROM profile_changes WHERE true"
                    " ON CONFLICT (user) DO UPDATE SET (number, updated_at, profile) ="
                    " (excluded.number, excluded.updated_at, excluded.profile)"
                    " WHERE excluded.updated_at > updated_at",
                    row,
                )
                self._count_changes(changed.rowcount)

    def remove(self, user: str) -> bool:
        """Delete a user's row."""
        with self._writing():
            dropped = self._execute("DELETE FROM profiles WHERE user = ?", (user,)).rowcount
            self._count_changes(dropped)
            return dropped == 1

    def _count_changes(self, changes: int) -> None:
        self._execute("UPDATE profile_changes SET number = number + ?", (changes,))

    def get(self, user: str) -> UserProfile | None:
        """Read a user's row."""
        with translated(self._path):
            row = self._execute("SELECT profile FROM profiles WHERE user = ?", (user,)).fetchone()
            return decode_profile(row[0]) if row else None

    def page(self, after: str, most: int) -> list[UserProfile]:
        """Read a page of rows, by user."""
        with translated(self._path):
            rows = self._execute("SELECT profile FROM profiles WHERE user > ? ORDER BY user LIMIT ?", (after, most))
            return [decode_profile(profile) for (profile,) in rows]

    def changes(self, after: int, most: int) -> list[tuple[int, UserProfile]]:
        """Read a page of rows, by their last change."""
        with translated(self._path):
            rows = self._execute(
                "SELECT number, profile FROM profiles WHERE number > ? ORDER BY number LIMIT ?", (after, most)
            )
            return [(number, decode_profile(profile)) for number, profile in rows]

    def version(self) -> int:
        """Return the number of the last change."""
        with translated(self._path):
            (version,) = self._execute("SELECT number FROM profile_changes").fetchone()
            return int(version)
