from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_plugin.domain.globs import fits
from usage_plugin.domain.limit_set import LimitSet
from usage_plugin.domain.limits import Limit, Match, Override
from usage_plugin.domain.operations import Adjustment
from usage_plugin.domain.subjects import DIMENSIONS, SEPARATOR, Subjects
from usage_plugin.domain.windows import WINDOW_KINDS, WindowRule

UTC = ZoneInfo("UTC")
NOON = 1_795_003_200_000_000

EVERYBODY = Subjects(
    user="ann",
    team="research",
    api_key="hash-1",
    end_user="end-ann",
    organization="corp",
    session="s-1",
    tags=("prod", "batch"),
)
NAMES = {
    "user": "ann",
    "team": "research",
    "api_key": "hash-1",
    "end_user": "end-ann",
    "organization": "corp",
    "session": "s-1",
    "model": "gpt-5",
    "provider": "openai",
}


FIVE_HOURS = WindowRule("rolling", length=5 * 3_600_000_000)


def make_limit(**changes):
    """Return a limit of 5 USD a day for each user, with changes."""
    return Limit(**{
        "name": "daily", "per": ("user",), "unit": "usd", "amount": 5_000_000_000, "window": WindowRule("day"), "zone": UTC, **changes,
    })  # fmt: skip


def matching(limit, subjects=EVERYBODY, model="gpt-5", provider="openai", groups=None):
    return LimitSet([limit], groups).matching(subjects, model, provider)


def amount_of(limit, subjects=EVERYBODY, at=NOON, groups=None):
    """Return the amount in force on the only account of a request."""
    (found,) = matching(limit, subjects, groups=groups)
    return found.amount_at(at)


def conditions(**globs):
    return Match(tuple((key, (names,) if isinstance(names, str) else tuple(names)) for key, names in globs.items()))


# ── per: the account of a request ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("dimension", "name"), NAMES.items())
def test_each_dimension_has_its_own_account(dimension, name):
    """A limit per dimension counts a request on the account of its name in that dimension."""
    assert [found.subject for found in matching(make_limit(per=(dimension,)))] == [name]


def test_each_tag_has_its_own_account():
    """A request with several tags counts on one account for each of them."""
    assert [found.subject for found in matching(make_limit(per=("tag",)))] == ["prod", "batch"]


def test_a_global_limit_has_one_account():
    """A global limit counts every request on one account without a name, for any known facts of the request."""
    limit = make_limit(per=("global",))
    assert [found.subject for found in matching(limit)] == [""]
    assert [found.subject for found in matching(limit, Subjects(), model=None, provider=None)] == [""]
    assert limit.names_of("") == {}


@pytest.mark.parametrize("dimension", [d for d in DIMENSIONS if d not in ("user", "global")])
def test_a_missing_dimension_makes_the_limit_not_apply(dimension):
    """A limit per dimension does not apply to a request without a name in that dimension."""
    assert matching(make_limit(per=(dimension,)), Subjects(), model=None, provider=None) == ()


@pytest.mark.parametrize("dimension", [d for d in DIMENSIONS if d != "global"])
def test_a_condition_on_a_missing_dimension_does_not_hold(dimension):
    """A condition on a dimension does not hold for requests without a name in it, not even for `*`."""
    limit = make_limit(per=("global",), match=conditions(**{dimension: "*"}))
    assert (matching(limit, Subjects(), model=None, provider=None) != ()) == (dimension == "user")
    assert matching(limit) != ()


def test_requests_of_nobody_share_an_account():
    """Requests without any name count on the shared account (anonymous)."""
    assert [found.subject for found in matching(make_limit(), Subjects())] == ["(anonymous)"]


def test_a_list_of_dimensions_has_an_account_for_each_combination():
    """A limit per team and user has an account for each member of each team, whose subject contains both names."""
    limit = make_limit(per=("team", "user"))
    (found,) = matching(limit)
    assert limit.names_of(found.subject) == {"team": "research", "user": "ann"}
    (other,) = matching(limit, Subjects(user="ann", team="sales"))
    assert other.subject != found.subject


