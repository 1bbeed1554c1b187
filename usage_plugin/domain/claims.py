"""Claims: what a request says about its end user, read as a name that stays the same from request to request.

A claim is a name, or text that holds one: Claude Code sends JSON, and older versions of it
`user_<device>_account_<account>_session_<session>`. Agents of that kind put the session into the claim, so the claim as
a whole would be a new user, with fresh limits, in each session. No claim is an error: a client cannot be refused for a
field that its vendor chose. A claim without a usable name gets a substitute, which is the same for the same claim.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from usage_plugin.domain.subjects import RESERVED_NAMES, clean_name, spelled
from usage_plugin.errors import SubjectNameError

STABLE_FIELDS = (
    "account_uuid", "user_id", "id", "email", "sub", "username", "user", "name", "account_id", "account", "device_id",
)  # fmt: skip
"""Fields of a JSON claim that can name its user, the first choice first; case, `_` and `-` make no difference."""

_SESSION_FIELD = "sessionid"
_LONGEST_PARSED = 16_384
"""Characters. Real claims have some 200; parsing a megabyte on each request would stall the event loop."""

_LONGEST_CLAUDE_CODE = 512
"""Characters; the pattern takes time by the square of the length."""

_DEEPEST = 3
_READABLE = 32
_REMEMBERED = 4096
_CLAUDE_CODE = re.compile(
    r"user_(?P<device_id>.+?)_account_(?P<account_uuid>.*?)_session_(?P<session_id>[\w.-]+)", re.DOTALL
)
_PAIR = re.compile(
    r"""(["'])(?P<name>[^"'\\]{1,64})\1\s{0,8}:\s{0,8}(?:(["'])(?P<text>[^"'\\]*)\3|(?P<number>-?\d{1,40}))"""
)
"""A field with a text or a whole number, in JSON or as Python writes a dict: older versions of LiteLLM do so."""

_VOLATILE = re.compile(
    r"session|request|trace|span|conversation|thread|message|turn|nonce|time|date|version|^(?:ts|iat|exp|nbf|jti|seq)$"
)
"""Parts of the names of fields whose value changes from one request or session to the next."""


class Claimed(NamedTuple):
    """What a claim says.

    Attributes:
        name: of the end user; None if the claim names no user.
        session: None if the claim has none.
    """

    name: str | None
    session: str | None = None


_NOTHING = Claimed(None)


def read_claim(claim: object, *, json_field: str | None = None, casefold: bool = False) -> Claimed:
    """Read a claim of any type.

    Args:
        claim: as it was sent: a text, a number, or what JSON makes of an object or a list.
        json_field: the only field that names the user of a JSON object, if the operator has chosen one.
        casefold: whether `Ann` and `ann` are one.
    """
    if claim is None:
        return _NOTHING
    if isinstance(claim, str) and len(claim) <= _LONGEST_PARSED:
        return _remembered(claim, json_field, casefold)
    return _read(claim, json_field, casefold)


def stable_name(value: object, *, what: str, casefold: bool = False) -> str | None:
    """Clean a name, or give the substitute of one that is not valid; None if it is empty.

    Args:
        value: the name.
        what: what it names, as for `clean_name`.
        casefold: whether `Ann` and `ann` are one.
    """
    if value is None:
        return None
    try:
        return clean_name(value, what=what, casefold=casefold)
    except SubjectNameError:
        text = spelled(value, casefold=casefold) if isinstance(value, str) else _canonical(value)
        return substitute_name(text, "renamed", casefold=casefold)


def substitute_name(text: str, prefix: str, *, casefold: bool) -> str:
    """Make a valid name for a text that is none: what can be read of it, and a digest so that no two become one."""
    readable = re.sub(r"[^A-Za-z0-9._@-]+", "-", text)[:_READABLE].strip("-")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    made = "-".join(part for part in (prefix, readable, digest) if part)
    return made.casefold() if casefold else made


def _read(claim: object, json_field: str | None, casefold: bool) -> Claimed:
    if isinstance(claim, str):
        return _read_text(claim, json_field, casefold)
    if isinstance(claim, Mapping):
        return _read_object(claim, json_field, casefold)
    if claim is None or isinstance(claim, bool) or claim == []:
        return _NOTHING
    if isinstance(claim, int | float):
        claim = str(claim)
    return Claimed(stable_name(claim, what="end user", casefold=casefold))


_remembered = lru_cache(_REMEMBERED)(_read)


def _read_text(claim: str, json_field: str | None, casefold: bool) -> Claimed:
    text = claim.strip()
    if text in RESERVED_NAMES:
        return _NOTHING
    if text.startswith("user_") and len(text) <= _LONGEST_CLAUDE_CODE and (found := _CLAUDE_CODE.fullmatch(text)):
        return _read_object(found.groupdict(), None, casefold)
    if text[:1] == "{" and len(text) <= _LONGEST_PARSED:
        return _read_object(_object_of(text), json_field, casefold, text)
    return Claimed(stable_name(claim, what="end user", casefold=casefold))


def _object_of(text: str) -> Mapping[str, object]:
    """Parse an object; of one that is cut off or broken, take the fields that can be read."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = {pair["name"]: pair["text"] or pair["number"] for pair in _PAIR.finditer(text)}
    return found if isinstance(found, dict) else {}


def _read_object(
    fields: Mapping[Any, object], json_field: str | None, casefold: bool, text: str | None = None
) -> Claimed:
    """Read a JSON object; `text` is how it was sent, if it was sent as text."""
    by_name = _by_plain_name(fields)
    session = _session(by_name.get(_SESSION_FIELD))
    if json_field:
        return Claimed(_value_name(fields.get(json_field), casefold), session)
    name = _stable_field(by_name, casefold)
    if name is None:
        kept = {key: value for key, value in by_name.items() if not _VOLATILE.search(key)}
        if kept:
            name = substitute_name(_canonical(kept), "renamed", casefold=casefold)
        elif not by_name and text is not None and text.strip("{} \t\r\n"):
            # Broken in a way that leaves no field.
            name = substitute_name(spelled(text, casefold=casefold), "renamed", casefold=casefold)
    return Claimed(name, session)


def _stable_field(by_name: Mapping[str, object], casefold: bool, depth: int = 1) -> str | None:
    for field in _PLAIN_FIELDS:
        value = by_name.get(field)
        if isinstance(value, Mapping) and depth < _DEEPEST:
            name = _stable_field(_by_plain_name(value), casefold, depth + 1)
        elif isinstance(value, str | int | float):
            name = _value_name(value, casefold)
        else:
            name = None
        if name is not None:
            return name
    return None


def _value_name(value: object, casefold: bool) -> str | None:
    """Name a user by the value of a field, which may be a claim itself."""
    if isinstance(value, Mapping):
        return stable_name(value, what="end user", casefold=casefold)
    return _read(value, None, casefold).name


def _session(value: object) -> str | None:
    try:
        return clean_name(value, what="session")
    except SubjectNameError:
        return None


def _by_plain_name(fields: Mapping[Any, object]) -> dict[str, object]:
    """Name the fields that say something in one spelling."""
    return {_plain(name): value for name, value in fields.items() if value is not None and value != ""}


def _plain(name: object) -> str:
    return str(name).casefold().replace("_", "").replace("-", "")


_PLAIN_FIELDS = tuple(map(_plain, STABLE_FIELDS))


def _canonical(value: object) -> str:
    """Write a value so that the order of its fields makes no difference."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str, skipkeys=True)
    except (ValueError, TypeError, RecursionError):
        return repr(type(value))
