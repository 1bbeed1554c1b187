"""User profiles and their port: facts about a user other than their spend. No decision about a request reads them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
"""Return a program's profile data as JSON; it raises ValueError or TypeError if the data is not valid JSON."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class UserProfile(NamedTuple):
    """A user's profile.

    Attributes:
        user: the name that events and limits use.
        tier: any word, for example `free`, `premium` or `enterprise`.
        preferences: JSON, as `metadata`; this package reads nothing in it.
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
        """Return a changed copy that is newer, even if this profile's time is ahead of the clock."""
        return self._replace(**fields, updated_at=max(at, self.updated_at + 1))


def encode_profile(profile: UserProfile) -> str:
    """Return a profile as one line of JSON."""
    record = profile._asdict()
    return encode_json(record | {name: dict(record[name]) for name in ("preferences", "metadata")})


def decode_profile(text: str) -> UserProfile:
    """Return the profile that `encode_profile` wrote; fields of a newer version are ignored."""
    return UserProfile(**{name: value for name, value in json.loads(text).items() if name in UserProfile._fields})


class ProfileStore(ABC):
    """Profiles by user. Errors are the ledger's."""

    @abstractmethod
    def put(self, profiles: Sequence[UserProfile]) -> None:
        """Store profiles; a profile that is not newer (`updated_at`) than its user's current one is ignored."""

    @abstractmethod
    def remove(self, user: str) -> bool:
        """Delete a user's profile. False: the user has none."""

    @abstractmethod
    def get(self, user: str) -> UserProfile | None:
        """Return a user's profile; None if there is none."""

    @abstractmethod
    def page(self, after: str, most: int) -> list[UserProfile]:
        """Return at most `most` profiles, ordered by user, after a name; "" starts from the first."""

    @abstractmethod
    def changes(self, after: int, most: int) -> list[tuple[int, UserProfile]]:
        """Return at most `most` profiles with a change number above `after`, ordered by their last change."""

    @abstractmethod
    def version(self) -> int:
        """Return a number that grows with each profile put or removed; cheap enough to call once a second."""
