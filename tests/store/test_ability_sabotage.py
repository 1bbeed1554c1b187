"""The contract of abilities can fail: each of its promises is broken on purpose, and noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.store.sabotaged_abilities import SABOTAGES
from tests.support.sabotage import Broken, assert_noticed, failures_in
from usage_plugin.backends.memory import MemoryBackend
from usage_plugin.backends.sqlite import SqliteBackend
from usage_plugin.testing import StoreContract
from usage_plugin.testing.store_abilities import StoreAbilities
from usage_plugin.testing.store_contract import promises

BROKEN = sorted((contract, test) for test, contracts in SABOTAGES.items() for contract in contracts)


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[Broken, str]:
    module = Path(__file__).with_name("sabotaged_abilities.py")
    return failures_in(module, BROKEN, tmp_path_factory.mktemp("sabotage"))


@pytest.mark.parametrize("broken", BROKEN, ids="-".join)
def test_a_broken_ability_is_noticed(failures: dict[Broken, str], broken: Broken) -> None:
    """The promise that a store breaks fails."""
    assert_noticed(failures, broken)


def test_each_promise_can_be_broken() -> None:
    """There is no promise that nothing breaks."""
    assert set(SABOTAGES) == set(promises(StoreAbilities))


def test_only_the_abilities_of_a_store_are_tested() -> None:
    """A store without an ability has no test of it, not even a skipped one."""

    class Without(StoreContract):
        backend = MemoryBackend()

    class With(StoreContract):
        backend = SqliteBackend()

    def tested(contract: type) -> set[str]:
        return {name for name in promises(StoreAbilities) if getattr(contract, name) is not None}

    assert tested(Without) == set()
    assert tested(With) == set(promises(StoreAbilities)) - {
        "test_profiles_come_back_by_user",
        "test_sent_records_make_an_equal_store",
        "test_sent_records_resume",
        "test_a_working_store_reports_no_trouble",
        "test_restoring_changes_no_record",
    }
