"""Crashes and a failover of the PostgreSQL server of a fleet, under load: nothing that living workers know is lost."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.postgres import PostgresOpening, PostgresServer, new_schema
from tests.support.waiting import eventually, wait_until
from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.ledger import Balance, Charge, NotSettled, Reserved, Settled
from usage_plugin.domain.ledger_batch import Answer, LedgerTransport, Reassert, Record, Reserve, Settle
from usage_plugin.errors import LedgerBusyError, LedgerError, LedgerReplacedError
from usage_plugin.ledgers.postgres import PostgresLedgerBackend
from usage_plugin.testing.builders import ANN, END, TEAM, hold
from usage_plugin.testing.transport_repetition import OTHER, WORKER

DEADLINE = 1.0
"""Seconds after which a batch is cancelled, as the lane does."""


@dataclass
class Worker:
    """A worker at the level of the port: it repeats what has no answer, and what a replaced server may lack."""

    name: str
    transport: LedgerTransport
    held: dict[str, Reserve] = field(default_factory=dict)
    settling: dict[str, Settle] = field(default_factory=dict)
    settled: dict[str, Settle] = field(default_factory=dict)
    number: int = 0

    async def spend(self, is_over: Callable[[], bool]) -> None:
        """Reserve and settle until the end; then settle all."""
        while not is_over() or self.held or self.settling:
            for event_id in list(self.held)[:4]:
                del self.held[event_id]
                self.settling[event_id] = Settle(event_id, [Charge(ANN, END, 1)], event_id, "key")
            new = [self._reserve() for _ in range(0 if is_over() else 4)]
            while new or self.settling:
                try:
                    answers = await self._answers([*self.settling.values(), *new])
                except LedgerReplacedError:
                    await self._send_again()
                    continue
                new = self._take([*self.settling.values(), *new], answers)

    def _reserve(self) -> Reserve:
        self.number += 1
        return Reserve(f"{self.name} {self.number}", self.name, 5, [hold(ANN, 2, None), hold(TEAM, 1, None)], "draft")

    def _take(self, verbs: list[Any], answers: list[Answer]) -> list[Reserve]:
        """Note the answers; return the reservations that have to be sent again."""
        again = []
        for verb, answer in zip(verbs, answers, strict=True):
            if isinstance(answer, LedgerBusyError):
                again.append(verb)
            elif isinstance(verb, Reserve):
                assert isinstance(answer, Reserved), answer
                assert answer.admitted
                self.held[verb.event_id] = verb
            else:
                assert isinstance(answer, Settled), answer
                self.settled[verb.event_id] = self.settling.pop(verb.event_id)
        return again

    async def _answers(self, verbs: list[Any]) -> list[Answer]:
        while True:
            try:
                return list(await asyncio.wait_for(self.transport.send(verbs), DEADLINE))
            except LedgerReplacedError:
                raise
            except (LedgerError, asyncio.TimeoutError):
                await asyncio.sleep(0.01)

    async def _send_again(self) -> None:
        while True:
            self.transport.accept()
            try:
                holding = [Reassert(*self.held[name]) for name in self.held]
                settles = [*self.settled.values(), *self.settling.values()]
                answers = await self._answers([*holding, *settles])
                unknown = [
                    Record(*settle)
                    for settle, answer in zip(settles, answers[len(holding) :], strict=True)
                    if answer is NotSettled.UNKNOWN
                ]
                answers = await self._answers(unknown)
                assert all(isinstance(answer, Settled) for answer in answers)
                self.settled |= self.settling
                self.settling = {}
                await asyncio.wait_for(self.transport.reasserted(self.name), DEADLINE)
            except (LedgerError, asyncio.TimeoutError):
                await asyncio.sleep(0.01)
            else:
                return


async def spend_while(opening: PostgresOpening, disturb: Callable[[], None]) -> None:
    """Let two workers spend while the server is disturbed; at the end, each settlement is there exactly once."""
    is_over = False
    workers = [Worker(name, opening.transport(SystemClock())) for name in (WORKER, OTHER)]
    tasks = [asyncio.ensure_future(worker.spend(lambda: is_over)) for worker in workers]
    try:
        for _ in range(3):
            seen = [len(worker.settled) for worker in workers]
            await eventually(
                lambda seen=seen: all(  # type: ignore[misc]
                    task.done() or len(worker.settled) > before + 20
                    for task, worker, before in zip(tasks, workers, seen, strict=True)
                )
            )
            assert not any(task.done() for task in tasks), tasks
            await asyncio.to_thread(disturb)
    finally:
        is_over = True
        await asyncio.gather(*tasks)
        for worker in workers:
            await worker.transport.close()
    expected = {event_id for worker in workers for event_id in worker.settled}
    with closing(opening.open()) as opened:
        events = [entry.event for entry in opened.ledger.outbox(0, 1_000_000)]
        assert sorted(events) == sorted(expected)
        assert opened.ledger.balances([ANN, TEAM]) == {ANN: Balance(len(events)), TEAM: Balance()}
        assert opened.ledger.open_reservations() == []
        assert opened.ledger.verify() == []
    with closing(opening.register()) as register:
        assert register.view().is_open


@pytest.mark.parametrize("commit", ["on", "off"])
@pytest.mark.parametrize("kind", ["whole", "process"])
async def test_a_crash_under_load_loses_nothing_that_workers_know(
    kind: str, commit: str, fleet: PostgresOpening, postgres: PostgresServer
) -> None:
    """After `kill -9` of the server, or of one of its processes, the workers send again what it may have lost.

    Without synchronous commits, the server does lose its last moments then.
    """
    opening = fleet.at_url(f"{postgres.url}?options=-csynchronous_commit%3D{commit}")

    def crash() -> None:
        if kind == "whole":
            os.kill(postgres.main_process, signal.SIGKILL)
            postgres.stop()
            postgres.start()
        else:
            postgres.crash_one_process()

    await spend_while(opening, crash)


def test_a_crash_of_one_process_is_another_incarnation(fleet: PostgresOpening, postgres: PostgresServer) -> None:
    """The server's main process goes on then, but without its last unsynchronized transactions."""
    with closing(fleet.register()) as register:
        before = register.view()
        main = postgres.main_process
        postgres.crash_one_process()
        assert postgres.main_process == main
        with pytest.raises(LedgerError):
            register.view()
        after = register.view()
        assert after.incarnation != before.incarnation
        assert not after.is_open


