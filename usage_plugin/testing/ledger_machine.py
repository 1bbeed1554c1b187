"""A Hypothesis state machine compares two workers on one ledger with a model of plain dicts.

Requests are reserved on a calendar window, a rolling one and a session. They are settled on the accounts they held and
on others, as if limits had changed since. Some are released, abandoned, or lost with their worker and recovered. Calls
are repeated, and made for unknown ids. Time passes, and amounts are adjusted.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from usage_plugin.domain.ledger import Account, AccountKey, Balance, Charge, Hold, NotSettled, Reserved, Settled
from usage_plugin.domain.operations import Adjustment
from usage_plugin.errors import ReservationConflictError

if TYPE_CHECKING:
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.testing.openings import LedgerOpening

DAY = 86_400_000_000
CALENDAR, ROLLING, SESSION, NEW = 1, 2, 3, 4
WINDOW, BUCKET = 100, 20
USUAL = 50
KNOWN = 600_000_000
WORKERS = st.sampled_from((0, 1))
SUBJECTS = st.sampled_from(("ann", "bo"))
AMOUNTS = st.integers(0, 30)
NUMBERS = st.integers(0, 10**6)
"""A number that selects an open or an ended request."""


class LedgerModel(NamedTuple):
    """The model's state of an account: its end and its spent amount."""

    end: int
    spent: int


def returned(holds: list[Hold]) -> list[Charge]:
    """Return charges of nothing: the end of a request makes the account of a hold of 0 again if it has been deleted."""
    return [Charge(hold.account, hold.window_end, 0) for hold in holds]


