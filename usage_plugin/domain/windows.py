"""Windows: the spans of time over which a limit counts, half-open `[start, end)`.

Instants are integer microseconds since 1970 UTC. A calendar window begins at local midnight (or the hour, the
minute) of its zone, so a day can have 23 or 25 hours. Nothing is ever reset: a new window is a new account.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

WindowKind = Literal["request", "minute", "hour", "day", "week", "month", "quarter", "year", "lifetime"]
WINDOW_KINDS: tuple[WindowKind, ...] = get_args(WindowKind)

MICROSECONDS = 1_000_000
FOREVER = 253_402_214_400 * MICROSECONDS
"""The end of a lifetime window: 9999-12-31, since calendars end a day later."""

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Window(NamedTuple):
    """One span of time: `start <= instant < end`, in microseconds since 1970 UTC."""

    start: int
    end: int


def to_instant(moment: datetime) -> int:
    """Turn an aware datetime into microseconds since 1970 UTC."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def to_datetime(instant: int, zone: ZoneInfo | timezone = timezone.utc) -> datetime:
    """Turn microseconds since 1970 UTC into an aware datetime."""
    return (_EPOCH + timedelta(microseconds=instant)).astimezone(zone)


def reset_of(window: Window) -> datetime | None:
    """Say when a window ends, in UTC; None if it never does."""
    return None if window.end >= FOREVER else to_datetime(window.end)


def local_date(instant: int, zone: ZoneInfo) -> date:
    """Say which day it is in the zone at an instant."""
    return to_datetime(instant, zone).date()


def start_of_day(day: date, zone: ZoneInfo) -> int:
    """Find the first instant of a local day, also where clocks change at midnight."""
    # fold=0: of a midnight that happens twice the first; of one that is skipped the instant of the jump.
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    return to_instant(midnight.astimezone(timezone.utc))


def days_window(first: date, last: date, zone: ZoneInfo) -> Window:
    """Span whole local days, both included."""
    return Window(start_of_day(first, zone), start_of_day(last + timedelta(days=1), zone))


_latest: dict[tuple[WindowKind, ZoneInfo], Window] = {}
"""The window found last, by kind and zone: nearly every request asks for the same ones."""


def window_at(kind: WindowKind, instant: int, zone: ZoneInfo) -> Window:
    """Find the window of a kind that an instant belongs to.

    A week begins on Monday. A `request` window is the instant itself.
    """
    latest = _latest.get((kind, zone))
    if latest is not None and latest.start <= instant < latest.end:
        return latest
    found = _window_at(kind, instant, zone)
    _latest[kind, zone] = found
    return found


def _window_at(kind: WindowKind, instant: int, zone: ZoneInfo) -> Window:
    if kind == "request":
        return Window(instant, instant + 1)
    if kind == "lifetime":
        return Window(0, FOREVER)
    local = to_datetime(instant, zone)
    if kind in ("minute", "hour"):
        # Counted back from the instant: the local clock shows some hours twice.
        length = timedelta(minutes=1) if kind == "minute" else timedelta(hours=1)
        into = timedelta(seconds=local.second, microseconds=local.microsecond)
        if kind == "hour":
            into += timedelta(minutes=local.minute)
        start = instant - into // timedelta(microseconds=1)
        return _within_offset(Window(start, start + length // timedelta(microseconds=1)), instant, zone)
    first, after = _calendar_days(kind, local.date())
    return Window(start_of_day(first, zone), start_of_day(after, zone))


def _within_offset(window: Window, instant: int, zone: ZoneInfo) -> Window:
    """Cut a window where the clocks change in it, as they do by half an hour in some zones."""
    offset = to_datetime(instant, zone).utcoffset()

    def same(at: int) -> bool:
        return to_datetime(at, zone).utcoffset() == offset

    def change_between(low: int, high: int) -> int:
        """Find the first instant after `low` at which the clock shows what it shows at `high`."""
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if same(middle) is same(high) else (middle, high)
        return high

    start, end = window
    return Window(
        start if same(start) else change_between(start, instant),
        end if same(end - 1) else change_between(instant, end - 1),
    )


def _calendar_days(kind: WindowKind, day: date) -> tuple[date, date]:
    """First day of the window, and the first day after it."""
    if kind == "day":
        return day, day + timedelta(days=1)
    if kind == "week":
        monday = day - timedelta(days=day.weekday())
        return monday, monday + timedelta(days=7)
    if kind == "year":
        return date(day.year, 1, 1), date(day.year + 1, 1, 1)
    months = 3 if kind == "quarter" else 1
    first = date(day.year, day.month - (day.month - 1) % months, 1)
    year, month = divmod(first.year * 12 + first.month - 1 + months, 12)
    return first, date(year, month + 1, 1)
