"""The outbox's events as readers need them: those that the store may not have yet.

The ledger is always read before the store. So an event that is flushed between the two reads is seen twice, and readers
count it once.
"""

from __future__ import annotations

import asyncio
import marshal
from collections import defaultdict
from typing import TYPE_CHECKING

from usage_plugin.domain.usage import UsageTotals
from usage_plugin.encoding import decode_event
from usage_plugin.tracking.history.cache import OUTBOX_PAGE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence

    from usage_plugin.domain.ledger import Ledger
    from usage_plugin.domain.store import UsageFilter
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.domain.windows import Window
    from usage_plugin.tracking.history.packed_rows import Group


class OutboxReader:
    """Reads events that are in the outbox, in pages, yielding to the event loop in between."""

    def __init__(self, ledger: Ledger) -> None:
        """Read the outbox of a ledger."""
        self._ledger = ledger
        self._frozen: dict[str, list[tuple[int, UsageEvent]]] | None = None

    async def frozen(self) -> OutboxReader:
        """Return a reader whose waiting events are those of now: they are read once for all following queries."""
        by_user: defaultdict[str, list[tuple[int, UsageEvent]]] = defaultdict(list)
        async for page in self.pages(self._ledger.acknowledged()):
            for seq, event in page:
                by_user[event.user].append((seq, event))
        same = OutboxReader(self._ledger)
        same._frozen = by_user  # the same class
        return same

    def page(self, after: int, most: int = OUTBOX_PAGE) -> list[tuple[int, UsageEvent]]:
        """Return a page of the outbox after a number. Acknowledged events that are still there are included."""
        return [(entry.seq, decode_event(entry.event)) for entry in self._ledger.outbox(after, most)]

    async def pages(self, after: int) -> AsyncIterator[list[tuple[int, UsageEvent]]]:
        """Yield all pages of the outbox after a number."""
        while page := self.page(after):
            yield page
            if len(page) < OUTBOX_PAGE:
                return
            after = page[-1][0]
            await asyncio.sleep(0)

    async def waiting(self, window: Window, usage_filter: UsageFilter) -> AsyncIterator[UsageEvent]:
        """Yield the matching events after the acknowledged ones. The store, read afterwards, has the rest."""
        async for page in self._unstored(usage_filter.user):
            for _, event in matching(page, window, usage_filter):
                yield event

    async def sums(
        self,
        window: Window,
        usage_filter: UsageFilter,
        counted: Callable[[UsageEvent], tuple[Group, UsageTotals]],
    ) -> WaitingSums:
        """Return the sums of the matching events after the acknowledged ones.

        Args:
            window: the instants of the events.
            usage_filter: the names of the events.
            counted: returns the group and the amounts of an event.
        """
        waiting = WaitingSums(self._ledger.writer)
        async for page in self._unstored(usage_filter.user):
            waiting.add((seq, counted(event)) for seq, event in matching(page, window, usage_filter))
        return waiting

    async def _unstored(self, user: str | None) -> AsyncIterator[list[tuple[int, UsageEvent]]]:
        """Yield pages of the outbox with at least the events of a user, or with all events."""
        if self._frozen is None:
            async for page in self.pages(self._ledger.acknowledged()):
                yield page
        elif user is not None:
            yield self._frozen.get(user, [])
        else:
            for page in self._frozen.values():
                yield page
                await asyncio.sleep(0)


def matching(
    page: Sequence[tuple[int, UsageEvent]], window: Window, usage_filter: UsageFilter
) -> Iterator[tuple[int, UsageEvent]]:
    """Return the events of a page that are in a window and have the names of a filter."""
    return (
        (seq, event)
        for seq, event in page
        if window.start <= event.started_at < window.end and usage_filter.takes(event)
    )


class WaitingSums:
    """The amounts that outbox events add to a result, by event number, since the store may already include some.

    They are kept as bytes, as in `packed_rows`, until it is known which of the events the store has.

    Attributes:
        groups: the groups with additions.
    """

    __slots__ = ("_parts", "_writer", "groups")

    def __init__(self, writer: str) -> None:
        """Start empty. `writer` is the store's name of the ledger."""
        self._writer = writer
        self.groups: set[Group] = set()
        self._parts: list[bytes] = []

    def add(self, sums: Iterable[tuple[int, tuple[Group, UsageTotals]]]) -> None:
        """Add the sums of a page of numbered events."""
        part = [(seq, group, tuple(totals)) for seq, (group, totals) in sums]
        self.groups.update(group for _, group, _ in part)
        self._parts.append(marshal.dumps(part))

    async def behind(self, watermarks: Mapping[str, int]) -> AsyncIterator[tuple[Group, UsageTotals]]:
        """Yield the sums of events that a store with these watermarks lacks, yielding to the event loop in between."""
        watermark = watermarks.get(self._writer, 0)
        for part in self._parts:
            for seq, group, sums in marshal.loads(part):  # noqa: S302  # our own bytes
                if seq > watermark:
                    yield group, UsageTotals._make(sums)
            await asyncio.sleep(0)
