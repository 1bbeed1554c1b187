"""The contract of stores can fail: each of its promises is broken on purpose, and noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.store.sabotaged import SABOTAGES
from tests.support.sabotage import Broken, assert_noticed, failures_in
from usage_plugin.testing.store_contract import StoreContract, promises
from usage_plugin.testing.store_deletion import StoreDeletion
from usage_plugin.testing.store_durability import Durability
from usage_plugin.testing.store_sums import StoreSums

BROKEN = sorted((contract, test) for test, contracts in SABOTAGES.items() for contract in contracts)


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[Broken, str]:
    return failures_in(Path(__file__).with_name("sabotaged.py"), BROKEN, tmp_path_factory.mktemp("sabotage"))


@pytest.mark.parametrize("broken", BROKEN, ids="-".join)
def test_a_broken_store_is_noticed(failures: dict[Broken, str], broken: Broken) -> None:
    """The promise that a store breaks fails."""
    assert_noticed(failures, broken)


def test_each_promise_can_be_broken() -> None:
    """There is no promise that nothing breaks."""
    assert set(SABOTAGES) == {
        promise for contract in (StoreContract, StoreSums, StoreDeletion, Durability) for promise in promises(contract)
    }
