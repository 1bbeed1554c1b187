"""Work on large results, in steps between which others have the event loop.

Not in a thread: one that runs Python keeps the interpreter for up to 5 ms whenever somebody else lets go of it,
and each statement of the ledger lets go of it.
"""

from __future__ import annotations

import asyncio
import heapq
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

ItemT = TypeVar("ItemT")

_STEP = 200
"""So many items take about a millisecond."""
_REST = 0.0005
_RUN = 4_000
"""So many are sorted in a few milliseconds; sorting is one call that nobody can interrupt."""


async def in_steps(items: Iterable[ItemT], step: int = _STEP, *, pause: float = 0) -> AsyncIterator[list[ItemT]]:
    """Hand out items in lists of so many, the last one of what is left."""
    rest = iter(items)
    while part := list(islice(rest, step)):
        yield part
        if len(part) < step:
            return
        await asyncio.sleep(pause)


def unhurried(items: Iterable[ItemT]) -> AsyncIterator[list[ItemT]]:
    """Go through a batch as a loop in a thread of its own should: it rests often, so that requests get their turn."""
    return in_steps(items, pause=_REST)


async def in_order(items: Iterable[ItemT], key: Callable[[ItemT], Any]) -> list[ItemT]:
    """Sort as `sorted` does, in short runs that are merged."""
    runs = [sorted(part, key=key) async for part in in_steps(items, _RUN)]
    if len(runs) == 1:
        return runs[0]
    return [item async for part in in_steps(heapq.merge(*runs, key=key)) for item in part]
