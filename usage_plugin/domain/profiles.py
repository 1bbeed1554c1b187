"""Profiles: what is known of a user beside what they spend. Nothing here decides whether a request is admitted."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

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
