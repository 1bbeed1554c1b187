"""The only source of time. All code that needs the time receives a `Clock`."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

_DRIFT_PPM = 500
"""The most by which two clocks are expected to drift apart, in microseconds a second: NTP's own bound."""


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


class ServerClock(Clock):
    """The time of a server, carried on by this machine's monotonic clock.

    So hosts whose own clocks differ, or jump, count in the same windows. Until the first measurement it is the
    machine's time.
    """

    def __init__(self) -> None:
        """Start with the machine's time."""
        self._system = SystemClock()
        self._offset = self._system.now() - self._system.monotonic()
        self._uncertainty: int | None = None
        self._measured_at = 0

    def now(self) -> int:
        """Return the server's time, in microseconds since 1970 UTC."""
        return self._system.monotonic() + self._offset

    def monotonic(self) -> int:
        """Return microseconds since an unspecified moment in the past."""
        return self._system.monotonic()

    def synchronise(self, now: int, sent: int, received: int) -> None:
        """Follow the server's time if this measurement is more certain than the last one is by now, or contradicts it.

        It contradicts it after the server's clock was set, or this machine was suspended.

        Args:
            now: the server's time, in microseconds since 1970 UTC, taken between `sent` and `received`.
            sent: the monotonic time of the question.
            received: the monotonic time of the answer.
        """
        uncertainty = (received - sent) // 2
        offset = now - (sent + received) // 2
        if self._uncertainty is not None:
            known = self._uncertainty + (received - self._measured_at) * _DRIFT_PPM // 1_000_000
            if uncertainty > known and abs(offset - self._offset) <= uncertainty + known:
                return
        self._offset, self._uncertainty, self._measured_at = offset, uncertainty, received
