"""Profiles on the server: rows of JSON, numbered in the order of their last change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usage_plugin.domain.profiles import ProfileStore, UserProfile, decode_profile, encode_profile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usage_plugin.postgres.server import Server


class PostgresProfileStore(ProfileStore):
    """Profiles on a server."""

    def __init__(self, server: Server) -> None:
        """Use an open connection."""
        self._server = server
        self._schema = server.schema

    def put(self, profiles: Sequence[UserProfile]) -> None:
        """Store profiles that are newer than those on the server."""
        with self._server.writing():
            for profile in profiles:
                changed = self._server.run(
                    f'INSERT INTO {self._schema}.profiles AS known ("user", number, updated_at, profile)'
                    ' VALUES (%s, %s, %s, %s) ON CONFLICT ("user") DO UPDATE SET (number, updated_at, profile) ='
                    " (excluded.number, excluded.updated_at, excluded.profile)"
                    " WHERE excluded.updated_at > known.updated_at",
                    (profile.user, self._last() + 1, profile.updated_at, encode_profile(profile)),
                )
                self._count_changes(changed.rowcount)

    def remove(self, user: str) -> bool:
        """Delete a user's row."""
        with self._server.writing():
            self._last()
            dropped = self._server.run(f'DELETE FROM {self._schema}.profiles WHERE "user" = %s', (user,)).rowcount
            self._count_changes(dropped)
        return dropped == 1

    def _last(self) -> int:
        """Return the number of the last change; others wait here until this transaction ends."""
        (last,) = self._server.one(f"SELECT number FROM {self._schema}.profile_changes FOR UPDATE")
        return int(last)

    def _count_changes(self, changes: int) -> None:
        if changes:
            self._server.run(f"UPDATE {self._schema}.profile_changes SET number = number + %s", (changes,))

    def get(self, user: str) -> UserProfile | None:
        """Read a user's row."""
        row = self._server.one(f'SELECT profile FROM {self._schema}.profiles WHERE "user" = %s', (user,))
        return decode_profile(row[0]) if row else None

    def page(self, after: str, most: int) -> list[UserProfile]:
        """Read a page of rows, by user."""
        rows = self._server.read(
            f'SELECT profile FROM {self._schema}.profiles WHERE "user" > %s ORDER BY "user" LIMIT %s', (after, most)
        )
        return [decode_profile(profile) for (profile,) in rows]

    def changes(self, after: int, most: int) -> list[tuple[int, UserProfile]]:
        """Read a page of rows, by their last change."""
        rows = self._server.read(
            f"SELECT number, profile FROM {self._schema}.profiles WHERE number > %s ORDER BY number LIMIT %s",
            (after, most),
        )
        return [(number, decode_profile(profile)) for number, profile in rows]

    def version(self) -> int:
        """Return the number of the last change."""
        (version,) = self._server.one(f"SELECT number FROM {self._schema}.profile_changes")
        return int(version)
