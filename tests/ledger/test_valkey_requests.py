"""The request path on a real Valkey server: exact under load, and with the server cut off, stopped and restarted."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from tests.support.valkey import RunningServer, free_port, register_of, transport_of, valkey_opening, valkey_server
from tests.support.waiting import eventually
from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.ledger import Balance, Charge, NotSettled, Reserved, Settled
from usage_plugin.domain.ledger_batch import Abandon, Free, Record, Release, Reserve, Settle
from usage_plugin.domain.request_ledger import PostedSettlement
from usage_plugin.errors import LedgerBusyError, LedgerError, ReservationConflictError
from usage_plugin.ledgers.valkey import ValkeyOptions, batch
from usage_plugin.ledgers.valkey.ledger import ValkeyLedger
from usage_plugin.ledgers.valkey.opening import open_valkey_ledger
from usage_plugin.ledgers.valkey.transport import ValkeyTransport
from usage_plugin.testing.builders import ANN, DAY, END, MINUTE, TEAM, hold
from usage_plugin.tracking.admission.remote_request_ledger import DEADLINE, RemoteRequestLedger
from usage_plugin.tracking.ledger_thread import LedgerThread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path


@pytest.fixture
def options(valkey: RunningServer, tmp_path: Path) -> ValkeyOptions:
    return ValkeyOptions.model_validate(valkey_opening(valkey, tmp_path / "usage").options)


@pytest.fixture
def ledger(options: ValkeyOptions) -> Iterator[ValkeyLedger]:
    """The ledger, of which the worker `w` is a member."""
    ledger = ledger_of(options)
    yield ledger
    ledger.close()


def ledger_of(options: ValkeyOptions) -> ValkeyLedger:
    register = register_of(options)
    register.join("w", "host", "{}")
    register.close()
    ledger = open_valkey_ledger(options).ledger
    assert isinstance(ledger, ValkeyLedger)
    return ledger


NO_READER = LedgerThread(lambda: pytest.fail("no accounts are read here"))


@asynccontextmanager
async def requests_on(options: ValkeyOptions) -> AsyncIterator[RemoteRequestLedger]:
    transport = transport_of(options)
    requests = RemoteRequestLedger(transport, transport.location, worker=lambda: "w", reader=NO_READER)
    try:
        yield requests
    finally:
        await requests.close(30)


class Posted(PostedSettlement):
    """A settlement of 1 on ann's account."""

    is_reserved = True

    def __init__(self, event_id: str) -> None:
        self.event_id = event_id
        self.charges: Sequence[Charge] = [Charge(ANN, END, 1)]
        self.event = f"event-{event_id}"
        self.seq = 0

    def written(self, settled: Settled, *, was_unknown: bool) -> None:
        assert self.seq == 0
        self.seq = settled.seq

    def given_up(self) -> None:
        pytest.fail("nothing is given up here")


async def spend(requests: RemoteRequestLedger, event_id: str, maximum: int | None) -> Posted | None:
    """Reserve and settle; None if it was refused, or if the ledger does not answer."""
    try:
        reserved = await requests.reserve(event_id, "w", 5, [hold(ANN, 1, maximum), hold(TEAM, 1, None)], "draft")
    except LedgerError:
        requests.abandon(event_id)
        return None
    if not reserved.admitted:
        return None
    posted = Posted(event_id)
    await asyncio.sleep(0)
    requests.settle(posted)
    return posted


