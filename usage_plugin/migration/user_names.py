"""Convert the user names of the previous tracker, which accepted any value as a user."""

from __future__ import annotations

import json

from usage_plugin.domain.claims import substitute_name
from usage_plugin.domain.subjects import clean_name
from usage_plugin.errors import SubjectNameError


def key_of(user: str) -> str:
    """Return a unique form of a name that every database accepts: half of a surrogate pair is not valid text."""
    try:
        user.encode()
    except UnicodeEncodeError:
        return f"\0{json.dumps(user)}"
    return f"\0{json.dumps(user)}" if user.startswith("\0") else user


def new_name(key: str, *, casefold: bool) -> tuple[str, bool]:
    """Return the name of a user of the previous tracker in this system, and whether it is a substitute.

    A substitute for a name that no request could have keeps its readable part, with a digest that makes it unique.
    """
    try:
        name = clean_name(key, what="user", casefold=casefold)
    except SubjectNameError:
        name = None
    if name is not None:
        return name, False
    return substitute_name(key, "imported", casefold=casefold), True


def only_name(names: list[str], what: str) -> str | None:
    """Return the only model or provider in use; None if there are several, or if its name is invalid."""
    if len(names) != 1:
        return None
    try:
        return clean_name(names[0], what=what)
    except SubjectNameError:
        return None