def test_a_list_with_tags_has_an_account_for_each_tag():
    """A limit per user and tag counts a request once for each tag."""
    limit = make_limit(per=("user", "tag"))
    assert [limit.names_of(found.subject) for found in matching(limit)] == [
        {"user": "ann", "tag": "prod"},
        {"user": "ann", "tag": "batch"},
    ]


def test_a_list_with_a_missing_dimension_does_not_apply():
    """A limit per team and user does not count users without a team."""
    assert matching(make_limit(per=("team", "user")), Subjects(user="ann")) == ()


@given(
    st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1),
    st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1),
)
def test_a_subject_of_two_dimensions_can_be_taken_apart(team, user):
    """A subject contains both names for any printable names of a team and a user."""
    limit = make_limit(per=("team", "user"))
    (found,) = matching(limit, Subjects(user=user, team=team))
    assert limit.names_of(found.subject) == {"team": team, "user": user}
    assert found.subject == f"{team}{SEPARATOR}{user}"


def test_every_limit_that_matches_counts():
    """A request counts on all limits that match it, in the order of the YAML."""
    limits = LimitSet(
        [
            make_limit(name="a"),
            make_limit(name="b", match=conditions(team="sales")),
            make_limit(name="c", per=("global",)),
            make_limit(name="d", per=("model",)),
        ]
    )
    assert [found.limit.name for found in limits.matching(EVERYBODY, "gpt-5", "openai")] == ["a", "c", "d"]
    assert [found.limit.name for found in limits.matching(EVERYBODY, None, None)] == ["a", "c"]


def test_no_globs_fit_nothing():
    """An empty list of globs matches no name."""
    assert not fits((), "ann")
    assert not fits((), "")


# ── match: the requests of a limit ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("glob", "matches"),
    [
        ("gpt-5", True), ("gpt-*", True), ("*", True), ("gpt-?", True), ("gpt-[0-9]", True), ("*5", True),
        ("gpt", False), ("pt-5", False), ("gpt-5-mini", False), ("GPT-5", False), ("", False), ("gpt-5 ", False),
        ("gpt.5", False), ("(gpt-5)", False), ("gpt-5|x", False),
    ],
)  # fmt: skip
def test_globs_fit_whole_names(glob, matches):
    """A glob must match the whole name, case-sensitively, and only * ? and brackets have a special meaning."""
    assert bool(matching(make_limit(match=conditions(model=glob)))) == matches


def test_a_star_also_stands_for_slashes():
    """In provider/model names, `*` also matches slashes."""
    limit = make_limit(match=conditions(model="openrouter/*"))
    assert matching(limit, model="openrouter/anthropic/claude")


def test_one_of_several_globs_is_enough():
    """One matching glob of a dimension is enough."""
    limit = make_limit(match=conditions(model=["claude-opus-*", "o3*"]))
    assert matching(limit, model="o3-mini")
    assert matching(limit, model="claude-opus-4")
    assert not matching(limit, model="claude-haiku")


def test_all_conditions_must_hold():
    """Conditions on several dimensions must all hold."""
    limit = make_limit(match=conditions(team="research", model="gpt-*"))
    assert matching(limit)
    assert not matching(limit, model="o3")
    assert not matching(limit, Subjects(user="ann", team="sales"))


def test_a_group_is_matched_by_its_members():
    """A condition on a group holds for users that match one of the group's globs."""
    groups = {"power": ("dana", "*@research.corp"), "interns": ("*@intern.corp",)}
    limit = make_limit(match=conditions(group="power"))
    assert matching(limit, Subjects(user="dana"), groups=groups)
    assert matching(limit, Subjects(user="x@research.corp"), groups=groups)
    assert not matching(limit, Subjects(user="x@intern.corp"), groups=groups)
    assert not matching(limit, Subjects(user="dana@research.corp.evil"), groups=groups)


