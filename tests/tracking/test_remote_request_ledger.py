"""The request ledger across a network: batches, lost answers, a server that is away, and requests that are cancelled.

The server is a model in plain dicts behind a scripted connection. Time is virtual, so that each deadline is exact.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.virtual_time import run_virtually
from usage_plugin.domain.ledger import Balance, Charge, NotSettled, Reserved, Settled
from usage_plugin.domain.ledger_batch import Abandon, Free, LedgerTransport, Reassert, Record, Release, Reserve, Settle
from usage_plugin.domain.request_ledger import PostedSettlement
from usage_plugin.errors import (
    LedgerBusyError,
    LedgerError,
    LedgerReplacedError,
    ReservationConflictError,
    WorkerLostError,
)
from usage_plugin.testing.builders import ANN, END, hold
from usage_plugin.tracking.admission import posted_verbs, remote_request_ledger
from usage_plugin.tracking.admission.kept_verbs import KEPT_FOR
from usage_plugin.tracking.admission.remote_request_ledger import (
    DEADLINE,
    MOST_BYTES_IN_BATCH,
    MOST_IN_BATCH,
    PROBE_INTERVAL,
    RemoteRequestLedger,
)
from usage_plugin.tracking.ledger_thread import LedgerThread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from usage_plugin.domain.ledger_batch import Answer, Verb

NO_READER = LedgerThread(lambda: pytest.fail("nothing is read here"))

LONGEST_DELAY = 0.3
"""Of a connection that works; a batch has one before and one after the server acts."""
INSTANT = 1e-6
"""Far below each delay, and above the rounding of virtual time."""


@dataclass
class ModelServer:
    """Does the verbs as a ledger does."""

    open: dict[str, Reserve] = field(default_factory=dict)
    ended: dict[str, tuple[str, int]] = field(default_factory=dict)
    """The key and the number of each ended id; an empty key for one that was not settled."""
    abandoned: set[str] = field(default_factory=set)
    freed: list[tuple[str, Sequence[Any]]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    """Verb and id of everything that arrived, in its order."""
    incarnation: int = 0
    is_open: bool = True
    members: set[str] = field(default_factory=set)
    """Any name is a member if it is empty."""
    earlier: list[dict[str, Any]] = field(default_factory=list)
    """The states before the last batches."""

    def do(self, batch: Sequence[Verb]) -> list[Answer]:
        kept = {name: copy.copy(getattr(self, name)) for name in ("open", "ended", "abandoned", "events")}
        self.earlier = [*self.earlier[-9:], kept]
        return [self._do(verb) for verb in batch]

    def restart(self, lost: int) -> None:
        """Come back without the last batches, closed for reservations."""
        for _ in range(min(lost, len(self.earlier))):
            for name, value in self.earlier.pop().items():
                setattr(self, name, value)
        self.incarnation += 1
        self.is_open = False

    def _do(self, verb: Verb) -> Answer:
        event_id = verb.event_id
        self.seen.append(f"{type(verb).__name__} {event_id}")
        if getattr(verb, "event", "") == "poison":
            return LedgerError("not encodable")
        if isinstance(verb, Reassert):
            if self.ended.get(event_id, ("released", 0))[0] == "released":
                self.open[event_id] = Reserve(*verb)
                self.ended.pop(event_id, None)
            return None
        if isinstance(verb, Reserve) and self.members and verb.worker not in self.members:
            return WorkerLostError()
        if isinstance(verb, Reserve) and not self.is_open:
            return LedgerBusyError("not yet")
        if isinstance(verb, Reserve):
            # The balance identifies the request.
            answer = Reserved(event_id not in self.abandoned, (Balance(verb.started_at),))
            if self.open.get(event_id, verb) != verb:
                return ReservationConflictError()
            if answer.admitted:
                self.open[event_id] = verb
                self.ended.pop(event_id, None)
            return answer
        if isinstance(verb, Settle | Record):
            if event_id not in self.open:
                if event_id in self.ended:
                    key, seq = self.ended[event_id]
                    return Settled(seq, {}) if key == verb.key else NotSettled.BEFORE
                if isinstance(verb, Settle):
                    return NotSettled.UNKNOWN
            self.open.pop(event_id, None)
            self.events.append(event_id)
            self.ended[event_id] = (verb.key, len(self.events))
            return Settled(len(self.events), {})
        if isinstance(verb, Free):
            self.freed.append((event_id, verb.accounts))
            return None
        if self.open.pop(event_id, None) is None and event_id in self.ended:
            return None
        if isinstance(verb, Abandon):
            self.abandoned.add(event_id)
        self.ended[event_id] = ("released" if isinstance(verb, Release) else "", 0)
        return None


@dataclass
class Step:
    """The course of one call: the server does the batch `act` times, and the call ends as `end`."""

    end: str = "answer"
    act: int = 1
    before: float = 0.001
    after: float = 0.001


WORKS = Step()
HANGS = Step("hang", 0)
LOSES_THE_ANSWER = Step("fail")
REFUSES = Step("refuse", 0)


class ScriptedTransport(LedgerTransport):
    """Follows a script, one step for each call, and works when it is over."""

    def __init__(self, *script: Step, then: Step = WORKS) -> None:
        self.server = ModelServer()
        self.script = list(script)
        self.then = then
        self.calls: list[tuple[float, Sequence[Verb]]] = []
        self._is_busy = False
        self._accepted = 0
        self.is_closed = False

    def accept(self) -> None:
        self._accepted = self.server.incarnation

    async def reasserted(self, worker: str) -> None:
        assert worker == "w"
        self._check_incarnation()
        await asyncio.sleep(0.001)
        self.server.is_open = True

    async def close(self) -> None:
        self.is_closed = True

    def _check_incarnation(self) -> None:
        if self._accepted != self.server.incarnation:
            raise LedgerReplacedError

    async def send(self, batch: Sequence[Verb]) -> Sequence[Answer]:
        assert not self._is_busy, "two calls at a time"
        self._is_busy = True
        try:
            return await self._follow(self.script.pop(0) if self.script else self.then, batch)
        finally:
            self._is_busy = False

    async def _follow(self, step: Step, batch: Sequence[Verb]) -> Sequence[Answer]:
        self.calls.append((now(), batch))
        await asyncio.sleep(step.before)
        if step.end == "restart":
            self.server.restart(step.act)
            raise LedgerError("the connection was cut")
        self._check_incarnation()
        answers: Sequence[Answer] = []
        for _ in range(step.act):
            answers = self.server.do(batch)
        if step.end == "hang":
            await asyncio.Event().wait()
        if step.end == "deaf":
            ends = now() + 2 * DEADLINE
            while now() < ends:
                try:
                    await asyncio.sleep(ends - now())
                except asyncio.CancelledError:
                    continue
            return answers
        await asyncio.sleep(step.after)
        if step.end == "fail":
            raise LedgerError("the connection was cut")
        if step.end == "refuse":
            raise LedgerBusyError("connection refused")
        if step.end == "bug":
            raise RuntimeError("a bug of the driver")
        if step.end == "short":
            return answers[1:] if batch else ["an answer to nothing"]
        return answers


class Posted(PostedSettlement):
    """A settlement that notes how it ended."""

    def __init__(self, event_id: str, *, is_reserved: bool = True, event: str | None = "event") -> None:
        self.event_id = event_id
        self.charges = [Charge(ANN, END, 1)]
        self.event = event
        self.is_reserved = is_reserved
        self.ends: list[str] = []
        self.seq = 0
        self.was_unknown: bool | None = None
        self.then: Callable[[], None] = lambda: None

    def written(self, settled: Settled, *, was_unknown: bool) -> None:
        self.ends.append("written")
        self.seq, self.was_unknown = settled.seq, was_unknown
        self.then()

    def given_up(self) -> None:
        self.ends.append("given up")


def now() -> float:
    return asyncio.get_running_loop().time()


def with_ledger(
    transport: ScriptedTransport, work: Callable[[RemoteRequestLedger], Awaitable[Any]], seconds: float = 600
) -> None:
    """Run a test on a ledger, and close it."""

    async def run() -> None:
        ledger = RemoteRequestLedger(transport, "valkey://host", worker=lambda: "w", reader=NO_READER)
        try:
            await work(ledger)
        finally:
            await ledger.close(seconds)
        assert transport.is_closed

    run_virtually(run())


async def reserve(ledger: RemoteRequestLedger, event_id: str, number: int = 7) -> Reserved:
    """Reserve, and check that the answer is one's own."""
    reserved = await ledger.reserve(event_id, "w", number, [hold(ANN, 1, 100)], "draft")
    assert reserved.balances == (Balance(number),)
    return reserved


