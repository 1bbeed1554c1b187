"""Subjects: the parties to which a request is attributed, and by which limits and reports count.

Names come from keys, headers and bodies, so they are untrusted: `clean_name` validates all of them.
"""

from __future__ import annotations

import json
import unicodedata
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

from usage_plugin.errors import SubjectNameError

Dimension = Literal[
    "user", "team", "api_key", "end_user", "organization", "session", "model", "provider", "tag", "global"
]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
OWN_DIMENSIONS: frozenset[Dimension] = frozenset({"user", "api_key", "session"})
"""The caller's own dimensions: only limits on these show amounts to the caller."""

ANONYMOUS = "(anonymous)"
"""The common subject of all requests without a user."""

INTERNAL = "(internal)"
"""The subject of the proxy's own requests, for example health checks."""

FORGOTTEN = "(forgotten)"
"""The common subject of all forgotten users; it has their sums."""

RESERVED_NAMES = (ANONYMOUS, INTERNAL, FORGOTTEN)

LONGEST_NAME = 256
MOST_TAGS = 16
SEPARATOR = "\x1f"
"""The separator of the names in a subject with several dimensions; no name can contain it."""


class RealNames(NamedTuple):
    """The real names of persons that are stored under pseudonyms: for matching by the YAML, never written."""

    user: str
    end_user: str | None
    api_key_alias: str | None


class Subjects(NamedTuple):
    """The parties to which a request is attributed, before a model is chosen; None if a dimension is absent.

    Attributes:
        user: the resolved person.
        end_user: the raw claim of the request, independent of the user.
        api_key: the key's pseudonym: never the key, nor a value that can be derived from it without our secret.
        tags: at most 16.
        agent: the client's agent that sent it, for example a subagent of Claude Code; no limit counts by it.
        real: None if persons are stored under their real names.
    """

    user: str = ANONYMOUS
    team: str | None = None
    api_key: str | None = None
    api_key_alias: str | None = None
    end_user: str | None = None
    organization: str | None = None
    session: str | None = None
    tags: tuple[str, ...] = ()
    agent: str | None = None
    real: RealNames | None = None

    @property
    def called(self) -> str:
        """The user's real name."""
        return self.user if self.real is None else self.real.user

    def kept(self) -> dict[str, Any]:
        """Return the fields that may be written: those that an event also has."""
        return dict(zip(_KEPT_FIELDS, self, strict=False))


def split_subject(subject: str) -> list[str]:
    """Return the names of an account's subject, one for each dimension of its limit; the name of `global` is empty."""
    return subject.split(SEPARATOR)


_KEPT_FIELDS = tuple(name for name in Subjects._fields if name != "real")  # which is the last one


def _is_json(name: str) -> bool:
    """Whether a name is a serialized object, even a truncated one, or a list; names may begin with a square bracket."""
    if name[0] == "{":
        return True
    try:
        return name[0] == "[" and isinstance(json.loads(name), list)
    except (ValueError, RecursionError):
        return False


def spelled(name: str, *, casefold: bool) -> str:
    """Return the normalized spelling of a name, in which it is stored."""
    name = name.strip()
    return unicodedata.normalize("NFC", name.casefold() if casefold else name).strip()


def clean_name(value: object, *, what: str, casefold: bool = False) -> str | None:
    """Validate and normalize a name that was sent; return None if it is empty.

    Args:
        value: the value as sent.
        what: the kind of name, for the error: `user`, `team` …
        casefold: whether `Ann` and `ann` are the same name.

    Raises:
        SubjectNameError: not text, too long, unprintable, reserved, or shaped like JSON.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise SubjectNameError(f"The {what} must be text, not {type(value).__name__}.")
    # The same few names recur in all requests. Longer ones are nearly always invalid, and not worth caching.
    return _cleaned(value, what, casefold) if len(value) > LONGEST_NAME else _remembered(value, what, casefold)


def _cleaned(value: str, what: str, casefold: bool) -> str | None:
    name = spelled(value, casefold=casefold)
    if not name:
        return None
    if len(name) > LONGEST_NAME:
        raise SubjectNameError(f"The {what} has {len(name)} characters; {LONGEST_NAME} are allowed.")
    if not name.isprintable():
        raise SubjectNameError(f"The {what} {name!r} has unprintable characters.")
    if name in RESERVED_NAMES:
        raise SubjectNameError(f"{name!r} is a reserved name; the {what} must have another one.")
    if _is_json(name):
        raise SubjectNameError(
            f"The {what} is JSON, which no limit can be set for: {name[:60]!r}.",
            hint="The operator can name the field to take with identity.json_field.",
        )
    return name


_remembered = lru_cache(maxsize=4096)(_cleaned)
