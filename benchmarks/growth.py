"""Growth: the memory of a process now, and at most since a moment, as Linux tells it."""

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
    """Say how many bytes of memory the process has now."""
    return _memory("VmRSS")


def highest() -> int:
    """Say how many bytes it has had at most since `forget_highest`."""
    return _memory("VmHWM")


def forget_highest() -> None:
    """Begin to look for the highest anew."""
    Path("/proc/self/clear_refs").write_text("5")


def _memory(field: str) -> int:
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"The system does not tell {field}.")


def in_a_process(work: Callable[[GivenT], ResultT], given: GivenT) -> ResultT:
    """Do it in a fresh process, which nothing else has made large."""
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
