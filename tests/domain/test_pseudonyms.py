"""Pseudonyms, and limits that match real names while only pseudonyms are stored."""

from __future__ import annotations

import hashlib
import hmac
import re
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_plugin.domain.limit_set import LimitSet
from usage_plugin.domain.limits import Limit, Match, Override
from usage_plugin.domain.pseudonyms import MASTER_KEY, Pseudonyms, key_name
from usage_plugin.domain.subjects import ANONYMOUS, FORGOTTEN, INTERNAL, Subjects
from usage_plugin.domain.windows import WindowRule

PLAIN = Pseudonyms(b"s" * 32, hides_persons=False)
HIDING = Pseudonyms(b"s" * 32, hides_persons=True)
HASH = hashlib.sha256(b"sk-1234").hexdigest()
OTHER_HASH = hashlib.sha256(b"sk-5678").hexdigest()


def limit(per=("user",), overrides=(), **match):
    conditions = tuple((key, (globs,) if isinstance(globs, str) else globs) for key, globs in match.items())
    return Limit(
        name="l", per=per, unit="requests", amount=1, window=WindowRule("day"), zone=ZoneInfo("UTC"),
        match=Match(conditions), overrides=overrides,
    )  # fmt: skip


def counts(pseudonyms, rule, subjects, groups=None):
    """Return the subjects for which a request counts on a limit, as in the proxy."""
    limits = LimitSet([rule], groups).under(pseudonyms)
    return [found.subject for found in limits.matching(pseudonyms.keep(subjects), "gpt", None)]


def test_a_pseudonym_is_an_hmac_with_the_secret():
    """A key's pseudonym is the start of an HMAC-SHA256 of LiteLLM's hash, so keys cannot be guessed from it."""
    digest = hmac.new(b"s" * 32, b"key\0" + HASH.encode(), hashlib.sha256).digest()
    import base64  # noqa: PLC0415

    assert PLAIN.of_key(HASH) == "k-" + base64.b32encode(digest[:16]).decode().rstrip("=").lower()
    assert Pseudonyms(b"t" * 32, hides_persons=False).of_key(HASH) != PLAIN.of_key(HASH)
    assert Pseudonyms(b"t" * 32, hides_persons=False).fingerprint != PLAIN.fingerprint


@given(st.text(min_size=1))
def test_pseudonyms_are_stable_readable_and_final(name):
    """A name always has the same pseudonym, and a pseudonym's pseudonym is itself."""
    kept = HIDING.of_person(name)
    assert kept == Pseudonyms(b"s" * 32, hides_persons=True).of_person(name) == HIDING.of_person(kept)
    assert re.fullmatch("p-[a-z2-7]{16}", kept)


def test_nobody_in_particular_has_no_pseudonym():
    """Reserved subjects, and LiteLLM's name for the master key, are not replaced."""
    for name in (ANONYMOUS, INTERNAL, FORGOTTEN):
        assert HIDING.of_person(name) == name
        assert HIDING.keep(Subjects(user=name)).user == name
    assert HIDING.of_key(MASTER_KEY) == MASTER_KEY
    assert HIDING.of_key(PLAIN.of_key(HASH)) == PLAIN.of_key(HASH)


def test_what_is_written_has_no_real_name():
    """With pseudonyms, no stored field contains a name or a hash; without them, names are stored unchanged."""
    subjects = Subjects(user="eva", api_key=HASH, api_key_alias="eva-laptop", end_user="eva@corp")
    assert not re.search(f"eva|{HASH}", str(HIDING.keep(subjects).kept()))
    assert HIDING.keep(subjects).called == "eva"
    plain = PLAIN.keep(subjects)
    assert plain == subjects._replace(api_key=PLAIN.of_key(HASH))
    assert plain.called == "eva"


def test_a_user_named_after_a_key_is_named_after_its_pseudonym():
    """A user that is named after a key without alias gets the key's pseudonym, not its hash."""
    kept = PLAIN.keep(Subjects(user=key_name(HASH), api_key=HASH))
    assert kept.user == f"key-{PLAIN.of_key(HASH)[2:18]}"
    assert HASH[:16] not in str(HIDING.keep(Subjects(user=key_name(HASH), api_key=HASH)).kept())


