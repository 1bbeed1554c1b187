"""User profiles and their port: facts about a user other than their spend. None of them decides about a request."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
"""Write what a program put into a profile; a ValueError or a TypeError says that it is no JSON."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class UserProfile(NamedTuple):
    """A user's profile.

    Attributes:
        user: the name that events and limits use.
        tier: any word, for example `free`, `premium` or `enterprise`.
        preferences: JSON, as `metadata`; nothing in it is read by us.
        created_at: microseconds since 1970 UTC, as `updated_at`.
    """

    user: str
    username: str | None = None
    email: str | None = None
    tier: str = "free"
    is_active: bool = True
    preferences: Mapping[str, Any] = _NOTHING
    metadata: Mapping[str, Any] = _NOTHING
    created_at: int = 0
    updated_at: int = 0

    def changed(self, at: int, **fields: Any) -> UserProfile:
        """Make the same with other fields, newer than this one also where this one's time was ahead of the clock."""
        return self._replace(**fields, updated_at=max(at, self.updated_at + 1))


def encode_profile(profile: UserProfile) -> str:
    """Write a profile as one line of JSON."""
    record = profile._asdict()
    return encode_json(record | {name: dict(record[name]) for name in ("preferences", "metadata")})


def decode_profile(text: str) -> UserProfile:
    """Read what `encode_profile` wrote; fields of a newer version are passed over."""
    return UserProfile(**{name: value for name, value in json.loads(text).items() if name in UserProfile._fields})


class ProfileStore(ABC):
    """Profiles by user. Errors are the ledger's."""

    @abstractmethod
    def put(self, profiles: Sequence[UserProfile]) -> None:
        """Keep profiles; one that is not newer (`updated_at`) than its user's present one changes nothing."""

    @abstractmethod
    def remove(self, user: str) -> bool:
        """Delete a user's profile. False: there is none."""

    @abstractmethod
    def get(self, user: str) -> UserProfile | None:
        """Return a user's profile."""

    @abstractmethod
    def page(self, after: str, most: int) -> list[UserProfile]:
        """List profiles by user, those after a name; "" begins."""

    @abstractmethod
    def changes(self, after: int, most: int) -> list[tuple[int, UserProfile]]:
        """List profiles in the order of their last change, each with its number, above `after`."""

    @abstractmethod
    def version(self) -> int:
        """Return a number that grows with each profile put or removed; cheap enough for once a second."""
