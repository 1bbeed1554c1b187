"""A thread with its own connection to the ledger, for rare calls of the request path besides its verbs.

They may take as long as a server does, and the event loop goes on meanwhile. The ledger is opened with the first call.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from usage_plugin.errors import LedgerError
from usage_plugin.tracking.ledger_retry import wait_while_busy

if TYPE_CHECKING:
    from collections.abc import Callable

    from usage_plugin.domain.open_ledger import OpenLedger

ResultT = TypeVar("ResultT")

TIMEOUT = 5.0
"""Seconds until a call fails whose answer a request awaits."""


class LedgerThread:
    """Runs steps on the ledger, one at a time."""

    def __init__(self, open_ledger: Callable[[], OpenLedger]) -> None:
        """Set the function that opens the ledger for the calling thread."""
        self._open_ledger = open_ledger
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="usage-plugin-ledger")
        self._opened: OpenLedger | None = None

    async def run(self, step: Callable[[OpenLedger], ResultT]) -> ResultT:
        """Run a step, and retry it while the ledger is busy.

        Raises:
            LedgerError: The step failed, or took longer than `TIMEOUT`. In that case it may still be done.
        """
        try:
            return await asyncio.wait_for(asyncio.wrap_future(self._executor.submit(self._run, step)), TIMEOUT)
        except asyncio.TimeoutError:
            raise LedgerError(f"The ledger has not answered within {TIMEOUT:.0f} s.") from None

    def _run(self, step: Callable[[OpenLedger], ResultT]) -> ResultT:
        if self._opened is None:
            self._opened = self._open_ledger()
        opened = self._opened
        return wait_while_busy(lambda: step(opened))

    def close(self) -> None:
        """Close the ledger after the present step."""
        self._executor.submit(self._close)
        self._executor.shutdown(wait=False)

    def _close(self) -> None:
        if self._opened is not None:
            self._opened.close()
