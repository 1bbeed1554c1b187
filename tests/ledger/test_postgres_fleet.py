"""The PostgreSQL ledger of a fleet on a real server that hangs, pools connections, or has dangerous settings."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import string
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.postgres import PostgresOpening, PostgresServer
from tests.support.waiting import eventually, wait_until
from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.ledger import Balance, Charge, Reserved, Settled
from usage_plugin.domain.ledger_batch import Record, Reserve, Settle
from usage_plugin.errors import LedgerBusyError, LedgerError
from usage_plugin.ledgers.postgres import opening as opening_module
from usage_plugin.ledgers.postgres.transport import PostgresTransport
from usage_plugin.testing.builders import ANN, END, TEAM, hold
from usage_plugin.testing.shared_ledger_fixtures import sent
from usage_plugin.testing.transport_repetition import DRAFT, WORKER, connected, stalls


@contextmanager
def stopped(server: PostgresServer) -> Iterator[None]:
    """Stop all processes of a server by SIGSTOP: it accepts connections, and answers nothing."""
    main = server.main_process
    os.kill(main, signal.SIGSTOP)
    processes = [main, *map(int, Path(f"/proc/{main}/task/{main}/children").read_text().split())]
    _signal(processes, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(processes, signal.SIGCONT)


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


# ── a server that hangs ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_hung_server_leaves_the_loop_free(fleet: PostgresOpening, postgres: PostgresServer) -> None:
    """While a server is stopped, batches and connections are given up, and the loop stalls for less than 5 ms.

    On a busy machine it may stall for other reasons, so the shortest of several rounds counts.
    """

    async def give_up_batches() -> float:
        async with connected(fleet) as transport:
            with stopped(postgres):
                async with stalls() as longest:
                    for _ in range(3):
                        with pytest.raises(asyncio.TimeoutError):
                            await asyncio.wait_for(transport.send([DRAFT]), 0.05)
                    return longest()

    shortest = 1.0
    for _ in range(20):
        shortest = min(shortest, await give_up_batches())
        if shortest < 0.005:
            break
    assert shortest < 0.005


async def test_a_batch_that_a_hung_server_does_late_changes_nothing(
    fleet: PostgresOpening, postgres: PostgresServer
) -> None:
    """A batch that was given up is done before the next one of its connection, or not at all."""
    with closing(fleet.open()) as opened:
        async with connected(fleet) as transport:
            with stopped(postgres), pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(transport.send([Record("a", [Charge(ANN, END, 1)], "a", "1")]), 0.1)
            answers = await sent(
                transport, Record("a", [Charge(ANN, END, 1)], "a", "1"), Record("b", [Charge(ANN, END, 1)], "b", "2")
            )
        assert answers == [Settled(1, {ANN: Balance(answers[0].balances[ANN].spent)}), Settled(2, {ANN: Balance(2)})]  # type: ignore[union-attr]
        assert [entry.event for entry in opened.ledger.outbox(0, 10)] == ["a", "b"]


def test_a_register_gives_up_a_hung_server(
    fleet: PostgresOpening, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers within seconds, which is an error, and works again with the server."""
    monkeypatch.setattr(opening_module, "_REGISTER_PATIENCE", 1)
    with closing(fleet.register()) as register:
        with stopped(postgres):
            for _ in range(2):
                began = time.monotonic()
                with pytest.raises(LedgerError):
                    register.view()
                assert time.monotonic() - began < 10
        assert register.view().member(WORKER) is not None


