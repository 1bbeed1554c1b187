"""A user's sums of a day or a month, from the cache; correct up to the last settled request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.usage import UsageTotals, totals_of
from usage_plugin.domain.windows import days_window
from usage_plugin.tracking.history.cache import OUTBOX_PAGE
from usage_plugin.tracking.history.outbox_reader import OutboxReader, matching

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.ledger import Ledger
    from usage_plugin.domain.store import UsageStore
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.tracking.history.cache import UsageCache, UserSpan


class UserSums:
    """Reads sums of one user, and caches them."""

    def __init__(self, ledger: Ledger, store: UsageStore, cache: UsageCache, zone: ZoneInfo) -> None:
        """Set the parts. `zone` is the time zone of days."""
        self._ledger = ledger
        self._outbox = OutboxReader(ledger)
        self._store = store
        self._cache = cache
        self._zone = zone

    async def of(self, key: UserSpan) -> UsageTotals:
        """Return the sums of a user's days, from the cache if it has them."""
        await self._catch_up()
        cached = self._cache.get(key)
        if cached is not None:
            return cached
        usage_filter = UsageFilter(user=key.user)
        span = days_window(key.first, key.last, self._zone)
        while True:
            stored = await self._store.aggregate((), key.first, key.last, usage_filter)
            watermark = seen = stored.watermarks.get(self._ledger.writer, 0)
            later: list[tuple[int, UsageEvent]] = []
            has_gap = False
            async for page in self._outbox.pages(watermark):
                has_gap |= page[0][0] != seen + 1
                seen = page[-1][0]
                later += matching(page, span, usage_filter)
            # No `await` in between: the cache must not be ahead of the events counted here.
            is_behind = self._cache.catch_up(self._ledger)
            page = self._outbox.page(seen)
            later += matching(page, span, usage_filter)
            has_gap |= bool(page) and page[0][0] != seen + 1
            if is_behind or len(page) == OUTBOX_PAGE:
                continue
            # With a gap, the flusher has moved many events meanwhile, and the outbox has dropped some of them.
            if not has_gap or self._ledger.acknowledged() <= watermark:
                break
        totals = stored.groups.get((), UsageTotals())
        for seq, event in later:
            if seq <= self._cache.seq:
                totals = totals.plus(totals_of(event))
        if watermark <= self._cache.seq:
            self._cache.put(key, totals)
        return totals

    async def _catch_up(self) -> None:
        lags = True
        while lags:
            lags = self._cache.catch_up(self._ledger)
            await asyncio.sleep(0)
