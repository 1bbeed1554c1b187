"""The head: the one object that names all others. Every change of the history replaces it, under a condition.

So a change happens wholly or not at all, and readers see one state. An object that no head names does not count.

**Names.** A segment's name begins with the number of the head that its writer has read. A change is committed only if
the names of its new segments are not below the head's `floor`. So an unnamed segment below the floor can never be
named any more, and may be deleted: that is how the remains of killed writers are found without any clock.
"""

from __future__ import annotations

import gzip
import json
import re
import secrets
from datetime import date
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.backends.objects.segments import Segment
from usage_plugin.encoding import encode_record
from usage_plugin.errors import StorageUnavailableError, StorageVersionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

VERSION = 1
PATH = "head.json.gz"
SEGMENTS = "days"
"""The prefix of all segments."""

_DIGITS = 12
_NAME = re.compile(rf"{SEGMENTS}/[0-9-]{{10}}/([0-9a-f]{{{_DIGITS}}})-[0-9a-f]{{16}}\.jsonl")


class Head(NamedTuple):
    """One state of the history.

    Attributes:
        number: Counts the changes.
        floor: The lowest number in the name of a new segment.
        zone: The time zone of the days.
        swept: The newest day when remains were last deleted, in ISO form; empty before.
        writers: The watermark of each writer.
        days: The segments of each day, in order of the days.
    """

    number: int
    floor: int
    zone: str
    swept: str
    writers: Mapping[str, int]
    days: Mapping[date, tuple[Segment, ...]]

    def segments(self) -> Iterator[Segment]:
        """Yield all segments."""
        for segments in self.days.values():
            yield from segments

    @property
    def newest_day(self) -> str:
        """The newest day with records, in ISO form; empty without records."""
        return max(self.days).isoformat() if self.days else ""

    def new_name(self, day: date) -> str:
        """Return a name for a segment that a change of this head adds."""
        return f"{SEGMENTS}/{day.isoformat()}/{self.number:0{_DIGITS}x}-{secrets.token_hex(8)}.jsonl"

    def allows(self, segment: Segment) -> bool:
        """Whether a change may add a segment."""
        number = number_in(segment.name)
        return number is not None and number >= self.floor

    def changed(self, gone: Iterable[str], new: Iterable[Segment], writers: Mapping[str, int] | None = None) -> Head:
        """Return the next head.

        Args:
            gone: The names of the segments that it does not name any more.
            new: The segments that it names in addition, or with other places.
            writers: Watermarks that have changed.
        """
        out = set(gone)
        added = list(new)
        touched = {segment.day for segment in added}
        days = {
            day: left
            for day, segments in self.days.items()
            if (left := tuple(s for s in segments if s.name not in out)) or day in touched
        }
        for segment in added:
            days[segment.day] = (*days.get(segment.day, ()), segment)
        merged = self.writers if writers is None else MappingProxyType({**self.writers, **writers})
        return self._replace(number=self.number + 1, writers=merged, days=dict(sorted(days.items())))


def number_in(name: str) -> int | None:
    """Return the number of the head in a segment's name; None for the name of another object."""
    found = _NAME.fullmatch(name)
    return found and int(found[1], 16)


def empty_head(zone: str) -> Head:
    """Return the head of a new history."""
    return Head(1, 0, zone, "", {}, {})


def encode_head(head: Head) -> bytes:
    """Return a head as bytes, which differ for each change."""
    days = {day.isoformat(): [list(segment[1:]) for segment in segments] for day, segments in head.days.items()}
    fields = {"v": VERSION, **head._asdict(), "writers": dict(head.writers), "days": days}
    return gzip.compress(encode_record(fields).encode("utf-8", "surrogatepass"), 3, mtime=0)


def decode_head(data: bytes, url: str) -> Head:
    """Return the head of some bytes.

    Raises:
        StorageVersionError: A newer version of the package wrote it.
        StorageUnavailableError: It is damaged.
    """
    try:
        fields = json.loads(gzip.decompress(data).decode("utf-8", "surrogatepass"))
        if fields.pop("v") > VERSION:
            raise StorageVersionError(f"A newer version of usage_plugin wrote {url}.", hint="Install that version.")
        days = {
            date.fromisoformat(day): tuple(Segment(date.fromisoformat(day), *segment) for segment in segments)
            for day, segments in fields.pop("days").items()
        }
        return Head(**fields, days=days)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise StorageUnavailableError(
            f"{url}/{PATH} is damaged: {error}.",
            hint="Restore an earlier version of the object, if the bucket keeps them.",
        ) from error