def test_groups_are_matched_by_globs_too():
    """A condition on groups may itself be a glob, and a user may be in several groups."""
    groups = {"eu-power": ("ann",), "us-power": ("bo",), "all": ("*",)}
    limit = make_limit(match=conditions(group="*-power"))
    assert matching(limit, Subjects(user="ann"), groups=groups)
    assert not matching(limit, Subjects(user="eva"), groups=groups)
    assert LimitSet([], groups).groups_of("ann") == ("eu-power", "all")


def test_a_group_without_members_has_none():
    """A group with an empty list has no members."""
    assert LimitSet([], {"nobody": ()}).groups_of("ann") == ()


def test_tags_match_if_one_of_them_does():
    """A condition on tags holds if any tag of the request matches."""
    limit = make_limit(match=conditions(tag="batch"))
    assert matching(limit)
    assert not matching(limit, Subjects(user="ann", tags=("prod",)))


def test_a_limit_per_tag_counts_only_on_tags_that_match():
    """A limit per tag with a condition on tags counts only on the accounts of matching tags."""
    limit = make_limit(per=("tag",), match=conditions(tag="team-*"))
    assert [found.subject for found in matching(limit, Subjects(tags=("team-a", "experiment")))] == ["team-a"]


# ── amounts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_override_that_matches_sets_the_amount():
    """The first matching override counts, whether its amount is smaller or larger."""
    limit = make_limit(
        overrides=(
            Override(conditions(user="ann"), None),
            Override(conditions(user="a*"), 7),
            Override(conditions(group="power"), 9),
        )
    )
    groups = {"power": ("*",)}
    assert amount_of(limit, Subjects(user="ann"), groups=groups) is None
    assert amount_of(limit, Subjects(user="alf"), groups=groups) == 7
    assert amount_of(limit, Subjects(user="bo"), groups=groups) == 9
    assert amount_of(limit, Subjects(user="bo"), groups={"power": ("dana",)}) == 5_000_000_000


def test_an_override_may_ask_for_what_the_limit_does_not_count_by():
    """An override can match on any dimension of the request, for example the model."""
    limit = make_limit(overrides=(Override(conditions(model="o3*"), 1),))
    assert [found.amount_at(NOON) for found in matching(limit, model="o3")] == [1]
    assert [found.amount_at(NOON) for found in matching(limit, model="gpt-5")] == [5_000_000_000]


def test_an_override_ends_at_its_instant():
    """An override with an end counts before that instant and not at it; then the next matching one counts."""
    limit = make_limit(
        overrides=(Override(conditions(user="ann"), 40, NOON), Override(conditions(user="ann"), 30, NOON + 1))
    )
    assert amount_of(limit, at=NOON - 1) == 40
    assert amount_of(limit, at=NOON) == 30
    assert amount_of(limit, at=NOON + 1) == 5_000_000_000


def test_an_override_with_an_end_does_not_stay_remembered():
    """The amount is determined for each instant, even if the same request was matched before."""
    limits = LimitSet([make_limit(overrides=(Override(Match(), None, NOON),))])
    amounts = [limits.matching(EVERYBODY, "gpt-5", "openai")[0].amount_at(at) for at in (NOON - 1, NOON, NOON - 1)]
    assert amounts == [None, 5_000_000_000, None]


@pytest.mark.parametrize("amount", [0, None, 1])
def test_zero_and_unlimited_are_told_apart(amount):
    """An amount of 0 stays 0, which blocks, and unlimited stays None."""
    found = amount_of(make_limit(amount=amount))
    assert found == amount
    assert (found is None) == (amount is None)


@pytest.mark.parametrize("amount", [0, None])
def test_overrides_can_block_or_lift(amount):
    """An override of 0 blocks and one of unlimited lifts, for any amount of the limit itself."""
    assert amount_of(make_limit(overrides=(Override(Match(), amount),))) == amount


def test_an_account_knows_its_amount_from_its_subject():
    """For reports, the amount of an account can be determined from its subject alone."""
    limit = make_limit(
        per=("team", "user"), overrides=(Override(conditions(user="ann"), 7), Override(conditions(model="*"), 1))
    )
    limits = LimitSet([limit])
    assert limits.account(limit, f"research{SEPARATOR}ann").amount_at(NOON) == 7
    assert limits.account(limit, f"research{SEPARATOR}bo").amount_at(NOON) == 5_000_000_000


