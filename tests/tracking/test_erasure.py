"""A person is forgotten while the keeper continues its work."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from zoneinfo import ZoneInfo

from usage_plugin.backends.partitioned.partitioned_store import PartitionedStore, open_store
from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.limit_set import LimitSet
from usage_plugin.domain.profiles import ProfileStore, UserProfile
from usage_plugin.ledgers.sqlite import open_sqlite_ledger
from usage_plugin.tracking.maintenance.flusher import Unstorable
from usage_plugin.tracking.maintenance.mirror import Mirror
from usage_plugin.tracking.privacy import erasure


class Beside(PartitionedStore):
    """A store that receives copies of all profiles from a keeper while a user is forgotten."""

    kept: ProfileStore

    async def forget(self, user: str, *, most: int) -> int:
        forgotten = await super().forget(user, most=most)
        await Mirror(self.kept, self, tuple, lambda: None).bring_up_to_date()
        return forgotten


async def test_no_copy_of_a_profile_comes_back(tmp_path: Path) -> None:
    """After a person is forgotten, no copy of the profile remains, even if one was sent meanwhile."""
    opened = open_sqlite_ledger(tmp_path / "ledger.db")
    opened.profiles.put([UserProfile("ann", email="ann@x"), UserProfile("bo")])
    async with open_store(tmp_path, ZoneInfo("UTC")) as store:
        store.__class__ = Beside
        store.kept = opened.profiles
        await Mirror(opened.profiles, store, tuple, lambda: None).bring_up_to_date()
        await erasure.forget(
            erasure.Person(frozenset({"ann"}), LimitSet(())),
            opened,
            store,
            Unstorable(tmp_path / "unstorable.jsonl", SystemClock()),
            now=0,
            open_windows=False,
            counts=Counter(),
            progress=lambda _kind, _count: None,
        )
        assert [profile.user async for profile in store.profiles()] == ["bo"]
    opened.close()