async def refused_at(ledger: RemoteRequestLedger, event_id: str) -> float:
    """Reserve in vain, and return when that was known."""
    with pytest.raises(LedgerError, match="valkey://host does not answer"):
        await reserve(ledger, event_id)
    return now()


# ── any order of events ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Client:
    """A request: its kind, its begin, how long it works, and how long it awaits its reservation until it is cancelled."""

    kind: str
    begin: float
    work: float
    patience: float | None

    async def run(self, ledger: RemoteRequestLedger, number: int, settlements: list[Posted]) -> None:
        event_id = f"r{number}"
        await asyncio.sleep(self.begin)
        if self.kind in {"recorded", "unknown"}:
            self.settle(ledger, settlements, event_id, is_reserved=self.kind == "unknown")
            return
        if not (reserved := await self.reserve(ledger, event_id, number)):
            if self.kind == "degraded" and reserved is False:
                self.settle(ledger, settlements, event_id, is_reserved=False)
            return
        await asyncio.sleep(self.work)
        if self.kind in {"released", "changed"}:
            assert await ledger.release(event_id)
            if self.kind == "released" or not await self.reserve(ledger, event_id, number + 1_000):
                return
        if self.kind == "freed":
            ledger.free(event_id, [ANN])
        self.settle(ledger, settlements, event_id, is_reserved=True)

    async def reserve(self, ledger: RemoteRequestLedger, event_id: str, number: int) -> bool | None:
        """Return whether it is reserved; None if the request was cancelled."""
        asked = asyncio.ensure_future(reserve(ledger, event_id, number))
        began = now()
        await asyncio.wait([asked], timeout=self.patience)
        if not asked.done():
            asked.cancel()
            await asyncio.wait([asked])
        assert now() - began <= 2 * LONGEST_DELAY + DEADLINE + INSTANT
        if asked.cancelled():
            return None
        if asked.exception() is None:
            return True
        assert isinstance(asked.exception(), LedgerError)
        if self.kind != "degraded":
            ledger.abandon(event_id)
        return False

    def settle(
        self, ledger: RemoteRequestLedger, settlements: list[Posted], event_id: str, *, is_reserved: bool
    ) -> None:
        settlement = Posted(event_id, is_reserved=is_reserved)
        settlements.append(settlement)
        ledger.settle(settlement)


