"""Profiles, without a ledger."""

from __future__ import annotations

from usage_plugin.domain.profiles import UserProfile


def test_a_change_is_newer_than_what_it_changes() -> None:
    """A profile whose time is ahead of the clock can still be changed."""
    assert UserProfile("ann", updated_at=50).changed(10, tier="premium") == UserProfile(
        "ann", tier="premium", updated_at=51
    )
