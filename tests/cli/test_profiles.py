"""`usage-plugin profile` in every output format."""

from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize("kind", ["table", "json", "csv", "jsonl"])
def test_a_profile_is_shown_as_it_was_changed(run, kind):
    """`profile` and `profiles` show the same profile, in each format."""
    changed = run.ok("profile", "ann", "--email", "ann@example.com", "--tier", "gold", "--format", kind)
    assert changed == run.ok("profiles", "--user", "ann", "--format", kind)
    assert "ann@example.com" in changed
    if kind == "json":
        (shown,) = json.loads(changed)["profiles"]
        assert (shown["user"], shown["tier"], list(shown["metadata"])) == ("ann", "gold", ["changed_by"])
