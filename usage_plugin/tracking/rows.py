"""Rows of an answer, packed.

A row is some ten small objects. To let go of a list of 100,000 takes 60 ms in one piece, in which no request moves;
and full garbage collections go through all of them. So an answer is kept as bytes, and a row is made when it is read;
and so is, until it is known what of it the store has, what the outbox adds to an answer.
"""

from __future__ import annotations

import asyncio
import heapq
import marshal
from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice, starmap
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar, overload

from usage_plugin.domain.usage import UsageTotals
from usage_plugin.tracking.steps import in_steps

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

Group: TypeAlias = tuple[str | None, ...]
"""The names of a group, in the order asked for."""

RowT_co = TypeVar("RowT_co", covariant=True)
OtherT = TypeVar("OtherT")

_RUN = 500
"""So many are sorted in some two milliseconds; sorting is one call that nobody can interrupt."""
_SHOWN = 3


class ReportRow(NamedTuple):
    """One group of a report: its names in the order asked for, and its sums."""

    group: Group
    totals: UsageTotals


Order: TypeAlias = "Callable[[ReportRow], tuple[object, ...]]"
"""A key to sort by."""


class Rows(Sequence[RowT_co]):
    """A sequence of groups with their sums, each made into a row whenever it is read."""

    __slots__ = ("_ends", "_make", "_parts")

    def __init__(self, make: Callable[[Group, UsageTotals], RowT_co]) -> None:
        """Start with none; `make` makes a row."""
        self._make = make
        self._parts: list[bytes] = []
        self._ends: list[int] = []

    def add(self, groups: Iterable[tuple[Group, UsageTotals]]) -> None:
        """Add a few; they are read together, so few means some hundreds."""
        part = [(group, tuple(totals)) for group, totals in groups]
        if part:
            self._parts.append(marshal.dumps(part))
            self._ends.append(len(self) + len(part))

    def read_as(self, make: Callable[[Group, UsageTotals], OtherT]) -> Rows[OtherT]:
        """Give the same groups as other rows."""
        same = Rows(make)
        same._parts, same._ends = self._parts, self._ends  # the same class
        return same

    def __len__(self) -> int:
        """Count them."""
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[RowT_co]:
        """Make one after the other."""
        for number in range(len(self._parts)):
            yield from self._unpacked(number)

    @overload
    def __getitem__(self, at: int) -> RowT_co: ...

    @overload
    def __getitem__(self, at: slice) -> list[RowT_co]: ...

    def __getitem__(self, at: int | slice) -> RowT_co | list[RowT_co]:
        """Make one, or a list of some."""
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
        """Compare with any sequence."""
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(ours == theirs for ours, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as of lists

    def __repr__(self) -> str:
        """Show the first few."""
        more = ", …" if len(self) > _SHOWN else ""
        return f"<{len(self):,} rows: {', '.join(map(repr, self[:_SHOWN]))}{more}>"

    def _unpacked(self, number: int) -> Iterator[RowT_co]:
        part = marshal.loads(self._parts[number])  # noqa: S302  # our own bytes
        return (self._make(group, UsageTotals._make(sums)) for group, sums in part)


async def in_order(groups: Iterable[tuple[Group, UsageTotals]], order: Order) -> Rows[ReportRow]:
    """Sort groups into rows, in short runs that are merged; others have the loop in between."""
    runs = [await packed(sorted(starmap(ReportRow, part), key=order)) async for part in in_steps(groups, _RUN)]
    return runs[0] if len(runs) == 1 else await merged(runs, order)


async def merged(runs: Iterable[Rows[ReportRow]], order: Order) -> Rows[ReportRow]:
    """Merge rows that are in order; others have the loop in between."""
    return await packed(heapq.merge(*runs, key=order))


async def packed(groups: Iterable[ReportRow]) -> Rows[ReportRow]:
    """Pack rows; others have the loop in between."""
    rows = Rows(ReportRow)
    async for part in in_steps(groups):
        rows.add(part)
    return rows


class WaitingSums:
    """What events of the outbox add to an answer, by the number of each: the store may have it by then.

    Attributes:
        groups: those that are added to.
    """

    __slots__ = ("_parts", "groups")

    def __init__(self) -> None:
        """Start with nothing."""
        self.groups: set[Group] = set()
        self._parts: list[bytes] = []

    def add(self, sums: Iterable[tuple[int, tuple[Group, UsageTotals]]]) -> None:
        """Add those of a few numbered events."""
        part = [(seq, group, tuple(totals)) for seq, (group, totals) in sums]
        self.groups.update(group for _, group, _ in part)
        self._parts.append(marshal.dumps(part))

    async def behind(self, watermark: int) -> AsyncIterator[tuple[Group, UsageTotals]]:
        """Give what comes behind a number; others have the loop in between."""
        for part in self._parts:
            for seq, group, sums in marshal.loads(part):  # noqa: S302  # our own bytes
                if seq > watermark:
                    yield group, UsageTotals._make(sums)
            await asyncio.sleep(0)
