from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_plugin.domain import subjects
from usage_plugin.domain.subjects import LONGEST_NAME, SEPARATOR, clean_name
from usage_plugin.errors import SubjectNameError


def clean(value, **options):
    return clean_name(value, what="user", **options)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("ann", "ann"),
        ("  ann\t\n", "ann"),
        ("\u3000ann\u00a0", "ann"),
        ("Ann Lee", "Ann Lee"),
        ("ann@corp.example", "ann@corp.example"),
        ("Zoe\u0308", "Zo\u00eb"),
        ("用户", "用户"),
        ("👩‍🔬"[:1], "👩"),
        ("a{b}", "a{b}"),
        ("[red]ann[/red]", "[red]ann[/red]"),
        ("[ops] ann", "[ops] ann"),
        ("../../x", "../../x"),
        ("'; DROP TABLE events; --", "'; DROP TABLE events; --"),
        ("0", "0"),
        ("x" * LONGEST_NAME, "x" * LONGEST_NAME),
        (" " * 1_000 + "x", "x"),
    ],
)
def test_names_are_trimmed_and_normalised_and_otherwise_kept(sent, kept):
    """A name is trimmed and normalized to Unicode's form C; the rest is unchanged."""
    assert clean(sent) == kept


@pytest.mark.parametrize("sent", [None, "", " ", "\t\n", "\u3000"])
def test_what_is_empty_names_nobody(sent):
    """Missing, empty and blank values return None, without an error."""
    assert clean(sent) is None


@pytest.mark.parametrize("sent", [1, 0, True, False, 1.5, b"ann", ["ann"], {"user": "ann"}, object], ids=repr)
def test_only_text_is_a_name(sent):
    """Numbers, lists and objects are rejected and never converted to text."""
    with pytest.raises(SubjectNameError, match="must be text"):
        clean(sent)


@pytest.mark.parametrize(
    "sent",
    [
        "a\x00b",
        "a\nb",
        "a\x1bb",
        f"a{SEPARATOR}b",
        "a\x7fb",
        "a\u202eb",
        "a\u200bb",
        "a\ud800b",
        "a\ue000b",
        "a\ufeffb",
    ],
    ids=ascii,
)
def test_unprintable_characters_are_refused(sent):
    """Control characters, invisible ones, reversals, surrogates and the separator of subjects are rejected."""
    with pytest.raises(SubjectNameError, match="unprintable"):
        clean(sent)


@pytest.mark.parametrize("sent", ["x" * (LONGEST_NAME + 1), "ä" * 257, "x" * 5_000_000], ids=len)
def test_long_names_are_refused(sent):
    """A name has at most 256 characters, and the error does not repeat it."""
    with pytest.raises(SubjectNameError, match="256 are allowed") as caught:
        clean(sent)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "sent", ['{"user_id": "ann"}', "{}", "[]", '["ann"]', '  {"a": 1}', "{not even json", "[1, 2]"]
)
def test_json_is_never_taken_verbatim(sent):
    """Text that looks like JSON is rejected, and the error explains how to map it."""
    with pytest.raises(SubjectNameError, match="json_field"):
        clean(sent)


@given(st.text())
def test_a_name_that_is_kept_is_clean(sent):
    """For any text, the stored name is short, printable, trimmed, normalized, not JSON, and stable."""
    try:
        kept = clean(sent)
    except SubjectNameError:
        return
    if kept is None:
        assert not sent.strip()
        return
    assert 0 < len(kept) <= LONGEST_NAME
    assert kept.isprintable()
    assert kept == kept.strip() == unicodedata.normalize("NFC", kept)
    assert kept[0] != "{"
    assert SEPARATOR not in kept
    assert clean(kept) == kept


def test_case_is_kept_unless_asked_otherwise():
    """Names that differ in case are two users, unless case-folding is enabled."""
    assert clean("Ann") == "Ann"
    assert clean("Ann", casefold=True) == clean("ANN", casefold=True) == "ann"
    assert clean("STRASSE", casefold=True) == clean("straße", casefold=True) == "strasse"


@given(st.text())
def test_a_case_folded_name_is_clean_too(sent):
    """Case-folded names are short, normalized and stable."""
    try:
        kept = clean(sent, casefold=True)
    except SubjectNameError:
        return
    if kept is not None:
        assert len(kept) <= LONGEST_NAME
        assert kept == unicodedata.normalize("NFC", kept)
        assert clean(kept, casefold=True) == kept


@pytest.mark.parametrize("sent", ["\u01f0", "ß" * LONGEST_NAME], ids=["not normal when folded", "longer when folded"])
def test_case_folding_comes_before_the_other_rules(sent):
    """If folding makes a name longer or not normalized, the rules still hold for the stored name."""
    try:
        kept = clean(sent, casefold=True)
    except SubjectNameError:
        return
    assert len(kept) <= LONGEST_NAME
    assert kept == unicodedata.normalize("NFC", kept)


def test_the_error_says_what_is_wrong_with_which_name():
    """The error names the dimension, so that a client knows which name to change."""
    with pytest.raises(SubjectNameError, match="The end user"):
        clean_name(7, what="end user")


def test_names_that_are_remembered_stay_few_and_short():
    """For any number and length of names, the cache of names is bounded."""
    for number in range(10_000):
        clean(f"user-{number}")
        clean(f"  user-{number}{' ' * LONGEST_NAME}")
    remembered = subjects._remembered.cache_info()
    assert remembered.currsize <= remembered.maxsize < 10_000
    assert clean("user-1") == clean(f"  user-1{' ' * LONGEST_NAME}") == "user-1"


def test_a_name_that_was_refused_is_refused_again():
    """A rejected name is not cached as a valid one."""
    for _ in range(2):
        with pytest.raises(SubjectNameError, match="unprintable"):
            clean("a\x00b")
