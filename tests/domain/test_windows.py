from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from usage_plugin.domain.windows import (
    FOREVER,
    MICROSECONDS,
    SESSION_IDLE,
    WINDOW_KINDS,
    Window,
    WindowRule,
    days_window,
    duration_words,
    local_date,
    monday_of,
    since_at,
    start_of_day,
    to_datetime,
    to_instant,
    window_at,
)

HOUR = 3_600 * MICROSECONDS
ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "America/Asuncion", "Africa/Cairo", "Asia/Beirut", "America/Havana",
    "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Apia", "Pacific/Chatham", "America/Nuuk",
    "Africa/Casablanca", "Atlantic/Azores", "Antarctica/Troll", "Asia/Tehran", "Etc/GMT-14",
)  # fmt: skip


def instant(text, zone="UTC"):
    """Return the instant of a local time in a zone; a trailing `*` means `fold=1`."""
    moment = datetime.fromisoformat(text.rstrip("*")).replace(tzinfo=ZoneInfo(zone), fold=int(text.endswith("*")))
    return to_instant(moment)


def shown(window, zone="UTC"):
    """Return a window's start and end in local time, for comparison."""
    return tuple(f"{to_datetime(edge, ZoneInfo(zone)):%Y-%m-%d %H:%M:%S}" for edge in window)


@pytest.mark.parametrize(
    ("kind", "at", "start", "end"),
    [
        ("minute", "2026-11-18 15:04:05.678", "2026-11-18 15:04:00", "2026-11-18 15:05:00"),
        ("hour", "2026-11-18 15:04:05.678", "2026-11-18 15:00:00", "2026-11-18 16:00:00"),
        ("day", "2026-11-18 15:04:05.678", "2026-11-18 00:00:00", "2026-11-19 00:00:00"),
        ("week", "2026-11-18 15:04:05.678", "2026-11-16 00:00:00", "2026-11-23 00:00:00"),
        ("month", "2026-11-18 15:04:05.678", "2026-11-01 00:00:00", "2026-12-01 00:00:00"),
        ("quarter", "2026-11-18 15:04:05.678", "2026-10-01 00:00:00", "2027-01-01 00:00:00"),
        ("year", "2026-11-18 15:04:05.678", "2026-01-01 00:00:00", "2027-01-01 00:00:00"),
        # Edges: the first and the last instant of a window, the end of a year, and 29 February.
        ("minute", "2026-12-31 23:59:59.999999", "2026-12-31 23:59:00", "2027-01-01 00:00:00"),
        ("hour", "2026-12-31 23:59:59.999999", "2026-12-31 23:00:00", "2027-01-01 00:00:00"),
        ("day", "2026-12-31 23:59:59.999999", "2026-12-31 00:00:00", "2027-01-01 00:00:00"),
        ("week", "2026-12-31 23:59:59.999999", "2026-12-28 00:00:00", "2027-01-04 00:00:00"),
        ("week", "2027-01-03 23:59:59", "2026-12-28 00:00:00", "2027-01-04 00:00:00"),
        ("week", "2027-01-04 00:00:00", "2027-01-04 00:00:00", "2027-01-11 00:00:00"),
        ("month", "2026-12-31 23:59:59.999999", "2026-12-01 00:00:00", "2027-01-01 00:00:00"),
        ("quarter", "2026-12-31 23:59:59.999999", "2026-10-01 00:00:00", "2027-01-01 00:00:00"),
        ("year", "2026-12-31 23:59:59.999999", "2026-01-01 00:00:00", "2027-01-01 00:00:00"),
        ("year", "2027-01-01 00:00:00", "2027-01-01 00:00:00", "2028-01-01 00:00:00"),
        ("day", "2028-02-29 12:00", "2028-02-29 00:00:00", "2028-03-01 00:00:00"),
        ("month", "2028-02-29 12:00", "2028-02-01 00:00:00", "2028-03-01 00:00:00"),
        ("month", "2026-02-28 12:00", "2026-02-01 00:00:00", "2026-03-01 00:00:00"),
        ("month", "2026-01-31 12:00", "2026-01-01 00:00:00", "2026-02-01 00:00:00"),
        ("quarter", "2026-01-01 00:00", "2026-01-01 00:00:00", "2026-04-01 00:00:00"),
        ("quarter", "2026-03-31 23:59", "2026-01-01 00:00:00", "2026-04-01 00:00:00"),
        ("quarter", "2026-04-01 00:00", "2026-04-01 00:00:00", "2026-07-01 00:00:00"),
        ("quarter", "2026-09-30 23:59", "2026-07-01 00:00:00", "2026-10-01 00:00:00"),
    ],
)
def test_calendar_windows_begin_and_end_where_the_calendar_says(kind, at, start, end):
    """Each calendar window spans its minute, hour, day, week from Monday, month, quarter or year."""
    assert shown(window_at(WindowRule(kind), instant(at), ZoneInfo("UTC"))) == (start, end)


