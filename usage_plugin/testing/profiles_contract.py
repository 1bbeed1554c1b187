"""Promises of a ledger's profile store: one promise, one test, one sentence.

    class TestMyProfileStore(ProfileStoreContract):
        backend = MyLedgerBackend()

The docstrings are the promises. They hold for every ledger; properties of one ledger are tested with that ledger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from usage_plugin.domain.profiles import ProfileStore, UserProfile
from usage_plugin.testing.ledger_fixtures import OpensLedger

if TYPE_CHECKING:
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.testing.openings import LedgerOpening


class ProfileStoreContract(OpensLedger):
    """The promises of a profile store."""

    @pytest.fixture
    def profiles(self, opened: OpenLedger) -> ProfileStore:
        """The profile store of a new ledger."""
        return opened.profiles

    def test_a_profile_comes_back_as_it_was_put(self, profiles: ProfileStore, opening: LedgerOpening) -> None:
        """Every field of a profile survives, and others see it."""
        ann = UserProfile(
            "änn ☃", "Ann", "ann@example.org", "premium", False, {"a": [1, None]}, {"b": {"c": 1.5}}, 1, 2
        )
        profiles.put([ann])
        other = opening.open()
        assert other.profiles.get("änn ☃") == ann
        assert other.profiles.get("ann") is None
        other.close()

    def test_the_newest_profile_counts(self, profiles: ProfileStore) -> None:
        """Of two profiles of one user the newer counts, in any order of arrival."""
        for updated_at, tier in ((5, "free"), (4, "older"), (5, "same"), (7, "premium"), (6, "older")):
            profiles.put([UserProfile("ann", tier=tier, updated_at=updated_at)])
        assert profiles.get("ann") == UserProfile("ann", tier="premium", updated_at=7)

    def test_pages_give_each_profile_once(self, profiles: ProfileStore) -> None:
        """Profiles are listed by user, page after page."""
        names = [f"user-{number:02d}" for number in range(25)]
        profiles.put([UserProfile(name) for name in reversed(names)])
        found: list[str] = []
        while page := profiles.page(found[-1] if found else "", 10):
            found += [profile.user for profile in page]
        assert found == names

    def test_changes_can_be_followed(self, profiles: ProfileStore) -> None:
        """The version of profiles grows with each change and only then, and what changed since is listed once."""
        profiles.put([UserProfile(name, updated_at=1) for name in ("ann", "bo", "eva")])
        version = profiles.version()
        assert [profile.user for _, profile in profiles.changes(0, 10)] == ["ann", "bo", "eva"]
        assert profiles.changes(version, 10) == []
        profiles.put([UserProfile("bo", updated_at=1)])
        assert profiles.version() == version
        profiles.put([UserProfile("bo", updated_at=2), UserProfile("bo", updated_at=3)])
        assert [profile for _, profile in profiles.changes(version, 10)] == [UserProfile("bo", updated_at=3)]
        version = profiles.version()
        assert profiles.remove("ann")
        assert not profiles.remove("ann")
        assert profiles.version() == version + 1
        assert profiles.get("ann") is None
