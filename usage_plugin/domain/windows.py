"""Windows: the spans of time over which a limit counts, half-open `[start, end)`.

Instants are integer microseconds since 1970 UTC. A calendar window begins at local midnight (or at a full hour or
minute) in its zone. So a day can have 23 or 25 hours. Nothing is ever reset: a new window is a new account.
A rolling window is a sequence of buckets, each an account of its own. The sum of those from `since_at` on counts.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

WindowKind = Literal[
    "request", "minute", "hour", "day", "week", "month", "quarter", "year", "lifetime", "session", "rolling"
]
WINDOW_KINDS: tuple[WindowKind, ...] = get_args(WindowKind)

MICROSECONDS = 1_000_000
FOREVER = 253_402_214_400 * MICROSECONDS
"""The end of a lifetime window: 9999-12-31, since Python's calendar ends a day later."""

SESSION_IDLE = 30 * 86_400 * MICROSECONDS
"""The time without a request after which a session starts again."""

_BUCKETS = 60
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class WindowRule(NamedTuple):
    """The windows of a limit.

    Attributes:
        length: of a rolling window, in microseconds; otherwise 0.
        week_starts: the first day of a week, 0 for Monday to 6 for Sunday; otherwise 0.
    """

    kind: WindowKind
    length: int = 0
    week_starts: int = 0

    @property
    def bucket(self) -> int:
        """The length of a bucket of a rolling window: a sixtieth of the window, but at least a second."""
        return max(MICROSECONDS, self.length // _BUCKETS)


class Window(NamedTuple):
    """One span of time: `start <= instant < end`, in microseconds since 1970 UTC."""

    start: int
    end: int


ALWAYS = Window(0, FOREVER)
"""The window of all instants."""


def to_instant(moment: datetime) -> int:
    """Convert an aware datetime to microseconds since 1970 UTC."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def to_datetime(instant: int, zone: ZoneInfo | timezone = timezone.utc) -> datetime:
    """Convert microseconds since 1970 UTC to an aware datetime."""
    return (_EPOCH + timedelta(microseconds=instant)).astimezone(zone)


def reset_of(window: Window) -> datetime | None:
    """Return the end of a window, in UTC; None if it never ends."""
    return None if window.end >= FOREVER else to_datetime(window.end)


def duration_words(microseconds: int) -> str:
    """Return a duration in words, in the largest unit of which it is an integer multiple above 1: `5 h`, `90 min`."""
    seconds = microseconds // MICROSECONDS
    for name, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds % length == 0 and seconds > length:
            return f"{seconds // length} {name}"
    return f"{seconds} s"


_latest_day: dict[ZoneInfo, tuple[Window, date]] = {}
"""The last day found, by zone: nearly every request is of today."""


def local_date(instant: int, zone: ZoneInfo) -> date:
    """Return the date in the zone at an instant."""
    latest = _latest_day.get(zone)
    if latest is not None and latest[0].start <= instant < latest[0].end:
        return latest[1]
    day = to_datetime(instant, zone).date()
    span = days_window(day, day, zone)
    if instant >= span.end:
        # The clock went back over midnight: the new day continues, and the old one does not begin again.
        day += timedelta(days=1)
        span = days_window(day, day, zone)
    _latest_day[zone] = span, day
    return day


def start_of_day(day: date, zone: ZoneInfo) -> int:
    """Return the first instant of a local day, also where clocks change at midnight."""
    # fold=0: the first of a midnight that occurs twice; the instant of the jump if midnight is skipped.
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    return to_instant(midnight.astimezone(timezone.utc))


_HOUR = WindowRule("hour")


def start_of_hour(instant: int, zone: ZoneInfo) -> int:
    """Return the first instant of the local hour that contains an instant."""
    return window_at(_HOUR, instant, zone).start


def hour_name(instant: int, zone: ZoneInfo) -> str:
    """Return the start of a local hour with its offset, so that an hour that occurs twice has two names."""
    return to_datetime(instant, zone).isoformat(timespec="minutes")


def days_window(first: date, last: date, zone: ZoneInfo) -> Window:
    """Return the window of whole local days, both included."""
    return Window(start_of_day(first, zone), start_of_day(last + timedelta(days=1), zone))


def month_of(day: date) -> tuple[date, date]:
    """Return the first and the last day of the month that contains a day."""
    first, after = _calendar_days(WindowRule("month"), day)
    return first, after - timedelta(days=1)


def whole_months(first: date, last: date) -> tuple[date, date] | None:
    """Return the first and the last day of the whole months in a span; None if it has none."""
    ends = last == date.max or (last + timedelta(days=1)).day == 1
    if (first.year, first.month) == (last.year, last.month):
        return (first, last) if first.day == 1 and ends else None
    begin = first if first.day == 1 else (first.replace(day=28) + timedelta(days=4)).replace(day=1)
    end = last if ends else last.replace(day=1) - timedelta(days=1)
    return (begin, end) if begin < end else None


def monday_of(day: date) -> date:
    """Return the Monday of a day's ISO week."""
    return day - timedelta(days=day.weekday())


_latest: dict[tuple[WindowRule, ZoneInfo], Window] = {}
"""The last calendar window found, by rule and zone: nearly every request needs the same windows."""


def window_at(rule: WindowRule, instant: int, zone: ZoneInfo) -> Window:
    """Return the window of a rule that contains an instant.

    A `request` window is the instant itself. For a rolling window it is the bucket. Its end is the time
    at which it leaves the window, not the next bucket's start. A session has one account, which ends after
    `SESSION_IDLE` without a request.
    """
    if rule.kind == "rolling":
        start = instant - instant % rule.bucket
        return Window(start, start + rule.bucket + rule.length)
    if rule.kind == "session":
        return Window(0, instant + SESSION_IDLE)
    if rule.kind == "lifetime":
        return ALWAYS
    if rule.kind == "request":
        return Window(instant, instant + 1)
    latest = _latest.get((rule, zone))
    if latest is not None and latest.start <= instant < latest.end:
        return latest
    found = _calendar_window(rule, instant, zone)
    _latest[rule, zone] = found
    return found


def since_at(rule: WindowRule, instant: int) -> int | None:
    """Return the start of the oldest bucket that counts for a request at an instant; None if there are no buckets.

    That bucket may have begun slightly before the window. Spend counts for the length of the window and at most one
    bucket more, never less.
    """
    if rule.kind != "rolling":
        return None
    oldest = instant - rule.length
    return oldest - oldest % rule.bucket


def _calendar_window(rule: WindowRule, instant: int, zone: ZoneInfo) -> Window:
    kind = rule.kind
    local = to_datetime(instant, zone)
    if kind in ("minute", "hour"):
        # Subtract from the instant: the local clock shows some hours twice.
        length = timedelta(minutes=1) if kind == "minute" else timedelta(hours=1)
        into = timedelta(seconds=local.second, microseconds=local.microsecond)
        if kind == "hour":
            into += timedelta(minutes=local.minute)
        start = instant - into // timedelta(microseconds=1)
        return _within_offset(Window(start, start + length // timedelta(microseconds=1)), instant, zone)
    first, after = _calendar_days(rule, local_date(instant, zone))
    return Window(start_of_day(first, zone), start_of_day(after, zone))


def _within_offset(window: Window, instant: int, zone: ZoneInfo) -> Window:
    """Cut a window at a clock change within it; in some zones clocks change by half an hour."""
    offset = to_datetime(instant, zone).utcoffset()

    def same(at: int) -> bool:
        return to_datetime(at, zone).utcoffset() == offset

    def change_between(low: int, high: int) -> int:
        """Return the first instant after `low` with the offset of `high`."""
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if same(middle) is same(high) else (middle, high)
        return high

    start, end = window
    return Window(
        start if same(start) else change_between(start, instant),
        end if same(end - 1) else change_between(instant, end - 1),
    )


def _calendar_days(rule: WindowRule, day: date) -> tuple[date, date]:
    """Return the first day of the window, and the first day after it."""
    kind = rule.kind
    if kind == "day":
        return day, day + timedelta(days=1)
    if kind == "week":
        first = day - timedelta(days=(day.weekday() - rule.week_starts) % 7)
        return first, first + timedelta(days=7)
    if kind == "year":
        return date(day.year, 1, 1), date(day.year + 1, 1, 1)
    months = 3 if kind == "quarter" else 1
    first = date(day.year, day.month - (day.month - 1) % months, 1)
    year, month = divmod(first.year * 12 + first.month - 1 + months, 12)
    return first, date(year, month + 1, 1)
