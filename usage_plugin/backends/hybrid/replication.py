"""Replicate the files to the database, in one process at a time.

While the database is up to date, it receives each batch as it comes. After an outage it catches up from the files, in
order and in slices, while the files accept more events. A damaged or empty database is rebuilt separately, and replaced
once the new one is complete. No error here can fail a request or block the outbox.
"""

from __future__ import annotations

import asyncio
from abc import ABC
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from usage_plugin.backends.hybrid.database import has_all
from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.store import EMPTY_SUM, DailySum, HandsOut, KeepsCopies, UsageStore, watermarks_of
from usage_plugin.domain.windows import to_datetime
from usage_plugin.errors import StorageDamagedError, StorageError, StoragePrunedError, StorageUnavailableError
from usage_plugin.log import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from usage_plugin.backends.hybrid.database import Database
    from usage_plugin.domain.store import Sent

BATCH = 500
MAX_QUEUED_BATCHES = 20
CHECK_INTERVAL = 1.0
MAX_PAUSE = 30.0
MAX_BLOCKING_RECORDS = 2_000
"""The maximum number of records to catch up with while appends to the files wait."""

log = get_logger()

Kind = Literal["events", "sums"]


class Files(HandsOut, KeepsCopies, UsageStore, ABC):
    """The interface of files that are the source of truth of a hybrid store."""


class Batch(NamedTuple):
    """A batch that was appended to the files: its writer, the writer's previous number, and the records."""

    writer: str
    before: int
    kind: Kind
    numbered: Sequence[tuple[int, Any]]


async def fill(store: UsageStore, sent: AsyncIterator[Sent], marks: Mapping[str, int]) -> AsyncIterator[int]:
    """Store the records that other stores were sent, until the watermarks are equal.

    Yields:
        The number of records that each step has stored.
    """
    batch: list[Sent] = []
    async for one in sent:
        if batch and (len(batch) == BATCH or _kind(one) != _kind(batch[0])):
            await _append(store, batch)
            yield len(batch)
            batch = []
        batch.append(one)
    if batch:
        await _append(store, batch)
        yield len(batch)
    # Some numbers have no record: it was deleted, or was a duplicate.
    have = await watermarks_of(store)
    for writer, seq in marks.items():
        if have.get(writer, 0) < seq:
            await store.append_sums(writer, [(seq, EMPTY_SUM)])


def _kind(one: Sent) -> tuple[str, bool]:
    return one.writer, isinstance(one.record, DailySum)


async def _append(store: UsageStore, batch: Sequence[Sent]) -> None:
    numbered: list[Any] = [(one.seq, one.record) for one in batch]
    append = store.append_sums if isinstance(batch[0].record, DailySum) else store.append
    await append(batch[0].writer, numbered)


