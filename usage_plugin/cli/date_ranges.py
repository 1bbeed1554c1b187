"""Ranges of days and durations as people type them: `7d`, `yesterday`, `2026-11-01`, a month."""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import NamedTuple

import click

_LAST_YEAR = 9999
FIRST_DAY, LAST_DAY = date(2, 1, 1), date(_LAST_YEAR - 1, 12, 31)
"""The ends of the calendar that every time zone can represent."""
_DEFAULT_DAYS = 30


class TypedDates(NamedTuple):
    """The options `--since`, `--through` and `--month` as they were typed."""

    since: str | None = None
    through: str | None = None
    month: str | None = None

    def read(self, today: date, *, everything: bool = False) -> tuple[date, date]:
        """Return the first and the last day, both included.

        Args:
            today: the current day of the configured zone.
            everything: whether an end that was not typed is open. Otherwise the default is 30 days up to today.

        Raises:
            click.BadParameter: a value is not a day or a month, or the first day is after the last.
        """
        if self.month is not None:
            if self.since or self.through:
                raise click.BadParameter("--month cannot be combined with --since and --through.")
            return _month(self.month)
        last = _day(self.through, today, "--through") if self.through else LAST_DAY if everything else today
        if self.since and (days := re.fullmatch(r"(\d{1,5})d", self.since)):
            if int(days[1]) < 1:
                raise click.BadParameter(f"--since: expected at least 1d, which is today; found {self.since}.")
            first = today - timedelta(days=int(days[1]) - 1)
        elif self.since:
            first = _day(self.since, today, "--since")
        else:
            first = FIRST_DAY if everything else last - timedelta(days=_DEFAULT_DAYS - 1)
        if first > last:
            raise click.BadParameter(f"--since {first} is later than --through {last}.")
        return _within_calendar(first, last)


def _day(text: str, today: date, option: str) -> date:
    if text == "today":
        return today
    if text == "yesterday":
        return today - timedelta(days=1)
    try:
        return date.fromisoformat(text)
    except ValueError:
        forms = "7d, today, yesterday or YYYY-MM-DD" if option == "--since" else "today, yesterday or YYYY-MM-DD"
        raise click.BadParameter(f"{option}: expected {forms}; found {text!r}.") from None


def _month(text: str) -> tuple[date, date]:
    try:
        first = date.fromisoformat(f"{text}-01")
    except ValueError:
        raise click.BadParameter(f"--month: expected YYYY-MM; found {text!r}.") from None
    if first.year == _LAST_YEAR:
        return _within_calendar(first, first)
    return _within_calendar(first, (first + timedelta(days=31)).replace(day=1) - timedelta(days=1))


def _within_calendar(first: date, last: date) -> tuple[date, date]:
    """Reject days beyond the range that every time zone can represent."""
    if first < FIRST_DAY or last > LAST_DAY:
        raise click.BadParameter(f"expected years between 2 and {_LAST_YEAR - 1}; found {first} to {last}.")
    return first, last


def read_duration(text: str, option: str, most_days: int) -> int:
    """Return a duration such as `90m`, `12h` or `3d` in microseconds.

    Raises:
        click.BadParameter: the text is not a duration, or exceeds `most_days`.
    """
    found = re.fullmatch(r"([1-9]\d{0,7})\s*([smhd])", text.strip())
    if not found:
        raise click.BadParameter(f"{option}: expected a number with s, m, h or d, such as 12h; found {text!r}.")
    length = timedelta(**{{"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[found[2]]: int(found[1])})
    if length > timedelta(days=most_days):
        raise click.BadParameter(
            f"{option}: expected at most {most_days}d; found {text}. Permanent changes belong in the YAML, as amounts"
            " or overrides."
        )
    return length // timedelta(microseconds=1)