def test_an_account_knows_the_groups_of_its_user():
    """Overrides for groups apply to an account whose subject has a user."""
    limit = make_limit(overrides=(Override(conditions(group="power"), 25),))
    limits = LimitSet([limit], {"power": ("dana",)})
    assert limits.account(limit, "dana").amount_at(NOON) == 25
    assert limits.account(limit, "ann").amount_at(NOON) == 5_000_000_000


def test_whether_a_limit_may_count_a_user_is_decided_by_users_and_groups():
    """A limit may count a user unless its conditions on users or groups exclude the user."""
    limits = LimitSet([], {"power": ("dana",)})
    assert limits.may_count(make_limit(), {"user": "ann"})
    assert limits.may_count(make_limit(match=conditions(model="o3")), {"user": "ann"})
    assert limits.may_count(make_limit(match=conditions(group="power")), {"user": "dana"})
    assert not limits.may_count(make_limit(match=conditions(group="power")), {"user": "ann"})
    assert not limits.may_count(make_limit(match=conditions(user="bo")), {"user": "ann"})


def test_the_window_of_an_account_is_the_limits_own():
    """The window that an instant belongs to follows the limit's kind and zone."""
    (found,) = matching(make_limit(zone=ZoneInfo("Asia/Kolkata")))
    window = found.place_at(NOON).window
    assert window.end - window.start == 24 * 3_600_000_000
    assert window.start % (24 * 3_600_000_000) == 18.5 * 3_600_000_000


def test_parallel_requests_are_one_account_that_is_never_charged():
    """Concurrent requests are held on one account at all times, which is kept for a day after the last start."""
    limit = make_limit(unit="parallel_requests", window=WindowRule("lifetime"))
    assert limit.window_at(NOON) == (0, NOON + 24 * 3_600_000_000)
    assert limit.window_at(NOON + 1).start == 0
    assert limit.since_at(NOON) is None
    assert limit.has_accounts
    assert not limit.is_charged


def test_only_what_keeps_an_account_is_charged():
    """A limit on one request keeps no account; every other limit is charged with the actual use."""
    single = make_limit(window=WindowRule("request"))
    assert (single.has_accounts, single.is_charged) == (False, False)
    assert all(make_limit(window=WindowRule(kind)).is_charged for kind in WINDOW_KINDS if kind != "request")


def test_the_buckets_of_an_account_are_the_limits_own():
    """A rolling limit counts on the current bucket, and its sum starts with the bucket five hours before."""
    (found,) = matching(make_limit(window=FIVE_HOURS))
    five_minutes = 300_000_000
    place = found.place_at(NOON + five_minutes + 1)
    assert place.account.window_start == place.window.start == NOON + five_minutes
    assert place.since == NOON + five_minutes - FIVE_HOURS.length
    assert matching(make_limit())[0].place_at(NOON).since is None


@given(
    st.sampled_from(["request", "minute", "day", "month", "lifetime", "rolling", "session"]),
    st.booleans(),
    st.lists(st.integers(-100, 100).map(lambda minutes: NOON + minutes * 60_000_000), max_size=2),
    st.lists(st.integers(-150, 150).map(lambda minutes: NOON + minutes * 60_000_000), min_size=1),
)
def test_a_place_that_is_remembered_is_the_one_that_would_be_found(kind, at_once, ends, instants):
    """Each instant has its own window, account and amount, for any earlier queries and ends of overrides."""
    window = FIVE_HOURS if kind == "rolling" else WindowRule(kind)
    overrides = tuple(Override(conditions(user="*"), amount, until) for amount, until in enumerate(ends))
    limit = make_limit(unit="parallel_requests" if at_once else "usd", window=window, overrides=overrides)
    (used,) = matching(limit)
    for instant in instants:
        (fresh,) = matching(limit)
        place = used.place_at(instant)
        assert place == fresh.place_at(instant)
        assert place.window == limit.window_at(instant)
        assert place.maximum == used.amount_at(instant)


