"""Processes that work on a store or a ledger concurrently with the test, and can be killed.

They are forked from a server that has imported all modules: about 20 ms each. A backend is sent to them pickled, its
class by reference, so it must be in an importable module.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import resource
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from usage_plugin.domain.ledger import Charge
from usage_plugin.errors import LedgerBusyError, StorageError
from usage_plugin.testing.builders import ANN, END, batch_of, hold, sums_batch
from usage_plugin.testing.faults import Faults, die
from usage_plugin.testing.store_model import Contents, contents_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess
    from pathlib import Path
    from threading import Barrier

    from usage_plugin.domain.liveness import Workers
    from usage_plugin.domain.store import UsageStore
    from usage_plugin.testing.openings import LedgerOpening, StoreOpening

AnswerT = TypeVar("AnswerT")

PATIENCE = 120
"""Seconds after which a child process counts as stuck."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["usage_plugin.testing.child_processes"])


def start(work: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """Start a child with the arguments and, as the last one, the end of a pipe for its reports."""
    receiving, sending = _context.Pipe(duplex=False)
    process = _context.Process(target=work, args=(*arguments, sending), daemon=True)
    process.start()
    sending.close()
    return process, receiving


def reports(process: BaseProcess, receiving: Connection) -> list[Any]:
    """Wait for a child to end, and return its reports."""
    told = []
    try:
        while True:
            assert receiving.poll(PATIENCE), "the child is stuck"
            told.append(receiving.recv())
    except EOFError:
        pass
    finally:
        process.join(PATIENCE)
        receiving.close()
    return told


async def append_some(store: UsageStore, writer: str, batches: int, tell: Callable[[int], None]) -> None:
    """Append batches of one to four events after the watermark, and report each acknowledged number."""
    last = await store.watermark(writer)
    for _ in range(batches):
        batch = batch_of(writer, last + 1, last % 4 + 1)
        await store.append(writer, batch)
        last = batch[-1][0]
        tell(last)


def append_in_a_child(opening: StoreOpening, writer: str, batches: int, report: Connection) -> None:
    """Append the given number of batches, and report each acknowledged number."""

    async def work() -> None:
        async with opening.open() as store:
            await append_some(store, writer, batches, report.send)

    asyncio.run(work())


def die_at_a_call(opening: StoreOpening, points: Sequence[str], number: int, report: Connection) -> None:
    """Open a store, append events and sums, close it; die at the n-th low-level call, or report that there is none."""
    faults = Faults({point: Exception() for point in points})

    async def work() -> None:
        async with opening.open() as store:
            await store.append("w", batch_of("w", 1, 3))
            report.send("events")
            await store.append_sums("old", sums_batch())
            report.send("sums")

    with faults.installed(), faults.at(number, die):
        asyncio.run(work())
    report.send("survived")


class Attempt(NamedTuple):
    """The outcome of an append, and the contents of the store afterwards."""

    error: str | None
    contents: Contents


def append_to_a_full_disk(opening: StoreOpening, report: Connection) -> None:
    """Append a batch under a limit on file size; raise the limit until the batch fits, and report each attempt."""

    async def work() -> None:
        async with opening.open() as store:
            await store.append("w", batch_of("w", 1, 2))
            largest = 256
            attempt: Attempt | None = None
            while attempt is None or attempt.error:
                error = None
                with _files_up_to(largest):
                    try:
                        await store.append("w", batch_of("w", 3, 40))
                    except StorageError as raised:
                        error = str(raised)
                attempt = Attempt(error, await contents_of(store))
                report.send(attempt)
                largest += largest // 2

    asyncio.run(work())


@contextmanager
def _files_up_to(size: int) -> Iterator[None]:
    """Make writes beyond a size fail; Python ignores the accompanying signal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _wait_while_busy(ask: Callable[[], AnswerT]) -> AnswerT:
    """Retry a call of a ledger while other processes write."""
    while True:
        try:
            return ask()
        except LedgerBusyError:
            time.sleep(0.0002)


def meeting(children: int) -> Barrier:
    """Return a barrier at which the given number of children wait for each other."""
    return _context.Barrier(children, timeout=PATIENCE)


def reserve_in_a_child(opening: LedgerOpening, worker: int, count: int, others: Barrier, report: Connection) -> None:
    """Reserve 20 of 100 the given number of times, concurrently with others; report the admitted requests."""
    ledger = opening.open().ledger
    others.wait()
    for number in range(count):
        name = f"{worker}-{number}"
        if _wait_while_busy(partial(ledger.reserve, name, "w", 5, [hold(ANN, 20, 100)], "draft")).admitted:
            report.send(name)
    ledger.close()


def spend_in_a_child(opening: LedgerOpening, worker: int, report: Connection) -> None:
    """Reserve 5 of 500 until rejected; settle each at 2 and report its event."""
    ledger = opening.open().ledger
    for number in itertools.count():
        name = f"{worker}-{number}"
        if not _wait_while_busy(partial(ledger.reserve, name, "w", 5, [hold(ANN, 5, 500)], "draft")).admitted:
            break
        _wait_while_busy(partial(ledger.settle, name, [Charge(ANN, END, 2)], name))
        report.send(name)
    ledger.close()


def serve_until_killed(opening: LedgerOpening, number: int, report: Connection) -> None:
    """Settle one request after another and report each; do the housekeeping in between."""
    opened = opening.open()
    ledger = opened.ledger
    while True:
        number += 1
        ledger.reserve(str(number), "w", 5, [hold(ANN, 5, None)], f"draft-{number}")
        ledger.settle(str(number), [Charge(ANN, END, 2)], f"event-{number}")
        report.send(number)
        if not number % 20:
            if opened.file is not None:
                opened.file.shorten_log()
            ledger.outbox(0, 1, durable=True)


def live_until_killed(see: Callable[[Path], Workers], place: Path, report: Connection) -> None:
    """Join, become the keeper, and report the worker's name."""
    worker = see(place)
    worker.join()
    assert worker.try_to_keep()
    report.send(worker.name)
    time.sleep(PATIENCE)