class Replicator:
    """Keep the database up to date with the files, in a task of its own."""

    def __init__(self, files: Files, database: Database, renew: Callable[[str | None], Awaitable[None]]) -> None:
        """Use open parts.

        Args:
            files: The source of truth.
            database: The database.
            renew: Rebuilds the database; its argument is the suffix under which the old one is kept.
        """
        self._files = files
        self._database = database
        self._renew = renew
        self._queued: deque[Batch] = deque()
        self._woken = asyncio.Event()
        self._followed = asyncio.Event()
        self.appending = asyncio.Lock()
        self._taking = asyncio.Lock()
        self._level = asyncio.Event()
        self._is_ending = False
        self.trouble: str | None = None

    def end(self) -> None:
        """End `run` after its current step; before Python 3.12 `wait_for` sometimes swallows a cancellation."""
        self._is_ending = True

    async def run(self) -> None:
        """Replicate until cancelled."""
        pause = CHECK_INTERVAL
        while not self._is_ending:
            try:
                await self._follow()
                self._works()
                pause = CHECK_INTERVAL
            except StorageError as error:
                self._fails(error)
                pause = min(MAX_PAUSE, pause * 2)
            except Exception:
                # A bug of ours or of a plugin: the files continue without the database.
                log.exception("database.failed")
                self._fails(StorageUnavailableError("The database failed; see the log."))
                pause = MAX_PAUSE
            self._followed.set()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._woken.wait(), pause)
            self._woken.clear()

    def _works(self) -> None:
        if self.trouble is not None:
            log.info("database.recovered", after=self.trouble)
        self.trouble = None

    def _fails(self, error: StorageError) -> None:
        self._level.clear()
        self._queued.clear()
        if self.trouble != error.message:
            log.warning("database.unavailable", message=error.message, effect="reports are read from the files")
        self.trouble = error.message

    @property
    def is_level(self) -> bool:
        """Whether the database has every record of the files, except the queued batches."""
        return self._level.is_set()

    async def level(self, seconds: float) -> None:
        """Wait until the database is up to date, for a limited time."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._level.wait(), seconds)

    def give(self, batch: Batch) -> None:
        """Queue a batch that was appended to the files."""
        if not self.is_level:
            return
        self._queued.append(batch)
        self._followed.clear()
        self._woken.set()
        if len(self._queued) > MAX_QUEUED_BATCHES:
            self._level.clear()
            self._queued.clear()

    async def followed(self, seconds: float) -> None:
        """Wait until the database has the queued batches, for a limited time."""
        if self.is_level:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._followed.wait(), seconds)

    async def _follow(self) -> None:
        try:
            if self.is_level:
                await self.store_queued()
            if not self.is_level or not await self._look():
                self._level.clear()
                self._queued.clear()
                await self._catch_up()
        except StorageDamagedError as error:
            marks = await self._files.watermarks()
            if not marks:
                # There are no files to rebuild it from.
                raise
            log.warning("database.damaged", message=error.message, action="rebuilding it from the files")
            at = to_datetime(SystemClock().now())
            await self._renew(f"damaged-{at:%Y%m%dT%H%M%S}")
            await self._catch_up()
        except StoragePrunedError:
            log.warning("database.too_old", action="rebuilding it from the files")
            await self._renew(None)
            await self._catch_up()

    async def store_queued(self) -> None:
        """Store the queued batches; a caller that blocks appends then has an up-to-date database."""
        async with self._taking:
            while self._queued and self.is_level:
                batch = self._queued[0]
                async with self._database.used(patiently=True) as store:
                    if await store.watermark(batch.writer) < batch.before:
                        self._level.clear()
                        return
                    append = store.append if batch.kind == "events" else store.append_sums
                    numbered: Any = batch.numbered
                    await append(batch.writer, numbered)
                if self._queued:
                    self._queued.popleft()

    async def _look(self) -> bool:
        """Whether the database is available and complete."""
        async with self.appending:
            # A queued batch must not count as missing.
            if self._queued:
                return True
            marks = await self._files.watermarks()
        async with self._database.used(patiently=True) as store:
            await store.health()
            return has_all(await watermarks_of(store), marks)

    async def _catch_up(self) -> None:
        """Bring the database up to date; the last records are stored while appends wait."""
        while True:
            marks = await self._files.watermarks()
            await self._database.reopen()
            async with self._database.used(patiently=True) as store:
                await store.health()
                have = await watermarks_of(store)
            if not have and marks:
                await self._renew(None)
                continue
            if sum(max(0, seq - have.get(writer, 0)) for writer, seq in marks.items()) <= MAX_BLOCKING_RECORDS:
                break
            await self._bring(have, marks)
        async with self.appending:
            marks = await self._files.watermarks()
            await self._bring(have, marks)
            self._level.set()

    async def _bring(self, have: Mapping[str, int], marks: Mapping[str, int]) -> None:
        if has_all(have, marks):
            return
        after = {writer: have.get(writer, 0) for writer in marks}
        async with self._database.used(patiently=True) as store:
            async for _ in fill(store, self._files.sent(after, marks), marks):
                pass
