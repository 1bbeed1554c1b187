"""Reading segments: a bounded cache of sums and hashes, and streams of events in blocks of some kilobytes.

Segments never change, so anything that was read stays true.
"""

from __future__ import annotations

import heapq
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from usage_plugin.backends.objects.segments import Hashes, Line, parse_lines, parse_sums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from usage_plugin.backends.objects.bucket import Bucket
    from usage_plugin.backends.objects.segments import Segment
    from usage_plugin.domain.store import DailySum, EventPosition

BLOCK = 64 * 1024
"""The bytes of events that are read at once, of each of a day's segments."""
_MOST_CACHED = 64_000_000
_BYTES_PER_EVENT = 700
"""About the length of an event's line: the number of bytes to read for a number of events."""


class SegmentReader:
    """Reads parts of segments. All methods block on the network; threads may share the reader.

    They raise `ObjectReplacedError` if a segment was deleted: then a newer head names another one in its place.
    """

    def __init__(self, bucket: Bucket) -> None:
        """Read from a bucket."""
        self._bucket = bucket
        self._cached: OrderedDict[tuple[str, int, int], bytes] = OrderedDict()
        self._size = 0
        self._caching = threading.Lock()

    def sums(self, segment: Segment) -> Iterator[DailySum]:
        """Yield the sums of a segment, ordered by names."""
        return parse_sums(segment.day, self.sums_block(segment))

    def hashes(self, segment: Segment) -> Hashes:
        """Return the hashes of a segment's events."""
        return Hashes(self._block(segment, segment.sums_end, segment.ids_end))

    def has(self, segment: Segment, event_id: str) -> bool:
        """Whether a segment has an event."""
        return event_id in self.hashes(segment) and any(line.event_id == event_id for line in self.lines(segment))

    def whole(self, segment: Segment) -> list[Line]:
        """Return all events of a segment, in order."""
        return list(parse_lines(self._bucket.read_range(segment.name, segment.events_at, segment.events_end)))

    def first_lines(self, segment: Segment, most: int) -> tuple[list[Line], bool]:
        """Return the first events of a segment, about `most`, and whether these are all.

        Unless these are all, there are two at least.
        """
        size = most * _BYTES_PER_EVENT
        while True:
            end = min(segment.events_end, segment.events_at + size)
            data = self._bucket.read_range(segment.name, segment.events_at, end)
            lines = list(parse_lines(data[: data.rfind(b"\n") + 1]))
            if end == segment.events_end or len(lines) > 1:
                return lines, end == segment.events_end
            size *= 2

    def sums_block(self, segment: Segment) -> bytes:
        """Return the lines of a segment's sums."""
        return self._block(segment, segment.sums_at, segment.sums_end)

    def lines(self, segment: Segment, *, newest_first: bool = False) -> Iterator[Line]:
        """Yield the events of a segment in order, or in reverse."""
        return self._backwards(segment) if newest_first else self._forwards(segment)

    def _forwards(self, segment: Segment) -> Iterator[Line]:
        at, rest = segment.events_at, b""
        while at < segment.events_end:
            end = min(at + BLOCK, segment.events_end)
            data = rest + self._bucket.read_range(segment.name, at, end)
            whole = data.rfind(b"\n") + 1
            yield from parse_lines(data[:whole])
            at, rest = end, data[whole:]

    def _backwards(self, segment: Segment) -> Iterator[Line]:
        end, rest = segment.events_end, b""
        while end > segment.events_at:
            at = max(end - BLOCK, segment.events_at)
            data = self._bucket.read_range(segment.name, at, end) + rest
            # The first line may have begun before the block.
            start = 0 if at == segment.events_at else data.find(b"\n") + 1
            yield from reversed(list(parse_lines(data[start:])))
            end, rest = at, data[:start]

    def merged(self, segments: Sequence[Segment], *, newest_first: bool) -> Iterator[Line]:
        """Yield the events of several segments in one order."""
        streams = [self.lines(segment, newest_first=newest_first) for segment in segments]
        key: Callable[[Line], EventPosition] = lambda line: line.position  # noqa: E731
        return heapq.merge(*streams, key=key, reverse=newest_first)

    def _block(self, segment: Segment, start: int, end: int) -> bytes:
        key = (segment.name, start, end)
        with self._caching:
            found = self._cached.get(key)
            if found is not None:
                self._cached.move_to_end(key)
                return found
        found = self._bucket.read_range(*key)
        with self._caching:
            if key not in self._cached:
                self._cached[key] = found
                self._size += len(found)
            while self._size > _MOST_CACHED:
                self._size -= len(self._cached.popitem(last=False)[1])
        return found
