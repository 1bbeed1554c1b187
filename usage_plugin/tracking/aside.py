"""Work on large results beside the event loop, which others need: in a thread, in steps that let go of the interpreter.

A thread that runs Python gives way every few milliseconds; one long call of C, such as sorting a large list, does not.
"""

from __future__ import annotations

import asyncio
import heapq
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

MANY = 1_000
"""So many items take a millisecond or two; a thread takes longer than that to be worth it for fewer."""

_RUN = 4_000


async def aside(size: int, work: Callable[..., ResultT], *what: Any) -> ResultT:
    """Do something with so many items: at once if they are few, else in a thread."""
    return work(*what) if size <= MANY else await asyncio.to_thread(work, *what)


def in_order(items: Sequence[ItemT], key: Callable[[ItemT], Any]) -> list[ItemT]:
    """Sort as `sorted` does, in short runs that are merged."""
    runs = [sorted(items[at : at + _RUN], key=key) for at in range(0, len(items), _RUN)]
    return list(heapq.merge(*runs, key=key))
