"""Following: the database is brought to where the files are, and kept there, by one process at a time.

While it is level, it is given each batch as it comes. When it is not (it was away, or it is new), what it lacks is read
from the files, in order and in slices, while the files go on taking events. If it is damaged or empty it is built
anew beside, and takes the old one's place when it is whole. Nothing here can fail a request or hold up the outbox.
"""

from __future__ import annotations

import asyncio
from abc import ABC
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from usage_plugin.backends.hybrid.database import has_all, watermarks_of
from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.store import ROLLUP_DIMENSIONS, DailySum, HandsOut, KeepsCopies, UsageStore
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.domain.windows import to_datetime
from usage_plugin.errors import StorageDamagedError, StorageError, StoragePrunedError, StorageUnavailableError
from usage_plugin.log import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from usage_plugin.backends.hybrid.database import Database
    from usage_plugin.domain.store import Sent

BATCH = 500
MOST_AT_HAND = 20
LOOK_EVERY = 1.0
LONGEST_PAUSE = 30.0
FEW = 2_000
"""So few records are caught up with while the files wait."""

log = get_logger()

Kind = Literal["events", "sums"]


class Files(HandsOut, KeepsCopies, UsageStore, ABC):
    """What files must be able to do, to be the truth of a hybrid store."""


class Batch(NamedTuple):
    """What was appended to the files: by whom, from which number on, and what."""

    writer: str
    before: int
    kind: Kind
    numbered: Sequence[tuple[int, Any]]


async def fill(store: UsageStore, sent: AsyncIterator[Sent], marks: Mapping[str, int]) -> AsyncIterator[int]:
    """Give a store what others were sent, and all that is needed to make it level with them.

    Yields:
        How many records each step has stored.
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
    # Some have no record any more: it was deleted, or came twice.
    have = await watermarks_of(store)
    for writer, seq in marks.items():
        if have.get(writer, 0) < seq:
            await store.append_sums(writer, [(seq, NOTHING)])


NOTHING = DailySum._make((to_datetime(0).date(), *[None] * len(ROLLUP_DIMENSIONS), UsageTotals()))


def _kind(one: Sent) -> tuple[str, bool]:
    return one.writer, isinstance(one.record, DailySum)


async def _append(store: UsageStore, batch: Sequence[Sent]) -> None:
    numbered: list[Any] = [(one.seq, one.record) for one in batch]
    append = store.append_sums if isinstance(batch[0].record, DailySum) else store.append
    await append(batch[0].writer, numbered)


class Replicator:
    """Keeps the database level with the files, in a task of its own."""

    def __init__(self, files: Files, database: Database, renew: Callable[[str | None], Awaitable[None]]) -> None:
        """Take the parts.

        Args:
            files: the truth, which can hand itself out.
            database: what follows.
            renew: builds the database anew; it is told what the old one's name shall end in.
        """
        self._files = files
        self._database = database
        self._renew = renew
        self._at_hand: deque[Batch] = deque()
        self._woken = asyncio.Event()
        self._followed = asyncio.Event()
        self.appending = asyncio.Lock()
        self._taking = asyncio.Lock()
        self._level = asyncio.Event()
        self.trouble: str | None = None

    async def run(self) -> None:
        """Follow until cancelled."""
        pause = LOOK_EVERY
        while True:
            try:
                await self._follow()
                self._works()
                pause = LOOK_EVERY
            except StorageError as error:
                self._fails(error)
                pause = min(LONGEST_PAUSE, pause * 2)
            except Exception:
                # Our own bug, or a plugin's: the files go on without.
                log.exception("database.failed")
                self._fails(StorageUnavailableError("It failed; the log says why."))
                pause = LONGEST_PAUSE
            self._followed.set()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._woken.wait(), pause)
            self._woken.clear()

    def _works(self) -> None:
        if self.trouble is not None:
            log.info("database.works_again", after=self.trouble)
        self.trouble = None

    def _fails(self, error: StorageError) -> None:
        self._level.clear()
        self._at_hand.clear()
        if self.trouble != error.message:
            log.warning("database.away", message=error.message, meanwhile="reports are read from the files")
        self.trouble = error.message

    @property
    def is_level(self) -> bool:
        """Whether it has everything that the files have, but for what is at hand."""
        return self._level.is_set()

    async def level(self, seconds: float) -> None:
        """Wait until it is, but not for long."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._level.wait(), seconds)

    def give(self, batch: Batch) -> None:
        """Hand over what was just appended to the files."""
        if not self.is_level:
            return
        self._at_hand.append(batch)
        self._followed.clear()
        self._woken.set()
        if len(self._at_hand) > MOST_AT_HAND:
            self._level.clear()
            self._at_hand.clear()

    async def followed(self, seconds: float) -> None:
        """Wait until the database has what was given, but not for long."""
        if self.is_level:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._followed.wait(), seconds)

    async def _follow(self) -> None:
        try:
            if self.is_level:
                await self.take_what_is_at_hand()
            if not self.is_level or not await self._look():
                self._level.clear()
                self._at_hand.clear()
                await self._catch_up()
        except StorageDamagedError as error:
            marks = await self._files.watermarks()
            if not marks:
                # There is nothing to build it from.
                raise
            log.warning("database.damaged", message=error.message, now="it is built anew from the files")
            at = to_datetime(SystemClock().now())
            await self._renew(f"damaged-{at:%Y%m%dT%H%M%S}")
            await self._catch_up()
        except StoragePrunedError:
            log.warning("database.too_old", now="it is built anew from the files")
            await self._renew(None)
            await self._catch_up()

    async def take_what_is_at_hand(self) -> None:
        """Give the database what was given to us; whoever holds up appending has it level then."""
        async with self._taking:
            while self._at_hand and self.is_level:
                batch = self._at_hand[0]
                async with self._database.used(patiently=True) as store:
                    if await store.watermark(batch.writer) < batch.before:
                        self._level.clear()
                        return
                    append = store.append if batch.kind == "events" else store.append_sums
                    numbered: Any = batch.numbered
                    await append(batch.writer, numbered)
                if self._at_hand:
                    self._at_hand.popleft()

    async def _look(self) -> bool:
        """See whether it is still there, and has everything."""
        async with self.appending:
            # What is at hand must not look like a lack.
            if self._at_hand:
                return True
            marks = await self._files.watermarks()
        async with self._database.used(patiently=True) as store:
            await store.health()
            return has_all(await watermarks_of(store), marks)

    async def _catch_up(self) -> None:
        """Bring it to where the files are; the last of it while they wait."""
        while True:
            marks = await self._files.watermarks()
            await self._database.reopen()
            async with self._database.used(patiently=True) as store:
                await store.health()
                have = await watermarks_of(store)
            if not have and marks:
                await self._renew(None)
                continue
            if sum(max(0, seq - have.get(writer, 0)) for writer, seq in marks.items()) <= FEW:
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
