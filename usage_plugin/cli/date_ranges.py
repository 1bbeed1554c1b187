"""Spans of days, as people write them: `7d`, `yesterday`, `2026-11-01`, a month."""

from __future__ import annotations

import re
from datetime import date, timedelta

import click

_LAST_YEAR = 9999
FIRST_DAY, LAST_DAY = date(2, 1, 1), date(_LAST_YEAR - 1, 12, 31)
"""The ends of the calendar, as far as every zone can count."""
_DEFAULT_DAYS = 30


def read_span(
    today: date, since: str | None, until: str | None, month: str | None, *, everything: bool = False
) -> tuple[date, date]:
    """Find the first and the last day that are meant, both included.

    Args:
        today: which day it is.
        since: as it was typed.
        until: the same.
        month: the same.
        everything: whether an end that was not typed is open; else today is the last day, and there are 30.

    Raises:
        click.BadParameter: what was written is no day, no month, or the wrong way round.
    """
    if month is not None:
        if since or until:
            raise click.BadParameter("--month stands alone, without --since and --until.")
        return _month(month)
    last = _day(until, today, "--until") if until else LAST_DAY if everything else today
    if since and (days := re.fullmatch(r"(\d{1,5})d", since)):
        if int(days[1]) < 1:
            raise click.BadParameter(f"--since {since}: at least 1d, which is today.")
        first = today - timedelta(days=int(days[1]) - 1)
    elif since:
        first = _day(since, today, "--since")
    else:
        first = FIRST_DAY if everything else last - timedelta(days=_DEFAULT_DAYS - 1)
    if first > last:
        raise click.BadParameter(f"--since {first} is later than --until {last}.")
    return _within_calendar(first, last)


def _day(text: str, today: date, option: str) -> date:
    if text == "today":
        return today
    if text == "yesterday":
        return today - timedelta(days=1)
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{option} {text}: write 7d, today, yesterday or YYYY-MM-DD.") from None


def _month(text: str) -> tuple[date, date]:
    try:
        first = date.fromisoformat(f"{text}-01")
    except ValueError:
        raise click.BadParameter(f"--month {text}: write YYYY-MM.") from None
    if first.year == _LAST_YEAR:
        return _within_calendar(first, first)
    return _within_calendar(first, (first + timedelta(days=31)).replace(day=1) - timedelta(days=1))


def _within_calendar(first: date, last: date) -> tuple[date, date]:
    """Refuse the ends of the calendar, beyond which no zone can count."""
    if first < FIRST_DAY or last > LAST_DAY:
        raise click.BadParameter(f"{first} to {last}: write years between 2 and {_LAST_YEAR - 1}.")
    return first, last


def read_duration(text: str, option: str, most_days: int) -> int:
    """Read a length of time such as `90m`, `12h` or `3d`, in microseconds.

    Raises:
        click.BadParameter: it is none, or longer than so many days.
    """
    found = re.fullmatch(r"([1-9]\d{0,7})\s*([smhd])", text.strip())
    if not found:
        raise click.BadParameter(f"{option} {text}: write a number with s, m, h or d, for example 12h.")
    length = timedelta(**{{"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[found[2]]: int(found[1])})
    if length > timedelta(days=most_days):
        raise click.BadParameter(
            f"{option} {text}: at most {most_days}d; permanent changes belong in the YAML (amounts and overrides)."
        )
    return length // timedelta(microseconds=1)
