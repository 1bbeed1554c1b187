"""The flusher: moves settled events from the ledger's outbox into the store, in order, and acknowledges them.

Redelivery is always safe, because the store keeps the outbox's watermark in the transaction that adds the events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from usage_plugin.domain.usage import decode_event
from usage_plugin.log import get_logger

if TYPE_CHECKING:
    from usage_plugin.domain.ledger import Ledger
    from usage_plugin.domain.store import UsageStore

BATCH = 500

log = get_logger()


class Flusher:
    """One for each ledger: only the keeper runs it."""

    def __init__(self, ledger: Ledger, store: UsageStore) -> None:
        """Take the two ends."""
        self._ledger = ledger
        self._store = store

    async def begin(self) -> None:
        """Agree with the store on what it has: either file may have been restored from a backup."""
        stored = await self._store.watermark(self._ledger.writer)
        acknowledged = self._ledger.acknowledged()
        if stored != acknowledged:
            log.warning("store.disagreed", stored=stored, acknowledged=acknowledged)
            self._ledger.agree(stored)

    async def flush(self) -> int:
        """Move one batch; give the number of events moved.

        Raises:
            StorageError: the store did not take it; the events stay in the outbox.
            LedgerError: the ledger could not be read or told; the batch will come again.
        """
        entries = self._ledger.outbox(self._ledger.acknowledged(), BATCH)
        if entries:
            await self._store.append(self._ledger.writer, [(entry.seq, decode_event(entry.event)) for entry in entries])
            self._ledger.acknowledge(entries[-1].seq)
        return len(entries)
