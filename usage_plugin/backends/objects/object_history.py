"""The history as a head and its segments. All calls block on the network.

A change reads the head, writes new segments under new names, and replaces the head. If another process was first, the
change is derived again from the newer head. What has been written before a failure is not named by any head, so it
does not count; `sweep` deletes it.
"""

from __future__ import annotations

import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.backends.objects.head import PATH, SEGMENTS, decode_head, empty_head, encode_head, number_in
from usage_plugin.backends.objects.merging import next_merge
from usage_plugin.backends.objects.segment_reader import SegmentReader
from usage_plugin.backends.objects.segments import Segment, Sums, add_to, encode_line, event_of, first_lines, pack
from usage_plugin.domain.store import DailySum, daily_sum
from usage_plugin.domain.subjects import FORGOTTEN
from usage_plugin.errors import ObjectReplacedError, StorageError, StorageUnavailableError
from usage_plugin.log import get_logger, short_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import date
    from zoneinfo import ZoneInfo

    from usage_plugin.backends.objects.bucket import Bucket, Version
    from usage_plugin.backends.objects.head import Head
    from usage_plugin.backends.objects.segments import Line
    from usage_plugin.domain.usage import UsageEvent

PROBE = "probe"
_PATIENCE = 20.0
"""Seconds for which a change is tried while others change the head."""
_PATIENCE_OF_MERGES = 2.0
_LONGEST_PAUSE = 0.5
_MOST_REWRITES = 16
"""The maximum number of segments that one call of `prune` or `forget` rewrites: others wait meanwhile."""
_MOST_DELETED = 1_000

log = get_logger()


class Change(NamedTuple):
    """The next head, None if there is nothing to change, and the number of records that it deletes."""

    head: Head | None
    records: int = 0


class Rewrite(NamedTuple):
    """A segment in place of another one; None if nothing is left of it. `records` are deleted or changed."""

    old: Segment
    new: Segment | None
    records: int


