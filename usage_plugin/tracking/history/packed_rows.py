"""A memory-compact sequence of report rows.

A row is about ten small objects. Freeing a list of 100,000 rows blocks all requests for 60 ms, and full garbage
collections scan all of them. So a result is kept as bytes, and a row is created when it is read.
"""

from __future__ import annotations

import heapq
import marshal
from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice, starmap
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar, overload

from usage_plugin.domain.usage import UsageTotals
from usage_plugin.tracking.history.chunking import in_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Group: TypeAlias = tuple[str | None, ...]
"""The names of a group, in the requested order."""

RowT_co = TypeVar("RowT_co", covariant=True)
OtherT = TypeVar("OtherT")

_RUN = 500
"""The number of rows that are sorted at once. It takes about two milliseconds, in a call that cannot be interrupted."""
_SHOWN = 3


class ReportRow(NamedTuple):
    """One group of a report: its names in the requested order, and its sums."""

    group: Group
    totals: UsageTotals


Order: TypeAlias = "Callable[[ReportRow], tuple[object, ...]]"
"""A key to sort by."""


class Rows(Sequence[RowT_co]):
    """A packed sequence of groups with their sums. A row is created each time it is read."""

    __slots__ = ("_ends", "_make", "_parts")

    def __init__(self, make: Callable[[Group, UsageTotals], RowT_co]) -> None:
        """Start empty. `make` creates a row."""
        self._make = make
        self._parts: list[bytes] = []
        self._ends: list[int] = []

    def add(self, groups: Iterable[tuple[Group, UsageTotals]]) -> None:
        """Add one part of groups. A part is unpacked as a whole, so it should have a few hundred groups at most."""
        part = [(group, tuple(totals)) for group, totals in groups]
        if part:
            self._parts.append(marshal.dumps(part))
            self._ends.append(len(self) + len(part))

    def read_as(self, make: Callable[[Group, UsageTotals], OtherT]) -> Rows[OtherT]:
        """Return the same groups as rows of another type."""
        same = Rows(make)
        same._parts, same._ends = self._parts, self._ends  # the same class
        return same

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[RowT_co]:
        """Create the rows one by one."""
        for number in range(len(self._parts)):
            yield from self._unpacked(number)

    @overload
    def __getitem__(self, at: int) -> RowT_co: ...

    @overload
    def __getitem__(self, at: slice) -> list[RowT_co]: ...

    def __getitem__(self, at: int | slice) -> RowT_co | list[RowT_co]:
        """Create one row, or a list of rows for a slice."""
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            return list(islice(self, start, stop, step)) if step > 0 else list(self)[at]
        found = at + len(self) if at < 0 else at
        if not 0 <= found < len(self):
            raise IndexError(f"There are {len(self):,} rows, and none has the number {at}.")
        number = bisect_right(self._ends, found)
        begin = self._ends[number - 1] if number else 0
        return next(islice(self._unpacked(number), found - begin, None))

    def __eq__(self, other: object) -> bool:
        """Compare with any sequence, row by row."""
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(ours == theirs for ours, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as of lists

    def __repr__(self) -> str:
        """Return the number of rows and the first three."""
        more = ", …" if len(self) > _SHOWN else ""
        return f"<{len(self):,} rows: {', '.join(map(repr, self[:_SHOWN]))}{more}>"

    def _unpacked(self, number: int) -> Iterator[RowT_co]:
        part = marshal.loads(self._parts[number])  # noqa: S302  # our own bytes
        return (self._make(group, UsageTotals._make(sums)) for group, sums in part)


async def in_order(groups: Iterable[tuple[Group, UsageTotals]], order: Order) -> Rows[ReportRow]:
    """Return groups as sorted rows. Short runs are sorted and merged, yielding to the event loop in between."""
    runs = [await packed(sorted(starmap(ReportRow, part), key=order)) async for part in in_steps(groups, _RUN)]
    return runs[0] if len(runs) == 1 else await merged(runs, order)


async def merged(runs: Iterable[Rows[ReportRow]], order: Order) -> Rows[ReportRow]:
    """Merge sorted rows, yielding to the event loop in between."""
    return await packed(heapq.merge(*runs, key=order))


async def packed(groups: Iterable[ReportRow]) -> Rows[ReportRow]:
    """Pack rows, yielding to the event loop in between."""
    rows = Rows(ReportRow)
    async for part in in_steps(groups):
        rows.add(part)
    return rows
