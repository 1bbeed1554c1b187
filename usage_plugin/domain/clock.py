"""The one source of time. Everything that needs to know what time it is is handed a Clock."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod


class Clock(ABC):
    """Tells the time, twice: for people and windows, and for durations."""

    @abstractmethod
    def now(self) -> int:
        """Microseconds since 1970 UTC; can jump when the machine's clock is set."""

    @abstractmethod
    def monotonic(self) -> int:
        """Microseconds that never go back; only differences mean anything."""


class SystemClock(Clock):
    """The machine's clock."""

    def now(self) -> int:
        """Microseconds since 1970 UTC."""
        return time.time_ns() // 1000

    def monotonic(self) -> int:
        """Microseconds since some moment in the past."""
        return time.monotonic_ns() // 1000
