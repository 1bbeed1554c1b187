"""The cache: recent sums by user and day or month, bounded, and consistent across workers by the outbox's numbers.

An entry is the store's sum plus every event up to the number `seq`, which is the same for all entries. Events of this
worker are added as they are recorded. Those of others are added when the cache reads the outbox. Limits never read it.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import date, timedelta
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.usage import UsageTotals, totals_of
from usage_plugin.domain.windows import local_date, month_of
from usage_plugin.encoding import decode_event

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.ledger import Ledger
    from usage_plugin.domain.usage import UsageEvent

OUTBOX_PAGE = 50
"""The number of outbox entries in a page. Few, since another thread may take the interpreter with each entry read."""


class UserSpan(NamedTuple):
    """The key of a cached sum: a user, and the first and last day in the configured zone, both included."""

    user: str
    first: date
    last: date


def user_day(user: str, day: date) -> UserSpan:
    """Return the key of a user's day."""
    return UserSpan(user, day, day)


def user_month(user: str, day: date) -> UserSpan:
    """Return the key of a user's month, given any of its days."""
    return UserSpan(user, *month_of(day))


class UsageCache:
    """At most `size` sums; the least recently used one is evicted first."""

    def __init__(self, *, size: int, retention_days: int, zone: ZoneInfo) -> None:
        """Start empty. Each clean-up removes entries older than `retention_days`."""
        self._size = size
        self._retention_days = retention_days
        self._zone = zone
        self._entries: OrderedDict[UserSpan, UsageTotals] = OrderedDict()
        self.seq = 0

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._entries)

    def get(self, key: UserSpan) -> UsageTotals | None:
        """Return an entry, correct up to `seq`; None if it is not cached."""
        totals = self._entries.get(key)
        if totals is not None:
            self._entries.move_to_end(key)
        return totals

    def put(self, key: UserSpan, totals: UsageTotals) -> None:
        """Store a sum that is correct up to `seq`."""
        self._entries[key] = totals
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)

    def add(self, seq: int, event: UsageEvent) -> None:
        """Add an event if its number is the next one. After a gap the cache lags until `catch_up`."""
        if seq != self.seq + 1:
            return
        self.seq = seq
        if self._entries:
            day = local_date(event.started_at, self._zone)
            for key in (user_day(event.user, day), user_month(event.user, day)):
                totals = self._entries.get(key)
                if totals is not None:
                    self._entries[key] = totals.plus(totals_of(event))

    def catch_up(self, ledger: Ledger) -> bool:
        """Add a page of other workers' events. Clear the cache if some are no longer in the outbox.

        Returns:
            Whether there may be more events. The caller yields to the event loop in between.
        """
        if not self._entries:
            # No entries to update: start at the store's watermark, so that the next entry can be loaded.
            self.seq = max(self.seq, ledger.acknowledged())
        page = ledger.outbox(self.seq, OUTBOX_PAGE)
        for seq, encoded in page:
            if seq != self.seq + 1:
                self._entries.clear()
                self.seq = seq - 1
            self.add(seq, decode_event(encoded))
        return len(page) == OUTBOX_PAGE

    def clean_up(self, today: date) -> None:
        """Remove the days and months that are past their retention."""
        oldest = today - timedelta(days=self._retention_days)
        for key in [key for key in self._entries if key.last <= oldest]:
            del self._entries[key]
