"""Work on large results, in steps between which others have the event loop.

Not in a thread: one that runs Python keeps the interpreter for up to 5 ms whenever somebody else lets go of it,
and each statement of the ledger lets go of it.
"""

from __future__ import annotations

import asyncio
import time
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

ItemT = TypeVar("ItemT")

_STEP = 200
"""So many items take about a millisecond."""
_STRIDE = 25
_REST = 0.00005


async def in_steps(items: Iterable[ItemT], step: int = _STEP) -> AsyncIterator[list[ItemT]]:
    """Hand out items in lists of so many, the last one of what is left."""
    rest = iter(items)
    while part := list(islice(rest, step)):
        yield part
        if len(part) < step:
            return
        await asyncio.sleep(0)


def unhurried(items: Iterable[ItemT]) -> Iterator[ItemT]:
    """Go through a batch as a thread beside the event loop should: it rests often, so that requests get their turn.

    It rests outside of asyncio, whose shortest pause is a millisecond.
    """
    for number, item in enumerate(items):
        if number and number % _STRIDE == 0:
            time.sleep(_REST)
        yield item


def taken(items: list[ItemT]) -> Iterator[ItemT]:
    """Take a list apart from its end: to let go of a long one at once is one call that nobody can interrupt, too."""
    while items:
        yield items.pop()