# ── connections ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_name_that_is_not_resolved_blocks_nothing(
    fleet: PostgresOpening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a name server does not answer, the loop is free, and one thread waits, for however many attempts."""
    is_answered = threading.Event()
    resolve = socket.getaddrinfo

    def wait(*arguments: Any, **options: Any) -> Any:
        is_answered.wait(60)
        return resolve(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    named = fleet.at_url(str(fleet.options["url"]).replace("127.0.0.1", "localhost"))
    transport = named.transport(SystemClock())
    before = threading.active_count()
    async with stalls() as longest:
        for _ in range(5):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(transport.send([]), 0.05)
    assert longest() < 1
    assert threading.active_count() - before <= 1
    is_answered.set()
    assert await transport.send([]) == []
    await transport.close()


async def test_a_connection_outlives_the_batch_that_began_it(fleet: PostgresOpening, postgres: PostgresServer) -> None:
    """The first host of a URL takes longer than a batch may: later batches wait for the same attempt."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = f"127.0.0.1:{silent.getsockname()[1]},127.0.0.1:{postgres.port}"
        url = f"{postgres.url.replace(f'127.0.0.1:{postgres.port}', hosts)}?target_session_attrs=read-write"
        opening = PostgresOpening(fleet.backend, fleet.data_dir, {**fleet.options, "url": url, "connect_timeout": 2})
        transport = opening.transport(SystemClock())
        attempts = 0
        while True:
            try:
                assert await asyncio.wait_for(transport.send([DRAFT]), 0.3) == [Reserved(True, (Balance(), Balance()))]
                break
            except asyncio.TimeoutError:
                attempts += 1
        assert 3 < attempts < 100
        await transport.close()


async def test_a_transport_can_be_closed_while_it_connects(fleet: PostgresOpening, postgres: PostgresServer) -> None:
    """The connection that is made afterwards is closed."""
    with stopped(postgres):
        transport = fleet.transport(SystemClock())
        sending = asyncio.ensure_future(transport.send([]))
        await eventually(lambda: any(thread.name == "usage-plugin-connect" for thread in threading.enumerate()))
        sending.cancel()
        await transport.close()
    await eventually(lambda: not any(thread.name == "usage-plugin-connect" for thread in threading.enumerate()))