def test_a_request_window_is_the_instant_itself():
    """A window of one request contains only its instant."""
    assert window_at(WindowRule("request"), 1234567, ZoneInfo("UTC")) == Window(1234567, 1234568)


def test_a_lifetime_window_holds_every_instant():
    """A lifetime window is the same at every instant."""
    zone = ZoneInfo("Asia/Kolkata")
    first = window_at(WindowRule("lifetime"), instant("1970-01-02"), zone)
    assert first == window_at(WindowRule("lifetime"), instant("2999-12-31"), zone)
    assert first.start <= instant("1970-01-01") < instant("9999-12-30") < first.end == FOREVER


ENDLESS = ("lifetime", "session", "rolling")
rules = st.one_of(
    st.sampled_from([WindowRule(kind) for kind in WINDOW_KINDS if kind not in ENDLESS]),
    st.integers(0, 6).map(lambda day: WindowRule("week", week_starts=day)),
)
"""Rules with consecutive windows."""
instants = st.integers(instant("2000-01-01"), instant("2040-01-01"))
zones = st.sampled_from(ZONES).map(ZoneInfo)


@example(WindowRule("hour"), instant("2026-10-04 01:45", "Australia/Lord_Howe"), ZoneInfo("Australia/Lord_Howe"))
@example(WindowRule("hour"), instant("2026-04-05 01:45*", "Australia/Lord_Howe"), ZoneInfo("Australia/Lord_Howe"))
@example(WindowRule("day"), instant("2026-03-29 12:00", "Europe/Berlin"), ZoneInfo("Europe/Berlin"))
@example(WindowRule("hour"), instant("2026-11-01 01:30*", "America/New_York"), ZoneInfo("America/New_York"))
@example(WindowRule("month"), instant("2028-02-29 23:59", "Asia/Kolkata"), ZoneInfo("Asia/Kolkata"))
@given(rules, instants, zones)
def test_windows_tile_time(rule, at, zone):
    """Windows of a rule follow each other without gap or overlap, half-open, in every zone."""
    window = window_at(rule, at, zone)
    assert window.start <= at < window.end
    assert window_at(rule, window.start, zone) == window
    assert window_at(rule, window.end - 1, zone) == window
    assert window_at(rule, window.end, zone).start == window.end
    assert window_at(rule, window.start - 1, zone).end == window.start


@given(rules, instants, instants, zones)
def test_two_instants_are_in_one_window_or_in_windows_apart(rule, one, other, zone):
    """Two instants share a window exactly if each is in the other's window."""
    assume(one != other)
    first, second = window_at(rule, one, zone), window_at(rule, other, zone)
    assert (first == second) == (first.start <= other < first.end)


@given(st.lists(st.tuples(rules, instants, zones), max_size=6))
def test_a_clock_that_jumps_back_finds_the_windows_it_left(asked):
    """Earlier queries, for any instant and rule, do not change a result."""
    first = [window_at(*question) for question in asked]
    for question, found in reversed(list(zip(asked, first, strict=True))):
        assert window_at(*question) == found


