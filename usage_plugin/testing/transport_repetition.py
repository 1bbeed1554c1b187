"""Promises about batches that are cut, delayed, cancelled and sent again: a part of `LedgerTransportContract`."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING

import pytest

from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.ledger import AccountKey, Balance, Charge, NotSettled, Reserved, Settled
from usage_plugin.domain.ledger_batch import Abandon, Free, Reassert, Record, Release, Reserve, Settle
from usage_plugin.errors import LedgerBusyError, LedgerError
from usage_plugin.testing.builders import ANN, END, TEAM, hold
from usage_plugin.testing.ledger_contents import contents_of_ledger
from usage_plugin.testing.shared_ledger_fixtures import PATIENCE, OpensSharedLedger, sent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from usage_plugin.domain.fleet import FleetRegister
    from usage_plugin.domain.ledger import Ledger
    from usage_plugin.domain.ledger_batch import Answer, LedgerTransport, Verb
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.testing.link import Link
    from usage_plugin.testing.openings import SharedLedgerOpening

WORKER, OTHER = "worker", "other worker"
_MINUTE = END // 1440
_LONGEST_STALL = 0.2
"""Seconds that the event loop may stand still: far less than any wait for a server, and enough for a busy machine."""

DRAFT = Reserve("a", WORKER, 5, [hold(ANN, 30, 100), hold(TEAM, 1, None)], "draft")
VERBS: dict[str, Verb] = {
    "reserve": DRAFT._replace(event_id="b"),
    "reserve without room": DRAFT._replace(event_id="b", holds=[hold(ANN, 71, 100)]),
    "settle": Settle("a", [Charge(ANN, END, 12), Charge(TEAM, END, 12)], "event", "key"),
    "settle without an event": Settle("a", [Charge(ANN, END, 12), Charge(TEAM, END, 1)], None, "key"),
    "settle a new account": Settle("a", [Charge(AccountKey(3, 0, "x"), END, 2)], "event", "key"),
    "settle what is unknown": Settle("never", [Charge(ANN, END, 12)], "event", "key"),
    "record": Record("new", [Charge(ANN, END, 12)], "event", "key"),
    "record what is reserved": Record("a", [Charge(ANN, END, 12), Charge(TEAM, END, 1)], "event", "key"),
    "release": Release("a"),
    "abandon": Abandon("a"),
    "abandon what is unknown": Abandon("never"),
    "free": Free("a", [TEAM]),
    "reassert": Reassert("lost", WORKER, 5, [hold(ANN, 90, 100)], "draft"),
    "reassert what is open": Reassert("a", OTHER, 5, [hold(ANN, 90, 100)], "draft"),
}
"""Each verb, on a ledger with the open reservation `DRAFT`."""


class TransportRepetition(OpensSharedLedger):
    """The promises for connections that are cut at any moment."""

    @pytest.fixture
    def ledger(self, opened: OpenLedger, register: FleetRegister) -> Ledger:
        """The core of a new ledger, of which two workers are members."""
        register.join(WORKER, "host", "{}")
        register.join(OTHER, "host", "{}")
        return opened.ledger

    @pytest.fixture
    async def transport(self, ledger: Ledger, linked: SharedLedgerOpening) -> AsyncIterator[LedgerTransport]:
        """The connection of a worker over the link, which has sent one batch."""
        del ledger
        async with connected(linked) as transport:
            yield transport

    @pytest.mark.parametrize("is_acted_on", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize("name", VERBS)
    async def test_a_verb_whose_answer_was_lost_can_be_sent_again(
        self,
        name: str,
        is_acted_on: bool,
        transport: LedgerTransport,
        link: Link,
        opened: OpenLedger,
        opening: SharedLedgerOpening,
    ) -> None:
        """Cut before or after the server acted, and sent again, each verb happens once, with the same answer."""
        plain = opening.another()
        verb = VERBS[name]
        with closing(plain.open()) as undisturbed:
            with closing(plain.register()) as register:
                for worker in (WORKER, OTHER):
                    register.join(worker, "host", "{}")
            async with connected(plain) as other:
                await other.send([DRAFT])
                (expected,) = await other.send([verb])
            await transport.send([DRAFT])
            link.cut_next(is_acted_on=is_acted_on)
            with pytest.raises(LedgerError) as raised:
                await transport.send([verb])
            if is_acted_on:
                assert not isinstance(raised.value, LedgerBusyError), "it says that nothing was done"
            for _ in range(2):
                assert _again(verb, *await sent(transport, verb)) == _again(verb, expected)
                assert contents_of_ledger(opened) == contents_of_ledger(undisturbed)

    async def test_a_settlement_is_known_by_its_key(self, transport: LedgerTransport, ledger: Ledger) -> None:
        """Sent again with its key it is answered again, also as a record; another settlement of the id is too late."""
        await transport.send([DRAFT])
        charges = [Charge(ANN, END, 12), Charge(TEAM, END, 2)]
        for verb in (Settle("a", charges, "event", "key"), Record("b", charges, "event", "key")):
            (first,) = await transport.send([verb])
            assert isinstance(first, Settled)
            for again in (Settle(*verb), Record(*verb)):
                assert await transport.send([again]) == [first]
                assert await transport.send([again._replace(key="other")]) == [NotSettled.BEFORE]
        assert [entry.seq for entry in ledger.outbox(0, 10)] == [1, 2]
        assert ledger.balances([ANN, TEAM]) == {ANN: Balance(24), TEAM: Balance(4)}

    async def test_a_settlement_keeps_its_number(self, transport: LedgerTransport, ledger: Ledger) -> None:
        """Sent again after others have settled, it has its number, and the present balances of charged accounts."""
        settle = Settle("a", [Charge(ANN, END, 12)], "event", "key")
        await transport.send([DRAFT])
        (first,) = await transport.send([settle])
        await transport.send([Record("b", [Charge(ANN, END, 5)], "event", "key")])
        assert isinstance(first, Settled)
        assert await transport.send([settle]) == [Settled(first.seq, {ANN: Balance(17)})]
        assert len(ledger.outbox(0, 10)) == 2

    async def test_an_id_that_ended_otherwise_is_not_settled(self, transport: LedgerTransport, ledger: Ledger) -> None:
        """A settlement of a reservation that was recovered, released or abandoned is too late, with any key."""
        await transport.send([DRAFT._replace(event_id=name, holds=[]) for name in ("a", "b", "c", "d")])
        assert ledger.recover("a")
        await transport.send([Release("b"), Abandon("c")])
        assert ledger.settle("d", [], "event")
        for name in ("a", "b", "c", "d"):
            assert await transport.send([Settle(name, [], "late", ""), Record(name, [], "late", "")]) == [
                NotSettled.BEFORE,
                NotSettled.BEFORE,
            ]
        assert len(ledger.outbox(0, 10)) == 2

    async def test_a_settlement_is_known_until_its_answer_has_arrived(
        self, transport: LedgerTransport, link: Link, ledger: Ledger
    ) -> None:
        """Of a worker's last batch, settlements are known for a day: a host may be cut off for hours."""
        ledger.maintain(END)
        await transport.send([DRAFT])
        verbs = (
            Settle("a", [Charge(ANN, END, 12), Charge(TEAM, END, 1)], "event", "1"),
            Record("b", [Charge(ANN, END, 3)], "event", "2"),
        )
        link.cut_next(is_acted_on=True)
        with pytest.raises(LedgerError):
            await transport.send(verbs)
        for half in (1, 2):
            for minutes in range((half - 1) * 720, half * 720, 8):
                ledger.maintain(END + minutes * _MINUTE)
            answers = await sent(transport, *verbs)
            assert answers == [
                Settled(1, {ANN: Balance(15), TEAM: Balance(1)}),
                Settled(2, {ANN: Balance(15)}),
            ], "they are known from now on, too"
        assert len(ledger.outbox(0, 10)) == 2

    async def test_a_recovered_id_is_known_for_a_day(self, transport: LedgerTransport, ledger: Ledger) -> None:
        """A host that was cut off for hours, and settles then, charges nothing that was recovered meanwhile."""
        ledger.maintain(END)
        await transport.send([DRAFT])
        assert ledger.recover("a")
        for minutes in range(0, 1440, 8):
            ledger.maintain(END + minutes * _MINUTE)
        settle = Settle("a", [Charge(ANN, END, 12)], "event", "1")
        assert await transport.send([settle, Record(*settle)]) == [NotSettled.BEFORE, NotSettled.BEFORE]
        assert ledger.balances([ANN]) == {ANN: Balance(30)}

    async def test_a_batch_that_arrives_late_changes_nothing(
        self, transport: LedgerTransport, link: Link, opened: OpenLedger
    ) -> None:
        """A batch that reaches the server after a later one of the same transport is rejected."""
        await transport.send([DRAFT])
        link.hold_next()
        late = asyncio.ensure_future(
            transport.send([DRAFT._replace(event_id="late"), Record("late record", [], "event", "1"), Release("a")])
        )
        await _held(link)
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
        assert await sent(transport, Record("b", [Charge(ANN, END, 1)], "event", "2")) == [
            Settled(1, {ANN: Balance(1, 30)})
        ]
        before = contents_of_ledger(opened)
        assert link.deliver(), "the server has answered"
        assert contents_of_ledger(opened) == before
        assert await transport.send([Record("c", [Charge(ANN, END, 1)], "event", "3")]) == [
            Settled(2, {ANN: Balance(2, 30)})
        ]

    async def test_a_late_answer_is_not_taken_for_a_later_one(self, transport: LedgerTransport, link: Link) -> None:
        """A cancelled batch ends at once, and the next one gets its own answer."""
        link.hold_next()
        cancelled = asyncio.ensure_future(transport.send([Record("a", [Charge(ANN, END, 1)], "event", "1")]))
        await _held(link)
        began = time.monotonic()
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert time.monotonic() - began < 1, "it waits for the server"
        assert await sent(transport, DRAFT) == [Reserved(True, (Balance(), Balance()))]
        assert await transport.send([]) == []

    async def test_a_silent_server_leaves_the_loop_free(
        self, transport: LedgerTransport, link: Link, linked: SharedLedgerOpening
    ) -> None:
        """While a server does not answer, neither a batch nor a connection stops the event loop."""
        async with stalls() as longest:
            link.hold_next()
            waiting = [asyncio.ensure_future(transport.send([DRAFT]))]
            await _held(link)
            link.hold_next()
            fresh = linked.transport(SystemClock())
            waiting.append(asyncio.ensure_future(fresh.send([])))
            await asyncio.sleep(3 * _LONGEST_STALL)
            for task in waiting:
                assert not task.done()
                task.cancel()
            await asyncio.wait(waiting)
            await fresh.close()
            await transport.close()
        assert longest() < _LONGEST_STALL

    async def test_a_server_that_is_not_there_did_nothing(
        self, ledger: Ledger, linked: SharedLedgerOpening, link: Link
    ) -> None:
        """Without a connection a batch is known not to be done."""
        del ledger
        transport = linked.transport(SystemClock())
        link.close()
        for _ in range(2):
            with pytest.raises(LedgerBusyError):
                await transport.send([DRAFT])
        await transport.close()