async def test_the_verbs_of_a_batch_are_done_in_their_order(options: ValkeyOptions, ledger: ValkeyLedger):
    """Each sees the effect of those before it, also on accounts and buckets that the batch creates."""
    transport = transport_of(options)
    bucket = ANN._replace(window_start=20)
    rolling = hold(bucket._replace(window_start=30), 60, 100)._replace(since=10)
    answers = await transport.send(
        [
            Reserve("a", "w", 5, [hold(ANN, 60, 100)], "draft"),
            Reserve("b", "w", 5, [hold(ANN, 60, 100)], "draft"),
            Free("a", [ANN]),
            Reserve("b", "w", 5, [hold(ANN, 60, 100)], "draft"),
            Release("b"),
            Reserve("b", "w", 5, [hold(ANN, 61, 100)], "draft"),
            Settle("b", [Charge(bucket, END, 50)], "event b", "1"),
            Settle("c", [], "event c", "2"),
            Record("c", [Charge(ANN, END, 3)], "event c", "2"),
            Reserve("d", "w", 5, [rolling], "draft"),
            Reserve("e", "w", 5, [rolling._replace(amount=50)], "draft"),
            Abandon("e"),
            Reserve("e", "w", 5, [rolling._replace(amount=50)], "draft"),
            Reserve("a", "w", 5, [], "other"),
        ]
    )
    refused = answers[9]
    assert isinstance(refused, Reserved)
    assert [account.key for accounts in refused.buckets.values() for account in accounts] == [bucket]
    assert answers[:9] == [
        Reserved(True, (Balance(),)),
        Reserved(False, (Balance(0, 60),)),
        None,
        Reserved(True, (Balance(),)),
        None,
        Reserved(True, (Balance(),)),
        Settled(1, {ANN: Balance(), bucket: Balance(50)}),
        NotSettled.UNKNOWN,
        Settled(2, {ANN: Balance(3)}),
    ]
    assert [one.admitted for one in answers[9:13] if isinstance(one, Reserved)] == [False, True, False]
    assert isinstance(answers[13], ReservationConflictError)
    assert [entry.event for entry in ledger.outbox(0, 10)] == ["event b", "event c"]
    assert [one.event_id for one in ledger.open_reservations()] == ["a"]
    assert ledger.verify() == []
    await transport.close()


async def test_a_verb_that_cannot_be_encoded_stops_no_other(options: ValkeyOptions, ledger: ValkeyLedger):
    """Its own answer is the error."""
    transport = transport_of(options)
    good = Record("a", [], "event", "1")
    first, second, third = await transport.send(
        [good._replace(event="\ud800"), good, Reserve("b", "w", 2**70, [], "e")]
    )
    assert isinstance(first, LedgerError)
    assert second == Settled(1, {})
    assert isinstance(third, LedgerError)
    await transport.close()


async def test_a_verb_that_fails_on_the_server_stops_no_other(
    options: ValkeyOptions, ledger: ValkeyLedger, monkeypatch: pytest.MonkeyPatch
):
    """The others of its batch are done; a batch with a failing verb does nothing at first."""
    arguments_of = batch.arguments_of
    monkeypatch.setattr(
        batch, "arguments_of", lambda verb: [b"nonsense"] if verb.event_id == "bad" else arguments_of(verb)
    )
    transport = transport_of(options)
    first, second, third = await transport.send(
        [
            Record("a", [Charge(ANN, END, 1)], "event a", "1"),
            Release("bad"),
            Record("b", [Charge(ANN, END, 1)], "event b", "2"),
        ]
    )
    assert first == Settled(1, {ANN: Balance(1)})
    assert isinstance(second, LedgerError)
    assert third == Settled(2, {ANN: Balance(2)})
    await transport.close()


async def test_a_settlement_that_is_sent_again_has_the_same_answer(options: ValkeyOptions, ledger: ValkeyLedger):
    """By its key; another settlement of the same request is too late."""
    transport = transport_of(options)
    await transport.send([Reserve("a", "w", 5, [hold(ANN, 5, None)], "draft")])
    settle = Settle("a", [Charge(ANN, END, 1)], "event", "key")
    for _ in range(2):
        assert await transport.send([settle]) == [Settled(1, {ANN: Balance(1)})]
        assert await transport.send([Record(*settle)]) == [Settled(1, {ANN: Balance(1)})]
    assert await transport.send([settle._replace(key="other")]) == [NotSettled.BEFORE]
    assert len(ledger.outbox(0, 10)) == 1
    await transport.close()