@pytest.mark.parametrize(
    ("kind", "earlier", "later"),
    [
        ("day", "2026-11-17 23:59:59", "2026-11-18 00:00:01"),
        ("hour", "2026-11-18 09:59", "2026-11-18 10:01"),
        ("month", "2026-10-31 23:59", "2026-11-01 00:01"),
    ],
)
def test_a_request_after_the_clock_was_set_back_counts_in_the_earlier_window(kind, earlier, later):
    """If the clock is set back over the edge of a window, the previous window applies again."""
    before = window_at(WindowRule(kind), instant(earlier), ZoneInfo("UTC"))
    after = window_at(WindowRule(kind), instant(later), ZoneInfo("UTC"))
    assert before.end == after.start
    assert window_at(WindowRule(kind), instant(earlier), ZoneInfo("UTC")) == before


@given(st.sampled_from(["day", "week", "month", "quarter", "year"]).map(WindowRule), instants, zones)
def test_windows_of_days_begin_with_a_local_day(rule, at, zone):
    """A window of one or more days starts with the first instant of a local day, even when clocks change."""
    start = window_at(rule, at, zone).start
    assert local_date(start, zone) > local_date(start - 1, zone)


@pytest.mark.parametrize(
    ("week_starts", "at", "start"),
    [
        (0, "2026-11-22 12:00", "2026-11-16"),
        (6, "2026-11-22 12:00", "2026-11-22"),
        (6, "2026-11-21 23:59:59.999999", "2026-11-15"),
        (5, "2026-11-22 12:00", "2026-11-21"),
        (1, "2026-11-23 00:00", "2026-11-17"),
        (6, "2027-01-01 00:00", "2026-12-27"),
        (3, "2028-03-01 12:00", "2028-02-24"),
    ],
)
def test_a_week_begins_on_the_day_that_is_named(week_starts, at, start):
    """A week is the seven days from the last such weekday on, even over the end of a month or a year."""
    window = window_at(WindowRule("week", week_starts=week_starts), instant(at), ZoneInfo("UTC"))
    assert shown(window)[0] == f"{start} 00:00:00"
    assert window.end - window.start == 7 * 24 * HOUR


@given(st.integers(0, 6), instants, zones)
def test_every_week_begins_on_its_day(week_starts, at, zone):
    """A week starts with its weekday in its zone and has seven dates."""
    window = window_at(WindowRule("week", week_starts=week_starts), at, zone)
    first, last = local_date(window.start, zone), local_date(window.end - 1, zone)
    # Samoa skipped a whole day, so that week starts with the day after.
    assert first.weekday() == week_starts or first == date(2011, 12, 31)
    assert (last - first).days in (5, 6)


# ── rolling windows and sessions ─────────────────────────────────────────────────────────────────────────────────────

rolling = st.integers(10, 90 * 86_400).map(lambda seconds: WindowRule("rolling", length=seconds * MICROSECONDS))


def counts(rule, spent_at, asked_at):
    """Whether a request counts the spend of an instant: its bucket is not older than the oldest that counts."""
    return window_at(rule, spent_at, ZoneInfo("UTC")).start >= since_at(rule, asked_at)


@given(rolling, instants, st.data())
def test_what_is_spent_counts_for_the_length_of_a_rolling_window(rule, spent_at, data):
    """Spend counts for all requests within the window's length, and for none later than one more bucket."""
    for later in (0, 1, rule.length - 1, data.draw(st.integers(0, rule.length - 1))):
        assert counts(rule, spent_at, spent_at + later)
    for later in (
        rule.length + rule.bucket,
        data.draw(st.integers(rule.length + rule.bucket, 10 * rule.length + HOUR)),
    ):
        assert not counts(rule, spent_at, spent_at + later)


@given(rolling, instants)
def test_a_bucket_ends_where_it_no_longer_counts(rule, at):
    """The account of a bucket is needed until its end, by the last request that counts it, and not longer."""
    window = window_at(rule, at, ZoneInfo("Asia/Kathmandu"))
    assert counts(rule, at, window.end - 1)
    assert not counts(rule, at, window.end)


