"""Keep a ledger to one command: no worker lives, and none becomes the keeper."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from usage_plugin.errors import MoveError
from usage_plugin.ledgers.workers.fleet_workers import FleetWorkers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from usage_plugin.domain.liveness import Workers
    from usage_plugin.runtime.composition import Parts

_LOOK_EVERY = 0.1


@contextmanager
def keep_idle(places: Sequence[Parts]) -> Iterator[Callable[[], None]]:
    """Be the keeper of each place while no worker lives there, and yield a function that checks that once more.

    A worker of another host whose counter does not move is waited for, until it is declared dead.

    Raises:
        MoveError: Workers live, or another command is the keeper.
    """
    with ExitStack() as stack:
        kept: list[tuple[Parts, Workers]] = []
        folders = set()
        for parts in places:
            workers = parts.workers()
            if isinstance(workers, FleetWorkers):
                workers.join()
                stack.callback(workers.leave)
                # Before its thread runs, which would try only with its first beat.
                workers.try_to_keep()
                workers.watch(lambda: "{}", lambda: None)
            elif (folder := parts.config.data_dir.resolve()) in folders:
                continue
            else:
                folders.add(folder)
                stack.callback(workers.stop_keeping)
            kept.append((parts, workers))

        def check() -> None:
            mine = {workers.name for _, workers in kept}
            for parts, workers in kept:
                _wait_until_alone(parts, workers, mine)

        check()
        yield check


def _wait_until_alone(parts: Parts, workers: Workers, mine: set[str]) -> None:
    if isinstance(workers, FleetWorkers):
        _wait_until_alone_in_fleet(parts, workers, mine)
        return
    others = [name for name in workers.living() if name not in mine]
    if others or not workers.try_to_keep():
        raise _in_use(parts, others)


def _wait_until_alone_in_fleet(parts: Parts, workers: FleetWorkers, mine: set[str]) -> None:
    deadline = time.monotonic() + 2 * parts.config.admission.worker_lost_after.total_seconds() + 5
    first = {member.name: member.beats for member in workers.view().members}
    while True:
        # The answers to this worker's own beats: further questions would disturb its measurement of silence.
        others = {member.name: member.beats for member in workers.members if member.name not in mine}
        if not others and workers.keeps:
            return
        if any(first.get(name) != beats for name, beats in others.items()) or time.monotonic() > deadline:
            raise _in_use(parts, sorted(others))
        time.sleep(_LOOK_EVERY)


def _in_use(parts: Parts, others: Sequence[str]) -> MoveError:
    if not others:
        return MoveError(
            f"Another command works on the ledger of {parts.config.path}, or a proxy that is just ending.",
            hint="Run the command again when it is done.",
        )
    return MoveError(
        f"Workers use the ledger of {parts.config.path}: {', '.join(others)}.",
        hint="Stop the proxy, on every host, and run the command again.",
    )
