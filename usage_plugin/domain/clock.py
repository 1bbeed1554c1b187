"""The only source of time. All code that needs the time receives a `Clock`."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod


class Clock(ABC):
    """Two times: wall-clock time for people and windows, monotonic time for durations."""

    @abstractmethod
    def now(self) -> int:
        """Return microseconds since 1970 UTC; can jump when the machine's clock is set."""

    @abstractmethod
    def monotonic(self) -> int:
        """Return microseconds that never go back; only differences are meaningful."""


class SystemClock(Clock):
    """The machine's clock."""

    def now(self) -> int:
        """Return microseconds since 1970 UTC."""
        return time.time_ns() // 1000

    def monotonic(self) -> int:
        """Return microseconds since an unspecified moment in the past."""
        return time.monotonic_ns() // 1000
