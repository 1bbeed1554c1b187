from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from usage_plugin.domain.windows import (
    FOREVER,
    MICROSECONDS,
    WINDOW_KINDS,
    Window,
    days_window,
    local_date,
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
    """Read local time in a zone; `fold=1` by a trailing `*`."""
    moment = datetime.fromisoformat(text.rstrip("*")).replace(tzinfo=ZoneInfo(zone), fold=int(text.endswith("*")))
    return to_instant(moment)


def shown(window, zone="UTC"):
    """Write a window in local time, for comparison."""
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
        # Edges: the first and the last instant of a window, over the end of a year, and 29 February.
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
    assert shown(window_at(kind, instant(at), ZoneInfo("UTC"))) == (start, end)


def test_a_request_window_is_the_instant_itself():
    """A window of one request holds its instant and no other."""
    assert window_at("request", 1234567, ZoneInfo("UTC")) == Window(1234567, 1234568)


def test_a_lifetime_window_holds_every_instant():
    """A lifetime window is the same whenever it is asked for."""
    zone = ZoneInfo("Asia/Kolkata")
    first = window_at("lifetime", instant("1970-01-02"), zone)
    assert first == window_at("lifetime", instant("2999-12-31"), zone)
    assert first.start <= instant("1970-01-01") < instant("9999-12-30") < first.end == FOREVER


calendar_kinds = st.sampled_from([kind for kind in WINDOW_KINDS if kind != "lifetime"])
instants = st.integers(instant("2000-01-01"), instant("2040-01-01"))
zones = st.sampled_from(ZONES).map(ZoneInfo)


@example("hour", instant("2026-10-04 01:45", "Australia/Lord_Howe"), ZoneInfo("Australia/Lord_Howe"))
@given(calendar_kinds, instants, zones)
def test_windows_tile_time(kind, at, zone):
    """Windows of a kind follow each other without gap or overlap, half-open, in every zone."""
    window = window_at(kind, at, zone)
    assert window.start <= at < window.end
    assert window_at(kind, window.start, zone) == window
    assert window_at(kind, window.end - 1, zone) == window
    assert window_at(kind, window.end, zone).start == window.end
    assert window_at(kind, window.start - 1, zone).end == window.start


@given(calendar_kinds, instants, instants, zones)
def test_two_instants_are_in_one_window_or_in_windows_apart(kind, one, other, zone):
    """Two instants share a window exactly when each lies in the other's."""
    assume(one != other)
    first, second = window_at(kind, one, zone), window_at(kind, other, zone)
    assert (first == second) == (first.start <= other < first.end)


@given(st.sampled_from(["day", "week", "month", "quarter", "year"]), instants, zones)
def test_windows_of_days_begin_with_a_local_day(kind, at, zone):
    """A window of one or more days begins with the first instant of a local day, whatever the clocks do."""
    start = window_at(kind, at, zone).start
    assert local_date(start, zone) > local_date(start - 1, zone)


@given(instants, zones)
def test_a_day_window_holds_one_local_date(at, zone):
    """All of a day's window has the same local date, which is the date events of that window are reported on."""
    window = window_at("day", at, zone)
    assert local_date(window.start, zone) == local_date(window.end - 1, zone) == local_date(at, zone)


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", 23),
        ("Europe/Berlin", "2026-10-25", 25),
        ("Europe/Berlin", "2026-10-26", 24),
        ("America/New_York", "2026-03-08", 23),
        ("America/New_York", "2026-11-01", 25),
        # Clocks change at midnight itself: the day begins at one, or its last hour comes twice.
        ("America/Asuncion", "2023-10-01", 23),
        ("America/Asuncion", "2024-03-23", 25),
        ("Africa/Cairo", "2026-04-24", 23),
        ("Asia/Beirut", "2026-03-29", 23),
        ("America/Havana", "2026-11-01", 25),
        ("Australia/Lord_Howe", "2026-10-04", 23.5),
        ("Australia/Lord_Howe", "2026-04-05", 24.5),
    ],
)
def test_a_day_is_as_long_as_its_clocks_make_it(zone, day, hours):
    """On the days when clocks change a day window is an hour, or half an hour, shorter or longer."""
    window = window_at("day", instant(f"{day} 12:00", zone), ZoneInfo(zone))
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
    """Where clocks change at midnight, the day begins with the jump, or with the first of the two midnights."""
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
        ("Asia/Kolkata", "2026-11-18 10:20", "2026-11-18 04:30:00", "2026-11-18 05:30:00"),
        ("Asia/Kathmandu", "2026-11-18 10:20", "2026-11-18 04:15:00", "2026-11-18 05:15:00"),
    ],
)
def test_hours_follow_the_zones_clock(zone, at, start, end):
    """An hour begins with the zone's full hour; the hour that comes twice is two windows."""
    assert shown(window_at("hour", instant(at, zone), ZoneInfo(zone))) == (start, end)


