"""Profiles on the server: JSON by user, numbered in the order of their last change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usage_plugin.domain.profiles import ProfileStore, UserProfile, decode_profile, encode_profile
from usage_plugin.ledgers.valkey.batch import encode, text_of
from usage_plugin.ledgers.valkey.records import DIGITS, sortable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usage_plugin.ledgers.valkey.server import ValkeyServer

_SLICE = 500


class ValkeyProfileStore(ProfileStore):
    """Profiles on a server."""

    def __init__(self, server: ValkeyServer) -> None:
        """Use a connection."""
        self._server = server
        self._keys = server.record_keys

    def put(self, profiles: Sequence[UserProfile]) -> None:
        """Store profiles that are newer than those on the server, in slices."""
        rows = [encode(one.user, sortable(one.updated_at), encode_profile(one)) for one in profiles]
        for start in range(0, len(rows), _SLICE):
            self._server.write_records(b"put", *(part for row in rows[start : start + _SLICE] for part in row))

    def remove(self, user: str) -> bool:
        """Delete a user's profile."""
        return bool(self._server.write_records(*encode("remove", user)))

    def get(self, user: str) -> UserProfile | None:
        """Read a user's profile."""
        value = self._server.command("HGET", self._keys["profiles"], *encode(user))
        return None if value is None else _profile_of(value)

    def page(self, after: str, most: int) -> list[UserProfile]:
        """Read a page of profiles, by user."""
        return [_profile_of(value) for value in self._server.read_records(*encode("page", after, text_of(most)))]

    def changes(self, after: int, most: int) -> list[tuple[int, UserProfile]]:
        """Read a page of profiles, by their last change."""
        values = self._server.read_records(*encode("changes", f"{after + 1:0{DIGITS}x}", text_of(most)))
        return [(int(value[DIGITS : 2 * DIGITS], 16), _profile_of(value)) for value in values]

    def version(self) -> int:
        """Return the number of the last change."""
        return int(self._server.command("HGET", self._keys["counters"], "profiles") or 0)


def _profile_of(value: bytes) -> UserProfile:
    return decode_profile(value[2 * DIGITS :].decode())
