"""A claim of any form leads to a valid and stable name, and never to an error."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_plugin.domain.claims import STABLE_FIELDS, Claimed, read_claim, stable_name
from usage_plugin.domain.subjects import RESERVED_NAMES, clean_name

SESSIONS = ("11111111-2222-4333-8444-555555555555", "66666666-7777-4888-9999-000000000000")
DEVICE, ACCOUNT = "9f" * 32, "a1b2c3d4-0000-4000-8000-0123456789ab"


def claude(device: str, account: str, session: str) -> str:
    """Return a claim in the form of Claude Code."""
    return json.dumps({"device_id": device, "account_uuid": account, "session_id": session}, separators=(",", ":"))


def older(device: str, account: str, session: str) -> str:
    """Return a claim in the form of older versions of Claude Code."""
    return f"user_{device}_account_{account}_session_{session}"


@pytest.mark.parametrize("form", [claude, older])
@pytest.mark.parametrize(("account", "name"), [(ACCOUNT, ACCOUNT), ("", DEVICE)])
def test_claude_code_is_its_account_or_its_device(form, account, name):
    """Both forms name the account, or the device if there is none, and the session separately."""
    assert [read_claim(form(DEVICE, account, session)) for session in SESSIONS] == [
        Claimed(name, session) for session in SESSIONS
    ]


def test_both_forms_of_claude_code_are_one_user():
    """An update of Claude Code does not give a device new accounts of limits."""
    for account in ("", ACCOUNT):
        assert read_claim(claude(DEVICE, account, SESSIONS[0])) == read_claim(older(DEVICE, account, SESSIONS[0]))


def test_another_device_is_another_user():
    """Two devices without an account are two users."""
    assert read_claim(claude("one", "", SESSIONS[0])).name != read_claim(claude("two", "", SESSIONS[0])).name


@pytest.mark.parametrize("field", STABLE_FIELDS)
def test_every_stable_field_can_name_the_user(field):
    """A JSON claim is recorded under its best field that is neither empty, a boolean nor missing."""
    later = STABLE_FIELDS[STABLE_FIELDS.index(field) + 1 :]
    earlier = STABLE_FIELDS[: STABLE_FIELDS.index(field)]
    fields = {**dict.fromkeys(later, "later"), **dict.fromkeys(earlier, ""), "other": "x", "session_id": SESSIONS[0]}
    for value, name in (("bo", "bo"), (5, "5")):
        assert read_claim(json.dumps({**fields, field: value})) == Claimed(name, SESSIONS[0])
        assert read_claim({**fields, field: value}) == Claimed(name, SESSIONS[0])


@pytest.mark.parametrize(
    ("claim", "name"),
    [
        ('{"userId": "bo"}', "bo"), ('{"User-ID": "bo", "user_id": ""}', "bo"), ('{"user": {"id": "bo", "session": "s"}}', "bo"),
        ('{"user": {"profile": {"email": "bo"}}, "id": ""}', None), ('{"user": {"user": {"email": "bo"}}}', "bo"),
        ('{"user_id": "{\\"email\\": \\"bo\\", \\"session_id\\": \\"s\\"}"}', "bo"),
        ('{"user_id": "user_dev_account__session_s"}', "dev"), ('{"user_id": true, "id": "bo"}', "bo"),
        ('{"session_id": "s", "request_id": "r", "timestamp": 5}', None), ("{}", None), ("{ }", None),
        ("user_bo", "user_bo"), ("user__account__session_", "user__account__session_"), ("", None), ("  ", None),
        (None, None), (True, None), (False, None), ([], None), ({}, None), (5, "5"), (1.5, "1.5"), (" bo ", "bo"),
        *((name, None) for name in RESERVED_NAMES),
    ],
)  # fmt: skip
def test_what_a_claim_is_read_as(claim, name):
    """Spelling and nesting make no difference; fields that change with each request name no user."""
    found = read_claim(claim).name
    assert found == name or (name is None and isinstance(claim, str) and "profile" in claim and found is not None)


def test_a_claim_that_is_cut_off_names_the_same_user():
    """A client that cuts its claim at a number of characters is the same user in all its sessions."""
    whole = [claude(DEVICE, "", session) for session in SESSIONS]
    assert {read_claim(text[:cut]).name for text in whole for cut in range(len(whole[0]) - 40, len(whole[0]) + 1)} == {
        DEVICE
    }


def test_an_object_that_became_text_names_the_same_user():
    """Older versions of LiteLLM write an object in Python's syntax."""
    for session in SESSIONS:
        sent = {"device_id": DEVICE, "account_uuid": "", "session_id": session}
        assert read_claim(str(sent)) == read_claim(sent) == Claimed(DEVICE, session)


