"""A Valkey server that hangs, restarts, fails over or is full: the event loop stays free, and nothing counts twice."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import time
from contextlib import ExitStack, asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.loop_stalls import measured_stalls
from tests.support.valkey import RunningServer, free_port, register_of, transport_of, valkey_server
from tests.support.waiting import eventually, wait_until
from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.ledger import Balance, Charge, NotSettled, Reserved, Settled
from usage_plugin.domain.ledger_batch import MOST_CLOCK_DIFFERENCE, Reassert, Record, Reserve, Settle
from usage_plugin.errors import KeeperReplacedError, LedgerBusyError, LedgerError, LedgerReplacedError
from usage_plugin.ledgers.valkey import ValkeyOptions
from usage_plugin.ledgers.valkey.opening import open_valkey_ledger
from usage_plugin.ledgers.valkey.register import ANSWER_TIMEOUT, ValkeyRegister
from usage_plugin.ledgers.valkey.server import ValkeyServer, script
from usage_plugin.ledgers.valkey.transport import ValkeyTransport
from usage_plugin.testing.builders import ANN, END, TEAM, hold
from usage_plugin.testing.link import Link

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from usage_plugin.domain.ledger_batch import Answer, Verb

LONGEST_STALL = 0.005


class Worker:
    """A member of the fleet that sends everything again that a new incarnation may have lost, as the lane does.

    Attributes:
        open: the reservations that it has not settled.
        settled: the settlements that were answered.
        lost: the number of those that a new incarnation did not know.
    """

    def __init__(self, name: str, options: ValkeyOptions) -> None:
        self.name = name
        self.transport = transport_of(options)
        self.open: dict[str, Reserve] = {}
        self.settled: list[Settle] = []
        self.lost = 0
        register = register_of(options)
        register.join(name, "host", "{}")
        register.close()

    async def send(self, *batch: Verb) -> Sequence[Answer]:
        """Send a batch until it is answered."""
        while True:
            try:
                return await self.transport.send(batch)
            except LedgerReplacedError:
                self.transport.accept()
                await self.send_again()
            except LedgerError:
                await asyncio.sleep(0.01)

    async def send_again(self) -> None:
        """Send everything that a new incarnation may lack."""
        await self.send(*(Reassert(*reserve) for reserve in self.open.values()))
        for settle, answer in zip(self.settled, await self.send(*self.settled), strict=True):
            if answer is NotSettled.UNKNOWN:
                self.lost += 1
                await self.send(Record(*settle))
        await self.transport.reasserted(self.name)

    async def reserve(self, event_id: str) -> None:
        """Reserve, and wait while the ledger is closed."""
        reserve = Reserve(event_id, self.name, 5, [hold(ANN, 3, None), hold(TEAM, 3, None)], "draft")
        while isinstance((answer := (await self.send(reserve))[0]), LedgerBusyError):
            await asyncio.sleep(0.01)
        assert isinstance(answer, Reserved)
        assert answer.admitted
        self.open[event_id] = reserve

    async def settle(self, event_id: str) -> None:
        """Settle; a reservation that is unknown is recorded."""
        settle = Settle(event_id, [Charge(ANN, END, 1)], f"event-{event_id}", "key")
        (answer,) = await self.send(settle)
        if answer is NotSettled.UNKNOWN:
            (answer,) = await self.send(Record(*settle))
        assert isinstance(answer, Settled)
        del self.open[event_id]
        self.settled.append(settle)

    async def spend(self, count: int) -> None:
        """Do some requests, one after the other."""
        for number in range(len(self.settled), len(self.settled) + count):
            await self.reserve(f"{self.name}-{number}")
            await self.settle(f"{self.name}-{number}")


@asynccontextmanager
async def workers_on(options: ValkeyOptions, *names: str) -> AsyncIterator[list[Worker]]:
    workers = [Worker(name, options) for name in names]
    try:
        yield workers
    finally:
        for worker in workers:
            await worker.transport.close()


def options_at(port: int, replicas: int = 0) -> ValkeyOptions:
    return ValkeyOptions.model_validate({"url": f"valkey://127.0.0.1:{port}/0", "replicas": replicas})


def check_exact(options: ValkeyOptions, workers: Sequence[Worker]) -> None:
    """Check that the ledger has each answered settlement once, and the open reservations of all workers."""
    ledger = open_valkey_ledger(options).ledger
    settled = [settle.event for worker in workers for settle in worker.settled]
    open_ids = {event_id for worker in workers for event_id in worker.open}
    assert sorted(entry.event for entry in ledger.outbox(0, 10_000)) == sorted(map(str, settled))
    assert {one.event_id for one in ledger.open_reservations()} == open_ids
    assert ledger.balances([ANN, TEAM]) == {
        ANN: Balance(len(settled), 3 * len(open_ids)),
        TEAM: Balance(0, 3 * len(open_ids)),
    }
    assert ledger.verify() == []
    ledger.close()


def test_the_script_has_the_difference_of_the_port():
    """The contract tests it only roughly, since its batches take their time."""
    assert f"MOST_CLOCK_DIFFERENCE = {MOST_CLOCK_DIFFERENCE} ".encode() in script().text


# ── restarts and failovers ───────────────────────────────────────────────────────────────────────────────────────────


async def test_a_kill_under_load_loses_nothing(tmp_path_factory: pytest.TempPathFactory):
    """SIGKILL and a restart from the append-only file: each answered settlement is there, once."""
    folder, port = tmp_path_factory.mktemp("v"), free_port()
    with valkey_server(folder, port=str(port)) as server:
        async with workers_on(options_at(port), "a", "b", "c") as workers:
            await workers[0].reserve("kept open")
            spending = [asyncio.ensure_future(worker.spend(60)) for worker in workers]
            await eventually(lambda: min(len(worker.settled) for worker in workers) > 10)
            os.kill(server.pid, signal.SIGKILL)
            wait_until(lambda: not is_listening(port))
            with valkey_server(folder, port=str(port)):
                await asyncio.gather(*spending)
                assert [worker.lost for worker in workers] == [0, 0, 0]
                check_exact(options_at(port), workers)
                register = register_of(options_at(port))
                assert register.view().is_open
                register.close()


def is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, RunningServer, Link]]:
    """A primary, its replica, and a link that leads to the primary."""
    with (
        valkey_server(tmp_path_factory.mktemp("v"), port=str(free_port()), repl_diskless_sync_delay="0") as primary,
        valkey_server(
            tmp_path_factory.mktemp("v"), port=str(free_port()), replicaof=f"127.0.0.1 {primary.port}"
        ) as replica,
        closing(Link("127.0.0.1", primary.port)) as link,
    ):
        wait_until(lambda: b"master_link_status:up" in replica.command("INFO", "replication"))
        yield primary, replica, link


def follows(replica: RunningServer, primary: RunningServer) -> bool:
    """Whether a replica has everything."""
    confirmed = primary.command("INFO", "replication").split(b"master_repl_offset:")[1].split(b"\r\n")[0]
    return confirmed in replica.command("INFO", "replication")


@pytest.mark.parametrize("replicas", [0, 1])
async def test_a_failover_keeps_what_workers_send_again(pair: tuple[RunningServer, RunningServer, Link], replicas: int):
    """A replica is promoted that lacks 20 answered settlements. With `replicas: 1` it lacks none: none was answered."""
    primary, replica, link = pair
    options = options_at(link.port, replicas)
    async with workers_on(options, "a", "b") as workers:
        first, second = workers
        await first.spend(10)
        await first.reserve("kept open")
        await second.reserve("settled late")
        wait_until(lambda: follows(replica, primary))
        replica.command("REPLICAOF", "NO", "ONE")
        spending = asyncio.ensure_future(first.spend(20))
        if replicas:
            with pytest.raises(LedgerError, match="1 of 1 replicas lack"):
                await second.transport.send([Record("unconfirmed", [], "unconfirmed", "key")])
            assert len(first.settled) == 10
        else:
            await spending
            await first.reserve("lost while open")
        link.server = ("127.0.0.1", replica.port)
        os.kill(primary.pid, signal.SIGKILL)
        options = options_at(link.port)
        for worker in workers:
            worker.transport._replicas = 0  # the promoted one has none yet
        if not replicas:
            await first.send()
            (busy,) = await first.send(Reserve("early", "a", 5, [hold(ANN, 1, None)], "draft"))
            assert isinstance(busy, LedgerBusyError), "the other worker has not sent its reservations yet"
        settling = asyncio.ensure_future(second.settle("settled late"))
        await spending
        await settling
        assert [worker.lost for worker in workers] == [0 if replicas else 20, 0]
        assert len(first.settled) == 30
        assert set(first.open) == {"kept open"} | ({"lost while open"} if not replicas else set())
        check_exact(options, workers)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
async def test_outages_in_any_order_lose_nothing(tmp_path_factory: pytest.TempPathFactory, seed: int):
    """Servers are killed, restarted, promoted and demoted under load; with `replicas: 1` all that was answered is there."""
    chance = random.Random(seed)
    ports = (free_port(), free_port())
    folders = {port: tmp_path_factory.mktemp("v") for port in ports}
    with ExitStack() as ends, closing(Link("127.0.0.1", ports[0])) as link:

        def start(port: int, **settings: str) -> tuple[RunningServer, ExitStack]:
            stack = ends.enter_context(ExitStack())
            return stack.enter_context(valkey_server(folders[port], port=str(port), **settings)), stack

        def start_replica(port: int, primary: RunningServer) -> tuple[RunningServer, ExitStack]:
            replica, stack = start(port, replicaof=f"127.0.0.1 {primary.port}")
            wait_until(lambda: b"master_link_status:up" in replica.command("INFO", "replication"))
            return replica, stack

        primary, primary_end = start(ports[0])
        replica, replica_end = start_replica(ports[1], primary)
        async with workers_on(options_at(link.port, replicas=1), "a", "b", "c") as workers:
            await workers[0].reserve("kept open")
            is_over = asyncio.Event()

            async def spend(worker: Worker) -> None:
                while not is_over.is_set():
                    await worker.spend(1)

            spending = [asyncio.ensure_future(spend(worker)) for worker in workers]
            for _ in range(8):
                reached = [len(worker.settled) + chance.randint(1, 30) for worker in workers]
                await eventually(
                    lambda reached=reached: all(
                        len(one.settled) >= least for one, least in zip(workers, reached, strict=True)
                    )
                )
                outage = chance.choice(["restart", "failover", "failover", "demotion"])
                if outage == "restart":
                    os.kill(primary.pid, signal.SIGKILL)
                    primary_end.close()
                    primary, primary_end = await asyncio.to_thread(start, primary.port)
                elif outage == "failover":
                    os.kill(primary.pid, signal.SIGKILL)
                    primary_end.close()
                    replica.command("REPLICAOF", "NO", "ONE")
                    link.server = ("127.0.0.1", replica.port)
                    former, (primary, primary_end) = primary, (replica, replica_end)
                    replica, replica_end = await asyncio.to_thread(start_replica, former.port, primary)
                else:
                    primary.promote()
            is_over.set()
            await asyncio.gather(*spending)
            assert [worker.lost for worker in workers] == [0, 0, 0]
            check_exact(options_at(link.port), workers)


def test_a_term_is_never_given_twice(pair: tuple[RunningServer, RunningServer, Link]):
    """A replica is promoted that lacks the last keeper. Its next keeper has another term, and the lost one is fenced."""
    primary, replica, _ = pair
    register = register_of(options_at(primary.port))
    term = register.join("a", "host", "{}").term
    assert register.keep("a", term)
    wait_until(lambda: follows(replica, primary))
    replica.command("REPLICAOF", "NO", "ONE")
    register.stop_keeping("a")
    assert register.keep("a", term + 1)
    register.close()

    lost = term + 2
    ledger = open_valkey_ledger(options_at(replica.port), lambda: lost).ledger
    with pytest.raises(KeeperReplacedError):
        ledger.acknowledge(1)
    register = register_of(options_at(replica.port))
    for _ in range(2):
        fleet = register.view()
        assert fleet.keeper is None
        assert register.keep("a", fleet.term)
        assert fleet.term > lost
        with pytest.raises(KeeperReplacedError):
            ledger.acknowledge(1)
        assert register.view()[4:] == ("a", fleet.term + 1)
        register.stop_keeping("a")
    register.close()
    ledger.close()


def test_a_demoted_primary_answers_nobody(pair: tuple[RunningServer, RunningServer, Link]):
    """Its records are out of date, so that reading the fleet fails, too."""
    primary, _, _ = pair
    register = register_of(options_at(primary.port))
    register.join("a", "host", "{}")
    primary.command("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(LedgerError, match="is a replica"):
        register.view()
    register.close()


def test_a_change_counts_once_replicas_have_it(pair: tuple[RunningServer, RunningServer, Link]):
    """Also one of the keeper. Repeated, it waits again, although the server has nothing to write any more."""
    primary, replica, _ = pair
    ledger = open_valkey_ledger(options_at(primary.port, replicas=1)).ledger
    ledger.reserve("a", "w", 5, [hold(ANN, 3, None)], "draft")
    ledger.record("b", [], "event")
    correct = partial(ledger.correct, "c", [Charge(ANN, END, 1)])
    replica.command("REPLICAOF", "NO", "ONE")
    for change in (
        correct,
        correct,
        partial(ledger.recover, "a"),
        partial(ledger.acknowledge, 1),
        partial(ledger.maintain, END),
        partial(ledger.outbox, 0, 10, durable=True),
    ):
        with pytest.raises(LedgerError, match="1 of 1 replicas lack"):
            change()
    ledger.close()


# ── a server that hangs or is full ───────────────────────────────────────────────────────────────────────────────────


async def test_a_hung_server_leaves_the_loop_free(tmp_path_factory: pytest.TempPathFactory):
    """Stopped by a signal: neither sending, waiting, cancelling nor connecting stops the loop, and no socket is left."""
    port = free_port()
    with valkey_server(tmp_path_factory.mktemp("v"), port=str(port)) as server:
        async with workers_on(options_at(port), "a") as (worker,):
            await worker.spend(1)
            large = Record("large", [], "e" * 500_000, "key")
            os.kill(server.pid, signal.SIGSTOP)
            sockets = open_sockets()
            stalls = [await stall_of_sending(worker.transport, [large, large, large]) for _ in range(5)]
            assert min(stalls) < LONGEST_STALL, "a call that blocks does so each time; other processes do not"
            await eventually(lambda: open_sockets() < sockets)
            os.kill(server.pid, signal.SIGCONT)
            assert isinstance((await worker.send(Record("after", [], "event-after", "key")))[0], Settled)
            assert await worker.send() == []
        ledger = open_valkey_ledger(options_at(port)).ledger
        events = [entry.event for entry in ledger.outbox(0, 10)]
        assert len(events) == len(set(events)), "what the system had of a cancelled batch may be done, once"
        assert {"event-a-0", "event-after"} <= set(events)
        ledger.close()


async def stall_of_sending(transport: ValkeyTransport, batch: Sequence[Verb]) -> float:
    """Send a batch some times, cancel each, and return the seconds for which the loop stood still at most."""
    with measured_stalls() as longest:
        for _ in range(6):
            sending = asyncio.ensure_future(transport.send(batch))
            await asyncio.wait([sending], timeout=0.01)
            sending.cancel()
            await asyncio.wait([sending])
            assert sending.cancelled()
    return longest()


def open_sockets() -> int:
    """Return the number of sockets of this process."""
    places = [place for place in Path("/dev/fd").iterdir() if place.is_socket()]
    return len(places)


async def test_names_are_resolved_off_the_loop(monkeypatch: pytest.MonkeyPatch):
    """A resolver that hangs delays the batch, and nothing else."""
    resolve = socket.getaddrinfo

    def slowly(*arguments: object, **options: object) -> object:
        time.sleep(0.5)
        return resolve("127.0.0.1", *arguments[1:], **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", slowly)
    transport = ValkeyTransport(f"valkey://usage.invalid:{free_port()}/0", "usage", SystemClock())
    with measured_stalls() as longest, pytest.raises(LedgerBusyError, match="does not answer"):
        await transport.send([])
    assert longest() < 0.25
    await transport.close()


def test_a_register_does_not_wait_for_a_hung_server(tmp_path_factory: pytest.TempPathFactory):
    """It answers within a few seconds, with a connection and without."""
    assert ANSWER_TIMEOUT <= 5
    with valkey_server(tmp_path_factory.mktemp("v")) as server:
        register = ValkeyRegister(ValkeyServer(server.url, "usage", answer_timeout=0.2))
        register.join("a", "host", "{}")
        os.kill(server.pid, signal.SIGSTOP)
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(LedgerError, match="does not answer"):
                register.beat("a", "{}")
            assert time.monotonic() - began < ANSWER_TIMEOUT
        os.kill(server.pid, signal.SIGCONT)
        register.beat("a", "{}")
        register.close()


async def test_workers_live_on_a_full_server(tmp_path_factory: pytest.TempPathFactory):
    """Without memory reservations fail, but members beat, join and are buried: no worker is declared dead for it."""
    with valkey_server(tmp_path_factory.mktemp("v"), port=str(free_port())) as server:
        options = options_at(server.port)
        register = register_of(options)
        async with workers_on(options, "a", "b") as (worker, _):
            await worker.spend(1)
            server.command("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(LedgerError, match="no memory left"):
                await worker.transport.send([Reserve("r", "a", 5, [hold(ANN, 1, None)], "draft")])
            beats = register.view().members[0].beats
            assert register.beat("a", "{}").members[0].beats == beats + 1
            assert register.bury("a", beats + 1)
            assert [member.name for member in register.join("c", "host", "{}").members] == ["b", "c"]
        register.close()
