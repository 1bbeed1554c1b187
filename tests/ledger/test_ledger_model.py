"""A Hypothesis state machine drives the ledger against a model of plain dicts."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from usage_plugin.domain.ledger import AccountKey, Charge, Hold
from usage_plugin.ledgers.sqlite.ledger import SqliteLedger

ACCOUNTS = [AccountKey(limit, start, subject) for limit in (1, 2) for start in (0, 100) for subject in ("ann", "bo")]
MAXIMUM = 50


class LedgerMachine(RuleBasedStateMachine):
    """Reserve, settle, recover and reopen in any order; the books must be the model's."""

    reservations = Bundle("reservations")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.db"
        self.ledger = SqliteLedger(self.path)
        self.spent = dict.fromkeys(ACCOUNTS, 0)
        self.open: dict[str, dict[AccountKey, int]] = {}
        self.events: list[str] = []
        self.number = 0
        self.abandoned: list[SqliteLedger] = []

    def reserved(self, account: AccountKey) -> int:
        return sum(holds.get(account, 0) for holds in self.open.values())

    @rule(
        target=reservations,
        holds=st.dictionaries(st.sampled_from(ACCOUNTS), st.integers(0, 30), max_size=4),
        enforced=st.booleans(),
    )
    def reserve(self, holds: dict[AccountKey, int], enforced: bool) -> str:
        self.number += 1
        event_id = f"r{self.number}"
        fits = not enforced or all(
            not amount or self.spent[account] + self.reserved(account) + amount <= MAXIMUM
            for account, amount in holds.items()
        )
        asked = [
            Hold(account, 1_000, amount, MAXIMUM if enforced else None, amount) for account, amount in holds.items()
        ]
        assert self.ledger.reserve(event_id, "w", self.number, asked, f"draft-{event_id}").admitted is fits
        if fits:
            self.open[event_id] = holds
        return event_id

    @rule(event_id=reservations, charges=st.dictionaries(st.sampled_from(ACCOUNTS), st.integers(0, 30), max_size=4))
    def settle(self, event_id: str, charges: dict[AccountKey, int]) -> None:
        settled = self.ledger.settle(event_id, [Charge(a, 1_000, n) for a, n in charges.items()], f"event-{event_id}")
        assert (settled is not None) is (event_id in self.open)
        if self.open.pop(event_id, None) is not None:
            self.events.append(f"event-{event_id}")
            for account, amount in charges.items():
                self.spent[account] += amount

    @rule(event_id=consumes(reservations))
    def recover(self, event_id: str) -> None:
        settled = self.ledger.recover(event_id)
        assert (settled is not None) is (event_id in self.open)
        for account, amount in self.open.pop(event_id, {}).items():
            self.spent[account] += amount
        if settled:
            self.events.append(f"draft-{event_id}")

    @rule()
    def reopen(self) -> None:
        self.ledger.close()
        self.ledger = SqliteLedger(self.path)

    @rule()
    def abandon_without_closing(self) -> None:
        self.abandoned.append(self.ledger)
        self.ledger = SqliteLedger(self.path)

    @rule()
    def tidy(self) -> None:
        self.ledger.tidy(500)

    @invariant()
    def the_books_agree(self) -> None:
        for account, balance in self.ledger.balances(ACCOUNTS).items():
            assert balance == (self.spent[account], self.reserved(account))
        assert {r.event_id for r in self.ledger.open_reservations()} == set(self.open)
        assert [entry.event for entry in self.ledger.outbox(0, 10_000)] == self.events

    def teardown(self) -> None:
        for ledger in (self.ledger, *self.abandoned):
            ledger.close()
        self.folder.cleanup()


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