@given(rolling, instants, zones)
def test_buckets_tile_time(rule, at, zone):
    """Buckets have no gap and no overlap, in any zone, and start at the epoch."""
    window = window_at(rule, at, zone)
    assert window.start <= at < window.start + rule.bucket
    assert window_at(rule, window.start + rule.bucket, zone).start == window.start + rule.bucket
    assert window_at(rule, window.start - 1, zone).start == window.start - rule.bucket
    assert window.start % rule.bucket == 0
    assert since_at(rule, at) % rule.bucket == 0


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(10, 1), (59, 1), (60, 1), (61, 61 / 60), (5 * 3600, 300), (86_400, 1440)]
)
def test_a_bucket_is_a_sixtieth_and_never_below_a_second(seconds, bucket):
    """A window has sixty buckets; one shorter than a minute has fewer, of one second each."""
    rule = WindowRule("rolling", length=seconds * MICROSECONDS)
    assert rule.bucket == int(bucket * MICROSECONDS)


def test_a_rolling_window_of_five_hours():
    """At 12:07, spend since 7:05 counts; the bucket is that of 12:05, which counts until 17:10."""
    rule = WindowRule("rolling", length=5 * HOUR)
    at = instant("2026-11-18 12:07")
    assert shown(window_at(rule, at, ZoneInfo("UTC"))) == ("2026-11-18 12:05:00", "2026-11-18 17:10:00")
    assert since_at(rule, at) == instant("2026-11-18 07:05")


@given(rolling, instants)
def test_a_rolling_window_knows_no_earlier_answer(rule, at):
    """The next bucket is found before the previous one has ended, and also after the clock was set back."""
    first = window_at(rule, at, ZoneInfo("UTC"))
    second = window_at(rule, at + rule.bucket, ZoneInfo("UTC"))
    assert second.start == first.start + rule.bucket
    assert window_at(rule, at, ZoneInfo("UTC")) == first


@given(rules, instants)
def test_calendar_windows_have_no_buckets(rule, at):
    """A window that does not roll is one account."""
    assert since_at(rule, at) is None
    assert since_at(WindowRule("session"), at) is since_at(WindowRule("lifetime"), at) is None


@given(instants, st.integers(0, 60 * 86_400 * MICROSECONDS))
def test_a_session_is_one_account_that_ends_when_it_is_idle(at, later):
    """All requests of a session count on one account, which ends 30 days after the last of them."""
    rule = WindowRule("session")
    first, second = (window_at(rule, moment, ZoneInfo("UTC")) for moment in (at, at + later))
    assert first.start == second.start == 0
    assert (first.end, second.end) == (at + SESSION_IDLE, at + later + SESSION_IDLE)
    assert window_at(rule, at, ZoneInfo("UTC")) == first


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (10, "10 s"),
        (60, "60 s"),
        (90, "90 s"),
        (120, "2 min"),
        (5400, "90 min"),
        (18_000, "5 h"),
        (86_400, "24 h"),
        (604_800, "7 days"),
    ],
)
def test_lengths_are_written_in_their_largest_unit(seconds, words):
    """A length is written in the largest unit of which it is a multiple."""
    assert duration_words(seconds * MICROSECONDS) == words


