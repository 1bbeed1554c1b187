"""What becomes of the names of the previous tracker, which took anything for a user."""

from __future__ import annotations

import json

from usage_plugin.domain.claims import substitute_name
from usage_plugin.domain.subjects import clean_name
from usage_plugin.errors import SubjectNameError


def key_of(user: str) -> str:
    """Write a name so that every database takes it, and no two become one: half of a surrogate pair is no text."""
    try:
        user.encode()
    except UnicodeEncodeError:
        return f"\0{json.dumps(user)}"
    return f"\0{json.dumps(user)}" if user.startswith("\0") else user


def new_name(key: str, *, casefold: bool) -> tuple[str, bool]:
    """Give the name that a user of the previous tracker has here, and whether it had to be made up.

    A name that no request could have keeps what can be read of it, with a digest so that no two become one.
    """
    try:
        name = clean_name(key, what="user", casefold=casefold)
    except SubjectNameError:
        name = None
    if name is not None:
        return name, False
    return substitute_name(key, "imported", casefold=casefold), True


def only_name(names: list[str], what: str) -> str | None:
    """Give the one model or provider that was used; None if there were several, or it has no name that can be kept."""
    if len(names) != 1:
        return None
    try:
        return clean_name(names[0], what=what)
    except SubjectNameError:
        return None