@pytest.mark.parametrize(
    ("changes", "resets"),
    [
        ({}, "2026-11-19T00:00:00+00:00"),
        ({"window": FIVE_HOURS}, "2026-11-18T17:05:00+00:00"),
        ({"window": WindowRule("lifetime")}, None),
        ({"window": WindowRule("session")}, None),
        ({"unit": "parallel_requests"}, None),
    ],
    ids=["day", "rolling", "lifetime", "session", "parallel"],
)
def test_a_limit_resets_when_nothing_counts_any_more_that_counts_now(changes, resets):
    """A reset is the end of the window, for a rolling one the end of the current spend; some limits have none."""
    limit = make_limit(**changes)
    found = limit.reset_of(limit.window_at(NOON))
    assert (found and found.isoformat()) == resets


# ── adjustments ──────────────────────────────────────────────────────────────────────────────────────────────────────


def adjustment(number=1, **changes):
    """Return an adjustment of ann's daily limit to 50 for an hour."""
    return Adjustment(**{
        "number": number, "limit": "daily", "subject": "ann", "amount": 50, "before": 5, "made_at": NOON,
        "until": NOON + 3_600_000_000, "actor": "ops", "reason": "deadline", **changes,
    })  # fmt: skip


def adjusted_amount(*adjustments, limit=None, subjects=EVERYBODY, at=NOON):
    limits = LimitSet([limit or make_limit()]).adjusted(adjustments)
    (found,) = limits.matching(subjects, "gpt-5", "openai")
    assert limits.account(found.limit, found.subject).amount_at(at) == found.amount_at(at)
    return found.amount_at(at)


def test_an_adjustment_is_in_force_until_its_end():
    """An adjusted account has that amount until the adjustment's end, and then its own again."""
    ends = adjustment().until
    assert adjusted_amount(adjustment(), at=ends - 1) == 50
    assert adjusted_amount(adjustment(), at=ends) == 5_000_000_000


@pytest.mark.parametrize("amount", [0, None, 50])
def test_an_adjustment_may_block_or_lift(amount):
    """An adjustment of 0 blocks and one of unlimited lifts."""
    assert adjusted_amount(adjustment(amount=amount)) == amount


def test_an_adjustment_beats_overrides():
    """An adjustment has priority over all overrides of the YAML."""
    limit = make_limit(overrides=(Override(conditions(user="ann"), 7),))
    assert adjusted_amount(adjustment(), limit=limit) == 50
    assert adjusted_amount(adjustment(), limit=limit, at=adjustment().until) == 7


@pytest.mark.parametrize(
    "changes", [{"subject": "bo"}, {"limit": "other"}, {"subject": ""}, {"ended_at": NOON}], ids=str
)
def test_an_adjustment_is_for_one_account_while_nobody_ended_it(changes):
    """An adjustment of another subject or limit, or one that was ended early, changes nothing."""
    assert adjusted_amount(adjustment(**changes)) == 5_000_000_000


def test_the_newest_adjustment_counts_and_gives_way_to_an_older_one():
    """The newest adjustment counts, in any order of arrival; when it ends, an older one may still apply."""
    older = adjustment(1, amount=50, until=NOON + 100)
    newer = adjustment(2, amount=9, until=NOON + 10)
    for order in ((older, newer), (newer, older)):
        assert adjusted_amount(*order, at=NOON + 9) == 9
        assert adjusted_amount(*order, at=NOON + 10) == 50
        assert adjusted_amount(*order, at=NOON + 100) == 5_000_000_000


def test_an_adjustment_of_a_combination_names_all_of_it():
    """Accounts of a team's member and shared accounts are adjusted by their subjects."""
    member = make_limit(per=("team", "user"))
    assert adjusted_amount(adjustment(subject=f"research{SEPARATOR}ann"), limit=member) == 50
    assert adjusted_amount(adjustment(subject=f"sales{SEPARATOR}ann"), limit=member) == 5_000_000_000
    assert adjusted_amount(adjustment(subject=""), limit=make_limit(per=("global",))) == 50