@given(instants, zones)
def test_a_day_window_holds_one_local_date(at, zone):
    """A day's window has one local date, the date under which its events are reported."""
    window = window_at(WindowRule("day"), at, zone)
    assert local_date(window.start, zone) == local_date(window.end - 1, zone) == local_date(at, zone)


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25", 25),
        ("Europe/Berlin", "2026-10-26", 24),
        ("America/New_York", "2026-03-08", 23),
        ("America/New_York", "2026-11-01", 25),
        # Clocks change at midnight: the day starts at one, or its last hour occurs twice.
        ("America/Asuncion", "2023-10-01", 23),
        ("America/Asuncion", "2024-03-23", 25),
        ("Africa/Cairo", "2026-04-24", 23),
        ("Asia/Beirut", "2026-03-29", 23),
        ("America/Havana", "2026-11-01", 25),
        ("Australia/Lord_Howe", "2026-10-04", 23.5),
        ("Australia/Lord_Howe", "2026-04-05", 24.5),
        ("Asia/Kolkata", "2026-03-29", 24),
    ],
)
def test_a_day_is_as_long_as_its_clocks_make_it(zone, day, hours):
    """On days when clocks change, a day's window is an hour, or half an hour, shorter or longer."""
    window = window_at(WindowRule("day"), instant(f"{day} 12:00", zone), ZoneInfo(zone))
    assert (window.end - window.start) / HOUR == hours


@pytest.mark.parametrize(
    ("zone", "day", "start"),
    [
        ("America/Asuncion", "2023-10-01", "2023-10-01 04:00:00"),
        ("Africa/Cairo", "2026-04-24", "2026-04-23 22:00:00"),
        ("Asia/Beirut", "2026-03-29", "2026-03-28 22:00:00"),
        ("America/Havana", "2026-11-01", "2026-11-01 04:00:00"),
    ],
)
def test_a_midnight_that_is_skipped_or_comes_twice_is_the_first_instant_of_the_day(zone, day, start):
    """If clocks change at midnight, the day starts after the skipped time, or with the first of two midnights."""
    begins = start_of_day(date.fromisoformat(day), ZoneInfo(zone))
    assert f"{to_datetime(begins):%Y-%m-%d %H:%M:%S}" == start
    assert local_date(begins, ZoneInfo(zone)).isoformat() == day
    assert local_date(begins - 1, ZoneInfo(zone)).isoformat() < day


@pytest.mark.parametrize(
    ("zone", "at", "start", "end"),
    [
        ("Europe/Berlin", "2026-10-25 02:30", "2026-10-25 00:00:00", "2026-10-25 01:00:00"),
        ("Europe/Berlin", "2026-10-25 02:30*", "2026-10-25 01:00:00", "2026-10-25 02:00:00"),
        ("Europe/Berlin", "2026-03-29 03:10", "2026-03-29 01:00:00", "2026-03-29 02:00:00"),
        ("America/New_York", "2026-11-01 01:30", "2026-11-01 05:00:00", "2026-11-01 06:00:00"),
        ("America/New_York", "2026-11-01 01:30*", "2026-11-01 06:00:00", "2026-11-01 07:00:00"),
        ("America/New_York", "2026-03-08 03:10", "2026-03-08 07:00:00", "2026-03-08 08:00:00"),
        ("Asia/Kolkata", "2026-11-18 10:20", "2026-11-18 04:30:00", "2026-11-18 05:30:00"),
        ("Asia/Kathmandu", "2026-11-18 10:20", "2026-11-18 04:15:00", "2026-11-18 05:15:00"),
    ],
)
def test_hours_follow_the_zones_clock(zone, at, start, end):
    """An hour starts with the zone's full hour; an hour that occurs twice is two windows."""
    assert shown(window_at(WindowRule("hour"), instant(at, zone), ZoneInfo(zone))) == (start, end)


@pytest.mark.parametrize(
    "change", ["2026-10-03 15:30", "2026-04-04 15:00"], ids=["half an hour forward", "half an hour back"]
)
def test_hours_do_not_overlap_where_clocks_change_by_half_an_hour(change):
    """On Lord Howe Island, too, no hour starts before the previous one has ended."""
    zone = ZoneInfo("Australia/Lord_Howe")
    jump = instant(change)
    before, after = window_at(WindowRule("hour"), jump - 1, zone), window_at(WindowRule("hour"), jump, zone)
    assert before.end <= after.start


