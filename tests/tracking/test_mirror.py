"""A store that mirrors profiles and limits receives them, and later only the changed ones."""

from __future__ import annotations

from pathlib import Path
from zoneinfo import ZoneInfo

from usage_plugin.backends.memory import MemoryStore
from usage_plugin.config import LimitConfig
from usage_plugin.domain.profiles import UserProfile
from usage_plugin.ledgers.sqlite import open_sqlite_ledger
from usage_plugin.tracking.maintenance.mirror import Mirror


class CopyingStore(MemoryStore):
    """Keep the received profiles and limits."""

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
    """All are sent at first, then each changed profile, and the limits when they have changed."""
    opened = open_sqlite_ledger(tmp_path / "ledger.db")
    opened.profiles.put([UserProfile(f"user-{number:04d}") for number in range(600)])
    store, steps, limits = CopyingStore(), [], (limit("a"),)
    copies = Mirror(opened.profiles, store, lambda: limits, lambda: steps.append(1))
    await copies.bring_up_to_date()
    written = {"name": "a", "per": ["user"], "window": "day", "max_cost": "5.00"}
    assert store.calls[0] == [written]
    assert [len(call) for call in store.calls[1:]] == [500, 100]
    assert len(steps) == 3
    await copies.bring_up_to_date()
    assert len(store.calls) == 3
    opened.profiles.put([UserProfile("user-0001", updated_at=1)])
    limits = (limit("b"),)
    await copies.bring_up_to_date()
    assert store.calls[3:] == [[{**written, "name": "b"}], ["user-0001"]]
    opened.close()


async def test_a_store_without_the_ability_is_left_alone(tmp_path: Path) -> None:
    """A store that does not mirror profiles and limits receives none."""
    opened = open_sqlite_ledger(tmp_path / "ledger.db")
    steps: list[int] = []
    await Mirror(opened.profiles, MemoryStore(ZoneInfo("UTC")), tuple, lambda: steps.append(1)).bring_up_to_date()
    assert steps == []
    opened.close()
