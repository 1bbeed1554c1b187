"""Waiting for a ledger that somebody else is writing to just then, while the event loop goes on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from usage_plugin.errors import LedgerBusyError

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_WAIT = 5.0

ResultT = TypeVar("ResultT")


async def when_free(step: Callable[[], ResultT]) -> ResultT:
    """Do a step on the ledger, again while others are writing.

    Raises:
        LedgerBusyError: somebody has been for `LONGEST_WAIT` seconds.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LONGEST_WAIT
    while True:
        try:
            return step()
        except LedgerBusyError:
            if loop.time() > deadline:
                raise
            await asyncio.sleep(0.001)
