"""The database as the hybrid store sees it: something that may be away, and is opened again when it is asked for."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import date
from typing import TYPE_CHECKING

from usage_plugin.domain.store import LEFT_OVER, UsageFilter
from usage_plugin.errors import StorageError, StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from usage_plugin.domain.store import UsageStore

AWAY_FOR = 1.0
"""So many seconds nobody waits for a database again that was away."""

MOVED_IN = ("moved in: events", "moved in: sums")
"""The writers of what a database had before it had files."""

_NEVER = date(1970, 1, 1)


class _Opened:
    def __init__(self, store: UsageStore, stack: AsyncExitStack) -> None:
        self.store = store
        self.stack = stack
        self.at = time.monotonic()
        self.users = 0
        self.is_given_up = False


class Database:
    """Opens the database when it is used, and again after an error."""

    def __init__(self, opener: Callable[[], AbstractAsyncContextManager[UsageStore]]) -> None:
        """Take what opens it."""
        self._opener = opener
        self._opening = asyncio.Lock()
        self._opened: _Opened | None = None
        self._error: StorageError | None = None
        self._away_until = 0.0

    @asynccontextmanager
    async def used(self, *, patiently: bool = False) -> AsyncIterator[UsageStore]:
        """Use the store; after an error it will be opened anew.

        Args:
            patiently: whether to try also if it was away just now.

        Raises:
            StorageError: it is away.
        """
        opened = await self._open(patiently=patiently)
        opened.users += 1
        try:
            yield opened.store
        except StorageError as error:
            self._error, self._away_until = error, time.monotonic() + AWAY_FOR
            self._give_up(opened)
            raise
        finally:
            opened.users -= 1
            await self._close_unused(opened)

    async def _open(self, *, patiently: bool) -> _Opened:
        async with self._opening:
            if self._error is not None and time.monotonic() < self._away_until and not patiently:
                raise StorageUnavailableError(f"The database is away: {self._error.message}") from self._error
            if self._opened is None:
                stack = AsyncExitStack()
                try:
                    store = await stack.enter_async_context(self._opener())
                except StorageError as error:
                    self._error, self._away_until = error, time.monotonic() + AWAY_FOR
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
        """Let go of it, so that whatever has taken its place is opened next."""
        opened = self._opened
        if opened is not None and time.monotonic() - opened.at >= older_than:
            self._give_up(opened)
            await self._close_unused(opened)


async def watermarks_of(store: UsageStore) -> Mapping[str, int]:
    """Read how far a store is with every writer."""
    return (await store.aggregate((), _NEVER, _NEVER, UsageFilter(user="\x1f"))).watermarks


def has_all(have: Mapping[str, int], marks: Mapping[str, int]) -> bool:
    """Say whether a database can answer for files that had so much."""
    # While its own history is moved into the files, it has all of that anyway.
    moving = unknown(have, marks)
    return all(have.get(writer, 0) >= seq for writer, seq in marks.items() if not (moving and writer in MOVED_IN))


def unknown(have: Mapping[str, int], marks: Mapping[str, int]) -> set[str]:
    """List the writers that only the database knows."""
    return have.keys() - marks.keys() - {LEFT_OVER}