def test_adjusting_forgets_the_adjustments_before():
    """A new set of adjustments replaces the previous one completely, cached amounts included."""
    limits = LimitSet([make_limit()], {"power": ("ann",)})
    assert limits.matching(EVERYBODY, None, None)[0].amount_at(NOON) == 5_000_000_000
    raised = limits.adjusted([adjustment()])
    assert raised.matching(EVERYBODY, None, None)[0].amount_at(NOON) == 50
    assert raised.adjusted([]).matching(EVERYBODY, None, None)[0].amount_at(NOON) == 5_000_000_000
    assert limits.matching(EVERYBODY, None, None)[0].amount_at(NOON) == 5_000_000_000
    assert raised.groups_of("ann") == ("power",)


# ── the key of the accounts ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"per": ("team",)},
        {"per": ("user", "team")},
        {"unit": "requests"},
        {"window": WindowRule("month")},
        {"window": WindowRule("session")},
        {"window": FIVE_HOURS},
        {"unit": "parallel_requests"},
        {"zone": ZoneInfo("Europe/Berlin")},
        {"match": conditions(model="o3")},
        {"match": conditions(user="o3")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_counted_decides_the_key(change):
    """A limit with another name, subject, unit, window, zone or condition has new accounts without spend."""
    assert make_limit(**change).key != make_limit().key


@pytest.mark.parametrize(
    "change",
    [
        {"amount": 7},
        {"amount": None},
        {"overrides": (Override(conditions(user="ann"), 1),)},
        {"action": "warn"},
        {"dry_run": True},
        {"allow_unpriced": ("local-*",)},
        {"allow_unbounded": True},
        {"action": "downgrade", "downgrade_to": "gpt-5-mini"},
        {"alert_at": (50, 80)},
        {"counts_history": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_amounts_and_actions_do_not_change_the_key(change):
    """A change of an amount, an override or an action keeps the spend."""
    assert make_limit(**change).key == make_limit().key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (conditions(team="a", model="b"), conditions(model="b", team="a")),
        (conditions(model=["a", "b"]), conditions(model=["b", "a"])),
    ],
    ids=["keys", "globs"],
)
def test_the_order_of_conditions_does_not_change_the_key(one, other):
    """A new order of the conditions in the YAML keeps the spend."""
    assert make_limit(match=one).key == make_limit(match=other).key


def test_keys_fit_into_the_ledger():
    """A key fits into SQLite's signed integers."""
    assert all(0 <= make_limit(name=f"limit-{number}").key < 2**63 for number in range(1_000))


def test_keys_stay_the_same_for_ever():
    """A key never changes between versions, since the ledger stores spend under it."""
    assert make_limit().key == 5_494_497_574_764_442_783
    assert make_limit(window=FIVE_HOURS).key == 8_315_960_984_240_025_231
    assert make_limit(window=WindowRule("week", week_starts=6)).key == 4_724_027_091_979_925_586
    assert make_limit(window=WindowRule("session")).key == 6_469_366_962_574_512_552
    assert make_limit(unit="parallel_requests", window=WindowRule("lifetime")).key == 8_434_878_568_104_129_199


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (WindowRule("week"), WindowRule("week", week_starts=6)),
        (FIVE_HOURS, WindowRule("rolling", length=4 * 3_600_000_000)),
        (FIVE_HOURS, WindowRule("session")),
    ],
    ids=["week", "length", "kind"],
)
def test_all_of_the_window_decides_the_key(one, other):
    """Weeks with another first day and windows of another length have different sums, so they are other accounts."""
    assert make_limit(window=one).key != make_limit(window=other).key


