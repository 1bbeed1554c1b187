"""Growth: the memory of a process now, and its maximum since a moment, as Linux reports it."""

from __future__ import annotations

from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

GivenT = TypeVar("GivenT")
ResultT = TypeVar("ResultT")

MIB = 2**20
STATUS = Path("/proc/self/status")


def resident() -> int:
    """Return the current memory of the process in bytes."""
    return _memory("VmRSS")


def highest() -> int:
    """Return the maximum memory in bytes since `forget_highest`."""
    return _memory("VmHWM")


def forget_highest() -> None:
    """Reset the maximum."""
    Path("/proc/self/clear_refs").write_text("5")


def _memory(field: str) -> int:
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"The system does not tell {field}.")


def in_a_process(work: Callable[[GivenT], ResultT], given: GivenT) -> ResultT:
    """Run it in a fresh process, which no other code has made large."""
    context = get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sending, work, given))
    process.start()
    sending.close()
    result: ResultT = receiving.recv()
    process.join()
    return result


def _send(sending: Connection, work: Callable[[GivenT], ResultT], given: GivenT) -> None:
    sending.send(work(given))