@asynccontextmanager
async def connected(opening: SharedLedgerOpening) -> AsyncIterator[LedgerTransport]:
    """Connect with an empty batch."""
    transport = opening.transport(SystemClock())
    assert await sent(transport) == []
    try:
        yield transport
    finally:
        await transport.close()


@asynccontextmanager
async def stalls() -> AsyncIterator[Callable[[], float]]:
    """Measure the longest time, in seconds, for which the event loop stood still."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        before = time.monotonic()
        while True:
            await asyncio.sleep(0.001)
            now = time.monotonic()
            longest = max(longest, now - before - 0.001)
            before = now

    ticking = asyncio.ensure_future(tick())
    try:
        yield lambda: longest
    finally:
        ticking.cancel()


def _again(verb: Verb, answer: Answer) -> Answer:
    """Return the part of an answer that a repetition has too: of a settlement, without accounts that it only freed."""
    if not isinstance(answer, Settled):
        return answer
    charged = {charge.account for charge in getattr(verb, "charges", ())}
    return Settled(answer.seq, {key: balance for key, balance in answer.balances.items() if key in charged})


async def _held(link: Link) -> None:
    deadline = time.monotonic() + PATIENCE
    while not link.is_holding:
        assert time.monotonic() < deadline, "no message came"
        await asyncio.sleep(0.005)
