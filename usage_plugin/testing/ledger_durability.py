"""Promises of a ledger for any order of operations, between processes and after faults: a part of `LedgerContract`."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from usage_plugin.domain.ledger import Balance, Charge, NotSettled
from usage_plugin.errors import LedgerError
from usage_plugin.testing.builders import ANN, END, TEAM, hold, record_new
from usage_plugin.testing.child_processes import (
    meeting,
    reports,
    reserve_in_a_child,
    serve_until_killed,
    spend_in_a_child,
    start,
)
from usage_plugin.testing.faults import growing
from usage_plugin.testing.ledger_fixtures import OpensLedger
from usage_plugin.testing.ledger_machine import LedgerMachine

if TYPE_CHECKING:
    from usage_plugin.testing.faults import Faults
    from usage_plugin.testing.openings import LedgerOpening


class LedgerDurability(OpensLedger):
    """The promises for any order of operations, and after any fault."""

    def test_whatever_is_done_in_whatever_order(self, opening: LedgerOpening) -> None:
        """After any verbs in any order, by two workers, the ledger equals a plain model, and limits held."""

        class Machine(LedgerMachine):
            def __init__(self) -> None:
                super().__init__(opening.another())

        run_state_machine_as_test(
            Machine,
            settings=settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True, database=None),
        )

    def test_a_hundred_ask_and_five_are_admitted(self, opening: LedgerOpening) -> None:
        """Of a hundred concurrent reservations against room for five, exactly five are admitted."""
        others = meeting(4)
        children = [start(reserve_in_a_child, opening, worker, 25, others) for worker in range(4)]
        admitted = [name for child in children for name in reports(*child)]
        assert [process.exitcode for process, _ in children] == [0] * 4
        assert len(admitted) == 5
        ledger = opening.open().ledger
        assert sorted(reservation.event_id for reservation in ledger.open_reservations()) == sorted(admitted)
        assert ledger.balances([ANN]) == {ANN: Balance(0, 100)}
        assert ledger.verify() == []
        ledger.close()

    def test_processes_share_a_limit_exactly(self, opening: LedgerOpening) -> None:
        """Processes that start on a new ledger at once never pass a limit, use it up, and lose no event."""
        children = [start(spend_in_a_child, opening, worker) for worker in range(3)]
        settled = Counter(name for child in children for name in reports(*child))
        assert [process.exitcode for process, _ in children] == [0] * 3
        ledger = opening.open().ledger
        balance, events = ledger.balances([ANN])[ANN], ledger.outbox(0, 10_000)
        assert ledger.verify() == []
        ledger.close()
        assert balance == Balance(2 * len(events), 0)
        assert 500 - 3 * 5 < balance.spent <= 500
        assert Counter(entry.event for entry in events) == settled
        assert [entry.seq for entry in events] == list(range(1, len(events) + 1))

    def test_a_killed_process_loses_nothing(self, opening: LedgerOpening) -> None:
        """All settlements are there after SIGKILL at any instant; at most one reservation is left open."""
        told: list[int] = []
        for kill in range(1, 7):
            process, receiving = start(serve_until_killed, opening, kill * 1_000_000)
            assert receiving.poll(60)
            time.sleep(0.005 * kill)
            process.kill()
            told += reports(process, receiving)
            ledger = opening.open().ledger
            events = [entry.event for entry in ledger.outbox(0, 1_000_000)]
            assert {f"event-{number}" for number in told} <= set(events)
            assert len(events) == len(set(events)) <= len(told) + kill, "one may lack its report"
            left = ledger.open_reservations()
            assert len(left) <= 1
            assert ledger.verify() == []
            assert ledger.balances([ANN])[ANN] == Balance(2 * len(events), 5 * len(left))
            for reservation in left:
                assert ledger.release(reservation.event_id)
            ledger.close()

    def test_a_failing_call_leaves_all_or_nothing(self, opening: LedgerOpening, faults: Faults) -> None:
        """If any low-level call fails, LedgerError is raised, and the verb is done whole or not at all."""
        failed = 0
        for number in growing():
            ledger = opening.another().open().ledger
            with faults.at(number):
                try:
                    assert ledger.reserve("a", "w", 5, [hold(ANN, 30, 100), hold(TEAM, 2, None)], "draft").admitted
                    assert ledger.settle("a", [Charge(ANN, END, 12)], "event")
                    record_new(ledger, [Charge(ANN, END, 1)], "other")
                except LedgerError:
                    failed += 1
            assert ledger.verify() == []
            events = [entry.event for entry in ledger.outbox(0, 10)]
            held = {reservation.event_id for reservation in ledger.open_reservations()}
            assert (held, events) in ((set(), []), ({"a"}, []), (set(), ["event"]), (set(), ["event", "other"]))
            spent = 12 * ("event" in events) + ("other" in events)
            assert ledger.balances([ANN]) == {ANN: Balance(spent, 30 * len(held))}
            if not held and not events:
                assert ledger.reserve("a", "w", 5, [hold(ANN, 30, 100)], "draft").admitted
            if not events:
                assert ledger.settle("a", [Charge(ANN, END, 12)], "event")
            assert ledger.settle("a", [Charge(ANN, END, 12)], "again") is NotSettled.BEFORE
            assert ledger.balances([ANN])[ANN].reserved == 0
            ledger.close()
            if not faults.happened:
                break
        assert failed, "nothing failed: name what can fail in `fault_points`"
