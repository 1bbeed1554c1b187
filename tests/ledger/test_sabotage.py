"""The contracts of a ledger's parts can fail: each promise has a ledger that breaks it, and its test detects that."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ledger.sabotaged import CONTRACTS, SABOTAGES
from tests.support.sabotage import Broken, assert_noticed, failures_in
from usage_plugin.testing import WorkersContract
from usage_plugin.testing.ledger_durability import LedgerDurability
from usage_plugin.testing.store_contract import promises

BROKEN = sorted((contract, test) for test, contracts in SABOTAGES.items() for contract in contracts)


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[Broken, str]:
    return failures_in(Path(__file__).with_name("sabotaged.py"), BROKEN, tmp_path_factory.mktemp("sabotage"))


@pytest.mark.parametrize("broken", BROKEN, ids="-".join)
def test_a_broken_ledger_is_noticed(failures: dict[Broken, str], broken: Broken) -> None:
    """The test of a promise fails for a ledger that breaks it."""
    assert_noticed(failures, broken)


def test_each_promise_can_be_broken() -> None:
    """Each promise has a ledger that breaks it."""
    assert set(SABOTAGES) == {
        promise
        for contract in (*CONTRACTS.values(), LedgerDurability, WorkersContract)
        for promise in promises(contract)
    }
