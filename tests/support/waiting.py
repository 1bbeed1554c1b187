"""Wait for an event that another thread or process causes, with a deadline that allows for a busy machine."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

Found = TypeVar("Found")

SECONDS = 120.0
"""A deadline and not a duration: only a failing test reaches it."""
FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.1
NOT_YET = (AssertionError, sqlite3.Error)
"""Errors of a look that count as a false result until the deadline."""


async def eventually(look: Callable[[], Found], seconds: float = SECONDS, *, blocking: bool = False) -> Found:
    """Return the first true result of `look`; a blocking look runs in a thread and does not block the event loop."""
    patience = _Patience(seconds)
    while not (found := await asyncio.to_thread(patience.look, look) if blocking else patience.look(look)):
        await asyncio.sleep(patience.pause())
    return found


def wait_until(look: Callable[[], Found], seconds: float = SECONDS) -> Found:
    """Return the first true result of `look`, blocking this thread."""
    patience = _Patience(seconds)
    while not (found := patience.look(look)):
        time.sleep(patience.pause())
    return found


def set_forward(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    """Set the clock of an event loop forward: its timers of that time are due, as if the process had stood still."""
    before = loop.time
    loop.time = lambda: before() + seconds  # type: ignore[method-assign]


def calls_of(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[float]:
    """Record the times of all later calls of a method; a test waits for one before it asserts that nothing happened."""
    original, calls = getattr(owner, name), []

    @functools.wraps(original)
    def recorded(*arguments: Any, **options: Any) -> Any:
        calls.append(time.monotonic())
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, recorded)
    return calls


class _Patience:
    """The deadline of one wait, and its increasing pauses."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._pause = FIRST_PAUSE

    def look(self, look: Callable[[], Found]) -> Found | None:
        """Return the result; raise an error if a look that began after the deadline still has none."""
        late = time.monotonic() > self._deadline
        try:
            found = look()
        except NOT_YET:
            if late:
                raise
            return None
        assert found or not late, f"it did not happen in time: {found!r}"
        return found

    def pause(self) -> float:
        """Return the seconds until the next look."""
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        return pause