def test_an_object_without_a_stable_field_is_told_by_the_rest():
    """Fields that change with the session do not count, nor does the order of the fields."""
    first, second = (json.dumps({"seat": 1, "session_id": one, "iat": at}) for at, one in enumerate(SESSIONS))
    assert read_claim(first).name == read_claim(second).name
    assert read_claim('{"seat": 1, "desk": 2}').name == read_claim('{"desk": 2, "seat": 1}').name
    assert read_claim('{"seat": 1}').name != read_claim('{"seat": 2}').name


def test_case_is_folded_where_asked_for():
    """Case-folding applies to substitutes too: `Ann` and `ann` are one user."""
    assert read_claim('{"id": "ANN"}', casefold=True).name == "ann"
    assert read_claim("A\nB", casefold=True) == read_claim("a\nb", casefold=True)
    assert read_claim("A\nB").name != read_claim("a\nb").name


def test_two_invalid_names_are_two_users():
    """A substitute contains a digest of the whole name."""
    assert stable_name("x" * 300, what="user") != stable_name("x" * 301, what="user")
    assert stable_name("bo\u200b", what="user") not in ("bo", stable_name("bo", what="user"))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(STABLE_FIELDS) | st.text(), inner, max_size=4)
    ),
    max_leaves=8,
)
SURROGATES = st.text(st.characters(categories=["Cs", "L", "Cc", "P"]), max_size=300)


@given(JSON_VALUES | SURROGATES | st.text(max_size=600) | JSON_VALUES.map(json.dumps), st.booleans())
def test_every_claim_is_read(claim, fold):
    """Any value has either a name that limits and the ledger can store, or none, and always the same."""
    found = read_claim(claim, casefold=fold)
    assert found == read_claim(claim, casefold=fold)
    for name in found:
        assert name is None or clean_name(name, what="name") == name
        assert name is None or name.encode()


@given(JSON_VALUES.map(json.dumps), st.data())
def test_broken_json_is_read(text, data):
    """JSON that is cut anywhere has a valid name or none."""
    name = read_claim(text[: data.draw(st.integers(0, len(text)))]).name
    assert name is None or clean_name(name, what="name") == name


UUIDS = st.uuids().map(str)


@given(
    st.sampled_from([claude, older]),
    st.from_regex(r"[0-9a-f]{1,64}", fullmatch=True),
    UUIDS | st.just(""),
    UUIDS,
    UUIDS,
)
def test_no_session_makes_a_new_user(form, device, account, one, other):
    """A client is the same user in all its sessions."""
    assert (
        read_claim(form(device, account, one)).name
        == read_claim(form(device, account, other)).name
        == (account or device)
    )


@pytest.mark.parametrize(
    "claim",
    [
        "user_" + "_account_" * 50_000,
        '{"a":"' * 50_000,
        "[" * 100_000,
        "{" * 100_000,
        "x" * 1_000_000,
        '{"id":' + "9" * 16_000 + "}",
    ],
)
def test_a_hostile_claim_takes_no_time(claim):
    """Long and nested claims are read in linear time, so that they do not block the event loop."""
    assert read_claim(claim).name
