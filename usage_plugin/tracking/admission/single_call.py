"""One call to a server at a time, each with a deadline."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from usage_plugin.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

ResultT = TypeVar("ResultT")


class SingleCall:
    """Runs calls in tasks of their own, so that they can be cancelled. A late one is waited for before the next."""

    def __init__(self) -> None:
        """Start without a call."""
        self._task: asyncio.Task[Any] | None = None

    async def run(self, call: Callable[[], Coroutine[Any, Any, ResultT]], deadline: float) -> ResultT:
        """Return the result of a call.

        Args:
            call: makes the call.
            deadline: the loop's time at which it is cancelled.

        Raises:
            LedgerError: the call failed.
            asyncio.TimeoutError: it had no result at the deadline, or an earlier one has not ended yet.
        """
        loop = asyncio.get_running_loop()
        if self._task is not None:
            # It was cancelled, and has not ended yet: two calls at a time could overtake each other.
            await asyncio.wait([self._task], timeout=max(0.0, deadline - loop.time()))
            if not self._task.done():
                raise asyncio.TimeoutError
        task = self._task = loop.create_task(call())
        try:
            await asyncio.wait([task], timeout=max(0.0, deadline - loop.time()))
        finally:
            if not task.done():
                task.cancel()
                task.add_done_callback(_retrieve)
        if not task.done():
            raise asyncio.TimeoutError
        self._task = None
        if task.cancelled():
            raise LedgerError("the connection was given up")
        error = task.exception()
        if error is None:
            result: ResultT = task.result()
            return result
        raise error if isinstance(error, LedgerError) else LedgerError(f"{type(error).__name__}: {error}")

    async def close(self, timeout: float) -> None:
        """Wait until the last call has ended, for at most this time in seconds."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=timeout)


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Retrieve the error of a cancelled call, which asyncio would log otherwise."""
    if not task.cancelled():
        task.exception()
