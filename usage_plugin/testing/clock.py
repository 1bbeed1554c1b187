"""A clock for tests."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from usage_plugin.domain.clock import Clock
from usage_plugin.domain.windows import to_instant


class FakeClock(Clock):
    """A clock that changes only when a test sets it."""

    def __init__(self, at: datetime = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)) -> None:
        """Start at the given time."""
        self._now = to_instant(at)
        self._monotonic = 0

    def now(self) -> int:
        """Microseconds since 1970 UTC."""
        return self._now

    def monotonic(self) -> int:
        """Microseconds since the clock was created, independent of changes by `set`."""
        return self._monotonic

    def advance(self, span: timedelta) -> None:
        """Advance both clocks by a span."""
        self._now += span // timedelta(microseconds=1)
        self._monotonic += span // timedelta(microseconds=1)

    def set(self, at: datetime) -> None:
        """Set the wall clock forwards or backwards, as an administrator or NTP does."""
        self._now = to_instant(at)