class LedgerMachine(RuleBasedStateMachine):
    """Run operations in any order; the ledger must equal the model."""

    def __init__(self, opening: LedgerOpening) -> None:
        super().__init__()
        self.opening = opening
        self.workers = [opening.open() for _ in range(2)]
        self.crashed: list[OpenLedger] = []
        self.now = 10 * DAY
        self.number = 0
        self.books: dict[AccountKey, LedgerModel] = {}
        self.open: dict[str, list[Hold]] = {}
        self.answers: dict[str, tuple[int, list[Any], Reserved]] = {}
        self.ended: dict[str, int] = {}
        self.abandoned: set[str] = set()
        self.events: list[str] = []
        self.acknowledged = 0
        self.adjustments: list[Adjustment] = []
        self.largest: defaultdict[tuple[int, str], int] = defaultdict(lambda: USUAL)
        self.overdrawn: set[tuple[int, str]] = set()
        """Limits and subjects that were charged more than was held."""

    # ── the model ────────────────────────────────────────────────────────────────────────────────────────────────────

    def reserved(self, account: AccountKey) -> int:
        return sum(hold.amount for holds in self.open.values() for hold in holds if hold.account == account)

    def total(self, limit_key: int, subject: str, since: int) -> int:
        return sum(
            books.spent + self.reserved(account)
            for account, books in self.books.items()
            if (account.limit_key, account.subject) == (limit_key, subject) and account.window_start >= since
        )

    def buckets(self, account: AccountKey, since: int) -> list[Account]:
        """Return the accounts of a rolling window, oldest first."""
        return [
            Account(key, books.end, Balance(books.spent, self.reserved(key)))
            for key, books in sorted(self.books.items())
            if key.limit_key == account.limit_key and key.subject == account.subject and key.window_start >= since
        ]

    def touch(self, account: AccountKey, end: int, amount: int = 0) -> None:
        books = self.books.get(account, LedgerModel(end, 0))
        self.books[account] = LedgerModel(max(books.end, end), books.spent + amount)

    def maximum(self, limit_key: int, subject: str) -> int:
        """Return the amount in force; the ledger provides the adjustments in force."""
        in_force = [
            adjustment
            for adjustment in self.workers[0].operations.adjustments(self.now)
            if (adjustment.limit, adjustment.subject) == (str(limit_key), subject)
        ]
        maximum = (in_force[-1].amount if in_force else None) or USUAL
        self.largest[limit_key, subject] = max(maximum, self.largest[limit_key, subject])
        return maximum

    def hold(self, limit_key: int, subject: str, amount: int, if_lost: int) -> Hold:
        maximum = self.maximum(limit_key, subject)
        if limit_key == ROLLING:
            start = self.now // BUCKET * BUCKET
            since = start + BUCKET - WINDOW
            return Hold(AccountKey(ROLLING, start, subject), start + WINDOW, amount, maximum, if_lost, since)
        start, end = 0, self.now + WINDOW
        if limit_key == CALENDAR:
            start = self.now // WINDOW * WINDOW
            end = start + WINDOW
        return Hold(AccountKey(limit_key, start, subject), end, amount, maximum, if_lost)

    def choose(self, number: int) -> str:
        known = [*self.open, *self.known_ended()]
        return known[number % len(known)]

    def known_ended(self) -> list[str]:
        """Return the last ended ids that the ledger must still know."""
        return [event_id for event_id, at in self.ended.items() if self.now - at < KNOWN][-3:]

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @rule(
        worker=WORKERS,
        subject=SUBJECTS,
        limits=st.lists(st.sampled_from((CALENDAR, ROLLING, SESSION)), unique=True),
        amount=AMOUNTS,
        share_lost=st.integers(0, 2),
    )
    def reserve(self, worker: int, subject: str, limits: list[int], amount: int, share_lost: int) -> None:
        self.number += 1
        event_id = f"r{self.number}"
        holds = [self.hold(limit_key, subject, amount, amount * share_lost // 2) for limit_key in limits]
        before = [
            self.total(hold.account.limit_key, subject, hold.account.window_start if hold.since is None else hold.since)
            for hold in holds
        ]
        fits = not amount or all(
            total + amount <= (hold.maximum or 0) for total, hold in zip(before, holds, strict=True)
        )
        content: list[Any] = [event_id, f"w{worker}", self.number, holds, f"draft-{event_id}"]
        answer = self.workers[worker].ledger.reserve(*content)
        assert answer.admitted is fits
        assert [sum(balance) for balance in answer.balances] == before
        assert answer.buckets == {
            hold.account: self.buckets(hold.account, hold.since)
            for hold, total in zip(holds, before, strict=True)
            if not fits and hold.since is not None and total + amount > (hold.maximum or 0)
        }
        if fits:
            self.open[event_id] = holds
            self.answers[event_id] = (worker, content, answer)
            for hold in holds:
                self.touch(hold.account, hold.window_end)

    @precondition(lambda self: self.open or self.known_ended())
    @rule(
        worker=WORKERS,
        number=NUMBERS,
        percent=st.sampled_from((0, 50, 100, 100, 130)),
        new_rule=st.booleans(),
    )
    def settle(self, worker: int, number: int, percent: int, new_rule: bool) -> None:
        event_id = self.choose(number)
        holds = self.open.pop(event_id, None)
        charges = [Charge(hold.account, hold.window_end, hold.amount * percent // 100) for hold in holds or ()]
        if new_rule:
            charges.append(Charge(AccountKey(NEW, 0, "ann"), self.now + WINDOW, 7))
        settled = self.workers[worker].ledger.settle(event_id, charges, f"event-{event_id}")
        assert (settled is NotSettled.BEFORE) is (holds is None)
        if isinstance(settled, Settled):
            self.end(event_id, charges, f"event-{event_id}")
            if percent > 100:
                self.overdrawn |= {(charge.account.limit_key, charge.account.subject) for charge in charges}
            for account, balance in settled.balances.items():
                assert balance == (self.books[account].spent, self.reserved(account))

    def end(self, event_id: str, charges: list[Charge], event: str | None) -> None:
        self.ended[event_id] = self.now
        for account, end, amount in charges:
            self.touch(account, end, amount)
        if event:
            self.events.append(event)

    @precondition(lambda self: self.open or self.known_ended())
    @rule(worker=WORKERS, number=NUMBERS)
    def release(self, worker: int, number: int) -> None:
        event_id = self.choose(number)
        holds = self.open.pop(event_id, None)
        assert self.workers[worker].ledger.release(event_id) is (holds is not None)
        if holds is not None:
            self.end(event_id, returned(holds), None)

    @precondition(lambda self: self.open or self.known_ended())
    @rule(worker=WORKERS, number=NUMBERS)
    def recover(self, worker: int, number: int) -> None:
        event_id = self.choose(number)
        holds = self.open.pop(event_id, None)
        recovered = self.workers[worker].ledger.recover(event_id)
        assert (recovered is None) is (holds is None)
        if holds is not None:
            charges = [Charge(hold.account, hold.window_end, hold.if_lost) for hold in holds]
            self.end(event_id, charges, f"draft-{event_id}")

    @precondition(lambda self: self.open.keys() & self.answers.keys())
    @rule(number=NUMBERS, changed=st.booleans())
    def reserve_again(self, number: int, changed: bool) -> None:
        known = sorted(self.open.keys() & self.answers.keys())
        worker, content, answer = self.answers[known[number % len(known)]]
        ledger = self.workers[worker].ledger
        if changed:
            with pytest.raises(ReservationConflictError):
                ledger.reserve(content[0], content[1], content[2], content[3], "other")
        else:
            assert ledger.reserve(*content) == answer

    @precondition(lambda self: self.open or self.known_ended())
    @rule(worker=WORKERS, number=NUMBERS, is_new=st.booleans())
    def abandon(self, worker: int, number: int, is_new: bool) -> None:
        self.number += 1
        event_id = f"r{self.number}" if is_new else self.choose(number)
        holds = self.open.pop(event_id, None)
        has_ended = event_id in self.ended
        assert self.workers[worker].ledger.abandon(event_id) is not has_ended
        if not has_ended:
            self.end(event_id, returned(holds or []), None)
            self.abandoned.add(event_id)

    @precondition(lambda self: self.abandoned)
    @rule(worker=WORKERS, number=NUMBERS)
    def reserve_too_late(self, worker: int, number: int) -> None:
        event_id = sorted(self.abandoned)[number % len(self.abandoned)]
        if self.now - self.ended[event_id] < DAY:
            holds = [self.hold(CALENDAR, "ann", 1, 1)]
            assert not self.workers[worker].ledger.reserve(event_id, "w", self.number, holds, "late").admitted

    @rule(worker=WORKERS, subject=SUBJECTS, amount=AMOUNTS, times=st.integers(1, 2))
    def record(self, worker: int, subject: str, amount: int, times: int) -> None:
        self.number += 1
        event_id = f"r{self.number}"
        charge = Charge(AccountKey(CALENDAR, self.now // WINDOW * WINDOW, subject), self.now + WINDOW, amount)
        assert self.workers[1 - worker].ledger.settle(event_id, [charge], "unknown") is NotSettled.UNKNOWN
        recorded = self.workers[worker].ledger.record(event_id, [charge], f"recorded-{self.number}")
        self.end(event_id, [charge], f"recorded-{self.number}")
        assert recorded is not None
        assert recorded.seq == len(self.events)
        self.overdrawn.add((CALENDAR, subject))
        for again in range(times):
            assert self.workers[again].ledger.record(event_id, [charge], "again") is None

    @rule(worker=WORKERS, subject=SUBJECTS, wanted=st.integers(0, 100))
    def backfill(self, worker: int, subject: str, wanted: int) -> None:
        """Correct the spent amount of an account while the other worker charges it."""
        self.number += 1
        account = AccountKey(NEW, 0, subject)
        seq, balances = self.workers[worker].ledger.snapshot([account])
        assert seq == len(self.events)
        spent = self.books[account].spent if account in self.books else 0
        assert balances == {account: Balance(spent, self.reserved(account))}
        charge = Charge(account, self.now + WINDOW, 3)
        self.workers[1 - worker].ledger.record(f"r{self.number}", [charge], f"meanwhile-{self.number}")
        self.end(f"r{self.number}", [charge], f"meanwhile-{self.number}")
        difference = Charge(account, self.now + WINDOW, wanted - spent)
        assert [one.ledger.correct(f"c{self.number}", [difference]) for one in self.workers] == [True, False]
        self.touch(difference.account, difference.window_end, difference.amount)
        assert self.books[account].spent == wanted + 3

    # ── all other operations ─────────────────────────────────────────────────────────────────────────────────────────

    @rule(passed=st.sampled_from((BUCKET, WINDOW - BUCKET, WINDOW)))
    def time_passes(self, passed: int) -> None:
        self.now += passed

    @rule(worker=WORKERS, passed=st.sampled_from((0, DAY, 2 * DAY)))
    def maintain(self, worker: int, passed: int) -> None:
        self.now += passed
        self.workers[worker].ledger.maintain(self.now)
        self.workers[worker].operations.maintain(self.now)
        closed = [
            account
            for account, books in self.books.items()
            if books.end < self.now - DAY and not self.reserved(account)
        ]
        for account in closed:
            del self.books[account]

    @rule(worker=WORKERS)
    def crash(self, worker: int) -> None:
        self.crashed.append(self.workers[worker])
        self.open_again(worker)

    @rule(worker=WORKERS)
    def restart(self, worker: int) -> None:
        self.workers[worker].close()
        self.open_again(worker)

    def open_again(self, worker: int) -> None:
        """A new process repeats no call of an earlier one."""
        self.workers[worker] = self.opening.open()
        self.answers = {event_id: sent for event_id, sent in self.answers.items() if sent[0] != worker}

    @rule(worker=WORKERS, limit=st.sampled_from((CALENDAR, ROLLING)), subject=SUBJECTS, amount=st.integers(1, 100))
    def adjust(self, worker: int, limit: int, subject: str, amount: int) -> None:
        until = self.now + WINDOW
        adjustment = Adjustment(0, str(limit), subject, amount, USUAL, self.now, until, "root", "because")
        self.adjustments.append(self.workers[worker].operations.adjust(adjustment))

    @precondition(lambda self: self.adjustments)
    @rule(worker=WORKERS)
    def end_adjustment(self, worker: int) -> None:
        last = self.adjustments[-1]
        in_force = last.ended_at is None and last.until > self.now
        assert self.workers[worker].operations.end_adjustment(last.number, self.now) is in_force
        if in_force:
            self.adjustments[-1] = last._replace(ended_at=self.now)

    @rule(worker=WORKERS, number=NUMBERS)
    def acknowledge(self, worker: int, number: int) -> None:
        self.acknowledged += number % (len(self.events) - self.acknowledged + 1)
        self.workers[worker].ledger.acknowledge(self.acknowledged)

    @rule(worker=WORKERS)
    def shorten_log(self, worker: int) -> None:
        file = self.workers[worker].file
        if file is not None:
            file.shorten_log()

    # ── invariants ───────────────────────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def the_books_agree(self) -> None:
        for ledger in [opened.ledger for opened in self.workers]:
            limit_keys = sorted({account.limit_key for account in self.books})
            accounts = [account for limit_key in limit_keys for account in ledger.accounts(limit_key, 0)]
            assert accounts == [
                Account(account, books.end, Balance(books.spent, self.reserved(account)))
                for account, books in sorted(self.books.items(), key=lambda item: (item[0][0], item[0][2], item[0][1]))
            ]
            assert {r.event_id for r in ledger.open_reservations()} == set(self.open)
        assert self.workers[0].ledger.verify() == []

    @invariant()
    def every_end_is_recorded_once(self) -> None:
        entries = self.workers[1].ledger.outbox(0, 10_000)
        assert [entry.seq for entry in entries] == list(range(1, len(self.events) + 1))
        assert [entry.event for entry in entries] == self.events
        waiting = self.events[self.acknowledged :]
        assert self.workers[0].ledger.waiting() == (len(waiting), sum(map(len, waiting)))

    @invariant()
    def limits_hold(self) -> None:
        since = {CALENDAR: self.now // WINDOW * WINDOW, ROLLING: self.now // BUCKET * BUCKET + BUCKET - WINDOW}
        for limit_key in (CALENDAR, ROLLING, SESSION):
            for subject in ("ann", "bo"):
                if (limit_key, subject) not in self.overdrawn:
                    total = self.total(limit_key, subject, since.get(limit_key, 0))
                    assert total <= self.largest[limit_key, subject]

    @invariant()
    def changes_of_amounts_are_kept(self) -> None:
        kept = self.workers[1].operations.adjustments()
        assert kept == self.adjustments[len(self.adjustments) - len(kept) :]

    def teardown(self) -> None:
        for opened in (*self.workers, *self.crashed):
            opened.close()
