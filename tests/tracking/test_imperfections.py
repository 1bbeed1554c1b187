"""What is not known exactly is counted: summed, bounded, and handed over once."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from usage_plugin.errors import LedgerBusyError
from usage_plugin.ledgers.sqlite.ledger import SqliteLedger
from usage_plugin.testing.clock import FakeClock
from usage_plugin.tracking.imperfections import LONGEST_NAME, MOST_CONCERNED, OTHERS, Imperfections

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    ledger = SqliteLedger(tmp_path / "ledger.db")
    yield ledger
    ledger.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def imperfections(ledger: SqliteLedger, clock: FakeClock) -> Imperfections:
    return Imperfections(ledger, clock)


def test_they_add_up(ledger: SqliteLedger, clock: FakeClock, imperfections: Imperfections) -> None:
    """Times and amounts add up by kind and concern, over several flushes, with the first and the last instant."""
    first = clock.now()
    imperfections.count("estimated", "gpt", 5)
    imperfections.count("estimated", "gpt", 7)
    imperfections.count("orphaned", None)
    imperfections.flush()
    clock.advance(timedelta(seconds=1))
    imperfections.count("estimated", "gpt", 1)
    imperfections.flush()
    imperfections.flush()
    found = {(row.kind, row.concerns): row for row in ledger.imperfections()}
    assert set(found) == {("estimated", "gpt"), ("orphaned", "")}
    estimated = found["estimated", "gpt"]
    assert (estimated.times, estimated.amount) == (3, 13)
    assert (estimated.first_at, estimated.last_at) == (first, first + 1_000_000)


def test_names_are_short_and_few(ledger: SqliteLedger, imperfections: Imperfections) -> None:
    """Clients choose some of the names: long ones are cut, and from the 501st of a kind on they are one."""
    imperfections.count("duplicate", "x" * 1000)
    for flushed in range(2):
        for number in range(MOST_CONCERNED):
            imperfections.count("unmetered", f"model-{flushed}-{number}")
        imperfections.flush()
    found = {(row.kind, row.concerns): row.times for row in ledger.imperfections()}
    assert found["duplicate", "x" * LONGEST_NAME] == 1
    assert found["unmetered", OTHERS] == MOST_CONCERNED
    assert len(found) == MOST_CONCERNED + 2


def test_a_busy_ledger_gets_them_later(
    ledger: SqliteLedger, imperfections: Imperfections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be handed over is kept for the next time."""
    imperfections.count("orphaned", "gpt")
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "count", _busy)
        imperfections.flush()
    assert ledger.imperfections() == []
    imperfections.flush()
    assert [row.times for row in ledger.imperfections()] == [1]


def _busy(_imperfections: object) -> None:
    raise LedgerBusyError
