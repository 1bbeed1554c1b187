"""Retry writes to a ledger that another process is writing to, without blocking the event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from usage_plugin.errors import LedgerBusyError

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_WAIT = 5.0

ResultT = TypeVar("ResultT")


async def retry_while_busy(step: Callable[[], ResultT]) -> ResultT:
    """Call a function that writes to the ledger, and retry it while the ledger is busy.

    Raises:
        LedgerBusyError: the ledger was busy for `LONGEST_WAIT` seconds.
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