@pytest.mark.parametrize(
    "changes", [{"window": FIVE_HOURS}, {"window": WindowRule("session")}, {"unit": "parallel_requests"}], ids=str
)
def test_where_no_clock_is_asked_the_zone_does_not_change_the_key(changes):
    """A change of a zone that has no effect keeps the spend."""
    assert make_limit(**changes, zone=ZoneInfo("Asia/Kolkata")).key == make_limit(**changes).key


# ── visibility and caching ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_only_limits_per_user_key_or_session_are_the_callers_own(dimension):
    """A caller may see amounts only of limits per user, key or session."""
    assert make_limit(per=(dimension,)).is_callers_own == (dimension in ("user", "api_key", "session"))


def test_a_limit_for_each_member_of_a_team_is_the_callers_own():
    """A limit per team and user is the user's own."""
    assert make_limit(per=("team", "user")).is_callers_own


@pytest.mark.parametrize(
    ("changes", "blocks"),
    [
        ({}, True),
        ({"action": "warn"}, False),
        ({"dry_run": True}, False),
        ({"action": "warn", "dry_run": True}, False),
        ({"action": "downgrade", "downgrade_to": "gpt-5-mini"}, False),
    ],
)
def test_only_blocking_limits_block(changes, blocks):
    """Warnings and dry runs are not enforced, and a downgrade refuses nothing."""
    assert make_limit(**changes).blocks == blocks


def test_models_without_a_price_pass_only_where_they_are_allowed():
    """Under a cost limit, a model without a price is permitted only if a glob of allow_unpriced matches it."""
    limit = make_limit(allow_unpriced=("local-*", "test"))
    assert limit.lets_unpriced_pass("local-llama")
    assert limit.lets_unpriced_pass("test")
    assert not limit.lets_unpriced_pass("gpt-5")
    assert not make_limit().lets_unpriced_pass("local-llama")


def test_memory_stays_bounded_whatever_is_asked():
    """For any number of users and models, the cache of matches is bounded and correct."""
    limits = LimitSet([make_limit(per=("user", "model"))])
    for number in range(10_000):
        limits.matching(Subjects(user=f"user-{number}"), f"model-{number % 7}", None)
    assert len(limits._remembered) <= 4_096
    (found,) = limits.matching(Subjects(user="user-1"), "model-1", None)
    assert found.limit.names_of(found.subject) == {"user": "user-1", "model": "model-1"}


@pytest.mark.parametrize("varied", ["session", "tags", "end_user", "api_key_alias"])
def test_what_no_limit_asks_for_does_not_defeat_the_memory(varied, monkeypatch):
    """Requests that differ only in dimensions that no limit uses are matched once."""
    limits = LimitSet([make_limit(), make_limit(name="b", per=("team", "model"), match=conditions(team="*"))])
    searched = []
    found = limits._match
    monkeypatch.setattr(limits, "_match", lambda *names: searched.append(names) or found(*names))
    for number in range(100):
        name = f"{varied}-{number}"
        limits.matching(EVERYBODY._replace(**{varied: (name,) if varied == "tags" else name}), "gpt-5", "openai")
    assert len(searched) == 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ann", "bo", "(anonymous)"]),
            st.sampled_from([None, "a", "b"]),
            st.sampled_from([None, "m", "n"]),
            st.sets(st.sampled_from(["x", "y"])),
        )
    )
)
def test_what_is_remembered_never_mixes_requests_up(requests):
    """A set of limits with a filled cache returns the same matches as a new one."""
    limits = [
        make_limit(name="a", per=("user",), match=conditions(team="a")),
        make_limit(name="b", per=("tag",), overrides=(Override(conditions(user="bo"), 1),)),
        make_limit(name="c", per=("model", "team")),
        make_limit(name="d", per=("global",), match=conditions(group="g")),
    ]
    groups = {"g": ("b*",)}
    used = LimitSet(limits, groups)
    for user, team, model, tags in requests:
        subjects = Subjects(user=user, team=team, tags=tuple(sorted(tags)))
        remembered, found = (
            [(one.limit, one.subject, one.amounts) for one in known.matching(subjects, model, None)]
            for known in (used, LimitSet(limits, groups))
        )
        assert remembered == found