@pytest.mark.parametrize("pseudonyms", [PLAIN, HIDING], ids=["plain", "pseudonym"])
@pytest.mark.parametrize(
    ("match", "groups", "fits"),
    [
        ({"user": "eva"}, None, True),
        ({"user": "e*"}, None, True),
        ({"user": "*@corp"}, None, False),
        ({"user": "p*"}, None, False),
        ({"user": "*"}, None, True),
        ({"end_user": "*@corp"}, None, True),
        ({"end_user": "bo"}, None, False),
        ({"group": "power"}, {"power": ("e*",)}, True),
        ({"group": "power"}, {"power": ("p-*",)}, False),
        ({"api_key": "eva-laptop"}, None, True),
        ({"api_key": "*-laptop"}, None, True),
        ({"api_key": HASH}, None, True),
        ({"api_key": OTHER_HASH}, None, False),
        ({"api_key": PLAIN.of_key(HASH)}, None, True),
        ({"api_key": PLAIN.of_key(OTHER_HASH)}, None, False),
        ({"api_key": "k-*"}, None, False),
        ({"api_key": "*"}, None, True),
    ],
    ids=str,
)
def test_the_yaml_is_matched_with_real_names(pseudonyms, match, groups, fits):
    """`match` and `groups` match real names and a key's alias, hash or pseudonym, with or without pseudonyms."""
    subjects = Subjects(user="eva", api_key=HASH, api_key_alias="eva-laptop", end_user="eva@corp")
    kept = pseudonyms.keep(subjects)
    assert counts(pseudonyms, limit(**match), subjects, groups) == ([kept.user] if fits else [])
    assert counts(pseudonyms, limit(per=("api_key",), **match), subjects, groups) == ([kept.api_key] if fits else [])


def test_overrides_are_matched_with_real_names():
    """An override for a name applies to its pseudonym, even if only the pseudonym is known."""
    rule = limit(overrides=(Override(Match((("user", ("eva",)),)), 7), Override(Match((("user", ("b*",)),)), 9)))
    limits = LimitSet([rule]).under(HIDING)
    for name, amount in (("eva", 7), ("bo", 9), ("zoe", 1)):
        (found,) = limits.matching(HIDING.keep(Subjects(user=name)), None, None)
        assert found.amount_at(0) == amount
    assert limits.account(rule, HIDING.of_person("eva")).amount_at(0) == 7
    # A glob cannot match a pseudonym until the name is known.
    assert limits.account(rule, HIDING.of_person("bo")).amount_at(0) == 1
    known = limits.knowing({HIDING.of_person("bo"): "bo"})
    assert known.account(rule, HIDING.of_person("bo")).amount_at(0) == 9


def test_nobody_can_claim_anothers_pseudonym():
    """A user name that equals another user's pseudonym is a different user."""
    claimed = HIDING.keep(Subjects(user=HIDING.of_person("eva")))
    assert claimed.user != HIDING.of_person("eva")
    assert counts(HIDING, limit(user="eva"), Subjects(user=HIDING.of_person("eva"))) == []


def test_an_alias_cannot_pass_for_another_key():
    """The creator of a key chooses its alias, so one that looks like a hash or a pseudonym matches nothing."""
    for alias in (OTHER_HASH, PLAIN.of_key(OTHER_HASH), MASTER_KEY):
        rule = limit(per=("api_key",), api_key=alias)
        assert counts(PLAIN, rule, Subjects(user="eva", api_key=HASH, api_key_alias=alias)) == []


def test_pseudonyms_change_no_limits_key():
    """Spend is kept: a limit's key does not depend on pseudonyms."""
    rule = limit(user="eva", api_key=HASH)
    assert [found.key for found in LimitSet([rule]).under(HIDING).limits] == [rule.key]


def test_adjustments_outlive_what_is_learnt():
    """A set of limits that learns a name keeps its adjustments."""
    from usage_plugin.domain.operations import Adjustment  # noqa: PLC0415

    rule = limit()
    made = Adjustment(1, "l", HIDING.of_person("eva"), 5, 1, 0, 100, "root", "test")
    limits = LimitSet([rule]).under(HIDING).adjusted([made]).knowing({HIDING.of_person("eva"): "eva"})
    assert limits.account(rule, HIDING.of_person("eva")).amount_at(50) == 5


def test_a_key_itself_is_never_kept():
    """If a raw key arrives, it is hashed first, and its pseudonym is that of its hash."""
    assert PLAIN.of_key("sk-1234") == PLAIN.of_key(HASH)
