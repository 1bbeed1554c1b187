"""The flusher: moves settled events from the ledger's outbox into the store, in order, and acknowledges them.

Redelivery is always safe, because the store keeps the outbox's watermark in the transaction that adds the events. What
the store sees has reached the ledger's disk before, so that no power cut leaves the store ahead of its ledger.
An event that the store can never take is set aside in a file, so that it does not hold up those behind it.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from usage_plugin.domain.operations import Anomaly
from usage_plugin.domain.windows import to_datetime
from usage_plugin.encoding import decode_event
from usage_plugin.errors import LedgerBusyError, StorageError, StorageUnavailableError, StorageVersionError
from usage_plugin.log import get_logger
from usage_plugin.tracking.steps import unhurried

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.ledger import Ledger, OutboxEntry
    from usage_plugin.domain.operations import OperationsLog
    from usage_plugin.domain.store import UsageStore
    from usage_plugin.domain.usage import UsageEvent

BATCH = 2_000
"""Each batch waits for the disk once, and asks for each name and each sum once."""
MOST_IN_A_ROW = 20
"""A store that refuses so many events, one after the other, is broken itself: no more are set aside."""

STUMBLES_FOR = 15.0
"""For so many seconds a store that fails over an event with an error of its own making is asked again: what is a bug
may also be a moment, and an event that is set aside is missing in the history."""

LAST_PATIENCE = 1.0
"""Seconds that an orderly end waits for the ledger's lock, with each thing that is in memory only."""

_LONGEST_WAIT = 5.0

ResultT = TypeVar("ResultT")

log = get_logger()


class _Item(NamedTuple):
    entry: OutboxEntry
    event: UsageEvent


