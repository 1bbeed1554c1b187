"""Profiles in the ledger: the newest counts, pages are whole, and changes can be followed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from usage_plugin.domain.profiles import UserProfile
from usage_plugin.ledgers.sqlite.ledger import SqliteLedger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[SqliteLedger]:
    opened = SqliteLedger(path)
    yield opened
    opened.close()


def test_a_profile_comes_back_as_it_was_put(ledger: SqliteLedger, path: Path) -> None:
    """Every field survives, also in another process's eyes."""
    ann = UserProfile("änn ☃", "Ann", "ann@example.org", "premium", False, {"a": [1, None]}, {"b": {"c": 1.5}}, 1, 2)
    ledger.put_profiles([ann])
    other = SqliteLedger(path)
    assert other.profile("änn ☃") == ann
    assert other.profile("ann") is None
    other.close()


def test_the_newest_profile_counts(ledger: SqliteLedger) -> None:
    """Whatever the order in which they come; one that is as old as what is there changes nothing."""
    for updated_at, tier in ((5, "free"), (4, "older"), (5, "same"), (7, "premium"), (6, "older")):
        ledger.put_profiles([UserProfile("ann", tier=tier, updated_at=updated_at)])
    assert ledger.profile("ann") == UserProfile("ann", tier="premium", updated_at=7)


def test_pages_give_each_profile_once(ledger: SqliteLedger) -> None:
    """Profiles are listed by user, page after page."""
    names = [f"user-{number:02d}" for number in range(25)]
    ledger.put_profiles([UserProfile(name) for name in reversed(names)])
    found: list[str] = []
    while page := ledger.profiles(found[-1] if found else "", 10):
        found += [profile.user for profile in page]
    assert found == names


def test_changes_can_be_followed(ledger: SqliteLedger) -> None:
    """The version grows with each change and only then, and what changed since is listed, each user once."""
    ledger.put_profiles([UserProfile(name, updated_at=1) for name in ("ann", "bo", "eva")])
    version = ledger.profiles_version()
    assert [profile.user for _, profile in ledger.changed_profiles(0, 10)] == ["ann", "bo", "eva"]
    assert ledger.changed_profiles(version, 10) == []
    ledger.put_profiles([UserProfile("bo", updated_at=1)])
    assert ledger.profiles_version() == version
    ledger.put_profiles([UserProfile("bo", updated_at=2), UserProfile("bo", updated_at=3)])
    assert [profile for _, profile in ledger.changed_profiles(version, 10)] == [UserProfile("bo", updated_at=3)]
    version = ledger.profiles_version()
    assert ledger.drop_profile("ann")
    assert not ledger.drop_profile("ann")
    assert ledger.profiles_version() == version + 1
    assert ledger.profile("ann") is None


def test_a_change_is_newer_than_what_it_changes() -> None:
    """A profile whose time is ahead of the clock can be changed all the same."""
    assert UserProfile("ann", updated_at=50).changed(10, tier="premium") == UserProfile(
        "ann", tier="premium", updated_at=51
    )
