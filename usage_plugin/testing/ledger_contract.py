"""Promises of a ledger's core: one promise, one test, one sentence.

    class TestMyLedger(LedgerContract):
        backend = MyLedgerBackend()

The docstrings are the promises. They hold for every ledger; properties of one ledger are tested with that ledger. The
other parts have contracts of their own: `OperationsLogContract`, `ProfileStoreContract` and `ErasableContract`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from usage_plugin.domain.ledger import Account, AccountKey, Balance, Charge, Hold, NotSettled, OutboxEntry
from usage_plugin.errors import ReservationConflictError
from usage_plugin.testing.builders import ANN, END, TEAM, hold, record_new, settle_one, settle_open
from usage_plugin.testing.hostile_names import HostileNames
from usage_plugin.testing.ledger_durability import LedgerDurability

if TYPE_CHECKING:
    from usage_plugin.domain.ledger import Ledger
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.testing.openings import LedgerOpening


class LedgerContract(LedgerDurability, HostileNames):
    """The promises of accounts, reservations and the outbox."""

    @pytest.fixture
    def ledger(self, opened: OpenLedger) -> Ledger:
        """The core of a new ledger."""
        return opened.ledger

    # ── requests and records ─────────────────────────────────────────────────────────────────────────────────────────

    def test_looking_creates_nothing(self, opening: LedgerOpening) -> None:
        """Looking for a ledger does not create one."""
        assert not opening.exists()
        assert not opening.exists()
        opening.open().close()
        assert opening.exists()

    def test_a_reservation_holds_on_every_account(self, ledger: Ledger) -> None:
        """An admitted request is reserved on all its accounts, and gets the balances before it."""
        assert ledger.reserve("a", "w", 5, [hold(ANN, 30, 100), hold(TEAM, 30, None)], "e").admitted
        second = ledger.reserve("b", "w", 6, [hold(ANN, 70, 100)], "e")
        assert (second.admitted, second.balances) == (True, (Balance(0, 30),))
        assert ledger.balances([ANN, TEAM]) == {ANN: Balance(0, 100), TEAM: Balance(0, 30)}

    def test_a_reservation_is_all_or_nothing(self, ledger: Ledger) -> None:
        """If one account has no room, nothing is held on any account, and the balances say why."""
        ledger.reserve("a", "w", 5, [hold(TEAM, 80, 100)], "e")
        refused = ledger.reserve("b", "w", 6, [hold(ANN, 30, 100), hold(TEAM, 30, 100)], "e")
        assert (refused.admitted, refused.balances) == (False, (Balance(), Balance(0, 80)))
        assert ledger.balances([ANN, TEAM]) == {ANN: Balance(), TEAM: Balance(0, 80)}
        assert [reservation.event_id for reservation in ledger.open_reservations()] == ["a"]

    def test_what_needs_nothing_always_fits(self, ledger: Ledger) -> None:
        """A request that costs nothing is admitted on an account that is spent, or blocked with 0."""
        ledger.reserve("a", "w", 5, [hold(ANN, 100, 100)], "e")
        assert ledger.reserve("b", "w", 6, [hold(ANN, 0, 100)], "e").admitted
        assert ledger.reserve("c", "w", 7, [hold(TEAM, 0, 0)], "e").admitted
        assert not ledger.reserve("d", "w", 8, [hold(TEAM, 1, 0)], "e").admitted

    def test_settling_frees_charges_and_records_at_once(self, ledger: Ledger) -> None:
        """Settling replaces the holds by the charges, also on accounts without a hold."""
        ledger.reserve("a", "w", 5, [hold(ANN, 30, 100), hold(TEAM, 30, 100)], "draft")
        settled = settle_open(ledger, "a", [Charge(ANN, END, 12), Charge(AccountKey(3, 0, "x"), END, 12)], "event")
        assert settled.balances == {ANN: Balance(12, 0), TEAM: Balance(0, 0), AccountKey(3, 0, "x"): Balance(12, 0)}
        assert ledger.outbox(0, 10) == [OutboxEntry(settled.seq, "event")]
        assert ledger.open_reservations() == []

    def test_the_first_settlement_wins(self, ledger: Ledger) -> None:
        """Second settlements and unknown reservations have different answers, and neither changes anything."""
        ledger.reserve("a", "w", 5, [hold(ANN, 30, 100)], "draft")
        assert ledger.settle("a", [Charge(ANN, END, 12)], "first")
        assert ledger.settle("a", [Charge(ANN, END, 99)], "second") is NotSettled.BEFORE
        assert ledger.recover("a") is None
        assert ledger.settle("never", [Charge(ANN, END, 99)], "x") is NotSettled.UNKNOWN
        assert ledger.balances([ANN]) == {ANN: Balance(12, 0)}
        assert [entry.event for entry in ledger.outbox(0, 10)] == ["first"]

    def test_recovery_charges_what_the_holds_say(self, ledger: Ledger, opening: LedgerOpening) -> None:
        """Any worker can recover a dead worker's reservation: it is charged by its holds, with its own event."""
        ledger.reserve("a", "w", 5, [hold(ANN, 30, 100), Hold(TEAM, END, 7, None, if_lost=2)], "draft")
        other = opening.open().ledger
        recovered = other.recover("a")
        other.close()
        assert recovered is not None
        assert recovered.balances == {ANN: Balance(30, 0), TEAM: Balance(2, 0)}
        assert [entry.event for entry in ledger.outbox(0, 10)] == ["draft"]
        assert ledger.settle("a", [Charge(ANN, END, 99)], "too late") is NotSettled.BEFORE
        assert not ledger.release("a")
        assert ledger.balances([ANN]) == {ANN: Balance(30, 0)}

    def test_a_rolling_window_is_the_sum_of_its_buckets(self, ledger: Ledger) -> None:
        """A hold with `since` needs room in the sum of all buckets from there on, and is held on its own only."""
        old, first, second, other = (AccountKey(1, *at) for at in ((10, "ann"), (20, "ann"), (30, "ann"), (20, "bo")))
        for number, account in enumerate((old, first, other)):
            ledger.reserve(str(number), "w", 5, [hold(account, 40, None)], "e")
        ledger.settle("1", [Charge(first, END, 25)], "e")
        asked = Hold(second, END, 60, 100, if_lost=60, since=20)
        assert ledger.reserve("a", "w", 5, [asked._replace(amount=76)], "e")[:2] == (False, (Balance(25, 0),))
        assert ledger.reserve("b", "w", 5, [hold(TEAM, 1, 1), asked], "e")[:2] == (True, (Balance(), Balance(25, 0)))
        assert ledger.reserve("c", "w", 5, [asked._replace(amount=16)], "e")[:2] == (False, (Balance(25, 60),))
        assert ledger.balances([first, second]) == {first: Balance(25, 0), second: Balance(0, 60)}
        assert [account.key for account in ledger.accounts(1, 20, "ann")] == [first, second]
        assert [account.key for account in ledger.accounts(1, 20)] == [first, second, other]

    def test_a_refusal_brings_the_buckets_that_it_is_about(self, ledger: Ledger) -> None:
        """A refused reservation comes with the buckets of each rolling window without room, oldest first."""
        keys = [AccountKey(1, start, "ann") for start in (10, 20, 30)]
        for number, key in enumerate(keys):
            record_new(ledger, [Charge(key, END + number, 25)], "e")
        asked = Hold(keys[2], END, 1, 50, if_lost=1, since=20)
        fits = Hold(AccountKey(2, 30, "ann"), END, 1, 50, if_lost=1, since=20)
        refused = ledger.reserve("a", "w", 5, [asked, fits, hold(TEAM, 1, 1)], "e")
        assert not refused.admitted
        assert refused.buckets == {
            keys[2]: [Account(keys[1], END + 1, Balance(25, 0)), Account(keys[2], END + 2, Balance(25, 0))]
        }
        assert not ledger.reserve("b", "w", 5, [fits], "e").buckets

    def test_an_account_lasts_as_long_as_its_last_use_says(self, ledger: Ledger) -> None:
        """Each use of an account may put off its end, and none brings it forward."""
        for number, end in enumerate((100, 300, 200)):
            ledger.reserve(str(number), "w", 5, [Hold(ANN, end, 1, None, 1)], "e")
            assert ledger.accounts(1, 0, "ann")[0].window_end == max(100, min(number * 300, 300))
        ledger.settle("0", [Charge(ANN, 400, 1)], "e")
        assert ledger.accounts(1, 0, "ann")[0].window_end == 400

    def test_a_released_request_leaves_no_trace(self, ledger: Ledger) -> None:
        """A released reservation is freed, neither charged nor recorded, and cannot be settled any more."""
        ledger.reserve("a", "w", 5, [hold(ANN, 30, 100)], "draft")
        assert ledger.release("a")
        assert not ledger.release("a")
        assert ledger.settle("a", [], "event") is NotSettled.BEFORE
        assert ledger.balances([ANN]) == {ANN: Balance()}
        assert (ledger.outbox(0, 10), ledger.open_reservations()) == ([], [])

    def test_what_was_never_reserved_can_be_recorded(self, ledger: Ledger) -> None:
        """A request without a reservation is charged and recorded in one step."""
        recorded = record_new(ledger, [Charge(ANN, END, 3)], "event")
        assert recorded == (1, {ANN: Balance(3, 0)})
        assert ledger.outbox(0, 10) == [OutboxEntry(1, "event")]
        assert record_new(ledger, [], "next").seq == 2

    def test_an_unknown_reservation_can_be_recorded_once(self, ledger: Ledger, opening: LedgerOpening) -> None:
        """An event whose reservation is unknown is recorded under its id once, by any worker, and settled no more."""
        other = opening.open().ledger
        assert ledger.settle("a", [Charge(ANN, END, 3)], "event") is NotSettled.UNKNOWN
        assert ledger.record("a", [Charge(ANN, END, 3)], "event") == (1, {ANN: Balance(3, 0)})
        for worker in (ledger, other):
            assert worker.record("a", [Charge(ANN, END, 3)], "event") is None
            assert worker.settle("a", [Charge(ANN, END, 3)], "event") is NotSettled.BEFORE
        assert ledger.balances([ANN]) == {ANN: Balance(3, 0)}
        assert ledger.outbox(0, 10) == [OutboxEntry(1, "event")]
        other.close()

    def test_what_has_ended_is_known_for_a_while(self, ledger: Ledger, opening: LedgerOpening) -> None:
        """Every worker knows ended reservations for ten minutes, however they ended."""
        for name in ("settled", "without event", "released", "recovered", "abandoned"):
            ledger.reserve(name, "w", 5, [hold(ANN, 30, None)], "draft")
        assert ledger.settle("settled", [], "event")
        assert ledger.settle("without event", [], None)
        assert ledger.record("recorded", [], "event")
        assert ledger.release("released")
        assert ledger.recover("recovered")
        assert ledger.abandon("abandoned")
        ledger.acknowledge(3)
        minutes = END // 1440
        for now in (END, END + minutes, END + 9 * minutes):
            ledger.maintain(now)
        later = opening.open().ledger
        for name in ("settled", "without event", "recorded", "released", "recovered", "abandoned"):
            assert later.settle(name, [Charge(ANN, END, 1)], "again") is NotSettled.BEFORE
            assert later.record(name, [Charge(ANN, END, 1)], "again") is None
            assert not later.release(name)
            assert not later.abandon(name)
        later.close()
        assert ledger.balances([ANN]) == {ANN: Balance(30, 0)}

    def test_a_reservation_can_be_repeated(self, ledger: Ledger) -> None:
        """A repeated reservation gets the same answer as before, and holds nothing more."""
        ledger.reserve("before", "w", 5, [hold(ANN, 5, 100)], "e")
        first = ledger.reserve("a", "w", 5, [hold(ANN, 30, 100), hold(TEAM, 1, None)], "e")
        ledger.reserve("after", "w", 5, [hold(ANN, 50, 100)], "e")
        assert ledger.reserve("a", "w", 5, [hold(ANN, 30, 100), hold(TEAM, 1, None)], "e") == first
        assert first[:2] == (True, (Balance(0, 5), Balance()))
        assert ledger.balances([ANN, TEAM]) == {ANN: Balance(0, 85), TEAM: Balance(0, 1)}
        assert len(ledger.open_reservations()) == 3

    def test_what_was_abandoned_holds_nothing(self, ledger: Ledger, opening: LedgerOpening) -> None:
        """An abandoned reservation is freed, and holds nothing if it arrives later, in any worker."""
        other = opening.open().ledger
        ledger.reserve("a", "w", 5, [hold(ANN, 30, 100)], "draft")
        assert ledger.abandon("a")
        assert other.abandon("b")
        for name in ("a", "b"):
            assert ledger.reserve(name, "w", 5, [hold(ANN, 30, 100)], "draft")[:2] == (False, (Balance(),))
            assert not ledger.reserve(name, "w", 5, [], "draft").admitted
        assert ledger.balances([ANN]) == {ANN: Balance()}
        assert (ledger.outbox(0, 10), ledger.open_reservations()) == ([], [])
        assert ledger.reserve("c", "w", 5, [hold(ANN, 30, 100)], "draft").admitted
        other.close()

    def test_nothing_is_reserved_twice(self, ledger: Ledger) -> None:
        """Reserving other content under an open id is an error, and the open reservation stays as it was."""
        ledger.reserve("a", "w", 5, [hold(ANN, 30, 100)], "e")
        for holds, event in (([hold(ANN, 40, 100)], "e"), ([hold(ANN, 30, 100)], "other")):
            with pytest.raises(ReservationConflictError):
                ledger.reserve("a", "w", 5, holds, event)
        assert ledger.settle("a", [], "event")
        assert ledger.balances([ANN]) == {ANN: Balance()}

    def test_what_was_never_reserved_has_nothing_to_end(self, ledger: Ledger) -> None:
        """Releasing, freeing and recovering an unknown reservation changes nothing, and it can still be reserved."""
        ledger.reserve("other", "w", 5, [hold(ANN, 30, 100)], "e")
        ledger.release("a")
        ledger.free("a", [ANN])
        assert ledger.recover("a") is None
        assert ledger.balances([ANN]) == {ANN: Balance(0, 30)}
        assert ledger.outbox(0, 10) == []
        assert ledger.reserve("a", "w", 5, [hold(ANN, 20, 100)], "e").admitted
        assert ledger.settle("a", [Charge(ANN, END, 7)], "event")
        assert ledger.balances([ANN]) == {ANN: Balance(7, 30)}

    def test_a_request_without_limits_is_still_recorded(self, ledger: Ledger) -> None:
        """No account is needed for a reservation, nor for its settlement."""
        assert ledger.reserve("a", "w", 5, [], "draft").admitted
        assert ledger.settle("a", [], "event")

    def test_everything_survives_reopening(self, opening: LedgerOpening) -> None:
        """The effect of each verb is there when the ledger is opened again, and the writer is the same."""
        first = opening.open().ledger
        first.reserve("a", "w", 5, [hold(ANN, 30, 100)], "draft")
        first.reserve("b", "w", 6, [hold(ANN, 30, 100)], "draft")
        first.settle("a", [Charge(ANN, END, 12)], "event")
        first.close()
        second = opening.open().ledger
        assert second.writer == first.writer
        assert second.balances([ANN]) == {ANN: Balance(12, 30)}
        assert [r.event_id for r in second.open_reservations()] == ["b"]
        assert len(second.outbox(0, 10)) == 1
        second.close()

    def test_acknowledging_goes_forward_only(self, ledger: Ledger) -> None:
        """An older acknowledgement that arrives late changes nothing."""
        ledger.acknowledge(7)
        ledger.acknowledge(3)
        assert ledger.acknowledged() == 7

    def test_a_ledger_that_is_behind_goes_on_behind_the_store(self, ledger: Ledger) -> None:
        """Unacknowledged entries under numbers that the store has seen get new ones; no number comes twice."""
        old = [settle_one(ledger, name) for name in "abc"]
        ledger.acknowledge(1)
        ledger.agree(100)
        assert old == [1, 2, 3]
        waiting = ledger.outbox(ledger.acknowledged(), 10)
        assert [entry.event for entry in waiting] == ["b", "c"]
        assert min(entry.seq for entry in waiting) > 100 == ledger.acknowledged()
        assert settle_one(ledger, "d") > waiting[-1].seq

    def test_entries_with_new_numbers_follow_all_others(self, ledger: Ledger) -> None:
        """Entries that get new numbers keep their order, behind those whose numbers the store has not seen."""
        for name in "abcde":
            settle_one(ledger, name)
        ledger.acknowledge(1)
        ledger.agree(3)
        assert ledger.acknowledged() == 3
        assert ledger.outbox(3, 10) == [OutboxEntry(*one) for one in ((4, "d"), (5, "e"), (6, "b"), (7, "c"))]

    def test_an_empty_ledger_gives_no_number_that_the_store_has_seen(self, ledger: Ledger) -> None:
        """An empty ledger continues after the numbers that the store has seen, and the gap has no event."""
        ledger.agree(100)
        assert settle_one(ledger, "a") == 101
        assert ledger.outbox(0, 10) == [OutboxEntry(101, "a")]

    def test_a_store_that_is_behind_gets_again_what_is_still_there(self, ledger: Ledger) -> None:
        """After the store was restored from a backup, the entries that it lacks wait again."""
        for name in "abc":
            settle_one(ledger, name)
        ledger.acknowledge(3)
        ledger.agree(1)
        assert [entry.event for entry in ledger.outbox(ledger.acknowledged(), 10)] == ["b", "c"]

    def test_accounts_are_listed_by_subject(self, ledger: Ledger) -> None:
        """Reports list the accounts of one limit from a time on, and no others."""
        for limit_key, begin, subject in (
            (1, END, "zoe"),
            (1, 0, "zoe"),
            (1, END, "ann"),
            (1, -1, "old"),
            (2, 0, "bo"),
        ):
            record_new(ledger, [Charge(AccountKey(limit_key, begin, subject), END, 5)], "e")
        assert [account.key[1:] for account in ledger.accounts(1, 0)] == [(END, "ann"), (0, "zoe"), (END, "zoe")]

    def test_every_account_and_hold_is_listed(self, ledger: Ledger) -> None:
        """All accounts are listed once, also empty ones and over several pages, and the holds that are not freed."""
        charges = [
            Charge(AccountKey(limit_key, start, subject), END + start, amount)
            for limit_key, amount in ((0, 0), (1, 2**62), (2**63 - 1, -5))
            for start in (-END, 0, END)
            for subject in ("", "ann", "ann\x1fgpt", "Ann", "zoë")
        ]
        charges += [Charge(AccountKey(3, 0, f"user {number}"), END, number) for number in range(2_500)]
        assert ledger.correct("all", charges)
        ledger.reserve("a", "w", 5, [hold(ANN, 2**62, None)._replace(if_lost=7), hold(TEAM, 2, 10)], "draft")
        ledger.reserve("b", "w", 5, [], "draft")
        ledger.free("a", [TEAM])
        listed = list(ledger.every_account())
        expected = {key: Account(key, end, Balance(amount, 0)) for key, end, amount in charges}
        expected[TEAM] = Account(TEAM, END, Balance(0, 0))
        expected[ANN] = Account(ANN, END, Balance(2**62, 2**62))
        assert len(listed) == len(expected)
        assert {one.key: one for one in listed} == expected
        held = {one.event_id: list(one.holds) for one in ledger.open_reservations(with_holds=True)}
        assert held == {"a": [Hold(ANN, END, 2**62, None, 7)], "b": []}
        # No account of a valid ledger is below zero.
        assert ledger.correct("back", [charge._replace(amount=5) for charge in charges if charge.amount < 0])

    def test_a_snapshot_is_of_one_instant(self, ledger: Ledger) -> None:
        """Balances come with the number of the last event that they have counted."""
        assert ledger.snapshot([ANN]) == (0, {ANN: Balance()})
        settle_one(ledger, "a")
        ledger.reserve("held", "w", 5, [hold(ANN, 30, None)], "e")
        record_new(ledger, [Charge(ANN, END, 5)], "b")
        assert ledger.snapshot([ANN, TEAM]) == (2, {ANN: Balance(5, 30), TEAM: Balance()})
        ledger.acknowledge(2)
        record_new(ledger, [Charge(ANN, END, 1)], None)
        assert ledger.snapshot([ANN]) == (2, {ANN: Balance(6, 30)})
        assert ledger.snapshot([]) == (2, {})

    def test_a_correction_counts_once(self, ledger: Ledger, opening: LedgerOpening) -> None:
        """A correction adds a difference to an account's spend once; settlements in between and holds stay."""
        ledger.reserve("held", "w", 5, [hold(ANN, 30, None)], "e")
        record_new(ledger, [Charge(ANN, END, 5)], "a")
        _, balances = ledger.snapshot([ANN])
        other = opening.open().ledger
        record_new(other, [Charge(ANN, END, 1)], "meanwhile")
        differences = [Charge(ANN, END + 1, 17 - balances[ANN].spent), Charge(TEAM, END, 4)]
        assert ledger.correct("new limit", differences)
        assert not ledger.correct("new limit", differences)
        assert not other.correct("new limit", differences)
        assert ledger.balances([ANN, TEAM]) == {ANN: Balance(18, 30), TEAM: Balance(4, 0)}
        assert ledger.accounts(1, 0, "ann")[0].window_end == END + 1
        assert other.correct("again", [Charge(ANN, END, -8)])
        assert ledger.balances([ANN]) == {ANN: Balance(10, 30)}
        assert [entry.event for entry in ledger.outbox(0, 10)] == ["a", "meanwhile"]
        other.close()

    def test_closed_windows_go_and_open_ones_stay(self, ledger: Ledger) -> None:
        """Maintenance deletes accounts when more than a day has passed since their end, but never one with a hold."""
        accounts = {"old": (0, 1_000), "held": (0, 1_000), "open": (500, END * 10)}
        for subject, (begin, end) in accounts.items():
            ledger.reserve(subject, "w", 5, [Hold(AccountKey(1, begin, subject), end, 5, None, 5)], "e")
            if subject != "held":
                ledger.settle(subject, [], "event")
        for now in (END, END + 1_000):
            ledger.maintain(now)
            assert len(ledger.accounts(1, 0)) == 3, "no more than a day has passed"
        ledger.maintain(END + 1_001)
        assert [account.key.subject for account in ledger.accounts(1, 0)] == ["held", "open"]

    def test_what_was_freed_is_not_held(self, ledger: Ledger) -> None:
        """Holds that are freed early are available to others; the rest is settled as usual."""
        ledger.reserve("a", "w", 5, [hold(ANN, 30, 100), hold(TEAM, 1, None)], "draft")
        ledger.free("a", [TEAM])
        ledger.free("a", [TEAM])
        assert ledger.balances([ANN, TEAM]) == {ANN: Balance(0, 30), TEAM: Balance()}
        assert ledger.settle("a", [Charge(ANN, END, 7)], "event")
        ledger.free("a", [ANN])
        assert ledger.balances([ANN, TEAM]) == {ANN: Balance(7, 0), TEAM: Balance()}

    def test_what_was_freed_is_not_charged_when_the_worker_dies(self, ledger: Ledger) -> None:
        """Recovery charges only the holds that were not freed before."""
        ledger.reserve("a", "w", 5, [hold(ANN, 30, 100), hold(TEAM, 1, None)], "draft")
        ledger.free("a", [TEAM])
        assert ledger.recover("a")
        assert ledger.balances([ANN, TEAM]) == {ANN: Balance(30, 0), TEAM: Balance()}

    def test_names_are_taken_as_they_are(self, ledger: Ledger, hostile: tuple[str, ...]) -> None:
        """No subject is taken for another."""
        accounts = [AccountKey(1, 0, name) for name in hostile]
        for number, account in enumerate(accounts):
            assert ledger.reserve(
                account.subject, account.subject, 5, [hold(account, number, number)], "draft"
            ).admitted
        assert ledger.balances(accounts) == {account: Balance(0, number) for number, account in enumerate(accounts)}
        assert {account.key for account in ledger.accounts(1, 0)} == set(accounts)
        for number, account in enumerate(accounts):
            assert ledger.settle(account.subject, [Charge(account, END, number)], account.subject)
        assert [entry.event for entry in ledger.outbox(0, 1_000)] == list(hostile)

    def test_numbers_are_never_used_twice(self, opening: LedgerOpening) -> None:
        """Numbers ascend, also after everything was acknowledged, deleted and opened again."""
        seqs = []
        for number in range(5):
            ledger = opening.open().ledger
            seqs.append(settle_one(ledger, str(number)))
            ledger.acknowledge(seqs[-1])
            ledger.maintain(400 * END)
            ledger.close()
        assert seqs == [1, 2, 3, 4, 5]

    def test_what_waits_for_the_store_is_measured(self, ledger: Ledger) -> None:
        """The number of events that the store lacks is exact, and so is their size while they are few."""
        assert ledger.waiting() == (0, 0)
        for number in range(1, 11):
            record_new(ledger, [], "ä" * number)
        assert ledger.waiting() == (10, 110)
        ledger.acknowledge(4)
        assert ledger.waiting() == (6, 90)
        ledger.agree(100)
        assert ledger.waiting().events == 6
        ledger.agree(50)
        assert ledger.waiting().events == 6, "there is nothing between"
        ledger.acknowledge(106)
        assert ledger.waiting() == (0, 0)

    def test_an_event_may_be_left_out(self, ledger: Ledger) -> None:
        """A request can be charged without its event, under the number 0."""
        ledger.reserve("a", "w", 5, [hold(ANN, 30, 100)], "draft")
        assert ledger.settle("a", [Charge(ANN, END, 12)], None) == (0, {ANN: Balance(12, 0)})
        assert record_new(ledger, [Charge(ANN, END, 1)], None) == (0, {ANN: Balance(13, 0)})
        assert ledger.outbox(0, 10) == []