class _Day:
    """The new records of one day, before those that are known already are left out."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.sums: list[DailySum] = []
        self.events: dict[str, tuple[UsageEvent, Line]] = {}


class ObjectHistory:
    """One process's view of the history below a URL."""

    def __init__(self, bucket: Bucket, zone: ZoneInfo) -> None:
        """Open the history; create its head if there is none.

        Raises:
            StorageError: Its days are of another time zone, or it has segments without a head.
            StorageVersionError: A newer version of the package wrote it.
        """
        self._bucket = bucket
        self._zone = zone
        self.reader = SegmentReader(bucket)
        self._known: tuple[Head, Version] | None = None
        self._searched: tuple[str, set[str]] = ("", set())
        self._prepare()

    def _prepare(self) -> None:
        head = self._read()
        if head is None:
            # Without its head, a history would begin as an empty one, and its segments would be swept away.
            if next(self._bucket.names(SEGMENTS), None) is not None:
                raise StorageError(
                    f"{self._bucket.url} has segments, and no {PATH}.",
                    hint="Restore that object if the bucket keeps versions, or choose another prefix.",
                )
            self._bucket.replace(PATH, encode_head(empty_head(str(self._zone))), None)
            head = self.head()
        if head.zone != str(self._zone):
            raise StorageError(
                f"{self._bucket.url} keeps days of the zone {head.zone}; found usage_plugin.timezone {self._zone}.",
                hint=f"Set usage_plugin.timezone to {head.zone}, or choose another prefix to start a new history.",
            )

    # ── the head ─────────────────────────────────────────────────────────────────────────────────────────────────

    def head(self) -> Head:
        """Return the present head.

        Raises:
            StorageUnavailableError: It is missing, or the bucket does not answer.
        """
        head = self._read()
        if head is None:
            raise StorageUnavailableError(
                f"{self._bucket.url}/{PATH} is missing.", hint="Restore the object if the bucket keeps versions."
            )
        return head

    def _read(self) -> Head | None:
        known = self._known
        found = self._bucket.read(PATH, known and known[1])
        if found is None or found.data is not None:
            known = self._known = found and (decode_head(found.data or b"", self._bucket.url), found.version)
        return known and known[0]

    def _change(self, derive: Callable[[Head], Change], *, is_known: bool = False, patience: float = _PATIENCE) -> int:
        """Replace the head by the one that is derived from it, and return the number of deleted records.

        Args:
            derive: Derives the next head, and writes its segments. Called again if another process was first.
            is_known: Whether the head that was read last is good enough for the first attempt.
            patience: The seconds after which it is not tried again.
        """
        deadline = time.monotonic() + patience
        pause = 0.01
        if not is_known:
            self.head()
        while True:
            known = self._known
            if known is None:
                self.head()
                continue
            head, version = known
            why = f"Other processes are changing {self._bucket.url} all the time."
            try:
                change = derive(head)
                if change.head is None:
                    return change.records
                done = self._bucket.replace(PATH, encode_head(change.head), version)
                if done is not None:
                    self._known = (change.head, done)
                    self._delete_unnamed(head, change.head)
                    return change.records
            except ObjectReplacedError as error:  # the head is an older one
                why = error.message
            if time.monotonic() > deadline:
                raise StorageUnavailableError(why, hint="If it remains, restore the prefix from versions or a copy.")
            time.sleep(random.uniform(0, pause))  # noqa: S311  # not for secrets
            pause = min(2 * pause, _LONGEST_PAUSE)
            self.head()

    def _delete_unnamed(self, before: Head, after: Head) -> None:
        """Delete the segments that a change has replaced. If that fails, they are swept away later."""
        left = {segment.name for segment in after.segments()}
        gone = [segment.name for segment in before.segments() if segment.name not in left]
        with suppress(StorageError):
            for at in range(0, len(gone), _MOST_DELETED):
                self._bucket.delete(gone[at : at + _MOST_DELETED])

    def _write(self, head: Head, day: date, sums: Sums, lines: Iterable[Line]) -> Segment:
        segment, data = pack(day, head.new_name(day), sums, lines)
        self._bucket.write(segment.name, data)
        return segment

    # ── appending ────────────────────────────────────────────────────────────────────────────────────────────────

    def append(self, writer: str, numbered: Sequence[tuple[int, UsageEvent | DailySum]]) -> None:
        """Add the records that the writer has not sent before, all or none."""
        written: dict[tuple[object, ...], Segment] = {}

        def derive(head: Head) -> Change:
            after = head.writers.get(writer, 0)
            fresh = [(number, record) for number, record in numbered if number > after]
            if not fresh:
                return Change(None)
            new = []
            for day, found in self._by_day(fresh).items():
                segment = self._new_segment(head, day, found, written)
                if segment is not None:
                    new.append(segment)
            return Change(head.changed((), new, {writer: fresh[-1][0]}), len(fresh))

        if self._change(derive, is_known=True):
            self._tidy()

    def _by_day(self, fresh: Sequence[tuple[int, UsageEvent | DailySum]]) -> Mapping[date, _Day]:
        days: dict[date, _Day] = {}
        for number, record in fresh:
            one = record if isinstance(record, DailySum) else daily_sum(record, self._zone)
            day = days.setdefault(one.day, _Day())
            day.numbers.append(number)
            if not isinstance(record, DailySum):
                day.events.setdefault(record.event_id, (record, encode_line(record)))
            elif any(record.totals):
                day.sums.append(record)
        return days

    def _new_segment(
        self, head: Head, day: date, found: _Day, written: dict[tuple[object, ...], Segment]
    ) -> Segment | None:
        """Write the records of a day that are new; None if none are.

        Args:
            head: The head that is changed.
            day: The day.
            found: The records.
            written: The segments of earlier attempts, by their contents.
        """
        unknown = self._unknown(head, day, found.events)
        key = (day, *found.numbers, *unknown)
        segment = written.get(key)
        if segment is not None and head.allows(segment):
            return segment
        sums: Sums = {}
        for one in (*found.sums, *(daily_sum(event, self._zone) for event, _ in unknown.values())):
            add_to(sums, one)
        if not sums:
            return None
        written[key] = self._write(head, day, sums, (line for _, line in unknown.values()))
        return written[key]

    def _unknown(
        self, head: Head, day: date, events: Mapping[str, tuple[UsageEvent, Line]]
    ) -> dict[str, tuple[UsageEvent, Line]]:
        """Return the events that no segment has: a restored ledger sends events again under other numbers."""
        unknown = dict(events)
        for segment in head.days.get(day, ()):
            if segment.events:
                for event_id, (event, _) in list(unknown.items()):
                    if segment.first <= event.started_at <= segment.last and self.reader.has(segment, event_id):
                        del unknown[event_id]
        return unknown

    def _tidy(self) -> None:
        """Merge the segments of one day, if it has many. After a failure the next append tries again."""
        try:
            self._change(self._merging(), is_known=True, patience=_PATIENCE_OF_MERGES)
        except StorageError as error:
            log.info("objects.not_merged", **short_error(error))

    def _merging(self) -> Callable[[Head], Change]:
        written: dict[tuple[Segment, ...], Segment] = {}

        def derive(head: Head) -> Change:
            chosen = next_merge(head)
            if not chosen:
                return Change(None)
            merged = written.get(chosen)
            if merged is None or not head.allows(merged):
                sums: Sums = {}
                for segment in chosen:
                    for one in self.reader.sums(segment):
                        add_to(sums, one)
                lines = (line for segment in chosen for line in self.reader.whole(segment))
                merged = written[chosen] = self._write(head, chosen[0].day, sums, lines)
            return Change(head.changed((segment.name for segment in chosen), [merged]))

        return derive

    # ── deleting ─────────────────────────────────────────────────────────────────────────────────────────────────

    def prune(self, events_before: int, days_before: date, most: int) -> int:
        """Delete events and sums before the given times, at most `most`; return their number.

        Without any, delete the remains of killed writers, once for each new day.
        """

        def shorten(head: Head, segment: Segment, left: int) -> Rewrite | None:
            is_old = segment.day < days_before
            if not is_old and not (segment.events and segment.first < events_before):
                return None
            shorter, records = self._without_events(segment, None if is_old else events_before, left)
            if shorter.events:
                return Rewrite(segment, shorter, records)
            if not is_old:
                # The whole object was pruned, except for its sums.
                sums = {one.names: one.totals for one in self.reader.sums(shorter)}
                return Rewrite(segment, self._write(head, segment.day, sums, ()), records)
            rows, length = first_lines(self.reader.sums_block(shorter), left - records)
            if rows == shorter.rows:
                return Rewrite(segment, None, records + rows)
            shorter = shorter._replace(sums_at=shorter.sums_at + length, rows=shorter.rows - rows)
            return Rewrite(segment, shorter, records + rows)

        records = self._rewrite(shorten, most)
        if not records:
            head = self.head()
            if head.swept != head.newest_day:
                self.sweep()
        return records

    def _without_events(self, segment: Segment, before: int | None, most: int) -> tuple[Segment, int]:
        """Return a segment without its first events, at most `most`, and their number.

        Args:
            segment: The segment.
            before: Only those admitted earlier; None for all.
            most: The maximum number.
        """
        if segment.events <= most and (before is None or segment.last < before):
            return segment._replace(events_at=segment.events_end, events=0, first=0, last=0), segment.events
        lines, are_all = self.reader.first_lines(segment, most)
        candidates = lines if are_all else lines[:-1]  # the first event that stays must be known
        gone = 0
        while gone < min(most, len(candidates)) and (before is None or candidates[gone].started_at < before):
            gone += 1
        length = sum(len(line.data) for line in lines[:gone])
        return segment._replace(
            events_at=segment.events_at + length, events=segment.events - gone, first=lines[gone].started_at
        ), gone

    def forget(self, user: str, most: int) -> int:
        """Delete a user's events, and then give their sums to `FORGOTTEN`; at most `most` records."""
        if user == FORGOTTEN:
            return 0
        if self._searched[0] != user:
            self._searched = (user, set())
        searched = self._searched[1]

        def forget_in(head: Head, segment: Segment, left: int) -> Rewrite | None:
            if segment.name in searched:
                return None
            rows = list(self.reader.sums(segment))
            if not any(user in (one.user, one.end_user) for one in rows):
                searched.add(segment.name)
                return None
            kept = []
            records = 0
            for line in self.reader.whole(segment):
                event = event_of(line)
                if records < left and user in (event.user, event.end_user):
                    records += 1
                else:
                    kept.append(line)
            sums: Sums = {}
            for one in rows:
                # Sums only once there is room for all events.
                if records < left and user in (one.user, one.end_user):
                    records += 1
                    add_to(sums, one.without(user))
                else:
                    add_to(sums, one)
            return Rewrite(segment, self._write(head, segment.day, sums, kept), records)

        return self._rewrite(forget_in, most)

    def _rewrite(self, rewrite: Callable[[Head, Segment, int], Rewrite | None], most: int) -> int:
        """Replace segments until `most` records are deleted or changed, and return their number.

        Args:
            rewrite: Returns the replacement of a segment for a head, with at most the given number of records less.
            most: The maximum number of records.
        """
        done: dict[Segment, Rewrite] = {}

        def derive(head: Head) -> Change:
            rewrites: list[Rewrite] = []
            left = most
            for segment in head.segments():
                if not left or len(rewrites) == _MOST_REWRITES:
                    break
                found = done.get(segment)
                if found is None or found.records > left or (found.new is not None and not head.allows(found.new)):
                    found = rewrite(head, segment, left)
                if found is not None:
                    done[segment] = found
                    rewrites.append(found)
                    left -= found.records
            if not rewrites:
                return Change(None)
            new = [one.new for one in rewrites if one.new is not None]
            return Change(head.changed((one.old.name for one in rewrites), new), most - left)

        return self._change(derive)

    def sweep(self) -> None:
        """Delete segments that no head names, and that no change can name any more."""

        def derive(head: Head) -> Change:
            return Change(head._replace(number=head.number + 1, floor=head.number + 1, swept=head.newest_day))

        self._change(derive)
        head = self.head()
        named = {segment.name for segment in head.segments()}
        remains = []
        for name in self._bucket.names(SEGMENTS):
            number = number_in(name)
            if number is not None and number < head.floor and name not in named:
                remains.append(name)
        for at in range(0, len(remains), _MOST_DELETED):
            self._bucket.delete(remains[at : at + _MOST_DELETED])
        if remains:
            log.info("objects.swept", segments=len(remains))

    def health(self) -> None:
        """Write a probe."""
        self.head()
        self._bucket.write(PROBE, b"")