async def test_a_batch_that_arrives_late_changes_nothing(options: ValkeyOptions, ledger: ValkeyLedger):
    """After a later one of the same sender was done, it is rejected."""
    transport = transport_of(options)
    await transport.send([Reserve("a", "w", 5, [hold(ANN, 5, None)], "draft")])
    await transport.send([Settle("a", [], "event", "key")])
    transport._number = 0
    with pytest.raises(LedgerError, match="STALE"):
        await transport.send([Reserve("a", "w", 5, [hold(ANN, 5, None)], "draft")])
    assert ledger.open_reservations() == []
    await transport.close()


async def test_old_senders_and_old_entries_are_forgotten(
    valkey: RunningServer, options: ValkeyOptions, ledger: ValkeyLedger
):
    """Senders after a day, and acknowledged entries but for the last 2,000: the server's memory is bounded."""
    transport = transport_of(options)
    for first in range(0, 2_100, 100):
        await transport.send([Record(f"r{number}", [], "event", "1") for number in range(first, first + 100)])
    ledger.acknowledge(2_050)
    assert [entry.seq for entry in ledger.outbox(0, 10_000)] == list(range(51, 2_101))
    assert ledger.waiting() == (50, 50 * len("event"))
    senders = f"{{{options.prefix}}}:senders"
    for minutes in range(0, 24 * 60 + 1, 10):
        assert valkey.command("HLEN", senders) == b":1\r\n"
        ledger.maintain(END + minutes * MINUTE)
    ledger.maintain(END + DAY + 10 * MINUTE)
    assert valkey.command("HLEN", senders) == b":0\r\n"
    await transport.close()


async def test_a_server_that_is_not_there_did_nothing(tmp_path: Path):
    """So a settlement can still be withdrawn."""
    transport = ValkeyTransport(f"unix://{tmp_path}/nothing", "usage", SystemClock())
    with pytest.raises(LedgerBusyError, match="does not answer"):
        await transport.send([])
    await transport.close()


async def test_a_limit_is_used_up_and_never_passed(options: ValkeyOptions, ledger: ValkeyLedger):
    """Of 300 requests of two workers against room for 100, exactly 100 are admitted."""
    async with requests_on(options) as first, requests_on(options) as second:
        posted = await asyncio.gather(*(spend((first, second)[n % 2], f"r{n}", 100) for n in range(300)))
    admitted = [one for one in posted if one is not None]
    assert len(admitted) == 100
    assert sorted(one.seq for one in admitted) == list(range(1, 101))
    assert ledger.balances([ANN, TEAM]) == {ANN: Balance(100), TEAM: Balance()}
    assert ledger.verify() == []


