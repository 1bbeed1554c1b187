"""Process large results in chunks, yielding to the event loop in between.

Not in a thread. Each statement of the ledger releases the interpreter, and then a thread that runs Python keeps it for
up to 5 ms.
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
"""The default number of items in a chunk. They take about a millisecond."""
_STRIDE = 25
_REST = 0.00005


async def in_steps(items: Iterable[ItemT], step: int = _STEP) -> AsyncIterator[list[ItemT]]:
    """Yield items in lists of `step`, with control to the event loop in between. The last list has the rest."""
    rest = iter(items)
    while part := list(islice(rest, step)):
        yield part
        if len(part) < step:
            return
        await asyncio.sleep(0)


def unhurried(items: Iterable[ItemT]) -> Iterator[ItemT]:
    """Iterate over a batch in a background thread with frequent pauses, so that the event loop's thread can run.

    It sleeps without asyncio, whose shortest pause is a millisecond.
    """
    for number, item in enumerate(items):
        if number and number % _STRIDE == 0:
            time.sleep(_REST)
        yield item


def taken(items: list[ItemT]) -> Iterator[ItemT]:
    """Yield and remove a list's items, last first. Freeing a long list at once is a call that cannot be interrupted."""
    while items:
        yield items.pop()
