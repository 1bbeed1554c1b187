"""The choice of segments to merge, so that a day has few, and no record is rewritten more than a few times.

Segments have levels by their size, each eight times the one before. On the latest two days a level is merged once it
has eight segments, on earlier days once it has two. So a byte is rewritten about four times, and a finished day is left
with one segment of each level, and those that are too large to merge.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from usage_plugin.backends.objects.head import Head
    from usage_plugin.backends.objects.segments import Segment

MOST = 32 * 1024 * 1024
"""The maximum size of a merged segment in bytes. It is built in memory."""
_LEVELS = (64 * 1024, 512 * 1024, 4 * 1024 * 1024, MOST)
_FAN, _FAN_OF_FINISHED = 8, 2
_OPEN_DAYS = 2


def next_merge(head: Head) -> tuple[Segment, ...]:
    """Return the segments of one day that should be one, the latest day first; empty if there are none."""
    for at, day in enumerate(sorted(head.days, reverse=True)):
        fan = _FAN if at < _OPEN_DAYS else _FAN_OF_FINISHED
        for segments in _levels(head.days[day]):
            if len(segments) >= fan:
                chosen = _fitting(segments)
                if len(chosen) > 1:
                    return chosen
    return ()


def _levels(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Yield the segments of each level, the smallest first."""
    least = 0
    for most in _LEVELS:
        yield sorted((one for one in segments if least <= one.size < most), key=lambda one: one.size)
        least = most


def _fitting(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Return the first segments that fit into one."""
    total = 0

    def fits(segment: Segment) -> bool:
        nonlocal total
        total += segment.size
        return total <= MOST

    return tuple(takewhile(fits, segments))
