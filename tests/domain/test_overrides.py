"""The index of overrides by name changes only the time of a look-up."""

from __future__ import annotations

import re
from fnmatch import translate
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_plugin.domain.globs import fits, glob_of, literal_of
from usage_plugin.domain.limit_set import LimitSet
from usage_plugin.domain.limits import Limit, Match, Override
from usage_plugin.domain.subjects import Subjects
from usage_plugin.domain.windows import WindowRule

NAMES = ["ann", "bo", "a*", "[x]", "?", "openai"]
GLOBS = [*NAMES, "*", "a[*]", "[[]x]", "[!a]*", "[?]", "b[o]"]
KEYS = ["user", "team", "model", "group", "tag"]

conditions = st.lists(
    st.tuples(st.sampled_from(KEYS), st.lists(st.sampled_from(GLOBS), min_size=1, max_size=3).map(tuple)),
    max_size=3,
    unique_by=lambda condition: condition[0],
).map(tuple)


def limit_with(overrides: list[Override]) -> Limit:
    return Limit(
        name="daily", per=("user",), unit="usd", amount=5, window=WindowRule("day"), zone=ZoneInfo("UTC"),
        overrides=tuple(overrides),
    )  # fmt: skip


@given(
    st.lists(conditions, max_size=8),
    st.fixed_dictionaries({key: st.lists(st.sampled_from(NAMES), max_size=3).map(tuple) for key in KEYS}),
)
def test_the_overrides_found_are_those_that_match_in_their_order(matches, known) -> None:
    """For any overrides, the result is the same as examining each of them in turn."""
    overrides = [Override(Match(match), at) for at, match in enumerate(matches)]
    expected = [override for override in overrides if override.match.holds(known)]
    assert limit_with(overrides).overrides_of(known) == expected


@given(st.text("ab*?[]!-", max_size=6), st.text("ab*?[]!-", max_size=6))
def test_a_literal_fits_what_the_glob_fits(glob: str, name: str) -> None:
    """A pattern that is treated as a literal matches only that name, as its glob would."""
    assert fits((glob,), name) is (re.match(translate(glob), name) is not None)
    literal = literal_of(glob)
    if literal is not None:
        assert fits((glob,), name) is (name == literal)


@given(st.text("ab*?[]!-", min_size=1, max_size=6))
def test_a_name_can_be_written_as_a_glob(name: str) -> None:
    """A name with special characters is written as a glob that matches only this name."""
    assert literal_of(glob_of(name)) == name
    assert fits((glob_of(name),), name)


def test_thousands_of_overrides_are_not_looked_at_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 50,000 overrides by name, a request examines only its own and those with globs."""
    overrides = [Override(Match((("user", (f"user-{number}",)),)), number) for number in range(50_000)]
    overrides.insert(10, Override(Match((("user", ("user-4*",)),)), -1))
    limits = LimitSet([limit_with(overrides)])
    looked_at = []
    holds = Match.holds
    monkeypatch.setattr(Match, "holds", lambda match, known: looked_at.append(match) or holds(match, known))
    amounts = [limits.matching(Subjects(user=f"user-{n}"), "gpt", None)[0].amount_at(0) for n in (3, 49_999, 70_000)]
    assert amounts == [3, -1, 5]
    assert len(looked_at) <= 3 * 3