SECONDS = st.floats(0, 3).map(lambda it: round(it, 3))
DELAYS = st.floats(0, LONGEST_DELAY).map(lambda it: round(it, 3))
STEPS = st.builds(
    Step,
    st.sampled_from(("answer", "answer", "fail", "hang", "deaf", "refuse", "bug", "short", "restart")),
    st.integers(0, 2),
    DELAYS,
    DELAYS,
).map(lambda step: Step(step.end, _acts(step), step.before, step.after))
CLIENTS = st.builds(
    Client,
    st.sampled_from(("settled", "settled", "released", "changed", "freed", "degraded", "recorded", "unknown")),
    SECONDS,
    DELAYS,
    st.none() | DELAYS | SECONDS,
)


def _acts(step: Step) -> int:
    if step.end == "refuse":
        return 0
    return max(1, step.act) if step.end in {"answer", "short"} else step.act


@settings(max_examples=400)
@given(st.lists(STEPS, max_size=12), st.lists(CLIENTS, min_size=1, max_size=12))
def test_each_verb_happens_once_and_each_answer_is_ones_own(script: list[Step], clients: list[Client]):
    """After any failures of the connection, each request is settled once, nothing is held, and each answer was its own."""
    transport = ScriptedTransport(*script)
    settlements: list[Posted] = []

    async def work(ledger: RemoteRequestLedger) -> None:
        await asyncio.gather(*(client.run(ledger, number, settlements) for number, client in enumerate(clients)))
        await ledger.drain(60)
        assert ledger.pending == 0

    with_ledger(transport, work)
    server = transport.server
    assert server.open == {}
    assert [settlement.ends for settlement in settlements] == [["written"]] * len(settlements)
    assert sorted(server.events) == sorted(settlement.event_id for settlement in settlements)
    if not server.incarnation:
        assert {settlement.seq: settlement.event_id for settlement in settlements} == dict(enumerate(server.events, 1))
    assert all(len(batch) <= MOST_IN_BATCH for _, batch in transport.calls)


