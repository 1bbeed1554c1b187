"""Profiles: what a program may say of a user, checked before it is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from usage_plugin.domain.profiles import encode_json
from usage_plugin.errors import UsagePluginError

if TYPE_CHECKING:
    from collections.abc import Mapping


class ProfileFields(TypedDict, total=False):
    """The fields of `UserProfile` that a program may set."""

    username: str | None
    email: str | None
    tier: str
    is_active: bool
    preferences: Mapping[str, Any]
    metadata: Mapping[str, Any]


_TEXTS = {"username": (str, type(None)), "email": (str, type(None)), "tier": (str,)}


def checked_fields(fields: ProfileFields) -> dict[str, Any]:
    """Give the fields as a dict.

    Raises:
        UsagePluginError: there is no such field, or one is not what it must be.
    """
    checked: dict[str, Any] = dict(fields)
    for name, value in checked.items():
        if name not in ProfileFields.__annotations__:
            raise UsagePluginError(f"There is no {name}; there are {', '.join(ProfileFields.__annotations__)}.")
        if name in _TEXTS:
            fits = isinstance(value, _TEXTS[name])
        elif name == "is_active":
            fits = isinstance(value, bool)
        else:
            fits = _is_json_object(value)
        if not fits:
            raise UsagePluginError(f"{name}: found {value!r}, which cannot be kept there.")
    return checked


def _is_json_object(value: Any) -> bool:
    try:
        return isinstance(value, dict) and bool(encode_json(value))
    except (TypeError, ValueError):
        return False