async def test_workers_go_on_with_the_replica_that_takes_over(tmp_path: Path, postgres: PostgresServer) -> None:
    """With both hosts in the URL, workers connect to the promoted replica, and send again what it lacks."""
    with closing(postgres.replica(tmp_path / "replica")) as replica:
        hosts = f"127.0.0.1:{postgres.port},127.0.0.1:{replica.port}"
        url = postgres.url.replace(f"127.0.0.1:{postgres.port}", hosts) + "?target_session_attrs=read-write"
        opening = PostgresOpening(PostgresLedgerBackend(), tmp_path, {"url": url, "schema": new_schema()})
        with closing(opening.register()) as register:
            for name in (WORKER, OTHER):
                joined = register.join(name, "host", "{}")
        left = ["fail over"]

        def fail_over() -> None:
            if not left:
                return
            left.pop()
            # From here on it receives nothing.
            with psycopg.connect(replica.url, autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET primary_conninfo = ''")
                connection.execute("SELECT pg_reload_conf()")
            with psycopg.connect(postgres.url, autocommit=True) as connection:
                wait_until(lambda: not connection.execute("SELECT FROM pg_stat_replication").fetchall())
                newest = f"SELECT last FROM {opening.options['schema']}.outbox_counter"
                (before,) = connection.execute(newest).fetchall()[0]
                wait_until(lambda: connection.execute(newest).fetchall()[0][0] > before + 20)
            os.kill(postgres.main_process, signal.SIGKILL)
            postgres.stop()
            replica.promote()

        try:
            await spend_while(opening, fail_over)
            with closing(opening.register()) as register:
                after = register.view()
            assert after.incarnation != joined.incarnation
            assert [member.name for member in after.members] == sorted([WORKER, OTHER])
        finally:
            postgres.start()