# ── a server that is replaced ────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_server_lost_is_sent_again():
    """After a restart without the last batches, open requests hold again, and ended ones are ended again."""
    transport = ScriptedTransport()
    settled = Posted("settled")

    async def work(ledger: RemoteRequestLedger) -> None:
        await asyncio.gather(*(reserve(ledger, name) for name in ("settled", "open", "freed", "released", "changed")))
        ledger.settle(settled)
        ledger.free("freed", [ANN])
        await ledger.release("released")
        await ledger.release("changed")
        await reserve(ledger, "changed", 8)
        await ledger.drain(1)
        transport.server.restart(3)
        assert transport.server.open == {}
        await reserve(ledger, "later")
        assert {name: verb.started_at for name, verb in transport.server.open.items()} == {
            "open": 7, "freed": 7, "changed": 8, "later": 7,
        }  # fmt: skip
        assert transport.server.open["freed"].holds == []

    with_ledger(transport, work)
    assert transport.server.events == ["settled"]
    assert settled.ends == ["written"], "it is not announced a second time"


def test_a_worker_without_requests_sends_again_when_it_is_told():
    """The register tells an idle worker that the server was replaced, and the ledger opens without a request."""
    transport = ScriptedTransport()

    async def work(ledger: RemoteRequestLedger) -> None:
        await reserve(ledger, "open")
        transport.server.restart(1)
        ledger.reassert()
        await asyncio.sleep(0.1)
        assert transport.server.is_open
        assert list(transport.server.open) == ["open"]

    with_ledger(transport, work)


def test_settlements_older_than_a_minute_are_not_sent_again():
    """They are on disk and on replicas by then, and memory is bounded."""
    transport = ScriptedTransport()

    async def work(ledger: RemoteRequestLedger) -> None:
        for name in ("old", "new"):
            await reserve(ledger, name)
            ledger.settle(Posted(name))
            await asyncio.sleep(KEPT_FOR - 1)
        transport.server.seen.clear()
        ledger.reassert()
        await asyncio.sleep(0.1)

    with_ledger(transport, work)
    assert transport.server.seen == ["Settle new"]


def test_reservations_wait_while_the_ledger_is_closed():
    """They are admitted as soon as it opens; at the deadline they fail, and later ones fail at once."""
    transport = ScriptedTransport()
    settled = Posted("settled", is_reserved=False)

    async def work(ledger: RemoteRequestLedger) -> None:
        transport.server.is_open = False
        waiting = asyncio.ensure_future(reserve(ledger, "waiting"))
        await asyncio.sleep(0.5)
        ledger.settle(settled)
        await asyncio.sleep(0.1)
        assert settled.ends == ["written"], "only reservations wait"
        transport.server.is_open = True
        assert (await waiting).admitted
        transport.server.is_open = False
        began = now()
        with pytest.raises(LedgerBusyError):
            await reserve(ledger, "refused")
        assert DEADLINE <= now() - began <= DEADLINE + 0.1
        began = now()
        with pytest.raises(LedgerBusyError):
            await reserve(ledger, "refused-too")
        assert now() - began < 0.1
        transport.server.is_open = True
        assert (await reserve(ledger, "admitted")).admitted

    with_ledger(transport, work)


def test_a_reservation_of_a_lost_worker_waits_for_its_new_name():
    """A worker that was declared dead joins again under another name, and its requests need not know that."""
    transport = ScriptedTransport()
    names = ["w"]

    async def run() -> None:
        ledger = RemoteRequestLedger(transport, "valkey://host", worker=lambda: names[0], reader=NO_READER)
        transport.server.members = {"w2"}
        waiting = asyncio.ensure_future(reserve(ledger, "a"))
        await asyncio.sleep(0.3)
        names[0] = "w2"
        await waiting
        assert transport.server.open["a"].worker == "w2"
        await ledger.close(1)

    run_virtually(run())


# ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_arrives_while_a_batch_is_under_way_goes_with_the_next():
    """Three calls carry a hundred reservations, in their order."""
    transport = ScriptedTransport()

    async def work(ledger: RemoteRequestLedger) -> None:
        first = asyncio.ensure_future(reserve(ledger, "first"))
        await asyncio.sleep(INSTANT)
        others = [asyncio.ensure_future(reserve(ledger, f"r{number}", number)) for number in range(99)]
        await asyncio.gather(first, *others)

    with_ledger(transport, work)
    assert [len(batch) for _, batch in transport.calls] == [1, 99]
    assert transport.server.seen == ["Reserve first", *(f"Reserve r{number}" for number in range(99))]


def test_batches_are_bounded_in_count_and_bytes():
    """A backlog is sent in parts; a verb larger than the bound goes alone."""
    transport = ScriptedTransport()
    sizes = [10] * (MOST_IN_BATCH + 1) + [MOST_BYTES_IN_BATCH * 2, 10] + [MOST_BYTES_IN_BATCH // 3] * 3
    posted = [Posted(f"r{number}", is_reserved=False, event="x" * size) for number, size in enumerate(sizes)]

    async def work(ledger: RemoteRequestLedger) -> None:
        for settlement in posted:
            ledger.settle(settlement)

    with_ledger(transport, work)
    assert [len(batch) for _, batch in transport.calls] == [MOST_IN_BATCH, 1, 1, 3, 1]
    assert [settlement.seq for settlement in posted] == list(range(1, len(sizes) + 1))


def test_a_reservation_stays_behind_the_release_of_its_id():
    """A request that reserves again does so after its first hold is freed, also if both are in one batch."""
    transport = ScriptedTransport()

    async def work(ledger: RemoteRequestLedger) -> None:
        await reserve(ledger, "a", 1)
        assert await ledger.release("a")
        assert (await reserve(ledger, "a", 2)).admitted
        ledger.settle(Posted("a"))

    with_ledger(transport, work)
    assert transport.server.seen == ["Reserve a", "Release a", "Reserve a", "Settle a"]
    assert [len(batch) for _, batch in transport.calls] == [1, 2, 1]
    assert transport.server.events == ["a"]


def test_a_settlement_without_a_known_reservation_is_recorded():
    """It comes to its own settlement, which learns that the reservation was unknown; later verbs wait behind it."""
    transport = ScriptedTransport()
    unknown, unheld, other = Posted("a"), Posted("b", is_reserved=False), Posted("c")

    async def work(ledger: RemoteRequestLedger) -> None:
        await reserve(ledger, "c")
        for settlement in (unknown, unheld, other):
            ledger.settle(settlement)
        await ledger.drain(1)
        assert unknown.ends == ["written"]

    with_ledger(transport, work)
    assert [settlement.was_unknown for settlement in (unknown, unheld, other)] == [True, False, False]
    assert transport.server.events == ["b", "c", "a"]


def test_a_settlement_that_comes_too_late_is_dropped():
    """Neither is it written nor given up: its request was settled before."""
    transport = ScriptedTransport()
    first, second = Posted("a"), Posted("a")

    async def work(ledger: RemoteRequestLedger) -> None:
        await reserve(ledger, "a")
        ledger.settle(first)
        ledger.settle(second)
        await ledger.drain(1)
        assert ledger.pending == 0

    with_ledger(transport, work)
    assert (first.ends, second.ends) == (["written"], [])


# ── requests that are cancelled ──────────────────────────────────────────────────────────────────────────────────────


def test_a_cancelled_request_shifts_no_answer_and_holds_nothing():
    """The others get their own answers, and the reservation without a settlement is abandoned."""
    transport = ScriptedTransport()

    async def work(ledger: RemoteRequestLedger) -> None:
        asked = [asyncio.ensure_future(reserve(ledger, f"r{number}", number)) for number in range(3)]
        await asyncio.sleep(INSTANT)
        asked[1].cancel()
        assert [one for one in await asyncio.gather(*asked, return_exceptions=True) if isinstance(one, Reserved)] == [
            Reserved(True, (Balance(0),)),
            Reserved(True, (Balance(2),)),
        ]

    with_ledger(transport, work)
    assert transport.server.open.keys() == {"r0", "r2"}
    assert transport.server.abandoned == {"r1"}


def test_a_request_that_is_cancelled_in_the_queue_is_not_sent():
    """Nothing has to be abandoned then."""
    transport = ScriptedTransport()

    async def work(ledger: RemoteRequestLedger) -> None:
        first = asyncio.ensure_future(reserve(ledger, "first"))
        await asyncio.sleep(INSTANT)
        queued = asyncio.ensure_future(reserve(ledger, "queued"))
        await asyncio.sleep(INSTANT)
        queued.cancel()
        await first

    with_ledger(transport, work)
    assert transport.server.seen == ["Reserve first"]


# ── a server that is away ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_short_failure_is_repaired_within_the_deadline():
    """A lost answer is asked for again; the verbs happen once."""
    transport = ScriptedTransport(LOSES_THE_ANSWER, LOSES_THE_ANSWER, WORKS, LOSES_THE_ANSWER, REFUSES, WORKS)
    settlement = Posted("a")

    async def work(ledger: RemoteRequestLedger) -> None:
        await reserve(ledger, "a")
        assert now() < DEADLINE / 2
        ledger.settle(settlement)

    with_ledger(transport, work)
    assert settlement.ends == ["written"]
    assert transport.server.events == ["a"]


@pytest.mark.parametrize("step", [HANGS, Step("hang", 1), Step("deaf", 0), REFUSES, LOSES_THE_ANSWER], ids=str)
def test_after_the_deadline_every_waiting_reservation_fails_at_once(step: Step):
    """Those that arrive later fail immediately, until an attempt succeeds."""
    transport = ScriptedTransport(then=step)

    async def work(ledger: RemoteRequestLedger) -> None:
        async def at(second: float) -> tuple[float, float]:
            await asyncio.sleep(second)
            return now(), await refused_at(ledger, f"at {second}")

        times = await asyncio.gather(*(at(second) for second in (0, 0.2, 0.9, 1.01, 1.7, 5)))
        assert max(ended for began, ended in times if began < DEADLINE) <= DEADLINE + INSTANT
        assert all(ended == began for began, ended in times if began > DEADLINE)
        transport.then = WORKS
        returned = now()
        while True:
            try:
                await reserve(ledger, "again")
                break
            except LedgerError:
                await asyncio.sleep(0.01)
        assert now() - returned < 2

    with_ledger(transport, work)
    # Nothing was sent that arrived while the server was away.
    assert not {"at 1.01", "at 1.7", "at 5"} & {verb.event_id for _, batch in transport.calls for verb in batch}


def test_attempts_follow_at_intervals_while_the_server_is_away():
    """Also if nothing waits, so that requests go on by themselves."""
    transport = ScriptedTransport(then=REFUSES)

    async def work(ledger: RemoteRequestLedger) -> None:
        failed = await refused_at(ledger, "a")
        await asyncio.sleep(5.25)
        times = [at for at, batch in transport.calls if at > failed + INSTANT]
        assert [later - earlier for earlier, later in itertools.pairwise(times)] == pytest.approx(
            [PROBE_INTERVAL] * (len(times) - 1)
        )
        assert len(times) >= 10
        assert all(batch == [] for at, batch in transport.calls if at > failed + INSTANT)
        transport.then = WORKS
        await asyncio.sleep(PROBE_INTERVAL + 0.01)
        assert (await reserve(ledger, "b")).admitted

    with_ledger(transport, work)


def test_settlements_wait_for_the_server_and_their_money_stays_held():
    """They are written in their order when it is back."""
    transport = ScriptedTransport(WORKS)
    settlements = [Posted(f"r{number}") for number in range(300)]

    async def work(ledger: RemoteRequestLedger) -> None:
        await asyncio.gather(*(reserve(ledger, settlement.event_id) for settlement in settlements[:100]))
        transport.then = HANGS
        for settlement in settlements[:100]:
            ledger.settle(settlement)
        await refused_at(ledger, "another")
        for settlement in settlements[100:]:
            ledger.settle(settlement)
        await ledger.drain(10)
        assert ledger.pending == 300
        assert len(transport.server.open) == 100
        transport.then = WORKS
        await ledger.drain(10)
        assert ledger.pending == 0

    with_ledger(transport, work)
    assert transport.server.events == [settlement.event_id for settlement in settlements]
    assert transport.server.open == {}


def test_reservations_that_were_never_sent_are_not_abandoned():
    """An outage with many requests must not fill the queue; the few that were sent are abandoned."""
    transport = ScriptedTransport(then=Step("hang", 1))

    async def work(ledger: RemoteRequestLedger) -> None:
        async def ask(number: int) -> None:
            with pytest.raises(LedgerError):
                await reserve(ledger, f"r{number}")
            ledger.abandon(f"r{number}")

        await asyncio.gather(*(ask(number) for number in range(50)))
        for number in range(50, 500):
            await ask(number)
        transport.then = WORKS

    with_ledger(transport, work)
    assert sum(seen.startswith("Abandon") for seen in transport.server.seen) == 50
    assert transport.server.open == {}


def test_a_call_that_cannot_be_cancelled_delays_nobody():
    """Requests are answered at the deadline; the next call begins after it has ended."""
    transport = ScriptedTransport(Step("deaf", 1))

    async def work(ledger: RemoteRequestLedger) -> None:
        assert await refused_at(ledger, "a") == pytest.approx(DEADLINE)
        ledger.abandon("a")
        await asyncio.sleep(2 * DEADLINE)
        assert (await reserve(ledger, "b")).admitted

    with_ledger(transport, work)
    assert transport.server.open.keys() == {"b"}


# ── bounds, errors, and the end ──────────────────────────────────────────────────────────────────────────────────────


def test_posted_verbs_are_bounded_in_count(monkeypatch: pytest.MonkeyPatch):
    """A settlement without room is given up at once, and a release says that it was not taken."""
    monkeypatch.setattr(posted_verbs, "MOST_PENDING", 5)
    transport = ScriptedTransport(then=REFUSES)
    settlements = [Posted(f"r{number}") for number in range(7)]

    async def work(ledger: RemoteRequestLedger) -> None:
        for settlement in settlements:
            ledger.settle(settlement)
        assert ledger.pending == 5
        assert not await ledger.release("another")
        ledger.free("another", [ANN])
        transport.then = WORKS
        await ledger.drain(5)
        assert await ledger.release("another")

    with_ledger(transport, work)
    assert [settlement.ends for settlement in settlements] == [["written"]] * 5 + [["given up"]] * 2


def test_posted_verbs_are_bounded_in_bytes():
    """Large events fill the bound sooner."""
    transport = ScriptedTransport(then=REFUSES)
    event = "x" * (posted_verbs.MOST_PENDING_BYTES // 4)
    settlements = [Posted(f"r{number}", event=event) for number in range(5)]

    async def work(ledger: RemoteRequestLedger) -> None:
        for settlement in settlements:
            ledger.settle(settlement)
        transport.then = WORKS

    with_ledger(transport, work)
    assert [settlement.ends for settlement in settlements] == [["written"]] * 3 + [["given up"]] * 2


def test_waiting_reservations_are_bounded(monkeypatch: pytest.MonkeyPatch):
    """One too many fails at once, and the others do not."""
    monkeypatch.setattr(remote_request_ledger, "MOST_WAITING", 3)

    async def work(ledger: RemoteRequestLedger) -> None:
        asked = [asyncio.ensure_future(reserve(ledger, f"r{number}")) for number in range(3)]
        await asyncio.sleep(INSTANT)
        with pytest.raises(LedgerError, match="3 requests wait"):
            await reserve(ledger, "another")
        assert [one.admitted for one in await asyncio.gather(*asked)] == [True] * 3

    with_ledger(ScriptedTransport(), work)


def test_a_verb_that_can_never_be_done_stops_no_other():
    """Its settlement is given up, and its reservation fails."""
    transport = ScriptedTransport()
    good, bad = Posted("good", is_reserved=False), Posted("bad", is_reserved=False, event="poison")

    async def work(ledger: RemoteRequestLedger) -> None:
        ledger.settle(bad)
        ledger.settle(good)
        with pytest.raises(LedgerError, match="not encodable"):
            await ledger.reserve("a", "w", 1, [], "poison")
        with pytest.raises(ReservationConflictError):
            await asyncio.gather(reserve(ledger, "b", 1), reserve(ledger, "b", 2))
        assert ledger.pending == 0

    with_ledger(transport, work)
    assert (good.ends, bad.ends) == (["written"], ["given up"])


def test_an_error_of_a_subscriber_takes_no_answer_of_others():
    """It is logged, and the settlement counts as written."""
    transport = ScriptedTransport()
    first, second = Posted("a", is_reserved=False), Posted("b", is_reserved=False)

    def fail() -> None:
        raise ValueError("a bug")

    first.then = fail

    async def work(ledger: RemoteRequestLedger) -> None:
        ledger.settle(first)
        ledger.settle(second)
        assert (await reserve(ledger, "c")).admitted
        assert ledger.pending == 0

    with_ledger(transport, work)
    assert (first.ends, second.ends) == (["written"], ["written"])


def test_a_settlement_can_be_withdrawn_until_it_is_sent():
    """One that was sent may be written, so it is retried; a server that refused the connection did nothing."""
    transport = ScriptedTransport(REFUSES, LOSES_THE_ANSWER)
    sent, queued = Posted("sent", is_reserved=False), Posted("queued", is_reserved=False)

    async def work(ledger: RemoteRequestLedger) -> None:
        ledger.settle(queued)
        await asyncio.sleep(0.003)
        assert len(transport.calls) == 1
        assert ledger.withdraw("queued")
        assert not ledger.withdraw("queued")
        ledger.settle(sent)
        await asyncio.sleep(0.025)
        assert len(transport.calls) >= 2
        assert not ledger.withdraw("sent")
        assert not ledger.withdraw("never posted")

    with_ledger(transport, work)
    assert (sent.ends, queued.ends) == (["written"], [])
    assert transport.server.events == ["sent"]


def test_draining_waits_for_earlier_posts_and_for_no_later_ones():
    """Under steady traffic it ends too."""
    transport = ScriptedTransport(then=Step(before=0.1, after=0.1))
    first = Posted("first", is_reserved=False)

    async def work(ledger: RemoteRequestLedger) -> None:
        async def post_steadily() -> None:
            for number in range(100):
                ledger.settle(Posted(f"r{number}", is_reserved=False))
                await asyncio.sleep(0.05)

        ledger.settle(first)
        posting = asyncio.ensure_future(post_steadily())
        await ledger.drain(60)
        assert first.ends == ["written"]
        assert now() == pytest.approx(0.2)
        await posting

    with_ledger(transport, work)


def test_closing_writes_what_is_posted():
    """Each kind of verb arrives before it ends, and nothing is taken afterwards."""
    transport = ScriptedTransport(LOSES_THE_ANSWER, then=Step(before=0.3))
    settlement, late = Posted("a", is_reserved=False), Posted("late")

    async def run() -> None:
        ledger = RemoteRequestLedger(transport, "valkey://host", worker=lambda: "w", reader=NO_READER)
        ledger.settle(settlement)
        ledger.free("b", [ANN])
        assert await ledger.release("c")
        await ledger.close(10)
        assert now() < 2
        ledger.settle(late)
        assert not await ledger.release("d")
        await refused_at(ledger, "e")

    run_virtually(run())
    assert (settlement.ends, late.ends) == (["written"], ["given up"])
    assert transport.server.freed == [("b", [ANN])] * 2, "its answer was lost once"
    assert transport.server.seen[-3:] == ["Record a", "Free b", "Release c"]


def test_closing_reports_what_is_left(caplog: pytest.LogCaptureFixture):
    """It keeps to its time; settlements are given up, and requests that wait are answered."""
    transport = ScriptedTransport(then=HANGS)
    settlement = Posted("a")

    async def run() -> None:
        ledger = RemoteRequestLedger(transport, "valkey://host", worker=lambda: "w", reader=NO_READER)
        ledger.settle(settlement)
        ledger.free("b", [ANN])
        waiting = asyncio.ensure_future(refused_at(ledger, "c"))
        await ledger.close(0.5)
        assert now() == pytest.approx(0.5)
        await waiting
        assert ledger.pending == 0

    run_virtually(run())
    assert settlement.ends == ["given up"]
    assert "event='ledger.verbs_left' verbs=2 settlements=1" in caplog.text
