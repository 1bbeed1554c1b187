"""The archive: the tree of files under one lock and one journal. All calls block on the disk.

A batch is made durable in the journal, then applied to the days' files; then it counts. Reading takes no lock: it uses
the watermarks of the applied batches. Where a file is ahead of them, it reads the lines up to there. Rewriting
(pruning, erasure) is a batch too: it names the new files, which are on the disk by then.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from datetime import date
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

from usage_plugin.atomic_files import make_private_folder, replace_file
from usage_plugin.backends.partitioned.day_files import (
    OpenDay,
    add_line,
    lines_of,
    tally_of_day,
    tally_of_month,
    update_month,
)
from usage_plugin.backends.partitioned.external_sort import sorted_lines
from usage_plugin.backends.partitioned.filesystem import StoreLock, read_json, sync_everything, translated
from usage_plugin.backends.partitioned.folder_tree import Day, Month, Tree
from usage_plugin.backends.partitioned.journal import Journal
from usage_plugin.backends.partitioned.mirror_files import foreign_mirror_files
from usage_plugin.backends.partitioned.rewriting import (
    ITSELF,
    DayChange,
    DayRewrite,
    PreparedChange,
    has_old,
    is_event,
    names_user,
    of_writers,
    prepare_change,
    put_in_place,
)
from usage_plugin.backends.partitioned.running_totals import (
    VERSION,
    Entry,
    RunningTotals,
    decode_entry,
    encode_entry,
    matching_sums,
    number_of,
    parse_line,
    parse_whole_line,
    position_of,
    read_tally,
)
from usage_plugin.domain.store import LEFT_OVER, Aggregate, DailySum, EventPosition, Sent
from usage_plugin.domain.usage import UsageEvent, UsageTotals, from_record
from usage_plugin.domain.windows import to_datetime
from usage_plugin.encoding import encode_record
from usage_plugin.errors import StorageError, StoragePrunedError, StorageUnavailableError, StorageVersionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.store import Grouping, UsageFilter
    from usage_plugin.domain.windows import Window

LineT = TypeVar("LineT")

FOLDER = "partitioned"

_TRIES = 3
_ENDLESS = 2**63


class Archive:
    """One process's view of the tree below `partitioned` in a folder."""

    def __init__(self, folder: Path, zone: ZoneInfo) -> None:
        """Open the tree; create it if it does not exist.

        Raises:
            StorageError: Its days are of another time zone, or it cannot be used.
            StorageVersionError: A newer version of the package wrote it.
        """
        self.root = folder / FOLDER
        self._zone = zone
        self._tree = Tree(self.root)
        self._journal = Journal(self.root)
        self._lock = StoreLock(self.root / "lock")
        self._size: int | None = None
        self._searched: tuple[str, Path | None] = ("", None)
        with translated(self.root):
            self._prepare()

    def _prepare(self) -> None:
        marker = self.root / "store.json"
        if not marker.exists():
            make_private_folder(self.root)
            with self._lock.held():
                if not marker.exists():
                    self._refuse_others()
                    self._journal.create({})
                    replace_file(
                        marker, f"{encode_record({'v': VERSION, 'zone': str(self._zone)})}\n".encode(), sync=True
                    )
        found = read_json(marker)
        if found is None:
            raise StorageUnavailableError(f"Cannot read {marker}.", hint="Restore the folder from a backup.")
        if found["v"] > VERSION:
            raise StorageVersionError(
                f"{self.root} was written by a newer version of usage_plugin.", hint="Install that version."
            )
        if found["zone"] != str(self._zone):
            raise StorageError(
                f"{self.root} keeps days of the zone {found['zone']}; found usage_plugin.timezone {self._zone}.",
                hint=f"Set usage_plugin.timezone to {found['zone']}, or move the folder away to start a new history.",
            )

    def _refuse_others(self) -> None:
        """Reject a folder with files of the previous system."""
        strange = [self.root] if next(self._tree.users(), None) is not None else []
        strange += foreign_mirror_files(self.root.parent)
        if strange:
            raise StorageError(
                f"Found files of another system: {', '.join(map(str, strange))}.",
                hint="Move them to another folder; `usage-plugin migrate` imports them from there.",
            )

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def append(self, writer: str, numbered: Sequence[tuple[int, UsageEvent | DailySum]]) -> None:
        """Add the records that the writer has not sent before."""
        with translated(self.root), self._lock.held():
            after = self._settle().get(writer, 0)
            fresh = [Entry(writer, seq, record) for seq, record in numbered if seq > after]
            if fresh:
                # A sum of nothing adds nothing, but counts as sent.
                entries = [
                    entry for entry in fresh if not isinstance(entry.record, DailySum) or any(entry.record.totals)
                ]
                lines = list(map(encode_entry, entries))
                self._journal.commit(writer, fresh[-1].seq, lines)
                self._apply(entries)
                self._journal.mark_applied()
                if self._size is not None:
                    self._size += sum(map(len, lines))
                if self._journal.is_long:
                    self._journal.reset(self._journal.view().watermarks)

    def _settle(self) -> Mapping[str, int]:
        """Apply the batches again that may not be in the days' files; requires the lock."""
        view = self._journal.view()
        if not view.is_settled:
            # Certain batches are left alone: other processes read them, and a rewrite would first remove lines.
            for lines in self._journal.batches(pending=view.is_certain):
                parsed = [fields for line in lines if (fields := parse_line(line)) is not None]
                put_in_place([self._read_rewriting(fields) for fields in parsed if "rewritten" in fields], self._zone)
                self._apply([decode_entry(fields) for fields in parsed if "rewritten" not in fields])
            self._journal.mark_applied()
            view = self._journal.view()
        return view.watermarks

    def _apply(self, entries: Iterable[Entry]) -> None:
        """Add entries to the files of their days; existing ones are skipped."""
        by_day: defaultdict[tuple[str, date], list[Entry]] = defaultdict(list)
        for entry in entries:
            by_day[entry.user, entry.day(self._zone)].append(entry)
        by_month: defaultdict[Month, list[tuple[Day, OpenDay]]] = defaultdict(list)
        for (user, on), mine in by_day.items():
            day = self._tree.day(user, on)
            opened = OpenDay(day, self._zone)
            opened.add(mine)
            by_month[day.month].append((day, opened))
        for month, days in by_month.items():
            update_month(month, self._zone, days)

    def close(self) -> None:
        """Sync all files, so that no batch must be applied again at the next start."""
        with suppress(StorageError), translated(self.root):
            if not self._journal.is_empty:
                with self._lock.held(wait=0):
                    self._journal.reset(self._settle())

    def compact(self) -> None:
        """Replace the journal, which contains the names of erased users."""
        with translated(self.root), self._lock.held():
            self._journal.reset(self._settle())

    def health(self) -> None:
        """Raise an error if no event can be appended."""
        with translated(self.root), self._lock.held():
            self._settle()
            probe = self.root / "probe"
            replace_file(probe, b"usage_plugin\n" * 1_000, sync=True)
            probe.unlink()

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def watermarks(self) -> Mapping[str, int]:
        """Return the watermark of each writer, after completing an interrupted batch."""
        with translated(self.root):
            view = self._journal.view()
            if not view.is_certain:
                with self._lock.held():
                    return self._settle()
            if not view.is_settled:
                # The process with the lock is applying it, and until that is done the batch does not count.
                with suppress(StorageUnavailableError, OSError), self._lock.held(wait=0):
                    return self._settle()
            return view.watermarks

    def aggregate(self, by: Sequence[Grouping], first: date, last: date, usage_filter: UsageFilter) -> Aggregate:
        """Return the sums of days at one point in time."""
        with translated(self.root):
            for _ in range(_TRIES):
                marks = self.watermarks()
                groups = self._sum(by, first, last, usage_filter, marks)
                # Otherwise some files may have been read before the rewrite, and some after.
                if not self._is_rewritten(marks):
                    return Aggregate(groups, of_writers(marks))
            with self._lock.held():
                marks = self._settle()
                return Aggregate(self._sum(by, first, last, usage_filter, marks), of_writers(marks))

    def _sum(
        self, by: Sequence[Grouping], first: date, last: date, usage_filter: UsageFilter, marks: Mapping[str, int]
    ) -> dict[tuple[str | None, ...], UsageTotals]:
        groups: defaultdict[tuple[str | None, ...], UsageTotals] = defaultdict(UsageTotals)
        for one in self._sums(first, last, usage_filter, marks, by_month=not {"day", "week"} & set(by)):
            group = one.group(by)
            groups[group] = groups[group].plus(one.totals)
        return dict(groups)

    def _sums(
        self, first: date, last: date, usage_filter: UsageFilter, marks: Mapping[str, int], *, by_month: bool
    ) -> Iterator[DailySum]:
        """Yield sums user by user: of whole months where possible, else of days."""
        for folder in self._tree.users(usage_filter.user):
            for month in self._tree.months_of(folder):
                if not first.replace(day=1) <= month.first <= last:
                    continue
                if by_month and first <= month.first and month.last <= last:
                    tallies = [(month.first, tally_of_month(month, self._zone, marks))]
                else:
                    days = [day for day in month.days() if first <= day.date <= last]
                    tallies = [(day.date, tally_of_day(day, self._zone, marks)) for day in days]
                for on, tally in tallies:
                    yield from matching_sums(tally, on, usage_filter)

    def daily(self, first: date, last: date, usage_filter: UsageFilter) -> Iterator[DailySum]:
        """Yield sums day by day."""
        with translated(self.root):
            # First: an interrupted batch may have days without a file.
            self.watermarks()
            for on in self._tree.dates(first, last, usage_filter.user):
                marks = self.watermarks()
                for folder in self._tree.users(usage_filter.user):
                    day = Month(folder, on.replace(day=1)).day(on)
                    if day.events.exists():
                        yield from matching_sums(tally_of_day(day, self._zone, marks), on, usage_filter)

    def events(
        self, window: Window, usage_filter: UsageFilter, after: EventPosition | None, *, newest_first: bool
    ) -> Iterator[UsageEvent]:
        """Yield events in order; one day is sorted at a time."""
        with translated(self.root):
            marks = self.watermarks()
            start, end = window
            if after is not None:
                start, end = (start, after.started_at + 1) if newest_first else (max(start, after.started_at), end)
            if start >= end:
                return
            # Not local_date, which computes the end of the day: the last day of the calendar has none.
            first, last = (to_datetime(at, self._zone).date() for at in (start, end - 1))
            for on in self._tree.dates(first, last, usage_filter.user, newest_first=newest_first):
                lines = (
                    (position, line)
                    for line, fields in self._lines(on, usage_filter.user)
                    if _is_event_within(fields, marks)
                    and start <= (position := EventPosition(fields["started_at"], fields["event_id"])).started_at < end
                    and (after is None or (position < after if newest_first else position > after))
                    and usage_filter.takes(from_record(fields))
                )
                for line in sorted_lines(lines, position_of, reverse=newest_first):
                    yield from_record(parse_whole_line(line))

    def _lines(self, on: date, user: str | None) -> Iterator[tuple[bytes, dict[str, Any]]]:
        for folder in self._tree.users(user):
            yield from lines_of(Month(folder, on.replace(day=1)).day(on))

    def sent(self, after: Mapping[str, int], upto: Mapping[str, int]) -> Iterator[Sent]:
        """Yield the sent records between two sets of numbers, by writer and number; sums of deleted events first.

        Raises:
            StoragePrunedError: Events after `after` were deleted; the other store must be rebuilt.
            StorageUnavailableError: Files were rewritten meanwhile; the records yielded so far must be discarded.
        """
        with translated(self.root):
            marks = self.watermarks()
            if not after:
                yield from (Sent(LEFT_OVER, seq, one) for seq, one in enumerate(self._left_over(), 1))
            lines = ((number_of(fields), line) for line, fields in self._lines_beyond(after, upto))
            # All lines are read before the first one is yielded.
            for line in sorted_lines(
                self._unless_rewritten(lines, marks), lambda line: number_of(parse_whole_line(line))
            ):
                writer, seq, record, _ = decode_entry(parse_whole_line(line))
                yield Sent(writer, seq, record)

    def _unless_rewritten(self, lines: Iterable[LineT], marks: Mapping[str, int]) -> Iterator[LineT]:
        yield from lines
        if self._is_rewritten(marks):
            raise StorageUnavailableError("The files were rewritten while they were read.")

    def _is_rewritten(self, marks: Mapping[str, int]) -> bool:
        """Whether files were rewritten after these watermarks, or are being rewritten."""
        view = self._journal.view()
        return ITSELF in view.pending or view.watermarks.get(ITSELF) != marks.get(ITSELF)

    def _days(self) -> Iterator[Day]:
        for folder in self._tree.users():
            for month in self._tree.months_of(folder):
                yield from month.days()

    def _left_over(self) -> Iterator[DailySum]:
        """Yield the sums of deleted events, and those of erased users."""
        for day in self._days():
            for _, fields in lines_of(day):
                if "kept" in fields:
                    yield from RunningTotals.read(fields["kept"]).daily_sums(day.date)
                elif fields["writer"] == ITSELF and (one := decode_entry(fields).record) and isinstance(one, DailySum):
                    yield one

    def _lines_beyond(
        self, after: Mapping[str, int], upto: Mapping[str, int]
    ) -> Iterator[tuple[bytes, dict[str, Any]]]:
        for day in self._days():
            tally = read_tally(read_json(day.record))
            if tally is not None and tally.within({**after, ITSELF: _ENDLESS}):
                continue
            for line, fields in lines_of(day):
                if "kept" in fields or fields["writer"] == ITSELF:
                    line_alone = RunningTotals()
                    add_line(line_alone, fields, self._zone)
                    if after and not line_alone.within({**after, ITSELF: _ENDLESS}):
                        raise StoragePrunedError(f"Requested events were deleted; their sums are in {day.events}.")
                elif after.get(fields["writer"], 0) < fields["seq"] <= upto.get(fields["writer"], 0):
                    yield line, fields

    # ── rewriting ────────────────────────────────────────────────────────────────────────────────────────────────

    def prune(self, events_before: int, days_before: date, most: int) -> int:
        """Delete events and sums before the given times."""
        last = max(days_before, to_datetime(events_before, self._zone).date())

        def old_days() -> Iterator[tuple[Day, DayChange]]:
            for folder in self._tree.users():
                for month in self._tree.months_of(folder):
                    if month.first > last or not has_old(month, events_before, days_before):
                        continue
                    for day in month.days():
                        if day.date < days_before:
                            yield day, DayChange(lambda _: True, lambda _: None)
                        elif has_old(day, events_before, days_before):
                            yield day, DayChange(lambda event: event.started_at < events_before, lambda one: one)

        return self._rewrite(old_days(), most)[0]

    def forget(self, user: str, most: int) -> int:
        """Delete a user's events, and give their sums to `FORGOTTEN`."""
        own = self._tree.user(user)
        change = DayChange(lambda event: user in (event.user, event.end_user), lambda one: one.without(user))
        # All files are searched for the name as an end user, starting where the last call stopped.
        since = self._searched[1] if self._searched[0] == user else None

        def days_of(folder: Path) -> Iterator[tuple[Day, DayChange]]:
            for month in self._tree.months_of(folder):
                if folder == own or names_user(month, user):
                    for day in month.days():
                        if folder == own or names_user(day, user):
                            yield day, change

        others = (folder for folder in self._tree.users(since=since) if folder != own)
        count, unfinished = self._rewrite(chain.from_iterable(map(days_of, chain((own,), others))), most)
        if unfinished is None:
            self._searched = (user, None)
        elif unfinished.month.user != own:
            self._searched = (user, unfinished.month.user)
        return count

    def _rewrite(self, days: Iterator[tuple[Day, DayChange]], most: int) -> tuple[int, Day | None]:
        """DayChange days in one batch of at most `most` records.

        Returns:
            The number of changed records, and the day at which the batch ended if more days remain.
        """
        with translated(self.root):
            self.watermarks()
            # Searched without the lock, for at most `most` days: each has one record at least.
            found = list(islice(days, most))
            if not found:
                return 0, None
            changed: list[PreparedChange] = []
            count = 0
            with self._lock.held():
                self._settle()
                if not self._journal.is_empty:
                    # Its batches must not be applied again once files are deleted.
                    self._journal.reset(self._settle())
                for day, change in found:
                    done = prepare_change(day, change, most - count, self._zone)
                    if done is not None:
                        changed.append(done)
                        count += done.records
                    if count >= most:
                        break
                if changed:
                    self._commit_change(changed)
            return count, day if count >= most or len(found) == most else None

    def _commit_change(self, changed: Sequence[PreparedChange]) -> None:
        sync_everything(self.root)
        after = self._settle().get(ITSELF, 0)
        given = [(one, change.watermarks) for change in changed for one in change.given_away]
        entries = [Entry(ITSELF, seq, *one) for seq, one in enumerate(given, after + 1)]
        rewritings = [change.rewriting for change in changed]
        lines = [*(one.line() for one in rewritings), *map(encode_entry, entries)]
        self._journal.commit(ITSELF, after + max(1, len(given)), lines)
        put_in_place(rewritings, self._zone)
        self._apply(entries)
        self._journal.mark_applied()
        self._size = None

    def _read_rewriting(self, fields: Mapping[str, Any]) -> DayRewrite:
        day = self._tree.day(fields["rewritten"], date.fromisoformat(fields["day"]))
        return DayRewrite(day, fields["rewritten"], fields["removed"])

    def size(self) -> int:
        """Return the size of the files in bytes; counted once, then updated."""
        with translated(self.root):
            if self._size is None:
                self._size = self._tree.size()
            return self._size


def _is_event_within(fields: Mapping[str, Any], marks: Mapping[str, int]) -> bool:
    return is_event(fields) and fields["seq"] <= marks.get(fields["writer"], 0)
