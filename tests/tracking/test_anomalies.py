"""Anomalies are summed, bounded in number, and handed over once."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from usage_plugin.domain.operations import OperationsLog
from usage_plugin.errors import LedgerBusyError
from usage_plugin.ledgers.sqlite import open_sqlite_ledger
from usage_plugin.testing.clock import FakeClock
from usage_plugin.tracking.notifications.anomalies import LONGEST_NAME, MOST_CONCERNED, OTHERS, Anomalies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def operations(tmp_path: Path) -> Iterator[OperationsLog]:
    opened = open_sqlite_ledger(tmp_path / "ledger.db")
    yield opened.operations
    opened.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def anomalies(clock: FakeClock) -> Anomalies:
    return Anomalies(clock)


def test_they_add_up(operations: OperationsLog, clock: FakeClock, anomalies: Anomalies) -> None:
    """Times and amounts add up by kind and concern, over several calls, with the first and the last instant."""
    first = clock.now()
    anomalies.count("estimated", "gpt", 5)
    anomalies.count("estimated", "gpt", 7)
    anomalies.count("orphaned", None)
    anomalies.hand_over(operations)
    clock.advance(timedelta(seconds=1))
    anomalies.count("estimated", "gpt", 1)
    anomalies.hand_over(operations)
    anomalies.hand_over(operations)
    found = {(row.kind, row.concerns): row for row in operations.anomalies()}
    assert set(found) == {("estimated", "gpt"), ("orphaned", "")}
    estimated = found["estimated", "gpt"]
    assert (estimated.times, estimated.amount) == (3, 13)
    assert (estimated.first_at, estimated.last_at) == (first, first + 1_000_000)


def test_names_are_short_and_few(operations: OperationsLog, anomalies: Anomalies) -> None:
    """Clients choose some of the names: long ones are cut, and beyond 500 of a kind the rest is counted together."""
    anomalies.count("duplicate", "x" * 1000)
    for round_ in range(2):
        for number in range(MOST_CONCERNED):
            anomalies.count("unmetered", f"model-{round_}-{number}")
        anomalies.hand_over(operations)
    found = {(row.kind, row.concerns): row.times for row in operations.anomalies()}
    assert found["duplicate", "x" * LONGEST_NAME] == 1
    assert found["unmetered", OTHERS] == MOST_CONCERNED
    assert len(found) == MOST_CONCERNED + 2


def test_a_busy_ledger_gets_them_later(
    operations: OperationsLog, anomalies: Anomalies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts that could not be written are kept for the next call, and add up with later ones."""
    anomalies.count("orphaned", "gpt")
    with monkeypatch.context() as patch:
        patch.setattr(
            operations, "count_anomalies", lambda _: _fail_after(lambda: anomalies.count("orphaned", "gpt", 2))
        )
        with pytest.raises(LedgerBusyError):
            anomalies.hand_over(operations)
    assert operations.anomalies() == []
    anomalies.hand_over(operations)
    assert [(row.times, row.amount) for row in operations.anomalies()] == [(2, 2)]


def _fail_after(step: Callable[[], None]) -> None:
    step()
    raise LedgerBusyError
