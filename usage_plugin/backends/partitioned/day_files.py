"""Append lines to a user's day, and keep the records of days and months consistent with the lines.

A record contains the length of the files it was derived from. The next append therefore detects a stale record and adds
the missing lines. So every step here can be repeated after an interruption.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from usage_plugin.atomic_files import make_private_folder, open_private, remove_file, replace_file, write_all
from usage_plugin.backends.partitioned.filesystem import read_json
from usage_plugin.backends.partitioned.running_totals import (
    RunningTotals,
    decode_entry,
    encode_entry,
    parse_line,
    read_tally,
)
from usage_plugin.domain.store import DailySum
from usage_plugin.errors import StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from zoneinfo import ZoneInfo

    from usage_plugin.backends.partitioned.folder_tree import Day, Month
    from usage_plugin.backends.partitioned.running_totals import Entry

_EVENT_ID = re.compile(rb'"event_id":"([^"]*)"')


def lines_of(day: Day, start: int = 0) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield a day's lines; an incomplete one at the end is ignored.

    Raises:
        StorageUnavailableError: The file is damaged.
    """
    try:
        file = day.events.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(start)
        for line in file:
            fields = parse_line(line)
            if fields is None:
                if file.read(1):
                    raise StorageUnavailableError(
                        f"{day.events} is damaged: {line[:60]!r}.", hint="Restore the file from a backup."
                    )
                return
            yield line, fields


def add_line(tally: RunningTotals, fields: Mapping[str, Any], zone: ZoneInfo) -> None:
    """Add a line of any kind to a tally."""
    if "kept" in fields:
        tally.merge(RunningTotals.read(fields["kept"]))
    else:
        tally.add(decode_entry(fields), zone)


def tally_of_lines(day: Day, zone: ZoneInfo, watermarks: Mapping[str, int] | None = None) -> RunningTotals:
    """Return the tally of a day's lines, up to the watermarks."""
    tally = RunningTotals()
    for _, fields in lines_of(day):
        if watermarks is None or "kept" in fields or fields["seq"] <= watermarks.get(fields["writer"], 0):
            add_line(tally, fields, zone)
    return tally


def tally_of_day(day: Day, zone: ZoneInfo, watermarks: Mapping[str, int]) -> RunningTotals:
    """Return the tally of a day at these watermarks, from its record if possible."""
    tally = read_tally(read_json(day.record))
    if tally is None or not tally.within(watermarks):
        return tally_of_lines(day, zone, watermarks)
    return tally


def tally_of_month(month: Month, zone: ZoneInfo, watermarks: Mapping[str, int]) -> RunningTotals:
    """Return the tally of a month at these watermarks, from its record if possible."""
    tally = read_tally(read_json(month.record))
    if tally is None or not tally.within(watermarks):
        tally = RunningTotals()
        for day in month.days():
            tally.merge(tally_of_day(day, zone, watermarks))
    return tally