async def test_each_batch_may_have_a_connection_of_its_own(
    fleet: PostgresOpening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept in the session: a pooler may hand each batch to another connection."""
    connections: list[Any] = []
    original = PostgresTransport._connected

    async def pooled(self: PostgresTransport) -> Any:
        if len(connections) < 3:
            self._connection = None
            connections.append(await original(self))
        connections.append(connections.pop(0))
        await connections[-1].execute("DISCARD ALL")
        return connections[-1]

    monkeypatch.setattr(PostgresTransport, "_connected", pooled)
    transport = fleet.transport(SystemClock())
    for number in range(7):
        name = f"r{number}"
        assert await transport.send([DRAFT._replace(event_id=name)]) == [Reserved(True, (Balance(number), Balance()))]
        assert await transport.send([Settle(name, [Charge(ANN, END, 1)], "event", "1")]) == [
            Settled(number + 1, {ANN: Balance(number + 1), TEAM: Balance()})
        ]
    await transport.reasserted(WORKER)
    for connection in connections:
        await connection.close()


async def test_a_replica_is_not_written_to(fleet: PostgresOpening, postgres: PostgresServer) -> None:
    """An empty batch fails on a server that cannot write, with the remedy; nothing was done."""
    url = f"{postgres.url}?options=-cdefault_transaction_read_only%3Don"
    transport = fleet.at_url(url).transport(SystemClock())
    with pytest.raises(LedgerBusyError, match="target_session_attrs"):
        await transport.send([])
    await transport.close()


async def test_a_subject_that_is_too_long_for_an_index_stops_no_other(fleet: PostgresOpening) -> None:
    """The server can never do such a verb, which only it finds out; the others of the batch are done once."""
    letters = random.Random(1)
    subject = "".join(letters.choice(string.ascii_letters) for _ in range(6_000))
    async with connected(fleet) as transport:
        for _ in range(2):
            answers = await transport.send(
                [
                    DRAFT,
                    Record("first", [Charge(ANN, END, 1)], "first", "1"),
                    Reserve("long", WORKER, 5, [hold(ANN._replace(subject=subject), 1, None)], "draft"),
                    Record("last", [Charge(ANN, END, 1)], "last", "2"),
                ]
            )
            assert [type(answer) for answer in answers] == [Reserved, Settled, LedgerError, Settled]
    with closing(fleet.open()) as opened:
        assert [entry.event for entry in opened.ledger.outbox(0, 10)] == ["first", "last"]
        assert opened.ledger.balances([ANN, TEAM]) == {ANN: Balance(2, 30), TEAM: Balance(0, 1)}
        assert opened.ledger.verify() == []


async def test_a_newer_schema_can_be_used_beside_an_older_one(
    fleet: PostgresOpening, bare: psycopg.Connection[Any]
) -> None:
    """A newer version that adds columns and functions does not disturb a transport of this one."""
    schema = fleet.options["schema"]
    async with connected(fleet) as transport:
        await transport.send([DRAFT])
        bare.execute(f"ALTER TABLE {schema}.requests ADD COLUMN newer text NOT NULL DEFAULT 'x'")
        bare.execute(f"ALTER TABLE {schema}.senders ADD COLUMN newer text")
        bare.execute(f"ALTER TABLE {schema}.members ADD COLUMN newer text NOT NULL DEFAULT 'x'")
        bare.execute(
            f"CREATE FUNCTION {schema}.usage_v2_batch(jsonb) RETURNS jsonb LANGUAGE sql AS"
            f" $$SELECT {schema}.usage_v1_batch($1 -> 0, $1 -> 1, false)$$"
        )
        bare.execute(f"INSERT INTO {schema}.versions (number, oldest) VALUES (997, 6)")
        with closing(fleet.register()) as register:
            register.join("third", "host", "{}")
        assert await transport.send([Settle("a", [Charge(ANN, END, 1)], "event", "1")]) == [
            Settled(1, {ANN: Balance(1), TEAM: Balance()})
        ]
        other = f'[["{new_sender()}", 1, {SystemClock().now()}, null], [["abandon", "b"]]]'
        (answer,) = bare.execute(f"SELECT {schema}.usage_v2_batch(%s::jsonb)", (other,)).fetchall()[0]
        assert answer["answers"] == [True]
        assert await transport.send([DRAFT._replace(event_id="b")]) == [Reserved(False, (Balance(1), Balance()))]


def new_sender() -> str:
    return f"00000000-0000-0000-0000-{random.randrange(10**12):012}"


# ── settings that endanger the ledger ────────────────────────────────────────────────────────────────────────────────


def test_settings_that_endanger_the_ledger_are_named(opening: PostgresOpening, bare: psycopg.Connection[Any]) -> None:
    """Each has a sentence with its remedy, and no sentence has the password."""
    opening.open().close()
    usual = opening.trouble()
    assert [sentence.partition(": ")[2].split()[0] for sentence in usual] == ["fsync"], "tests run without fsync"
    assert "ALTER SYSTEM SET fsync = on" in usual[0]
    settings = {
        "synchronous_commit%3Doff": "synchronous_commit is off",
        "statement_timeout%3D100": "statement_timeout is 100 ms",
        "default_transaction_read_only%3Don": "target_session_attrs",
    }
    for setting, words in settings.items():
        with_setting = opening.at_url(f"{opening.options['url']}?options=-c{setting}").trouble()
        assert len(with_setting) == 2
        assert any(words in sentence for sentence in with_setting)
    bare.execute("ALTER SYSTEM SET full_page_writes = off")
    try:
        bare.execute("SELECT pg_reload_conf()")
        wait_until(lambda: any("full_page_writes is off" in sentence for sentence in opening.trouble()))
    finally:
        bare.execute("ALTER SYSTEM RESET full_page_writes")
        bare.execute("SELECT pg_reload_conf()")
    wait_until(lambda: opening.trouble() == usual)


def test_connections_that_run_out_are_named(opening: PostgresOpening, postgres: PostgresServer) -> None:
    """Before they are used up."""
    opened = [psycopg.connect(postgres.url) for _ in range(50)]
    try:
        assert any("connections are in use" in sentence for sentence in opening.trouble())
    finally:
        for connection in opened:
            connection.close()
