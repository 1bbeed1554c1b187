"""The archive: the tree of files under one lock and one journal. Everything here waits for the disk; `store` does not.

Writing: a batch is made durable in the journal, then applied to the days' files; then it counts. Reading takes no
lock: it goes by the watermarks of what has been applied, and where a file is ahead of them, by the lines up to there.
What rewrites files (pruning, forgetting) is a batch too: it names the files that replace others, which are on the disk
by then.
"""

from __future__ import annotations

import os
from collections import defaultdict
from contextlib import suppress
from datetime import date
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from usage_plugin.atomic_files import make_private_folder, open_private, remove_file, replace_file, staged
from usage_plugin.backends.partitioned.day_files import (
    OpenDay,
    add_line,
    lines_of,
    renew_day,
    renew_month,
    tally_of_day,
    tally_of_month,
    update_month,
)
from usage_plugin.backends.partitioned.external_sort import sorted_lines
from usage_plugin.backends.partitioned.filesystem import StoreLock, read_json, sync_everything, translated
from usage_plugin.backends.partitioned.folder_tree import Day, Month, Tree
from usage_plugin.backends.partitioned.journal import Journal
from usage_plugin.backends.partitioned.mirror_files import foreign_mirror_files
from usage_plugin.backends.partitioned.running_totals import (
    VERSION,
    Entry,
    Tally,
    decode_entry,
    encode_entry,
    parse_line,
    read_tally,
)
from usage_plugin.domain.store import LEFT_OVER, ROLLUP_DIMENSIONS, Aggregate, DailySum, EventPosition, Sent
from usage_plugin.domain.usage import UsageEvent, UsageTotals, from_record
from usage_plugin.domain.windows import to_datetime
from usage_plugin.encoding import encode_record
from usage_plugin.errors import StorageError, StoragePrunedError, StorageUnavailableError, StorageVersionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.store import Grouping, UsageFilter
    from usage_plugin.domain.windows import Window

LineT = TypeVar("LineT")

FOLDER = "partitioned"
ITSELF = ""
"""The writer of what the archive itself has changed."""

_TRIES = 3
_ENDLESS = 2**63


class Change(NamedTuple):
    """What is to become of a day: which events go, and what becomes of the sums of those that are gone."""

    drops: Callable[[UsageEvent], bool]
    gives: Callable[[DailySum], DailySum | None]


class Rewriting(NamedTuple):
    """A day whose lines are replaced: by those of the file beside it, or by nothing."""

    day: Day
    user: str
    is_removed: bool

    def line(self) -> bytes:
        """Write it for the journal."""
        fields = {"rewritten": self.user, "day": self.day.date.isoformat(), "removed": self.is_removed}
        return f"{encode_record(fields)}\n".encode()


class Changed(NamedTuple):
    """A change that is prepared.

    Attributes:
        given_away: the sums that others are given; `watermarks`: of what is in them.
        records: how many are changed.
    """

    rewriting: Rewriting
    given_away: list[DailySum]
    watermarks: Mapping[str, int]
    records: int