@pytest.mark.parametrize(
    ("kind", "at", "start", "end"),
    [
        ("day", "2026-11-18 00:10", "2026-11-17 18:15:00", "2026-11-18 18:15:00"),
        ("month", "2026-11-30 23:50", "2026-10-31 18:15:00", "2026-11-30 18:15:00"),
        ("year", "2027-01-01 00:00", "2026-12-31 18:15:00", "2027-12-31 18:15:00"),
    ],
)
def test_windows_begin_at_local_midnight_also_at_odd_offsets(kind, at, start, end):
    """In a zone 5 hours 45 minutes ahead, days, months and years start at 18:15 UTC."""
    assert shown(window_at(WindowRule(kind), instant(at, "Asia/Kathmandu"), ZoneInfo("Asia/Kathmandu"))) == (start, end)


def test_weeks_over_a_change_of_clocks_have_another_length():
    """A week with a change of clocks is an hour shorter or longer, and still starts on a Monday."""
    zone = ZoneInfo("Europe/Berlin")
    spring = window_at(WindowRule("week"), instant("2026-03-27 12:00", "Europe/Berlin"), zone)
    autumn = window_at(WindowRule("week"), instant("2026-10-21 12:00", "Europe/Berlin"), zone)
    assert (spring.end - spring.start, autumn.end - autumn.start) == (167 * HOUR, 169 * HOUR)
    assert to_datetime(autumn.start, zone).weekday() == 0


def test_a_day_that_a_zone_skipped_has_no_length():
    """Samoa had no 30 December 2011: the day before ends where the day after starts."""
    zone = ZoneInfo("Pacific/Apia")
    before = window_at(WindowRule("day"), instant("2011-12-29 12:00", "Pacific/Apia"), zone)
    assert local_date(before.end, zone) == date(2011, 12, 31)
    assert window_at(WindowRule("day"), before.end, zone).start == before.end
    skipped = days_window(date(2011, 12, 30), date(2011, 12, 30), zone)
    assert skipped.start == skipped.end


def test_a_span_of_days_includes_both_ends():
    """A span of days includes its last day, and ends at the start of the next one."""
    zone = ZoneInfo("Europe/Berlin")
    span = days_window(date(2026, 10, 24), date(2026, 10, 25), zone)
    assert shown(span, "Europe/Berlin") == ("2026-10-24 00:00:00", "2026-10-26 00:00:00")
    assert span.end - span.start == 49 * HOUR


@given(st.integers(-(10**15), 10**17))
def test_instants_survive_the_way_through_datetimes(at):
    """An instant is unchanged by conversion to a datetime and back, to the microsecond, in any zone."""
    assert to_instant(to_datetime(at)) == at
    assert to_instant(to_datetime(at, ZoneInfo("Europe/Berlin"))) == at


def test_instants_are_microseconds_since_1970():
    """Instants count microseconds since 1970 UTC, for a datetime in any zone."""
    assert to_instant(datetime(1970, 1, 1, tzinfo=timezone.utc)) == 0
    assert to_instant(datetime(1970, 1, 1, 1, 0, 0, 1, tzinfo=timezone(timedelta(hours=1)))) == 1


def test_a_clock_that_goes_back_over_midnight_does_not_end_the_new_day() -> None:
    """An hour that occurs twice belongs to the new day, in any order of queries."""
    zone = ZoneInfo("America/St_Johns")
    midnight = to_instant(datetime(2010, 11, 7, tzinfo=zone))
    instants = [midnight - 1, midnight, midnight + 30 * 60_000_000, midnight + 3 * 3_600_000_000]
    days = {at: local_date(at, zone) for at in instants}
    assert [day.day for day in days.values()] == [6, 7, 7, 7]
    assert {at: local_date(at, zone) for at in reversed(instants)} == days
    assert all(
        window.start <= at < window.end for at in instants for window in [window_at(WindowRule("day"), at, zone)]
    )


def test_a_week_begins_on_monday() -> None:
    """A week starts on Monday, also over the end of a year."""
    assert monday_of(date(2027, 1, 3)) == date(2026, 12, 28)
    assert monday_of(date(2026, 11, 23)) == date(2026, 11, 23)
