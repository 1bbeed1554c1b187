"""Validation of user profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from usage_plugin.api.validation import reject_unknown
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
    """Return the fields as a dict.

    Raises:
        UsagePluginError: a field is unknown, or its value has the wrong type.
    """
    checked: dict[str, Any] = dict(fields)
    reject_unknown(checked, ProfileFields.__annotations__)
    for name, value in checked.items():
        if name in _TEXTS:
            fits, expected = isinstance(value, _TEXTS[name]), "a text" if name == "tier" else "a text or None"
        elif name == "is_active":
            fits, expected = isinstance(value, bool), "True or False"
        else:
            fits, expected = _is_json_object(value), "a dict that JSON can represent"
        if not fits:
            raise UsagePluginError(f"{name}: expected {expected}; found {value!r}.")
    return checked


def _is_json_object(value: Any) -> bool:
    try:
        return isinstance(value, dict) and bool(encode_json(value))
    except (TypeError, ValueError):
        return False
