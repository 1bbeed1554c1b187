"""The profiles in the ledger's file: rows of JSON, numbered in the order of their last change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usage_plugin.domain.profiles import UserProfile, decode_profile, encode_profile
from usage_plugin.ledgers.sqlite.file import LedgerFile, translated

if TYPE_CHECKING:
    from collections.abc import Sequence


class Profiles(LedgerFile):
    """The verbs of profiles."""

    def put_profiles(self, profiles: Sequence[UserProfile]) -> None:
        """Keep what is newer than what is there."""
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

    def drop_profile(self, user: str) -> bool:
        """Delete a user's row."""
        with self._writing():
            dropped = self._execute("DELETE FROM profiles WHERE user = ?", (user,)).rowcount
            self._count_changes(dropped)
            return dropped == 1

    def _count_changes(self, changes: int) -> None:
        self._execute("UPDATE profile_changes SET number = number + ?", (changes,))

    def profile(self, user: str) -> UserProfile | None:
        """Read a user's row."""
        with translated(self._path):
            row = self._execute("SELECT profile FROM profiles WHERE user = ?", (user,)).fetchone()
            return decode_profile(row[0]) if row else None

    def profiles(self, after: str, most: int) -> list[UserProfile]:
        """Read a page of rows, by user."""
        with translated(self._path):
            rows = self._execute("SELECT profile FROM profiles WHERE user > ? ORDER BY user LIMIT ?", (after, most))
            return [decode_profile(profile) for (profile,) in rows]

    def changed_profiles(self, after: int, most: int) -> list[tuple[int, UserProfile]]:
        """Read a page of rows, by their last change."""
        with translated(self._path):
            rows = self._execute(
                "SELECT number, profile FROM profiles WHERE number > ? ORDER BY number LIMIT ?", (after, most)
            )
            return [(number, decode_profile(profile)) for number, profile in rows]

    def profiles_version(self) -> int:
        """Give the number of the last change."""
        with translated(self._path):
            (version,) = self._execute("SELECT number FROM profile_changes").fetchone()
            return int(version)