async def test_cut_connections_lose_nothing_and_repeat_nothing(
    valkey: RunningServer, options: ValkeyOptions, ledger: ValkeyLedger
):
    """Connections are closed by the server at any moment, before or after it has done a batch."""
    async with requests_on(options) as requests:

        async def cut_until_done(done: asyncio.Event) -> int:
            cuts = 0
            while not done.is_set():
                await asyncio.to_thread(valkey.command, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                cuts += 1
                await asyncio.sleep(0.01)
            return cuts

        done = asyncio.Event()
        cutting = asyncio.ensure_future(cut_until_done(done))

        async def client(number: int) -> list[Posted | None]:
            return [await spend(requests, f"r{number}-{turn}", None) for turn in range(60)]

        posted = [one for client in await asyncio.gather(*map(client, range(8))) for one in client if one is not None]
        done.set()
        assert await cutting > 3
    assert posted
    events = {entry.event: entry.seq for entry in ledger.outbox(0, 10_000)}
    assert events == {one.event: one.seq for one in posted}
    assert ledger.balances([ANN, TEAM]) == {ANN: Balance(len(posted)), TEAM: Balance()}
    assert ledger.open_reservations() == []
    assert ledger.verify() == []


async def test_a_hung_server_delays_nobody_beyond_the_deadline(tmp_path_factory: pytest.TempPathFactory):
    """Stopped by a signal, it accepts connections and answers nothing. Requests go on when it does."""
    with valkey_server(tmp_path_factory.mktemp("v")) as server:
        options = ValkeyOptions.model_validate({"url": server.url})
        ledger = ledger_of(options)
        async with requests_on(options) as requests:
            before = await spend(requests, "before", None)
            assert before is not None
            os.kill(server.pid, signal.SIGSTOP)
            began = time.monotonic()
            assert await asyncio.gather(*(spend(requests, f"r{n}", None) for n in range(20))) == [None] * 20
            assert time.monotonic() - began < 5 * DEADLINE, "the driver alone would wait for 10 s"
            began = time.monotonic()
            assert await spend(requests, "at once", None) is None
            assert time.monotonic() - began < DEADLINE
            os.kill(server.pid, signal.SIGCONT)
            began = time.monotonic()
            while (after := await spend(requests, f"after {time.monotonic()}", None)) is None:
                await asyncio.sleep(0.01)
            assert time.monotonic() - began < 10 * DEADLINE
        assert [entry.event for entry in ledger.outbox(0, 10)] == [before.event, after.event]
        assert ledger.open_reservations() == []
        assert ledger.balances([ANN, TEAM]) == {ANN: Balance(2), TEAM: Balance()}
        ledger.close()


async def test_requests_go_on_after_a_restart(tmp_path_factory: pytest.TempPathFactory):
    """A settlement that was posted meanwhile is written then; its money stayed held."""
    folder = tmp_path_factory.mktemp("v")
    with valkey_server(folder) as server:
        options = ValkeyOptions.model_validate({"url": server.url})
        ledger = ledger_of(options)
        requests_context = requests_on(options)
        requests = await requests_context.__aenter__()
        assert (await requests.reserve("a", "w", 5, [hold(ANN, 5, None)], "draft")).admitted
        assert ledger.outbox(0, 1, durable=True) == []
        ledger.acknowledge(0)
        assert ledger._server.command("WAITAOF", 1, 0, 5_000)[0] == 1
        os.kill(server.pid, signal.SIGKILL)
    posted = Posted("a")
    requests.settle(posted)
    assert await spend(requests, "b", None) is None
    with valkey_server(folder):
        while await spend(requests, f"after {time.monotonic()}", None) is None:
            await asyncio.sleep(0.01)
        await requests_context.__aexit__(None, None, None)
        assert posted.seq == 1
        assert ledger.balances([ANN]) == {ANN: Balance(2)}
        ledger.close()


async def test_no_answered_settlement_is_lost_when_a_replica_takes_over(tmp_path_factory: pytest.TempPathFactory):
    """With `replicas: 1` a batch is answered once a replica has it; while the replica is away, requests fail."""
    port = str(free_port())
    with (
        valkey_server(tmp_path_factory.mktemp("v"), port=port, repl_diskless_sync_delay="0") as primary,
        valkey_server(tmp_path_factory.mktemp("v"), replicaof=f"127.0.0.1 {port}") as replica,
    ):
        await eventually(lambda: b"master_link_status:up" in replica.command("INFO", "replication"))
        options = ValkeyOptions.model_validate({"url": primary.url, "replicas": 1})
        ledger_of(options).close()
        async with requests_on(options) as requests:
            posted = await asyncio.gather(*(spend(requests, f"r{n}", None) for n in range(50)))
            await requests.drain(30)
            os.kill(replica.pid, signal.SIGSTOP)
            with pytest.raises(LedgerError, match="1 of 1 replicas lack"):
                await requests.reserve("unconfirmed", "w", 5, [hold(ANN, 1, None)], "draft")
            requests.abandon("unconfirmed")
            os.kill(replica.pid, signal.SIGCONT)
            while (after := await spend(requests, f"after {time.monotonic()}", None)) is None:
                await asyncio.sleep(0.01)
            await requests.drain(30)
        os.kill(primary.pid, signal.SIGKILL)
        replica.command("REPLICAOF", "NO", "ONE")
        ledger = open_valkey_ledger(options.model_copy(update={"url": SecretStr(replica.url)})).ledger
        events = {entry.event: entry.seq for entry in ledger.outbox(0, 100)}
        assert events == {one.event: one.seq for one in (*posted, after) if one is not None}
        assert len(events) == 51
        assert ledger.open_reservations() == []
        assert ledger.balances([ANN, TEAM]) == {ANN: Balance(51), TEAM: Balance()}
        ledger.close()
