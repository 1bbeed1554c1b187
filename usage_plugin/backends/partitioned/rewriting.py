"""Rewrite days whose events are deleted: prepare the new lines, then replace the old ones."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.atomic_files import open_private, remove_file, staged
from usage_plugin.backends.partitioned.day_files import add_line, lines_of, renew_day, renew_month
from usage_plugin.backends.partitioned.filesystem import read_json
from usage_plugin.backends.partitioned.folder_tree import Day, Month
from usage_plugin.backends.partitioned.running_totals import RunningTotals, read_tally
from usage_plugin.domain.store import ROLLUP_DIMENSIONS, DailySum
from usage_plugin.domain.usage import UsageEvent, from_record
from usage_plugin.encoding import encode_record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import date
    from zoneinfo import ZoneInfo

ITSELF = ""
"""The writer of the archive's own changes."""


class DayChange(NamedTuple):
    """A change of a day.

    Attributes:
        drops: Whether an event is deleted.
        gives: Returns the new form of the sum of deleted events; None deletes the sum.
    """

    drops: Callable[[UsageEvent], bool]
    gives: Callable[[DailySum], DailySum | None]


class DayRewrite(NamedTuple):
    """A day whose lines are replaced by those of its staged file, or removed."""

    day: Day
    user: str
    is_removed: bool

    def line(self) -> bytes:
        """Return the line for the journal."""
        fields = {"rewritten": self.user, "day": self.day.date.isoformat(), "removed": self.is_removed}
        return f"{encode_record(fields)}\n".encode()


class PreparedChange(NamedTuple):
    """A prepared change.

    Attributes:
        rewriting: The day to rewrite.
        given_away: The sums to add to other users.
        watermarks: The watermarks of the records in `given_away`.
        records: The number of changed records.
    """

    rewriting: DayRewrite
    given_away: list[DailySum]
    watermarks: Mapping[str, int]
    records: int


def has_old(what: Month | Day, events_before: int, days_before: date) -> bool:
    """Whether a month or day has events or sums before the given times."""
    tally = read_tally(read_json(what.record))
    first = what.first if isinstance(what, Month) else what.date
    return first < days_before or tally is None or (tally.oldest_kept or events_before) < events_before


def names_user(what: Month | Day, user: str) -> bool:
    """Whether a month or day has a sum with this end user."""
    tally = read_tally(read_json(what.record))
    end_user = ROLLUP_DIMENSIONS.index("end_user") - 1
    return tally is None or any(names[end_user] == user for names in tally.sums)


def prepare_change(day: Day, change: DayChange, budget: int, zone: ZoneInfo) -> PreparedChange | None:
    """Write the new lines of a day to its staged file, with at most `budget` fewer records; None without a change."""
    kept = RunningTotals()
    dropped, rest = 0, 0
    for _, fields in lines_of(day):
        if not is_event(fields):
            add_line(kept, fields, zone)
        elif dropped < budget and change.drops(from_record(fields)):
            add_line(kept, fields, zone)
            dropped += 1
        else:
            rest += 1
    kept.oldest_kept = None
    moved, given = _give_away(kept, day.date, change, budget - dropped)
    if not dropped + moved:
        return None
    is_removed = not rest and not kept.sums
    if not is_removed:
        _write_staged(day, kept, change, dropped)
    return PreparedChange(DayRewrite(day, kept.user, is_removed), given, of_writers(kept.watermarks), dropped + moved)


def _give_away(kept: RunningTotals, on: date, change: DayChange, budget: int) -> tuple[int, list[DailySum]]:
    moved = 0
    given = []
    for one in list(kept.daily_sums(on)):
        new = change.gives(one)
        if new == one:
            continue
        if moved >= budget:
            break
        moved += 1
        del kept.sums[one.names[1:]]
        if new is not None and new.user == one.user:
            kept.add_sum(new)
        elif new is not None:
            given.append(new)
    return moved, given


def _write_staged(day: Day, kept: RunningTotals, change: DayChange, dropped: int) -> None:
    handle = open_private(staged(day.events), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with os.fdopen(handle, "wb") as file:
        file.write(kept.kept())
        for line, fields in lines_of(day):
            if is_event(fields):
                if dropped and change.drops(from_record(fields)):
                    dropped -= 1
                else:
                    file.write(line)


def put_in_place(changed: Sequence[DayRewrite], zone: ZoneInfo) -> None:
    """Replace old lines with new ones; replacements that are already done are skipped."""
    for one in changed:
        if one.is_removed:
            remove_file(one.day.events)
        else:
            with suppress(FileNotFoundError):
                staged(one.day.events).rename(one.day.events)
        renew_day(one.day, zone)
    for month in {one.day.month for one in changed}:
        renew_month(month, zone)


def of_writers(watermarks: Mapping[str, int]) -> dict[str, int]:
    """Return the watermarks without the archive's own."""
    return {writer: seq for writer, seq in watermarks.items() if writer != ITSELF}


def is_event(fields: Mapping[str, Any]) -> bool:
    """Whether a line holds an event."""
    return "event_id" in fields
