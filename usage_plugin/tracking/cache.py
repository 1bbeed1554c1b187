"""The cache: recent sums by user and day or month, bounded, and coherent over all workers by the outbox's numbers.

An entry is the store's sum plus every event up to number `seq`, the same for all entries. Events of this worker
are added as they are recorded; those of others, when the cache catches up from the outbox. Limits never read it.
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
"""Short, since with each entry that is read another thread may take the interpreter."""


class UserSpan(NamedTuple):
    """What sums are cached by: a user, and days of the configured zone, both included."""

    user: str
    first: date
    last: date


def user_day(user: str, day: date) -> UserSpan:
    """Name a user's day."""
    return UserSpan(user, day, day)


def user_month(user: str, day: date) -> UserSpan:
    """Name a user's month, by any of its days."""
    return UserSpan(user, *month_of(day))


class UsageCache:
    """At most `size` sums; the least recently used goes first."""

    def __init__(self, *, size: int, retention_days: int, zone: ZoneInfo) -> None:
        """Start empty; entries older than `retention_days` go at each clean-up."""
        self._size = size
        self._retention_days = retention_days
        self._zone = zone
        self._entries: OrderedDict[UserSpan, UsageTotals] = OrderedDict()
        self.seq = 0

    def __len__(self) -> int:
        """Count the entries."""
        return len(self._entries)

    def get(self, key: UserSpan) -> UsageTotals | None:
        """Read an entry, correct up to `seq`."""
        totals = self._entries.get(key)
        if totals is not None:
            self._entries.move_to_end(key)
        return totals

    def put(self, key: UserSpan, totals: UsageTotals) -> None:
        """Keep a sum that is correct up to `seq`."""
        self._entries[key] = totals
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)

    def add(self, seq: int, event: UsageEvent) -> None:
        """Add an event if it is the next one; with a gap the cache lags until it catches up."""
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
        """Add some of what other workers recorded; forget everything if some of that is no longer in the outbox.

        Returns:
            Whether there may be more: the caller lets others have the loop in between.
        """
        if not self._entries:
            # Nothing to keep right: begin where the store is, so that the next entry can be loaded.
            self.seq = max(self.seq, ledger.acknowledged())
        page = ledger.outbox(self.seq, OUTBOX_PAGE)
        for seq, encoded in page:
            if seq != self.seq + 1:
                self._entries.clear()
                self.seq = seq - 1
            self.add(seq, decode_event(encoded))
        return len(page) == OUTBOX_PAGE

    def clean_up(self, today: date) -> None:
        """Drop the days and months that are past their retention."""
        oldest = today - timedelta(days=self._retention_days)
        for key in [key for key in self._entries if key.last <= oldest]:
            del self._entries[key]
