"""Waiting for an event that another thread or process brings about, for as long as a busy machine may take."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

Found = TypeVar("Found")

SECONDS = 120.0
"""A deadline and not a duration: it is reached only when the test fails."""
FIRST_PAUSE, LONGEST_PAUSE = 0.005, 0.1
NOT_YET = (AssertionError, sqlite3.Error)
"""Errors of a look that mean the same as a false result, until the deadline."""


async def eventually(look: Callable[[], Found], seconds: float = SECONDS) -> Found:
    """Return the first true result of `look`, while the event loop runs. A look that blocks belongs in `wait_until`."""
    for found, pause in _looks(look, seconds):
        if pause is None:
            return found
        await asyncio.sleep(pause)
    raise AssertionError("unreachable")


def wait_until(look: Callable[[], Found], seconds: float = SECONDS) -> Found:
    """Return the first true result of `look`, blocking this thread."""
    for found, pause in _looks(look, seconds):
        if pause is None:
            return found
        time.sleep(pause)
    raise AssertionError("unreachable")


def calls_of(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[float]:
    """Record when a method is called from now on: the event to wait for before a test says that nothing happened."""
    original, calls = getattr(owner, name), []

    @functools.wraps(original)
    def recorded(*arguments: Any, **options: Any) -> Any:
        calls.append(time.monotonic())
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, recorded)
    return calls


def _looks(look: Callable[[], Found], seconds: float) -> Iterator[tuple[Found, float | None]]:
    """Yield each result with the pause that must follow it; None once the result is true."""
    deadline, pause = time.monotonic() + seconds, FIRST_PAUSE
    while True:
        late = time.monotonic() > deadline
        try:
            found = look()
        except NOT_YET:
            if late:
                raise
            found = None
        if found:
            yield found, None
            return
        assert not late, f"it did not happen within {seconds:g} s: {found!r}"
        yield found, pause
        pause = min(2 * pause, LONGEST_PAUSE)