class Unstorable:
    """The file of events that the store never takes: a line of JSON each, with the reason.

    What is set aside stands on the disk at once, but counts only when the store has taken something behind it, or
    the batch is over: if the store turns out not to work at all, it is taken back, since it will be sent again.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        """Use a file, which is made when it is needed."""
        self._path = path
        self.clock = clock
        self._doubtful: list[_Refused] = []
        self._length_before = 0
        self._stumbled: tuple[int, float] | None = None

    def add(self, entry: OutboxEntry, event: UsageEvent | None, reason: str) -> None:
        """Set an event aside, on the disk when this returns; one that is there already is left.

        Raises:
            StorageUnavailableError: the store has refused too many to be believed, or the file cannot be written.
        """
        if len(self._doubtful) >= MOST_IN_A_ROW:
            raise StorageUnavailableError(f"The store refuses one event after the other: {reason}")
        kept = _parsed(entry.event)
        at = to_datetime(self.clock.now()).isoformat()
        try:
            if not self._doubtful:
                self._length_before = self._path.stat().st_size if self._path.exists() else 0
            is_new = not self._has(kept)
            if is_new:
                self._append(json.dumps({"seq": entry.seq, "at": at, "reason": reason, "event": kept}) + "\n")
        except OSError as error:
            raise StorageUnavailableError(f"{self._path} cannot be written: {error}.") from error
        self._doubtful.append(_Refused(entry.seq, (event.cost or 0) if event else 0, reason, is_new))

    def is_lasting(self, seq: int) -> bool:
        """Say whether the store has failed over this event, and no other one since, for long enough."""
        now = self.clock.monotonic()
        if self._stumbled is None or self._stumbled[0] != seq:
            self._stumbled = seq, now
        return now - self._stumbled[1] >= STUMBLES_FOR

    def confirm(self, operations: OperationsLog) -> None:
        """Believe the store: what it refused will not be sent again."""
        refused = [one for one in self._doubtful if one.is_new]
        self._doubtful.clear()
        now = self.clock.now()
        for one in refused:
            log.error("event.unstorable", seq=one.seq, file=str(self._path), reason=one.reason)
        if refused:
            counted = [Anomaly("unstorable", "", 1, one.cost, now, now) for one in refused]
            until_free(lambda: operations.count_anomalies(counted))

    def take_back(self) -> None:
        """Do not believe the store: what it refused last is still in the outbox."""
        if self._doubtful:
            self._doubtful.clear()
            with suppress(OSError):
                os.truncate(self._path, self._length_before)

    def kept(self) -> Iterator[dict[str, Any]]:
        """List what was set aside."""
        with suppress(FileNotFoundError), self._path.open(encoding="utf-8") as lines:
            for line in lines:
                found = _parsed(line)
                if isinstance(found, dict) and found:
                    yield found

    def blank(self, wanted: Callable[[dict[str, Any]], bool]) -> int:
        """Overwrite lines in their place, so that others can append meanwhile; give how many there were."""
        blanked = 0
        with suppress(FileNotFoundError), self._path.open("r+b") as file:
            while line := file.readline():
                found = _parsed(line.decode(errors="replace"))
                if isinstance(found, dict) and found and wanted(found):
                    file.seek(-len(line), os.SEEK_CUR)
                    file.write(b"{}".ljust(len(line) - 1) + b"\n")
                    blanked += 1
            file.flush()
            os.fsync(file.fileno())
        return blanked

    def _append(self, line: str) -> None:
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, line.encode())
            os.fsync(handle)
        finally:
            os.close(handle)

    def _has(self, kept: object) -> bool:
        with suppress(FileNotFoundError), self._path.open(encoding="utf-8") as lines:
            return any(_parsed(line.rstrip("\n"), "event") == kept for line in lines)
        return False


class _Refused(NamedTuple):
    seq: int
    cost: int
    reason: str
    is_new: bool


def _parsed(text: str, key: str | None = None) -> object:
    """Read JSON; what is none stays text."""
    try:
        found = json.loads(text)
        return found if key is None else found.get(key)
    except (ValueError, AttributeError):
        return text


class Flusher:
    """One for each ledger: only the keeper runs it."""

    def __init__(
        self,
        ledger: Ledger,
        operations: OperationsLog,
        store: UsageStore,
        unstorable: Unstorable,
        *,
        step: Callable[[], None] | None = None,
    ) -> None:
        """Take the two ends; `step` is called before each call of the store."""
        self._ledger = ledger
        self._operations = operations
        self._store = store
        self._unstorable = unstorable
        self._step = step or (lambda: None)
        self._taken = 0

    async def begin(self) -> None:
        """Agree with the store on what it has: either file may have been restored from a backup."""
        self._step()
        stored = await self._store.watermark(self._ledger.writer)
        acknowledged = self._ledger.acknowledged()
        if stored != acknowledged:
            log.warning("store.disagreed", stored=stored, acknowledged=acknowledged)
            missing = self._missing(stored, acknowledged)
            until_free(lambda: self._ledger.agree(stored))
            if missing:
                log.error("store.lacks_events", events=missing)
                now = self._unstorable.clock.now()
                until_free(lambda: self._operations.count_anomalies([Anomaly("gap", "", missing, 0, now, now)]))

    def _missing(self, stored: int, acknowledged: int) -> int:
        """Count what an older store lacks and the outbox no longer has."""
        if stored >= acknowledged:
            return 0
        oldest = self._ledger.outbox(stored, 1)
        return min(oldest[0].seq if oldest else acknowledged + 1, acknowledged + 1) - stored - 1

    async def flush(self) -> int:
        """Move one batch; give the number of events moved.

        Raises:
            StorageError: the store did not take it; the events stay in the outbox.
            LedgerError: the ledger could not be read or told; the batch will come again.
        """
        ledger = self._ledger
        entries = ledger.outbox(ledger.acknowledged(), BATCH, durable=True)
        if entries:
            self._taken = 0
            try:
                await self._take(self._readable(entries))
            except BaseException:
                self._unstorable.take_back()
                # What was taken before is not sent again: the next try begins with what went wrong.
                if self._taken:
                    until_free(lambda: ledger.acknowledge(self._taken))
                raise
            until_free(lambda: ledger.acknowledge(entries[-1].seq))
            self._unstorable.confirm(self._operations)
        return len(entries)

    async def flush_all(self) -> None:
        """Move everything that waits now; not what comes meanwhile, which may be more than a slow store can take."""
        left = self._ledger.waiting().events
        while left > 0 and await self.flush() == BATCH:
            left -= BATCH

    def _readable(self, entries: Sequence[OutboxEntry]) -> list[_Item]:
        items = []
        for entry in unhurried(entries):
            try:
                items.append(_Item(entry, decode_event(entry.event)))
            except (ValueError, TypeError) as error:
                self._unstorable.add(entry, None, f"It cannot be read: {error}.")
        return items

    async def _take(self, items: Sequence[_Item]) -> None:
        """Store events; if the store refuses some for good, find out which, and set them aside in their turn."""
        if not items:
            return
        self._step()
        try:
            await self._store.append(self._ledger.writer, [(item.entry.seq, item.event) for item in items])
        except (StorageUnavailableError, StorageVersionError):
            raise
        except Exception as error:
            # Not only a StorageError: whatever a store stumbles over in one event must not hold up those behind it.
            if len(items) > 1:
                await self._take(items[: len(items) // 2])
                await self._take(items[len(items) // 2 :])
                return
            # If the store does not work at all, that is no event's fault.
            self._step()
            await self._store.health()
            reason = str(error)
            if not isinstance(error, StorageError):
                reason = f"{type(error).__name__}: {error}"
                if not self._unstorable.is_lasting(items[0].entry.seq):
                    raise StorageUnavailableError(f"The store does not work: {reason}") from error
            # Before anything behind it is stored: from then on the store passes it over.
            self._unstorable.add(*items[0], reason)
        else:
            self._unstorable.confirm(self._operations)
            self._taken = items[-1].entry.seq


def until_free(step: Callable[[], ResultT], seconds: float = _LONGEST_WAIT) -> ResultT:
    """Do a step on the ledger, again while workers are writing just then; not on an event loop that others need.

    Raises:
        LedgerBusyError: somebody has held the lock for so many seconds.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return step()
        except LedgerBusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)
