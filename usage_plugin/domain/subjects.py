"""Subjects: whom a request belongs to, and so for whom limits and reports count.

Names come from keys, headers and bodies, so they are hostile: `clean_name` is the only door.
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
"""Dimensions that are the caller's own: only their limits show amounts to the caller."""

ANONYMOUS = "(anonymous)"
"""The subject that everybody shares whom nothing names."""

INTERNAL = "(internal)"
"""The subject of what the proxy asks of its own accord, for example health checks."""

FORGOTTEN = "(forgotten)"
"""The subject that has the sums of everybody who was forgotten."""

RESERVED_NAMES = (ANONYMOUS, INTERNAL, FORGOTTEN)

LONGEST_NAME = 256
MOST_TAGS = 16
SEPARATOR = "\x1f"
"""Joins the names of a subject with several dimensions; no name can contain it."""


class RealNames(NamedTuple):
    """How those are really called who are kept under pseudonyms: for the YAML to match, and written nowhere."""

    user: str
    end_user: str | None
    api_key_alias: str | None


class Subjects(NamedTuple):
    """Everybody a request belongs to, before a model is chosen. None: nobody of that kind.

    Attributes:
        user: the resolved person.
        end_user: the raw claim of the request, whoever the user is.
        api_key: what is kept of the key: never the key, nor what could be made of it without our secret.
        tags: at most 16.
        agent: which agent of the client sent it, for example a subagent of Claude Code; no limit counts by it.
        real: None where persons are kept under the names they have.
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
        """The name by which the user knows themselves."""
        return self.user if self.real is None else self.real.user

    def kept(self) -> dict[str, Any]:
        """Give what may be written down: the fields that an event has, too."""
        return dict(zip(_KEPT_FIELDS, self, strict=False))


_KEPT_FIELDS = tuple(name for name in Subjects._fields if name != "real")  # which is the last one


def _is_json(name: str) -> bool:
    """Tell a serialised object or list, also one that was cut off, from a name that begins with a bracket."""
    if name[0] == "{":
        return True
    try:
        return name[0] == "[" and isinstance(json.loads(name), list)
    except (ValueError, RecursionError):
        return False


def spelled(name: str, *, casefold: bool) -> str:
    """Spell a name as it is kept."""
    name = name.strip()
    return unicodedata.normalize("NFC", name.casefold() if casefold else name).strip()


def clean_name(value: object, *, what: str, casefold: bool = False) -> str | None:
    """Turn a name as it was sent into one that can be kept; None if it names nobody.

    Args:
        value: what was sent.
        what: what it names, for the error: `user`, `team` …
        casefold: whether `Ann` and `ann` are one.

    Raises:
        SubjectNameError: not text, too long, unprintable, or shaped like JSON.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise SubjectNameError(f"The {what} must be text, not {type(value).__name__}.")
    # The same few come with every request; what is longer is nearly always refused, and not worth remembering.
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
        raise SubjectNameError(f"The {what} cannot be {name}: that is who nobody is.")
    if _is_json(name):
        raise SubjectNameError(
            f"The {what} is JSON, which no limit can be set for: {name[:60]!r}.",
            hint="The operator can name the field to take with identity.json_field.",
        )
    return name


_remembered = lru_cache(maxsize=4096)(_cleaned)
