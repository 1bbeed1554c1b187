"""Pseudonyms: what is kept in place of the names of keys and, where the operator wants it, of persons.

Each is an HMAC with the data folder's own secret: the same name always gives the same pseudonym, and nobody can go back
from one to the name, or try names out, without the secret. Keys always get one. `k-` begins a key's, `p-` a person's.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import re
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.subjects import RESERVED_NAMES, RealNames, Subjects

if TYPE_CHECKING:
    from usage_plugin.domain.limits import LimitSet

SECRET_BYTES = 32
MASTER_KEY = "litellm_proxy_master_key"
"""LiteLLM's own word for the proxy's master key; kept as it is."""

_KEY_BYTES, _PERSON_BYTES = 16, 10
_HASH = re.compile(r"[0-9a-f]{64}|hashed-jwt-[0-9a-f]{64}")
_KEY = re.compile(r"k-[a-z2-7]{26}")
_PERSON = re.compile(r"p-[a-z2-7]{16}")
NOBODY = frozenset(RESERVED_NAMES)
"""Names of users that are no person's."""
_REMEMBERED = 4096


def is_key_hash(name: str) -> bool:
    """Say whether this is how LiteLLM writes the hash of a key, or names the master key."""
    return name == MASTER_KEY or _HASH.fullmatch(name) is not None


def is_key_pseudonym(name: str) -> bool:
    """Say whether this is what is kept of a key."""
    return _KEY.fullmatch(name) is not None


def is_key(name: str) -> bool:
    """Say whether this stands for one key: LiteLLM's hash of it, or what is kept. Anything else is an alias."""
    return is_key_hash(name) or is_key_pseudonym(name)


def is_pseudonym(name: str) -> bool:
    """Say whether this is a person's pseudonym already."""
    return _PERSON.fullmatch(name) is not None


def key_name(key: str) -> str:
    """Name a user after a key that has no alias."""
    return f"key-{key.removeprefix('k-')[:16]}"


class _Kept(NamedTuple):
    """What is kept of those names of a request that have pseudonyms."""

    user: str
    key: str | None
    alias: str | None
    end_user: str | None
    real: RealNames | None


class Pseudonyms:
    """Makes pseudonyms; remembers the last few thousand, since it is asked with each request.

    Attributes:
        hides_persons: whether persons get one, too.
        fingerprint: tells two secrets apart, and says nothing of either.
    """

    def __init__(self, secret: bytes, *, hides_persons: bool) -> None:
        """Take the secret of the data folder."""
        self._secret = secret
        self.hides_persons = hides_persons
        self.fingerprint = self._digest("fingerprint", "", _PERSON_BYTES)
        self._names = functools.lru_cache(_REMEMBERED)(self._work_out)
        self._key = functools.lru_cache(_REMEMBERED)(lambda name: "k-" + self._digest("key", name, _KEY_BYTES))
        self._person = functools.lru_cache(_REMEMBERED)(lambda name: "p-" + self._digest("person", name, _PERSON_BYTES))

    def _digest(self, what: str, name: str, length: int) -> str:
        """Make the readable beginning of an HMAC-SHA256; `what` keeps a key from being taken for a person."""
        digest = hmac.digest(self._secret, f"{what}\0{name}".encode(), hashlib.sha256)
        return base64.b32encode(digest[:length]).decode().rstrip("=").lower()

    def of_key(self, name: str) -> str:
        """Give what is kept of a key, by itself or by LiteLLM's hash of it; anything else stays what it is."""
        if name.startswith("sk-"):
            name = hashlib.sha256(name.encode()).hexdigest()
        return self._key(name) if is_key_hash(name) and name != MASTER_KEY else name

    def of_person(self, name: str) -> str:
        """Give a person's pseudonym; nobody in particular, and a pseudonym, stay what they are."""
        return name if name in NOBODY or is_pseudonym(name) else self._person(name)

    def kept(self, person: str) -> str:
        """Give the name under which a person is kept."""
        return self.of_person(person) if self.hides_persons else person

    def kept_of(self, dimension: str, name: str) -> str:
        """Give the name under which somebody or something of a dimension is kept."""
        if dimension == "api_key":
            return self.of_key(name)
        return self.kept(name) if dimension in ("user", "end_user") else name

    def keep(self, subjects: Subjects) -> Subjects:
        """Put in a request's subjects what is kept of them; the real names go along, to be matched and not written."""
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
        # A name of this shape may be claimed by anybody: it must not lead to the person who has it as a pseudonym.
        hide = self._person
        return _Kept(
            user=user if user in NOBODY else hide(user),
            key=key,
            # A key without a user lends its alias to the user.
            alias=None if alias is None else hide(alias),
            end_user=None if end_user is None else hide(end_user),
            real=RealNames(user, end_user, alias),
        )

    def applied_to(self, limits: LimitSet) -> LimitSet:
        """Teach limits the pseudonyms of all whom the YAML writes out; from those whom globs fit there is no way."""
        written = {self.of_key(name): name for name in limits.named("api_key") if is_key(name)}
        if self.hides_persons:
            names = {name for key in ("user", "end_user", "api_key") for name in limits.named(key)}
            written |= {self.of_person(name): name for name in names if not is_key(name)}
        return limits.knowing(written, hides_persons=self.hides_persons)
