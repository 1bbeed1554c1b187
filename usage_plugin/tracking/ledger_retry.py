"""Retry a step on the ledger while other workers are writing."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

from usage_plugin.errors import LedgerBusyError

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_WAIT = 5.0
"""Seconds for which a busy ledger is retried, unless the caller gives another timeout."""

LAST_TIMEOUT = 1.0
"""Seconds for a worker's last writes, when it ends."""

_PAUSE = 0.001

ResultT = TypeVar("ResultT")


def wait_while_busy(step: Callable[[], ResultT], timeout: float = LONGEST_WAIT) -> ResultT:
    """Run a step on the ledger, and retry it while the ledger is busy. Blocks, so do not call it on an event loop.

    Args:
        step: The step; it must do nothing if the ledger is busy.
        timeout: The time to retry, in seconds.

    Raises:
        LedgerBusyError: The ledger was still busy after that time.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            return step()
        except LedgerBusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE)


async def retry_while_busy(step: Callable[[], ResultT]) -> ResultT:
    """Run a step on the ledger, and retry it while the ledger is busy, without blocking the event loop.

    Raises:
        LedgerBusyError: The ledger was still busy after `LONGEST_WAIT` seconds.
    """
    deadline = time.monotonic() + LONGEST_WAIT
    while True:
        try:
            return step()
        except LedgerBusyError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(_PAUSE)