class OpenDay:
    """A day to which lines are appended; the caller holds the store's lock.

    Attributes:
        tally: The tally of its lines.
        added: The part of the tally that was missing in the record when the day was opened.
        size: The size of the file of lines.
        size_before: The size of that file when the record was derived.
    """

    def __init__(self, day: Day, zone: ZoneInfo) -> None:
        """Read the day, and truncate an incomplete line that a power cut has left."""
        self._day = day
        self._zone = zone
        self.size = 0
        self._is_true = True
        fields = read_json(day.record)
        tally = read_tally(fields)
        try:
            self.size = day.events.stat().st_size
        except FileNotFoundError:
            tally = RunningTotals()
        read = fields["events_bytes"] if tally is not None and fields and self.size else 0
        if tally is None or read > self.size:
            tally, read = RunningTotals(), 0
        self.size_before = read
        self.added = RunningTotals()
        if read < self.size:
            self._is_true = False
            for line, found in lines_of(day, read):
                add_line(self.added, found, zone)
                read += len(line)
            tally.merge(self.added)
            if read < self.size:
                os.truncate(day.events, read)
                self.size = read
        self.tally = tally

    def add(self, entries: Sequence[Entry]) -> None:
        """Append the entries that are new, and update the record."""
        marks = self.tally.watermarks
        fresh = [entry for entry in entries if entry.seq > marks.get(entry.writer, 0)]
        fresh = self._without_known(fresh)
        if fresh:
            data = b"".join(map(encode_entry, fresh))
            self._append(data)
            self.size += len(data)
            self._is_true = False
            for entry in fresh:
                self.tally.add(entry, self._zone)
                self.added.add(entry, self._zone)
        self.write_record()

    def _without_known(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return the entries without events known under another number: a restored ledger can send them again."""
        found: dict[str, Entry] = {}
        others = []
        known: set[str] | None = None
        for entry in entries:
            record = entry.record
            if isinstance(record, DailySum):
                others.append(entry)
                continue
            if record.started_at <= self.tally.newest:
                known = self._event_ids() if known is None else known
                if record.event_id in known:
                    continue
            found.setdefault(record.event_id, entry)
        return [*others, *found.values()]

    def _event_ids(self) -> set[str]:
        with suppress(FileNotFoundError), self._day.events.open("rb") as file:
            return {match[1].decode() for line in file for match in _EVENT_ID.finditer(line)}
        return set()

    def _append(self, data: bytes) -> None:
        try:
            handle = open_private(self._day.events, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        except FileNotFoundError:
            make_private_folder(self._day.month.folder)
            handle = open_private(self._day.events, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            write_all(handle, data)
        finally:
            os.close(handle)

    def write_record(self) -> None:
        """Write the record, if it is stale."""
        if self._is_true:
            return
        date = self._day.date
        of = {"date": date.isoformat(), "events_bytes": self.size}
        replace_file(self._day.record, self.tally.record(date, self._zone, **of))
        self._is_true = True


def renew_day(day: Day, zone: ZoneInfo) -> None:
    """Derive the record of a day whose lines were replaced or removed."""
    remove_file(day.record)
    if day.events.exists():
        OpenDay(day, zone).write_record()


def update_month(month: Month, zone: ZoneInfo, days: Sequence[tuple[Day, OpenDay]]) -> None:
    """Update the record of a month by the additions to some of its days."""
    fields = read_json(month.record)
    tally = read_tally(fields)
    sizes: dict[str, int] = dict(fields["days"]) if fields and tally is not None else {}
    after = {day.date.isoformat(): opened.size for day, opened in days}
    if tally is not None and all(sizes.get(date) == size for date, size in after.items()):
        return
    if tally is not None and all(sizes.get(day.date.isoformat(), 0) == opened.size_before for day, opened in days):
        for _, opened in days:
            tally.merge(opened.added)
        sizes |= after
    else:
        tally, sizes = _sum_of_days(month, zone)
    _write_month(month, zone, tally, sizes)


def renew_month(month: Month, zone: ZoneInfo) -> None:
    """Derive the record of a month after days were replaced or removed; delete its folders with its last day."""
    if month.days():
        _write_month(month, zone, *_sum_of_days(month, zone))
        return
    remove_file(month.record)
    for folder in (month.folder, month.user, month.user.parent):
        with suppress(OSError):
            folder.rmdir()


def _sum_of_days(month: Month, zone: ZoneInfo) -> tuple[RunningTotals, dict[str, int]]:
    tally = RunningTotals()
    sizes = {}
    for day in month.days():
        opened = OpenDay(day, zone)
        opened.write_record()
        tally.merge(opened.tally)
        sizes[day.date.isoformat()] = opened.size
    return tally, sizes


def _write_month(month: Month, zone: ZoneInfo, tally: RunningTotals, sizes: Mapping[str, int]) -> None:
    of: dict[str, Any] = {"month": month.first.isoformat()[:7], "days": dict(sorted(sizes.items()))}
    replace_file(month.record, tally.record(month.first, zone, **of))