class Archive:
    """The tree below `partitioned` in one folder, as one process sees it."""

    def __init__(self, folder: Path, zone: ZoneInfo) -> None:
        """Open it, making it if there is none.

        Raises:
            StorageError: it keeps days of another zone, or cannot be used.
            StorageVersionError: a newer version wrote it.
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
            raise StorageUnavailableError(f"{marker} cannot be read.", hint="Put a backup of the folder in its place.")
        if found["v"] > VERSION:
            raise StorageVersionError(
                f"{self.root} was written by a newer version of usage_plugin.", hint="Install that version."
            )
        if found["zone"] != str(self._zone):
            raise StorageError(
                f"{self.root} keeps days of the zone {found['zone']}, but usage_plugin.timezone is {self._zone}.",
                hint=f"Set usage_plugin.timezone back to {found['zone']}, or move the folder away to begin anew.",
            )

    def _refuse_others(self) -> None:
        """Keep away from what the previous system wrote."""
        strange = [self.root] if next(self._tree.users(), None) is not None else []
        strange += foreign_mirror_files(self.root.parent)
        if strange:
            raise StorageError(
                f"This store did not write what is in {', '.join(map(str, strange))}.",
                hint="Move it to another folder; `usage-plugin migrate` imports it from there.",
            )

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def append(self, writer: str, numbered: Sequence[tuple[int, UsageEvent | DailySum]]) -> None:
        """Add what the writer has not sent yet."""
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
                    self._journal.begin_anew(self._journal.view().watermarks)

    def _settle(self) -> Mapping[str, int]:
        """Apply again what may not have reached the days' files; only with the lock."""
        view = self._journal.view()
        if not view.is_settled:
            # What is certain is left alone: others are reading it, and to rewrite it again would take from it first.
            for lines in self._journal.batches(pending=view.is_certain):
                parsed = [fields for line in lines if (fields := parse_line(line)) is not None]
                self._put_in_place([self._read_rewriting(fields) for fields in parsed if "rewritten" in fields])
                self._apply([decode_entry(fields) for fields in parsed if "rewritten" not in fields])
            self._journal.mark_applied()
            view = self._journal.view()
        return view.watermarks

    def _apply(self, entries: Iterable[Entry]) -> None:
        """Add entries to the files of their days; those that are there are left."""
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
        """Put on the disk what is not there yet, so that nothing need be applied again."""
        with suppress(StorageError), translated(self.root):
            if not self._journal.is_empty:
                with self._lock.held(wait=0):
                    self._journal.begin_anew(self._settle())

    def compact(self) -> None:
        """Write the journal anew, which names whoever was forgotten."""
        with translated(self.root), self._lock.held():
            self._journal.begin_anew(self._settle())

    def health(self) -> None:
        """Raise if an event would not be taken."""
        with translated(self.root), self._lock.held():
            self._settle()
            probe = self.root / "probe"
            replace_file(probe, b"usage_plugin\n" * 1_000, sync=True)
            probe.unlink()

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def watermarks(self) -> Mapping[str, int]:
        """Say how far each writer is; what was interrupted is finished first."""
        with translated(self.root):
            view = self._journal.view()
            if not view.is_certain:
                with self._lock.held():
                    return self._settle()
            if not view.is_settled:
                # Whoever has the lock is at it, and until they are through it does not count.
                with suppress(StorageUnavailableError, OSError), self._lock.held(wait=0):
                    return self._settle()
            return view.watermarks

    def aggregate(self, by: Sequence[Grouping], first: date, last: date, usage_filter: UsageFilter) -> Aggregate:
        """Sum days up, of one moment."""
        with translated(self.root):
            for _ in range(_TRIES):
                marks = self.watermarks()
                groups = self._sum(by, first, last, usage_filter, marks)
                # Else perhaps one file was read before, and one after.
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
        """Read sums user by user: of whole months in one, if that will do, else of days."""
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
                    yield from _taken(tally, on, usage_filter)

    def daily(self, first: date, last: date, usage_filter: UsageFilter) -> Iterator[DailySum]:
        """Stream sums, day by day."""
        with translated(self.root):
            # First: what was interrupted may have days that are not there yet.
            self.watermarks()
            for on in self._tree.dates(first, last, usage_filter.user):
                marks = self.watermarks()
                for folder in self._tree.users(usage_filter.user):
                    day = Month(folder, on.replace(day=1)).day(on)
                    if day.events.exists():
                        yield from _taken(tally_of_day(day, self._zone, marks), on, usage_filter)

    def events(
        self, window: Window, usage_filter: UsageFilter, after: EventPosition | None, *, newest_first: bool
    ) -> Iterator[UsageEvent]:
        """Stream events in order: a day is sorted at a time."""
        with translated(self.root):
            marks = self.watermarks()
            start, end = window
            if after is not None:
                start, end = (start, after.started_at + 1) if newest_first else (max(start, after.started_at), end)
            if start >= end:
                return
            # Not local_date, which looks for the end of the day: of the last one there is, there is none.
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
                for line in sorted_lines(lines, _position_of, reverse=newest_first):
                    yield from_record(_parsed(line))

    def _lines(self, on: date, user: str | None) -> Iterator[tuple[bytes, dict[str, Any]]]:
        for folder in self._tree.users(user):
            yield from lines_of(Month(folder, on.replace(day=1)).day(on))

    def sent(self, after: Mapping[str, int], upto: Mapping[str, int]) -> Iterator[Sent]:
        """Stream what was sent beyond some numbers and up to others, by writer and number; what is left over first.

        Raises:
            StoragePrunedError: events beyond `after` are gone; the other store has to be built anew.
            StorageUnavailableError: files were rewritten meanwhile; what was given out so far is of no use.
        """
        with translated(self.root):
            marks = self.watermarks()
            if not after:
                yield from (Sent(LEFT_OVER, seq, one) for seq, one in enumerate(self._left_over(), 1))
            lines = ((_number_of(fields), line) for line, fields in self._lines_beyond(after, upto))
            # All are read before the first one comes out.
            for line in sorted_lines(self._unless_rewritten(lines, marks), lambda line: _number_of(_parsed(line))):
                writer, seq, record, _ = decode_entry(_parsed(line))
                yield Sent(writer, seq, record)

    def _unless_rewritten(self, lines: Iterable[LineT], marks: Mapping[str, int]) -> Iterator[LineT]:
        yield from lines
        if self._is_rewritten(marks):
            raise StorageUnavailableError("The files were rewritten while they were read.")

    def _is_rewritten(self, marks: Mapping[str, int]) -> bool:
        """Say whether files were rewritten since there were these watermarks, or are just now."""
        view = self._journal.view()
        return ITSELF in view.pending or view.watermarks.get(ITSELF) != marks.get(ITSELF)

    def _days(self) -> Iterator[Day]:
        for folder in self._tree.users():
            for month in self._tree.months_of(folder):
                yield from month.days()

    def _left_over(self) -> Iterator[DailySum]:
        """List sums whose events are gone, and those that were given away."""
        for day in self._days():
            for _, fields in lines_of(day):
                if "kept" in fields:
                    yield from Tally.read(fields["kept"]).daily_sums(day.date)
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
                    line_alone = Tally()
                    add_line(line_alone, fields, self._zone)
                    if after and not line_alone.within({**after, ITSELF: _ENDLESS}):
                        raise StoragePrunedError(f"Events that are asked for are gone, and their sums in {day.events}.")
                elif after.get(fields["writer"], 0) < fields["seq"] <= upto.get(fields["writer"], 0):
                    yield line, fields

    # ── rewriting ────────────────────────────────────────────────────────────────────────────────────────────────

    def prune(self, events_before: int, days_before: date, most: int) -> int:
        """Delete what is too old."""
        last = max(days_before, to_datetime(events_before, self._zone).date())

        def old_days() -> Iterator[tuple[Day, Change]]:
            for folder in self._tree.users():
                for month in self._tree.months_of(folder):
                    if month.first > last or not self._has_old(month, events_before, days_before):
                        continue
                    for day in month.days():
                        if day.date < days_before:
                            yield day, Change(lambda _: True, lambda _: None)
                        elif self._has_old(day, events_before, days_before):
                            yield day, Change(lambda event: event.started_at < events_before, lambda one: one)

        return self._rewrite(old_days(), most)[0]

    def _has_old(self, what: Month | Day, events_before: int, days_before: date) -> bool:
        tally = read_tally(read_json(what.record))
        first = what.first if isinstance(what, Month) else what.date
        return first < days_before or tally is None or (tally.oldest_kept or events_before) < events_before

    def forget(self, user: str, most: int) -> int:
        """Delete a user's events, and give their sums away."""
        own = self._tree.user(user)
        change = Change(lambda event: user in (event.user, event.end_user), lambda one: one.without(user))
        # All files are searched for them as somebody's end user: from where the last call came to.
        since = self._searched[1] if self._searched[0] == user else None

        def days_of(folder: Path) -> Iterator[tuple[Day, Change]]:
            for month in self._tree.months_of(folder):
                if folder == own or self._names(month, user):
                    for day in month.days():
                        if folder == own or self._names(day, user):
                            yield day, change

        others = (folder for folder in self._tree.users(since=since) if folder != own)
        count, unfinished = self._rewrite(chain.from_iterable(map(days_of, chain((own,), others))), most)
        if unfinished is None:
            self._searched = (user, None)
        elif unfinished.month.user != own:
            self._searched = (user, unfinished.month.user)
        return count

    def _names(self, what: Month | Day, user: str) -> bool:
        tally = read_tally(read_json(what.record))
        end_user = ROLLUP_DIMENSIONS.index("end_user") - 1
        return tally is None or any(names[end_user] == user for names in tally.sums)

    def _rewrite(self, days: Iterator[tuple[Day, Change]], most: int) -> tuple[int, Day | None]:
        """Change days, at most so many records, all in one batch; say where it came to, if not to the end."""
        with translated(self.root):
            self.watermarks()
            # Searched without the lock, for as many as can be done: each has a record at least.
            found = list(islice(days, most))
            if not found:
                return 0, None
            changed: list[Changed] = []
            count = 0
            with self._lock.held():
                self._settle()
                if not self._journal.is_empty:
                    # What stands there must not be applied again once files are gone.
                    self._journal.begin_anew(self._settle())
                for day, change in found:
                    done = self._prepare_change(day, change, most - count)
                    if done is not None:
                        changed.append(done)
                        count += done.records
                    if count >= most:
                        break
                if changed:
                    self._commit_change(changed)
            return count, day if count >= most or len(found) == most else None

    def _commit_change(self, changed: Sequence[Changed]) -> None:
        sync_everything(self.root)
        after = self._settle().get(ITSELF, 0)
        given = [(one, change.watermarks) for change in changed for one in change.given_away]
        entries = [Entry(ITSELF, seq, *one) for seq, one in enumerate(given, after + 1)]
        rewritings = [change.rewriting for change in changed]
        lines = [*(one.line() for one in rewritings), *map(encode_entry, entries)]
        self._journal.commit(ITSELF, after + max(1, len(given)), lines)
        self._put_in_place(rewritings)
        self._apply(entries)
        self._journal.mark_applied()
        self._size = None

    def _prepare_change(self, day: Day, change: Change, budget: int) -> Changed | None:
        """Write what will take the place of a day's lines, at most so many records less; None if nothing changes."""
        kept = Tally()
        dropped, rest = 0, 0
        for _, fields in lines_of(day):
            if not _is_event(fields):
                add_line(kept, fields, self._zone)
            elif dropped < budget and change.drops(from_record(fields)):
                add_line(kept, fields, self._zone)
                dropped += 1
            else:
                rest += 1
        kept.oldest_kept = None
        moved, given = self._give_away(kept, day.date, change, budget - dropped)
        if not dropped + moved:
            return None
        is_removed = not rest and not kept.sums
        if not is_removed:
            self._write_beside(day, kept, change, dropped)
        return Changed(Rewriting(day, kept.user, is_removed), given, of_writers(kept.watermarks), dropped + moved)

    def _give_away(self, kept: Tally, on: date, change: Change, budget: int) -> tuple[int, list[DailySum]]:
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

    def _write_beside(self, day: Day, kept: Tally, change: Change, dropped: int) -> None:
        handle = open_private(staged(day.events), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with os.fdopen(handle, "wb") as file:
            file.write(kept.kept())
            for line, fields in lines_of(day):
                if _is_event(fields):
                    if dropped and change.drops(from_record(fields)):
                        dropped -= 1
                    else:
                        file.write(line)

    def _read_rewriting(self, fields: Mapping[str, Any]) -> Rewriting:
        day = self._tree.day(fields["rewritten"], date.fromisoformat(fields["day"]))
        return Rewriting(day, fields["rewritten"], fields["removed"])

    def _put_in_place(self, changed: Sequence[Rewriting]) -> None:
        """Let new lines take the place of old ones; what was done before is left."""
        for one in changed:
            if one.is_removed:
                remove_file(one.day.events)
            else:
                with suppress(FileNotFoundError):
                    staged(one.day.events).rename(one.day.events)
            renew_day(one.day, self._zone)
        for month in {one.day.month for one in changed}:
            renew_month(month, self._zone)

    def size(self) -> int:
        """Say how many bytes the files have; counted once, and kept up."""
        with translated(self.root):
            if self._size is None:
                self._size = self._tree.size()
            return self._size


def of_writers(watermarks: Mapping[str, int]) -> dict[str, int]:
    """Leave out the archive's own."""
    return {writer: seq for writer, seq in watermarks.items() if writer != ITSELF}


def _taken(tally: Tally, on: date, usage_filter: UsageFilter) -> Iterator[DailySum]:
    return (one for one in tally.daily_sums(on) if usage_filter.takes(one))


def _is_event(fields: Mapping[str, Any]) -> bool:
    return "event_id" in fields


def _is_event_within(fields: Mapping[str, Any], marks: Mapping[str, int]) -> bool:
    return _is_event(fields) and fields["seq"] <= marks.get(fields["writer"], 0)


def _parsed(line: bytes) -> dict[str, Any]:
    fields = parse_line(line)
    if fields is None:
        raise StorageUnavailableError("A temporary file is damaged.")
    return fields


def _position_of(line: bytes) -> EventPosition:
    fields = _parsed(line)
    return EventPosition(fields["started_at"], fields["event_id"])


def _number_of(fields: Mapping[str, Any]) -> tuple[str, int]:
    return fields["writer"], fields["seq"]
