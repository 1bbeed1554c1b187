"""The flusher: move settled events from the ledger's outbox into the store, in order, and acknowledge them.

Redelivery is always safe, because the store writes the watermark in the same transaction as the events. Events are
synced to the ledger's disk before the store gets them, so a power cut never leaves the store ahead of its ledger.
An event that the store can never take is moved to a file, so that it does not block later events.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.domain.operations import Anomaly
from usage_plugin.domain.windows import to_datetime
from usage_plugin.encoding import decode_event
from usage_plugin.errors import StorageError, StorageUnavailableError, StorageVersionError
from usage_plugin.log import get_logger
from usage_plugin.tracking.history.chunking import unhurried
from usage_plugin.tracking.ledger_retry import wait_while_busy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.ledger import Ledger, OutboxEntry
    from usage_plugin.domain.operations import OperationsLog
    from usage_plugin.domain.store import UsageStore
    from usage_plugin.domain.usage import UsageEvent

BATCH = 2_000
"""The maximum number of events in a batch. Each batch waits for the disk once, and reads each name and sum once."""
MOST_IN_A_ROW = 20
"""The maximum number of events that a store may reject in a row. Beyond it the store itself is considered broken, and
no more events are moved to the file."""

STUMBLES_FOR = 15.0
"""The time, in seconds, for which an event is retried after an unexpected error of the store. The error may be a bug or
temporary, and an event in the file is missing in the history."""

log = get_logger()


class _Item(NamedTuple):
    entry: OutboxEntry
    event: UsageEvent


class Unstorable:
    """The file of events that the store never takes: one line of JSON for each, with the reason.

    A rejected event is on the disk at once. It is confirmed when the store has taken a later event, or the batch is
    complete. If the store turns out not to work at all, the event is removed again, since it will be sent again.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        """Set the file, which is created when it is needed."""
        self._path = path
        self.clock = clock
        self._doubtful: list[_Refused] = []
        self._length_before = 0
        self._stumbled: tuple[int, float] | None = None

    def add(self, entry: OutboxEntry, event: UsageEvent | None, reason: str) -> None:
        """Write an event to the file, synced when this returns. An event that is already in the file is kept.

        Raises:
            StorageUnavailableError: the store has rejected too many events to be trusted, or the file cannot be
                written.
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
        """Whether the store has failed on this event, and on no other since, for at least `STUMBLES_FOR` seconds."""
        now = self.clock.monotonic()
        if self._stumbled is None or self._stumbled[0] != seq:
            self._stumbled = seq, now
        return now - self._stumbled[1] >= STUMBLES_FOR

    def confirm(self, operations: OperationsLog) -> None:
        """Confirm the store's rejections: log and count them. The events will not be sent again."""
        refused = [one for one in self._doubtful if one.is_new]
        self._doubtful.clear()
        now = self.clock.now()
        for one in refused:
            log.error("event.unstorable", seq=one.seq, file=str(self._path), reason=one.reason)
        if refused:
            counted = [Anomaly("unstorable", "", 1, one.cost, now, now) for one in refused]
            wait_while_busy(lambda: operations.count_anomalies(counted))

    def take_back(self) -> None:
        """Remove the unconfirmed events from the file. They are still in the outbox."""
        if self._doubtful:
            self._doubtful.clear()
            with suppress(OSError):
                os.truncate(self._path, self._length_before)

    def kept(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of the file."""
        with suppress(FileNotFoundError), self._path.open(encoding="utf-8") as lines:
            for line in lines:
                found = _parsed(line)
                if isinstance(found, dict) and found:
                    yield found

    def blank(self, wanted: Callable[[dict[str, Any]], bool]) -> int:
        """Blank matching lines in place, so that others can append meanwhile. Return the number of lines."""
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
    """Parse JSON, or one key of it. Return invalid JSON as text."""
    try:
        found = json.loads(text)
        return found if key is None else found.get(key)
    except (ValueError, AttributeError):
        return text


class Flusher:
    """Move events from a ledger's outbox into a store. Only the keeper runs it."""

    def __init__(
        self,
        ledger: Ledger,
        operations: OperationsLog,
        store: UsageStore,
        unstorable: Unstorable,
        *,
        step: Callable[[], None] | None = None,
    ) -> None:
        """Set the ledger and the store. `step` is called before each call of the store."""
        self._ledger = ledger
        self._operations = operations
        self._store = store
        self._unstorable = unstorable
        self._step = step or (lambda: None)
        self._taken = 0

    async def begin(self) -> None:
        """Reconcile outbox numbers with the store's watermark: either file may have been restored from a backup."""
        self._step()
        stored = await self._store.watermark(self._ledger.writer)
        acknowledged = self._ledger.acknowledged()
        if stored != acknowledged:
            log.warning("store.disagreed", stored=stored, acknowledged=acknowledged)
            missing = self._missing(stored, acknowledged)
            wait_while_busy(lambda: self._ledger.agree(stored))
            if missing:
                log.error("store.lacks_events", events=missing)
                now = self._unstorable.clock.now()
                wait_while_busy(lambda: self._operations.count_anomalies([Anomaly("gap", "", missing, 0, now, now)]))

    def _missing(self, stored: int, acknowledged: int) -> int:
        """Return the number of events that an older store lacks and the outbox no longer has."""
        if stored >= acknowledged:
            return 0
        oldest = self._ledger.outbox(stored, 1)
        return min(oldest[0].seq if oldest else acknowledged + 1, acknowledged + 1) - stored - 1

    async def flush(self) -> int:
        """Move one batch. Return the number of events in it.

        Raises:
            StorageError: the store did not take the batch; the events stay in the outbox.
            LedgerError: the ledger could not be read or updated; the batch will be sent again.
        """
        ledger = self._ledger
        entries = ledger.outbox(ledger.acknowledged(), BATCH, durable=True)
        if entries:
            self._taken = 0
            try:
                await self._take(self._readable(entries))
            except BaseException:
                self._unstorable.take_back()
                # Events taken before the failure are not sent again: the next attempt begins with the failed one.
                if self._taken:
                    wait_while_busy(lambda: ledger.acknowledge(self._taken))
                raise
            wait_while_busy(lambda: ledger.acknowledge(entries[-1].seq))
            self._unstorable.confirm(self._operations)
        return len(entries)

    async def flush_all(self) -> None:
        """Move all events that wait now. Later events are left, since a slow store might never catch up with them."""
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
        """Store events. Find permanently rejected ones by bisection, and move them to the file in order."""
        if not items:
            return
        self._step()
        try:
            await self._store.append(self._ledger.writer, [(item.entry.seq, item.event) for item in items])
        except (StorageUnavailableError, StorageVersionError):
            raise
        except Exception as error:
            # Not only a StorageError: no error that one event causes in a store may block the events after it.
            if len(items) > 1:
                await self._take(items[: len(items) // 2])
                await self._take(items[len(items) // 2 :])
                return
            # If the store does not work at all, this raises, and the event is not blamed.
            self._step()
            await self._store.health()
            reason = str(error)
            if not isinstance(error, StorageError):
                reason = f"{type(error).__name__}: {error}"
                if not self._unstorable.is_lasting(items[0].entry.seq):
                    raise StorageUnavailableError(f"The store does not work: {reason}") from error
            # Before any later event is stored: after that, the store ignores this one, since its watermark is higher.
            self._unstorable.add(*items[0], reason)
        else:
            self._unstorable.confirm(self._operations)
            self._taken = items[-1].entry.seq
