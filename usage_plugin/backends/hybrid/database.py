"""A handle of the database that reopens it after an error: the database may be unavailable at any time."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from usage_plugin.domain.store import LEFT_OVER
from usage_plugin.errors import StorageError, StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from usage_plugin.domain.store import UsageStore

RETRY_AFTER = 1.0
"""The seconds after an error during which calls fail at once instead of reopening the database."""

COPIED_WRITERS = ("moved in: events", "moved in: sums")
"""The writers of the records that a database had before it had files."""


class _Opened:
    def __init__(self, store: UsageStore, stack: AsyncExitStack) -> None:
        self.store = store
        self.stack = stack
        self.at = time.monotonic()
        self.users = 0
        self.is_given_up = False


class Database:
    """A database that is opened at its first use, and reopened after an error."""

    def __init__(self, opener: Callable[[], AbstractAsyncContextManager[UsageStore]]) -> None:
        """Use a function that opens the database."""
        self._opener = opener
        self._opening = asyncio.Lock()
        self._opened: _Opened | None = None
        self._error: StorageError | None = None
        self._away_until = 0.0

    @asynccontextmanager
    async def used(self, *, patiently: bool = False) -> AsyncIterator[UsageStore]:
        """Use the store; after an error, the next use reopens it.

        Args:
            patiently: Whether to reopen it also within `RETRY_AFTER` of an error.

        Raises:
            StorageError: The database is not available.
        """
        opened = await self._open(patiently=patiently)
        opened.users += 1
        try:
            yield opened.store
        except StorageError as error:
            self._error, self._away_until = error, time.monotonic() + RETRY_AFTER
            self._give_up(opened)
            raise
        finally:
            opened.users -= 1
            await self._close_unused(opened)

    async def _open(self, *, patiently: bool) -> _Opened:
        async with self._opening:
            if self._error is not None and time.monotonic() < self._away_until and not patiently:
                raise StorageUnavailableError(f"The database is not available: {self._error.message}") from self._error
            if self._opened is None:
                stack = AsyncExitStack()
                try:
                    store = await stack.enter_async_context(self._opener())
                except StorageError as error:
                    self._error, self._away_until = error, time.monotonic() + RETRY_AFTER
                    raise
                self._opened = _Opened(store, stack)
            return self._opened

    def _give_up(self, opened: _Opened) -> None:
        opened.is_given_up = True
        if self._opened is opened:
            self._opened = None

    @staticmethod
    async def _close_unused(opened: _Opened) -> None:
        if opened.is_given_up and not opened.users:
            await opened.stack.aclose()

    async def reopen(self, *, older_than: float = 0.0) -> None:
        """Release the database, so that the next use opens its current files.

        Args:
            older_than: The minimum time in seconds since it was opened.
        """
        opened = self._opened
        if opened is not None and time.monotonic() - opened.at >= older_than:
            self._give_up(opened)
            await self._close_unused(opened)


def has_all(have: Mapping[str, int], marks: Mapping[str, int]) -> bool:
    """Whether a database with the watermarks `have` is complete, for files with the watermarks `marks`."""
    # While its own history is copied to the files, it has all of that history anyway.
    copying = unknown(have, marks)
    return all(
        have.get(writer, 0) >= seq for writer, seq in marks.items() if not (copying and writer in COPIED_WRITERS)
    )


def unknown(have: Mapping[str, int], marks: Mapping[str, int]) -> set[str]:
    """Return the writers that only the database knows."""
    return have.keys() - marks.keys() - {LEFT_OVER}
