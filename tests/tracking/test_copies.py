"""A store that keeps copies of profiles and limits has them, and only what has changed is handed over."""

from __future__ import annotations

from pathlib import Path
from zoneinfo import ZoneInfo

from usage_plugin.backends.memory import MemoryStore
from usage_plugin.config import LimitConfig
from usage_plugin.domain.profiles import UserProfile
from usage_plugin.ledgers.sqlite.ledger import SqliteLedger
from usage_plugin.tracking.copies import MirrorFiles


class CopyingStore(MemoryStore):
    """Keeps what it is handed."""

    def __init__(self):
        super().__init__(ZoneInfo("UTC"))
        self.calls = []

    async def keep_profiles(self, profiles):
        self.calls.append([profile.user for profile in profiles])

    async def profiles(self):
        for call in self.calls:
            yield call

    async def keep_limits(self, limits):
        self.calls.append(list(limits))


def limit(name: str) -> LimitConfig:
    return LimitConfig.model_validate({"name": name, "per": "user", "window": "day", "max_cost": "5"})


async def test_what_has_changed_is_handed_over_once(tmp_path: Path) -> None:
    """All at first; then a profile that was put, and the limits when they are others."""
    ledger = SqliteLedger(tmp_path / "ledger.db")
    ledger.put_profiles([UserProfile(f"user-{number:04d}") for number in range(600)])
    store, steps, limits = CopyingStore(), [], (limit("a"),)
    copies = MirrorFiles(ledger, store, lambda: limits, lambda: steps.append(1))
    await copies.bring_up_to_date()
    written = {"name": "a", "per": ["user"], "window": "day", "max_cost": "5.00"}
    assert store.calls[0] == [written]
    assert [len(call) for call in store.calls[1:]] == [500, 100]
    assert len(steps) == 3
    await copies.bring_up_to_date()
    assert len(store.calls) == 3
    ledger.put_profiles([UserProfile("user-0001", updated_at=1)])
    limits = (limit("b"),)
    await copies.bring_up_to_date()
    assert store.calls[3:] == [[{**written, "name": "b"}], ["user-0001"]]
    ledger.close()


async def test_a_store_without_the_ability_is_left_alone(tmp_path: Path) -> None:
    """It need not know that there are such things."""
    ledger = SqliteLedger(tmp_path / "ledger.db")
    steps: list[int] = []
    await MirrorFiles(ledger, MemoryStore(ZoneInfo("UTC")), tuple, lambda: steps.append(1)).bring_up_to_date()
    assert steps == []
    ledger.close()
