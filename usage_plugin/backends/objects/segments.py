"""The format of the objects with records: a segment has records of one day, and is never changed.

It is JSON lines: the sums by names, the hashes of the events' ids in one line, and the events in order of admission.
The places of the three parts are in the head, so that reports read the sums alone, by a range request.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from bisect import bisect_left
from datetime import date  # noqa: TC003  # a field of a NamedTuple, which is resolved at run time
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from usage_plugin.domain.store import ROLLUP_DIMENSIONS, DailySum, EventPosition
from usage_plugin.domain.usage import UsageEvent, UsageTotals, to_record
from usage_plugin.encoding import decode_event, encode_record
from usage_plugin.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

Names = tuple[str | None, ...]
"""The names of a sum, in the order of `ROLLUP_DIMENSIONS`."""
Sums = dict[Names, UsageTotals]

NOTHING = UsageTotals()
_SUMS = UsageTotals._fields
_HASH_BYTES = 8


class Segment(NamedTuple):
    """A segment, as the head describes it.

    Pruning moves `sums_at` and `events_at` forward: the lines before them count as deleted. All places are in bytes.

    Attributes:
        day: The day of its records, in the store's zone.
        name: The name of the object.
        sums_at: The place of the first sum.
        sums_end: The end of the sums, where the hashes begin.
        rows: The number of sums.
        ids_end: The end of the hashes.
        events_at: The place of the first event.
        events_end: The end of the events, which is the size of the object.
        events: The number of events.
        first: The admission of the first event, in microseconds since 1970 UTC; 0 without events.
        last: The admission of the last event; 0 without events.
    """

    day: date
    name: str
    sums_at: int
    sums_end: int
    rows: int
    ids_end: int
    events_at: int
    events_end: int
    events: int
    first: int
    last: int

    @property
    def size(self) -> int:
        """The bytes in use."""
        return self.sums_end - self.sums_at + self.events_end - self.events_at + self.ids_end - self.sums_end


class Line(NamedTuple):
    """An event as a line; lines sort in order of admission, then id."""

    started_at: int
    event_id: str
    data: bytes

    @property
    def position(self) -> EventPosition:
        """The position in streams."""
        return EventPosition(self.started_at, self.event_id)


def encode_line(event: UsageEvent) -> Line:
    """Return an event as a line.

    Raises:
        StorageError: A number exceeds 64 bits, or a text is not valid Unicode.
    """
    try:
        return Line(event.started_at, event.event_id, orjson.dumps(to_record(event)) + b"\n")
    except TypeError as error:
        raise StorageError(f"The store cannot accept the event {event.event_id!a}: {error}.") from error


def parse_lines(data: bytes) -> Iterator[Line]:
    """Yield the lines of the events in some bytes, which begin and end with a line."""
    for line in data.splitlines(keepends=True):
        fields = orjson.loads(line)
        yield Line(fields["started_at"], fields["event_id"], line)


def event_of(line: Line) -> UsageEvent:
    """Return the event of a line."""
    return decode_event(line.data)


def pack(day: date, name: str, sums: Mapping[Names, UsageTotals], lines: Iterable[Line]) -> tuple[Segment, bytes]:
    """Return a segment and its bytes.

    Args:
        day: The day of its records.
        name: The name of the object.
        sums: The sums by names.
        lines: The events that are kept, in any order. Their sums are among `sums`.
    """
    ordered = sorted(lines)
    rows = b"".join(_encode_sum(day, names, sums[names]) for names in sorted(sums, key=order_of))
    hashes = sorted(hash_of(line.event_id) for line in ordered)
    ids = f"{encode_record({'ids': b''.join(one.to_bytes(_HASH_BYTES, 'big') for one in hashes).hex()})}\n".encode()
    events = b"".join(line.data for line in ordered)
    ids_end = len(rows) + len(ids)
    edges = (ordered[0].started_at, ordered[-1].started_at) if ordered else (0, 0)
    segment = Segment(day, name, 0, len(rows), len(sums), ids_end, ids_end, ids_end + len(events), len(ordered), *edges)
    return segment, rows + ids + events


def order_of(names: Names) -> tuple[tuple[bool, str], ...]:
    """Return the key by which sums are sorted: an absent name comes before all others."""
    return tuple((name is not None, name or "") for name in names)


def _encode_sum(day: date, names: Names, totals: UsageTotals) -> bytes:
    named: dict[str, Any] = {
        name: value for name, value in zip(ROLLUP_DIMENSIONS, names, strict=True) if value is not None
    }
    counted = {name: value for name, value in zip(_SUMS, totals, strict=True) if value}
    if "cost" in counted:
        counted["cost_nano"] = counted.pop("cost")
    try:
        return f"{encode_record({'day': day.isoformat(), **named, **counted})}\n".encode()
    except ValueError as error:
        raise StorageError(f"The store cannot accept the sum of {names!a}: {error}.") from error


def parse_sums(day: date, data: bytes) -> Iterator[DailySum]:
    """Yield the sums in some bytes, which begin and end with a line."""
    for line in data.splitlines():
        # Not orjson, which reads a sum of more than 64 bits as a float.
        fields: dict[str, Any] = json.loads(line)
        names = (fields.get(name) for name in ROLLUP_DIMENSIONS)
        totals = (fields.get("cost_nano" if name == "cost" else name, 0) for name in _SUMS)
        yield DailySum._make((day, *names, UsageTotals._make(totals)))


def add_to(sums: Sums, one: DailySum) -> None:
    """Add a sum to sums of the same day."""
    names = one.names
    sums[names] = sums.get(names, NOTHING).plus(one.totals)


def hash_of(event_id: str) -> int:
    """Return the hash by which an event is looked up."""
    return int.from_bytes(hashlib.blake2b(event_id.encode(), digest_size=_HASH_BYTES).digest(), "big")


class Hashes:
    """The hashes of a segment's events: a small part of the size of the ids."""

    def __init__(self, line: bytes) -> None:
        """Read them from their line."""
        self._sorted = array("Q", bytes.fromhex(orjson.loads(line)["ids"]))
        if array("H", [1]).tobytes() == b"\x01\x00":  # this machine's numbers are little-endian
            self._sorted.byteswap()

    def __contains__(self, event_id: str) -> bool:
        """Whether an event may be in the segment."""
        wanted = hash_of(event_id)
        at = bisect_left(self._sorted, wanted)
        return at < len(self._sorted) and self._sorted[at] == wanted


def first_lines(data: bytes, most: int) -> tuple[int, int]:
    """Return the number of the first lines, at most `most`, and their length in bytes."""
    at = count = 0
    while count < most and at < len(data):
        at = data.index(b"\n", at) + 1
        count += 1
    return count, at


def total_size(segments: Sequence[Segment]) -> int:
    """Return the bytes in use by segments."""
    return sum(segment.size for segment in segments)
