"""Measure for how long callbacks stop an event loop, also on a machine that is busy with other processes."""

from __future__ import annotations

import asyncio
import resource
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_THREAD = getattr(resource, "RUSAGE_THREAD", None)
"""Linux alone tells how often a thread lost its processor to another one."""


@contextmanager
def measured_stalls() -> Iterator[Callable[[], float]]:
    """Measure the longest time, in seconds, between two waits of the running loop for its next event.

    If the system took the processor away in between, only the processor time counts: a thread that waits in a blocking
    call gives it away by itself.
    """
    selector: Any = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    select = selector.select
    longest, began = 0.0, _now()

    def measured(timeout: float | None = None) -> Any:
        nonlocal longest, began
        wall, processor, switches = (now - before for now, before in zip(_now(), began, strict=True))
        longest = max(longest, processor if switches else wall)
        events = select(timeout)
        began = _now()
        return events

    selector.select = measured
    try:
        yield lambda: longest
    finally:
        selector.select = select


def _now() -> tuple[float, float, int]:
    switches = 0 if _THREAD is None else resource.getrusage(_THREAD).ru_nivcsw
    return time.monotonic(), time.thread_time(), switches
