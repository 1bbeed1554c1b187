"""Promises of the batches of a ledger on a server: one promise, one test, one sentence.

    class TestMyTransport(LedgerTransportContract):
        backend = MyLedgerBackend()

The docstrings are the promises. They hold for every ledger on a server. The verbs of a batch mean the same as those of
`Ledger`, whose promises `LedgerContract` has.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.ledger import Balance, Charge, NotSettled, OpenReservation, Reserved, Settled
from usage_plugin.domain.ledger_batch import (
    MOST_CLOCK_DIFFERENCE,
    Abandon,
    Free,
    Reassert,
    Record,
    Release,
    Reserve,
    Settle,
)
from usage_plugin.errors import (
    LedgerBusyError,
    LedgerError,
    LedgerReplacedError,
    ReservationConflictError,
    WorkerLostError,
)
from usage_plugin.testing.builders import ANN, END, TEAM, hold
from usage_plugin.testing.ledger_contents import contents_of_ledger
from usage_plugin.testing.shared_ledger_fixtures import ShiftedClock, sent
from usage_plugin.testing.transport_repetition import DRAFT, OTHER, WORKER, TransportRepetition, connected

if TYPE_CHECKING:
    from usage_plugin.domain.fleet import FleetRegister
    from usage_plugin.domain.ledger import Ledger
    from usage_plugin.domain.ledger_batch import Answer, LedgerTransport, Verb
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.testing.openings import SharedLedgerOpening
    from usage_plugin.testing.shared_ledger_fixtures import Replacing

_SECOND = 1_000_000
_SURROGATE = "\ud800"
"""Half a character, which no text in UTF-8 has."""
_TOO_LARGE = 2**70

IMPOSSIBLE: dict[str, Verb] = {
    "the id of a reservation": DRAFT._replace(event_id=_SURROGATE),
    "a worker": DRAFT._replace(worker=_SURROGATE),
    "a time": DRAFT._replace(started_at=_TOO_LARGE),
    "an amount": DRAFT._replace(holds=[hold(ANN, _TOO_LARGE, None)]),
    "a subject": DRAFT._replace(holds=[hold(ANN._replace(subject=_SURROGATE), 1, None)]),
    "a draft": DRAFT._replace(event=_SURROGATE),
    "an event": Settle("open", [], _SURROGATE, "key"),
    "a charge": Settle("open", [Charge(ANN, END, _TOO_LARGE)], "event", "key"),
    "a recorded event": Record("new", [], _SURROGATE, "key"),
    "the end of a window": Record("new", [Charge(ANN, _TOO_LARGE, 1)], "event", "key"),
    "a released id": Release(_SURROGATE),
    "an abandoned id": Abandon(_SURROGATE),
    "an account": Free("open", [ANN._replace(limit_key=_TOO_LARGE)]),
    "a reasserted amount": Reassert("new", WORKER, 5, [hold(ANN, _TOO_LARGE, None)], "draft"),
}
"""Verbs that a ledger on a server can never do, each with one part that is invalid."""


class LedgerTransportContract(TransportRepetition):
    """The promises of batches: their verbs, members, the clock, and other incarnations."""

    # ── verbs ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def test_the_verbs_of_a_batch_are_done_in_their_order(
        self, transport: LedgerTransport, ledger: Ledger
    ) -> None:
        """Each sees the effect of those before it, also on accounts and buckets that the batch creates."""
        bucket = ANN._replace(window_start=20)
        rolling = hold(bucket._replace(window_start=30), 60, 100)._replace(since=10)
        answers = await transport.send(
            [
                Reserve("a", WORKER, 5, [hold(ANN, 60, 100)], "draft"),
                Reserve("b", WORKER, 5, [hold(ANN, 60, 100)], "draft"),
                Free("a", [ANN]),
                Reserve("b", WORKER, 5, [hold(ANN, 60, 100)], "draft"),
                Release("b"),
                Reserve("b", WORKER, 5, [hold(ANN, 61, 100)], "draft"),
                Settle("b", [Charge(bucket, END, 50)], "event b", "1"),
                Settle("c", [], "event c", "2"),
                Record("c", [Charge(ANN, END, 3)], "event c", "2"),
                Reserve("d", WORKER, 5, [rolling], "draft"),
                Reserve("e", WORKER, 5, [rolling._replace(amount=50)], "draft"),
                Abandon("e"),
                Reserve("e", WORKER, 5, [rolling._replace(amount=50)], "draft"),
                Reassert("f", WORKER, 5, [hold(TEAM, 9, 1)], "draft"),
                Release("f"),
                Reserve("a", WORKER, 5, [], "other"),
            ]
        )
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
        refused = answers[9]
        assert isinstance(refused, Reserved)
        assert [account.key for accounts in refused.buckets.values() for account in accounts] == [bucket]
        assert [one.admitted for one in answers[9:13] if isinstance(one, Reserved)] == [False, True, False]
        assert answers[13:15] == [None, None]
        assert isinstance(answers[15], ReservationConflictError)
        assert [entry.event for entry in ledger.outbox(0, 10)] == ["event b", "event c"]
        assert [one.event_id for one in ledger.open_reservations()] == ["a"]
        assert ledger.balances([TEAM]) == {TEAM: Balance()}

    @pytest.mark.parametrize("name", IMPOSSIBLE)
    async def test_a_verb_that_can_never_be_done_stops_no_other(
        self, name: str, transport: LedgerTransport, ledger: Ledger
    ) -> None:
        """Its own answer is an error, and the verbs around it are done once, in their order."""
        await transport.send([Reserve("open", WORKER, 5, [hold(TEAM, 7, None)], "draft")])
        first = Record("first", [Charge(ANN, END, 1)], "first", "1")
        last = Record("last", [Charge(ANN, END, 1)], "last", "2")
        answers = await sent(transport, first, IMPOSSIBLE[name], last)
        assert [answers[0], answers[2]] == [Settled(1, {ANN: Balance(1)}), Settled(2, {ANN: Balance(2)})]
        assert type(answers[1]) is LedgerError
        assert [entry.event for entry in ledger.outbox(0, 10)] == ["first", "last"]
        assert ledger.balances([ANN, TEAM]) == {ANN: Balance(2), TEAM: Balance(0, 7)}
        assert await transport.send([Settle("open", [], "event", "3")]) == [Settled(3, {TEAM: Balance()})]

    async def test_large_amounts_are_exact(self, transport: LedgerTransport, ledger: Ledger) -> None:
        """Amounts up to 2^62 are compared and added to the last unit."""
        most = 2**62
        answers = await transport.send(
            [
                Reserve("a", WORKER, 5, [hold(ANN, most - 1, most)], "draft"),
                Reserve("b", WORKER, 5, [hold(ANN, 2, most)], "draft"),
                Reserve("c", WORKER, 5, [hold(ANN, 1, most)], "draft"),
                Reserve("d", WORKER, 5, [hold(ANN, 1, most)], "draft"),
                Settle("c", [Charge(TEAM, END, most - 3)], "event", "1"),
                Record("e", [Charge(TEAM, END, 3)], "event", "1"),
                Reassert("f", WORKER, 5, [hold(ANN, 1, 1)], "draft"),
            ]
        )
        assert answers == [
            Reserved(True, (Balance(),)),
            Reserved(False, (Balance(0, most - 1),)),
            Reserved(True, (Balance(0, most - 1),)),
            Reserved(False, (Balance(0, most),)),
            Settled(1, {ANN: Balance(0, most - 1), TEAM: Balance(most - 3)}),
            Settled(2, {TEAM: Balance(most)}),
            None,
        ]
        assert ledger.balances([ANN, TEAM]) == {ANN: Balance(0, most), TEAM: Balance(most)}

    # ── sending reservations again ───────────────────────────────────────────────────────────────────────────────────

    async def test_a_lost_reservation_is_held_again(self, transport: LedgerTransport, ledger: Ledger) -> None:
        """An id that the ledger does not know is held in full, also beyond the maximum, and is settled as any other."""
        await transport.send([Reserve("a", WORKER, 5, [hold(ANN, 80, 100)], "draft")])
        verb = Reassert("lost", WORKER, 6, [hold(ANN, 60, 100), hold(TEAM, 9, 0)], "lost draft")
        for _ in range(2):
            assert await transport.send([verb]) == [None]
            assert ledger.balances([ANN, TEAM]) == {ANN: Balance(0, 140), TEAM: Balance(0, 9)}
        assert OpenReservation("lost", WORKER, 6, "lost draft") in ledger.open_reservations()
        assert await transport.send([Settle("lost", [Charge(ANN, END, 1)], "event", "1")]) == [
            Settled(1, {ANN: Balance(1, 80), TEAM: Balance()})
        ]

    async def test_a_lost_reservation_can_be_recovered(self, transport: LedgerTransport, ledger: Ledger) -> None:
        """It is recovered as any other, with its own event and charges."""
        await transport.send([Reassert("lost", WORKER, 6, [hold(ANN, 60, 1)], "lost draft")])
        assert ledger.recover("lost") == (1, {ANN: Balance(60)})
        assert [entry.event for entry in ledger.outbox(0, 10)] == ["lost draft"]

    async def test_an_open_reservation_is_replaced(self, transport: LedgerTransport, ledger: Ledger) -> None:
        """For an open id, the worker, the holds and the event are replaced."""
        await transport.send([DRAFT, Free("a", [TEAM])])
        verb = Reassert("a", OTHER, DRAFT.started_at, [hold(ANN, 199, 100), hold(TEAM, 3, 1)], "other")
        for _ in range(2):
            assert await transport.send([verb]) == [None]
            assert ledger.open_reservations() == [OpenReservation("a", OTHER, DRAFT.started_at, "other")]
            assert ledger.balances([ANN, TEAM]) == {ANN: Balance(0, 199), TEAM: Balance(0, 3)}
        assert ledger.recover("a") == (1, {ANN: Balance(199), TEAM: Balance(3)})
        assert [entry.event for entry in ledger.outbox(0, 10)] == ["other"]

    async def test_a_released_reservation_is_held_again(self, transport: LedgerTransport, ledger: Ledger) -> None:
        """An id that was released is held again, as one that the ledger does not know."""
        await transport.send([DRAFT, Release("a")])
        assert await transport.send([Reassert("a", WORKER, 9, [hold(ANN, 99, 1)], "again")]) == [None]
        assert ledger.open_reservations() == [OpenReservation("a", WORKER, 9, "again")]
        assert ledger.balances([ANN, TEAM]) == {ANN: Balance(0, 99), TEAM: Balance()}

    async def test_an_ended_reservation_is_not_held_again(self, transport: LedgerTransport, opened: OpenLedger) -> None:
        """An id that has ended in another way than by a release changes nothing."""
        names = ("settled", "recorded", "abandoned", "recovered")
        await transport.send([DRAFT._replace(event_id=name, holds=[hold(ANN, 1, None)]) for name in names])
        await transport.send(
            [
                Settle("settled", [], "e", "1"),
                Record("recorded", [], "e", "1"),
                Abandon("abandoned"),
            ]
        )
        assert opened.ledger.recover("recovered")
        before = contents_of_ledger(opened)
        verbs = [Reassert(name, WORKER, 5, [hold(ANN, 9, None)], "draft") for name in names]
        assert await transport.send(verbs) == [None] * len(names)
        assert contents_of_ledger(opened) == before

    # ── members ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def test_only_members_hold(
        self, transport: LedgerTransport, register: FleetRegister, opened: OpenLedger
    ) -> None:
        """A worker that is not a member, or was buried, holds nothing; the other verbs of its batch are done."""
        await transport.send([DRAFT])
        (beats,) = (member.beats for member in register.view().members if member.name == WORKER)
        assert register.bury(WORKER, beats)
        before = contents_of_ledger(opened)
        for worker in (WORKER, "never"):
            for verb in (
                DRAFT._replace(event_id="b", worker=worker),
                DRAFT._replace(event_id="b", worker=worker, holds=[]),
                Reassert("b", worker, 5, [hold(ANN, 1, None)], "draft"),
                Reassert("a", worker, 5, [], "draft"),
            ):
                (answer,) = await transport.send([verb])
                assert isinstance(answer, WorkerLostError)
                assert contents_of_ledger(opened) == before
        answers = await transport.send(
            [
                Settle("a", [Charge(ANN, END, 2)], "event", "1"),
                DRAFT._replace(event_id="b"),
                DRAFT._replace(event_id="c", worker=OTHER),
            ]
        )
        assert answers[0] == Settled(1, {ANN: Balance(2), TEAM: Balance()})
        assert isinstance(answers[1], WorkerLostError)
        assert answers[2] == Reserved(True, (Balance(2), Balance()))

    async def test_nothing_is_held_after_a_burial(
        self, transport: LedgerTransport, register: FleetRegister, ledger: Ledger
    ) -> None:
        """However batches and a burial meet: what is held once the burial is answered is all that ever will be."""
        (beats,) = (member.beats for member in register.view().members if member.name == WORKER)
        answers: list[Answer] = []
        has_begun = asyncio.Event()

        async def reserve() -> None:
            number = 0
            while not answers or isinstance(answers[-1], Reserved):
                answers.extend(
                    await transport.send(
                        [DRAFT._replace(event_id=f"{number} {one}", holds=[hold(ANN, 1, None)]) for one in range(4)]
                    )
                )
                number += 1
                has_begun.set()

        reserving = asyncio.ensure_future(reserve())
        await has_begun.wait()
        assert await asyncio.to_thread(register.bury, WORKER, beats)
        held = ledger.open_reservations()
        await reserving
        assert ledger.open_reservations() == held
        assert sum(isinstance(answer, Reserved) for answer in answers) == len(held)
        assert all(isinstance(answer, Reserved | WorkerLostError) for answer in answers)

    # ── the clock ────────────────────────────────────────────────────────────────────────────────────────────────────

    @pytest.mark.parametrize("sign", [-1, 1], ids=["slow", "fast"])
    async def test_a_wrong_clock_holds_nothing(self, sign: int, ledger: Ledger, opening: SharedLedgerOpening) -> None:
        """With a time too far off the server's, reservations are errors and everything else is done."""
        transport = opening.transport(ShiftedClock(sign * (MOST_CLOCK_DIFFERENCE + 2 * _SECOND)))
        assert ledger.reserve("a", WORKER, 5, [hold(ANN, 30, 100)], "draft").admitted
        answers = await sent(
            transport,
            DRAFT._replace(event_id="b"),
            Settle("a", [Charge(ANN, END, 3)], "event", "1"),
            Record("c", [Charge(ANN, END, 3)], "event", "1"),
        )
        assert type(answers[0]) is LedgerError
        assert "clock" in f"{answers[0]}"
        assert answers[1:] == [Settled(1, {ANN: Balance(3)}), Settled(2, {ANN: Balance(6)})]
        assert ledger.open_reservations() == []
        await transport.close()

    @pytest.mark.parametrize("sign", [-1, 1], ids=["slow", "fast"])
    async def test_a_small_difference_of_clocks_is_admitted(
        self, sign: int, ledger: Ledger, opening: SharedLedgerOpening
    ) -> None:
        """A time that is a second off the server's is used as it is."""
        del ledger
        transport = opening.transport(ShiftedClock(sign * _SECOND))
        assert await sent(transport, DRAFT) == [Reserved(True, (Balance(), Balance()))]
        await transport.close()

    # ── another incarnation ──────────────────────────────────────────────────────────────────────────────────────────

    async def test_nothing_is_done_on_another_incarnation(
        self, transport: LedgerTransport, opened: OpenLedger, replaced: Replacing
    ) -> None:
        """After a restart every batch is rejected as a whole, an empty one too, until the incarnation is accepted."""
        await transport.send([DRAFT])
        before = contents_of_ledger(opened)
        replaced()
        verbs = (
            Settle("a", [], "event", "1"),
            DRAFT._replace(event_id="b"),
            Record("c", [], "event", "1"),
            Release("a"),
        )
        for batch in (verbs, (), verbs):
            with pytest.raises(LedgerReplacedError):
                await sent(transport, *batch)
            assert contents_of_ledger(opened) == before
        with pytest.raises(LedgerReplacedError):
            await transport.reasserted(WORKER)
        transport.accept()
        assert await transport.send([Settle("a", [], "event", "1")]) == [Settled(1, {ANN: Balance(), TEAM: Balance()})]

    async def test_a_closed_ledger_settles_and_reserves_later(
        self, transport: LedgerTransport, register: FleetRegister, ledger: Ledger, replaced: Replacing
    ) -> None:
        """Until all members have reasserted, reservations are busy and hold nothing, and all other verbs are done."""
        await transport.send([DRAFT])
        replaced()
        with pytest.raises(LedgerReplacedError):
            await sent(transport)
        transport.accept()
        answers = await transport.send(
            [
                DRAFT._replace(event_id="b"),
                Settle("a", [Charge(ANN, END, 3)], "event", "1"),
                Reassert("c", WORKER, 5, [hold(ANN, 200, 100)], "draft"),
                Record("d", [], "event", "1"),
            ]
        )
        assert isinstance(answers[0], LedgerBusyError)
        assert answers[1:] == [Settled(1, {ANN: Balance(3), TEAM: Balance()}), None, Settled(2, {})]
        await transport.reasserted(WORKER)
        assert [member.has_reasserted for member in register.view().members] == [False, True]
        assert isinstance((await transport.send([DRAFT._replace(event_id="b")]))[0], LedgerBusyError)
        assert [one.event_id for one in ledger.open_reservations()] == ["c"]
        await transport.reasserted(OTHER)
        assert register.view().is_open
        assert await transport.send([DRAFT._replace(event_id="b")]) == [Reserved(False, (Balance(3, 200), Balance()))]
        await transport.reasserted(WORKER)
        assert register.view().is_open

    @pytest.mark.parametrize("end", ["leaves", "is buried"])
    async def test_a_missing_member_that_ends_opens_the_ledger(
        self, end: str, transport: LedgerTransport, register: FleetRegister, replaced: Replacing
    ) -> None:
        """Members that leave or die do not keep a ledger closed that all others have reasserted to."""
        (beats,) = (member.beats for member in register.view().members if member.name == OTHER)
        replaced()
        with pytest.raises(LedgerReplacedError):
            await sent(transport)
        transport.accept()
        await transport.reasserted(WORKER)
        assert not register.view().is_open
        if end == "leaves":
            register.leave(OTHER)
        else:
            assert register.bury(OTHER, beats)
        assert await transport.send([DRAFT]) == [Reserved(True, (Balance(), Balance()))]

    async def test_only_members_reassert(self, transport: LedgerTransport, register: FleetRegister) -> None:
        """A worker that is not a member has nothing to reassert to."""
        for name in ("never", WORKER):
            register.leave(name)
            with pytest.raises(WorkerLostError):
                await transport.reasserted(name)

    async def test_each_incarnation_is_reasserted_to(
        self, transport: LedgerTransport, register: FleetRegister, replaced: Replacing
    ) -> None:
        """A second restart closes the ledger again, also for members that had reasserted to the first one."""
        for _ in range(2):
            replaced()
            with pytest.raises(LedgerReplacedError):
                await sent(transport)
            transport.accept()
            await transport.reasserted(WORKER)
            fleet = register.view()
            assert [member.has_reasserted for member in fleet.members] == [False, True]
            assert not fleet.is_open

    async def test_a_new_transport_uses_the_present_incarnation(
        self, transport: LedgerTransport, opening: SharedLedgerOpening, replaced: Replacing
    ) -> None:
        """A worker that starts after a restart has nothing to accept; it waits for the others nevertheless."""
        del transport
        replaced()
        fresh = opening.transport(SystemClock())
        (answer,) = await sent(fresh, DRAFT)
        assert isinstance(answer, LedgerBusyError)
        await fresh.close()

    async def test_transports_are_independent(
        self, transport: LedgerTransport, opening: SharedLedgerOpening, ledger: Ledger
    ) -> None:
        """The batches of two workers are numbered for each of them, and both see the same accounts."""
        async with connected(opening) as other:
            for number in range(3):
                await transport.send([Record(f"a {number}", [Charge(ANN, END, 1)], "event", "1")])
            assert await other.send([Record("b", [Charge(ANN, END, 1)], "event", "1")]) == [
                Settled(4, {ANN: Balance(4)})
            ]
        assert len(ledger.outbox(0, 10)) == 4
