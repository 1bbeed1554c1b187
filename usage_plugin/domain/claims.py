"""Claims: the end user's name in a request, read so that it stays the same from request to request.

A claim is a name, or text that contains one: Claude Code sends JSON, and its older versions sent
`user_<device>_account_<account>_session_<session>`. Such agents put the session into the claim, so the whole claim
would be a new user, with unused limits, in each session. Any claim is accepted: a client must not be refused for a
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
"""Fields of a JSON claim that can name its user, in order of preference; case, `_` and `-` are ignored."""

_SESSION_FIELD = "sessionid"
_LONGEST_PARSED = 16_384
"""The maximum length of a parsed claim, in characters. Real claims have about 200. Parsing a megabyte for each request
would stall the event loop."""

_LONGEST_CLAUDE_CODE = 512
"""The maximum length of a claim of Claude Code, in characters; the pattern's time grows with the square of it."""

_DEEPEST = 3
_READABLE = 32
_REMEMBERED = 4096
_CLAUDE_CODE = re.compile(
    r"user_(?P<device_id>.+?)_account_(?P<account_uuid>.*?)_session_(?P<session_id>[\w.-]+)", re.DOTALL
)
_PAIR = re.compile(
    r"""(["'])(?P<name>[^"'\\]{1,64})\1\s{0,8}:\s{0,8}(?:(["'])(?P<text>[^"'\\]*)\3|(?P<number>-?\d{1,40}))"""
)
"""A field with a text or a whole number, in JSON or in Python's notation of a dict (older versions of LiteLLM)."""

_VOLATILE = re.compile(
    r"session|request|trace|span|conversation|thread|message|turn|nonce|time|date|version|^(?:ts|iat|exp|nbf|jti|seq)$"
)
"""Parts of the names of fields whose values change between requests or sessions."""


class Claimed(NamedTuple):
    """The parsed content of a claim.

    Attributes:
        name: of the end user; None if the claim names no user.
        session: None if the claim has none.
    """

    name: str | None
    session: str | None = None


_NOTHING = Claimed(None)


def read_claim(claim: object, *, json_field: str | None = None, casefold: bool = False) -> Claimed:
    """Return the name and session of a claim of any type.

    Args:
        claim: as sent: a text, a number, or a parsed JSON object or list.
        json_field: the only field that names the user of a JSON object, if the operator has chosen one.
        casefold: whether `Ann` and `ann` are the same name.
    """
    if claim is None:
        return _NOTHING
    if isinstance(claim, str) and len(claim) <= _LONGEST_PARSED:
        return _remembered(claim, json_field, casefold)
    return _read(claim, json_field, casefold)


def stable_name(value: object, *, what: str, casefold: bool = False) -> str | None:
    """Return a valid name: the cleaned one, or a substitute for an invalid one; None if it is empty.

    Args:
        value: the name.
        what: the kind of name, as for `clean_name`.
        casefold: whether `Ann` and `ann` are the same name.
    """
    if value is None:
        return None
    try:
        return clean_name(value, what=what, casefold=casefold)
    except SubjectNameError:
        text = spelled(value, casefold=casefold) if isinstance(value, str) else _canonical(value)
        return substitute_name(text, "renamed", casefold=casefold)


def substitute_name(text: str, prefix: str, *, casefold: bool) -> str:
    """Return a valid name for an invalid text: its readable characters, and a digest that keeps names distinct."""
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
    """Return the parsed JSON object; if it is truncated or broken, the fields that can be read."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = {pair["name"]: pair["text"] or pair["number"] for pair in _PAIR.finditer(text)}
    return found if isinstance(found, dict) else {}


def _read_object(
    fields: Mapping[Any, object], json_field: str | None, casefold: bool, text: str | None = None
) -> Claimed:
    """Return the name and session of a JSON object; `text` is its original text, if it was sent as text."""
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
            # So broken that no field can be read.
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
    """Return a user's name from the value of a field, which may be a claim itself."""
    if isinstance(value, Mapping):
        return stable_name(value, what="end user", casefold=casefold)
    return _read(value, None, casefold).name


def _session(value: object) -> str | None:
    try:
        return clean_name(value, what="session")
    except SubjectNameError:
        return None


def _by_plain_name(fields: Mapping[Any, object]) -> dict[str, object]:
    """Return the fields that are not empty, under normalized names."""
    return {_plain(name): value for name, value in fields.items() if value is not None and value != ""}


def _plain(name: object) -> str:
    return str(name).casefold().replace("_", "").replace("-", "")


_PLAIN_FIELDS = tuple(map(_plain, STABLE_FIELDS))


def _canonical(value: object) -> str:
    """Return the text of a value, independent of the order of its fields."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str, skipkeys=True)
    except (ValueError, TypeError, RecursionError):
        return repr(type(value))