@pytest.mark.parametrize(
    "change", ["2026-10-03 15:30", "2026-04-04 15:00"], ids=["half an hour forward", "half an hour back"]
)
def test_hours_do_not_overlap_where_clocks_change_by_half_an_hour(change):
    """On Lord Howe Island, too, no hour begins before the hour before it has ended."""
    zone = ZoneInfo("Australia/Lord_Howe")
    jump = instant(change)
    before, after = window_at("hour", jump - 1, zone), window_at("hour", jump, zone)
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
    """In a zone 5 hours 45 minutes ahead, days, months and years begin at 18:15 UTC."""
    assert shown(window_at(kind, instant(at, "Asia/Kathmandu"), ZoneInfo("Asia/Kathmandu"))) == (start, end)


def test_weeks_over_a_change_of_clocks_have_another_length():
    """A week with a change of clocks in it is an hour shorter or longer, and begins on a Monday all the same."""
    zone = ZoneInfo("Europe/Berlin")
    spring = window_at("week", instant("2026-03-27 12:00", "Europe/Berlin"), zone)
    autumn = window_at("week", instant("2026-10-21 12:00", "Europe/Berlin"), zone)
    assert (spring.end - spring.start, autumn.end - autumn.start) == (167 * HOUR, 169 * HOUR)
    assert to_datetime(autumn.start, zone).weekday() == 0


def test_a_day_that_a_zone_skipped_has_no_length():
    """Samoa had no 30 December 2011: its day before ends where its day after begins."""
    zone = ZoneInfo("Pacific/Apia")
    before = window_at("day", instant("2011-12-29 12:00", "Pacific/Apia"), zone)
    assert local_date(before.end, zone) == date(2011, 12, 31)
    assert window_at("day", before.end, zone).start == before.end
    skipped = days_window(date(2011, 12, 30), date(2011, 12, 30), zone)
    assert skipped.start == skipped.end


def test_a_span_of_days_includes_both_ends():
    """A span of days is half-open behind its last day."""
    zone = ZoneInfo("Europe/Berlin")
    span = days_window(date(2026, 10, 24), date(2026, 10, 25), zone)
    assert shown(span, "Europe/Berlin") == ("2026-10-24 00:00:00", "2026-10-26 00:00:00")
    assert span.end - span.start == 49 * HOUR


@given(st.integers(-(10**15), 10**17))
def test_instants_survive_the_way_through_datetimes(at):
    """An instant becomes a datetime and the same instant again, to the microsecond, in any zone."""
    assert to_instant(to_datetime(at)) == at
    assert to_instant(to_datetime(at, ZoneInfo("Europe/Berlin"))) == at


def test_instants_are_microseconds_since_1970():
    """Instants count microseconds since 1970 UTC, wherever the datetime's zone is."""
    assert to_instant(datetime(1970, 1, 1, tzinfo=timezone.utc)) == 0
    assert to_instant(datetime(1970, 1, 1, 1, 0, 0, 1, tzinfo=timezone(timedelta(hours=1)))) == 1
