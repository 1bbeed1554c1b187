"""Pseudonyms: the stored substitutes for the names of keys and, if the operator wants it, of persons.

Each is an HMAC with a secret: the configured one, or the data folder's own. The same name always gives the same
pseudonym. Without the secret, a pseudonym cannot be reversed, and names cannot be tried out. Keys always get one.
`k-` begins a key's, `p-` a person's.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import re
from typing import NamedTuple

from usage_plugin.domain.subjects import RESERVED_NAMES, RealNames, Subjects

SECRET_BYTES = 32
SECRET_FORM = f"{2 * SECRET_BYTES} hexadecimal digits"
MASTER_KEY = "litellm_proxy_master_key"
"""LiteLLM's own word for the proxy's master key; stored unchanged."""

_KEY_BYTES, _PERSON_BYTES = 16, 10
_HASH = re.compile(r"[0-9a-f]{64}|hashed-jwt-[0-9a-f]{64}")
_KEY = re.compile(r"k-[a-z2-7]{26}")
_PERSON = re.compile(r"p-[a-z2-7]{16}")
NOBODY = frozenset(RESERVED_NAMES)
"""User names that do not belong to a person."""
_REMEMBERED = 4096


def parse_secret(text: str) -> bytes | None:
    """Return the secret that a text spells; None if it is not `SECRET_FORM`."""
    text = text.strip()
    return bytes.fromhex(text) if re.fullmatch(rf"[0-9a-fA-F]{{{2 * SECRET_BYTES}}}", text) else None


def is_key_hash(name: str) -> bool:
    """Whether a name is LiteLLM's hash of a key, or its word for the master key."""
    return name == MASTER_KEY or _HASH.fullmatch(name) is not None


def is_key_pseudonym(name: str) -> bool:
    """Whether a name is the pseudonym of a key."""
    return _KEY.fullmatch(name) is not None


def is_key(name: str) -> bool:
    """Whether a name identifies one key: LiteLLM's hash of it, or its pseudonym. All other names are aliases."""
    return is_key_hash(name) or is_key_pseudonym(name)


def is_pseudonym(name: str) -> bool:
    """Whether a name is already a person's pseudonym."""
    return _PERSON.fullmatch(name) is not None


def key_name(key: str) -> str:
    """Return the user name for a key without an alias."""
    return f"key-{key.removeprefix('k-')[:16]}"


class _Kept(NamedTuple):
    """The stored forms of those names of a request that have pseudonyms."""

    user: str
    key: str | None
    alias: str | None
    end_user: str | None
    real: RealNames | None


class Pseudonyms:
    """Derive pseudonyms. The last few thousand are cached, since each request needs some.

    Attributes:
        hides_persons: whether persons also get one.
        fingerprint: distinguishes secrets without revealing them.
    """

    def __init__(self, secret: bytes, *, hides_persons: bool) -> None:
        """Use a secret of `SECRET_BYTES` bytes."""
        self._secret = secret
        self.hides_persons = hides_persons
        self.fingerprint = self._digest("fingerprint", "", _PERSON_BYTES)
        self._names = functools.lru_cache(_REMEMBERED)(self._work_out)
        self._key = functools.lru_cache(_REMEMBERED)(lambda name: "k-" + self._digest("key", name, _KEY_BYTES))
        self._person = functools.lru_cache(_REMEMBERED)(lambda name: "p-" + self._digest("person", name, _PERSON_BYTES))

    def _digest(self, what: str, name: str, length: int) -> str:
        """Return the truncated HMAC-SHA256 in base 32; `what` keeps the pseudonyms of keys and persons apart."""
        digest = hmac.digest(self._secret, f"{what}\0{name}".encode(), hashlib.sha256)
        return base64.b32encode(digest[:length]).decode().rstrip("=").lower()

    def of_key(self, name: str) -> str:
        """Return the pseudonym of a key, from the key itself or LiteLLM's hash of it; other names stay unchanged."""
        if name.startswith("sk-"):
            name = hashlib.sha256(name.encode()).hexdigest()
        return self._key(name) if is_key_hash(name) and name != MASTER_KEY else name

    def of_person(self, name: str) -> str:
        """Return a person's pseudonym; reserved names and pseudonyms stay unchanged."""
        return name if name in NOBODY or is_pseudonym(name) else self._person(name)

    def kept(self, person: str) -> str:
        """Return the stored name of a person."""
        return self.of_person(person) if self.hides_persons else person

    def kept_of(self, dimension: str, name: str) -> str:
        """Return the stored form of a name of a dimension."""
        if dimension == "api_key":
            return self.of_key(name)
        return self.kept(name) if dimension in ("user", "end_user") else name

    def keep(self, subjects: Subjects) -> Subjects:
        """Return a request's subjects with their stored names; the real names are added for matching, never written."""
        user, team, key, alias, end_user, organization, session, tags, agent, _ = subjects
        user, key, alias, end_user, real = self._names(user, key, alias, end_user)
        return Subjects(user, team, key, alias, end_user, organization, session, tags, agent, real)

    def _work_out(self, user: str, key: str | None, alias: str | None, end_user: str | None) -> _Kept:
        if key is not None:
            kept = self.of_key(key)
            user = key_name(kept) if user == key_name(key) else user
            key = kept
        if not self.hides_persons:
            return _Kept(user, key, alias, end_user, None)
        # Any client may claim a name that looks like a pseudonym: it must not lead to the person with that pseudonym.
        hide = self._person
        return _Kept(
            user=user if user in NOBODY else hide(user),
            key=key,
            # The alias is hidden, because a key without a user gives its alias to the user.
            alias=None if alias is None else hide(alias),
            end_user=None if end_user is None else hide(end_user),
            real=RealNames(user, end_user, alias),
        )
