"""With `migrate_from` a running proxy moves in by itself, and serves meanwhile."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tests.migration.conftest import House, OldTracker, limits_of, profile_of, record
from tests.support.waiting import eventually
from usage_plugin.config import load_config
from usage_plugin.domain.subjects import Subjects
from usage_plugin.migration.background import reported
from usage_plugin.runtime import Runtime


def state(runtime: Runtime) -> str | None:
    found = reported(runtime.operations)
    return found.state if found else None


@pytest.fixture
def moving(old: OldTracker, config_path: Path) -> Path:
    config_path.write_text("usage_plugin: {data_dir: data, migrate_from: old}\n")
    old.days({"ann": {"2026-01-01": record(3, 4.5)}})
    old.write("user_profiles.json", {"users": [profile_of("ann")]})
    old.write("spending_limits.json", {"limits": [limits_of("ann", daily_limit=7)]})
    return config_path


async def test_a_worker_that_keeps_moves_in_at_its_start(
    moving: Path, house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """History, profiles and limits are there by themselves, the log says so, and a second start does nothing more."""
    caplog.set_level(logging.INFO, logger="usage_plugin")
    runtime = Runtime(load_config(moving))
    try:
        assert runtime.limits.limits == ()
        await eventually(lambda: runtime.limits.limits)
        (matched,) = runtime.limits.matching(Subjects(user="ann"), "gpt", None)
        assert (matched.limit.name, matched.amount_at(0)) == ("migrated-daily", 7 * 10**9)
        await eventually(lambda: state(runtime) == "done")
        await eventually(lambda: "migration.done" in caplog.text)
        assert runtime.profiles.get("ann") is not None
    finally:
        await runtime.close()
    days = await asyncio.to_thread(house.days)
    assert days == {("ann", "2026-01-01", "gpt", "openai"): (3, 0, 30, 15, 0, 0, 0, 4_500_000_000)}
    assert "migration.started" in caplog.text
    assert "1 users, 1 days, 0 months, 3 requests, 4.50 USD, 1 profiles, 1 limits" in caplog.text
    caplog.clear()
    runtime = Runtime(load_config(moving))
    try:
        await eventually(lambda: runtime._migration is not None and runtime._migration._is_done)
        assert [limit.name for limit in runtime.limits.limits] == ["migrated-daily"]
        assert "migration.started" not in caplog.text
    finally:
        await runtime.close()


async def test_limits_count_what_moved_in(moving: Path, old: OldTracker) -> None:
    """A limit that counted before the history came counts it as soon as it is there."""
    moving.write_text(
        "usage_plugin:\n  data_dir: data\n  migrate_from: old\n"
        "  limits: [{name: yearly, per: user, window: year, max_cost: 100}]\n"
    )
    today = datetime.now(timezone.utc).date().isoformat()
    old.days({"ann": {today: record(3, 4.5), "2020-01-01": record(1, 50)}})
    runtime = Runtime(load_config(moving))
    try:
        key = runtime.limits.limits[0].key
        await eventually(lambda: any(one.key.subject == "ann" for one in runtime.ledger.accounts(key, 0)))
        (account,) = runtime.ledger.accounts(key, 0)
        assert account.balance.spent == 4_500_000_000
    finally:
        await runtime.close()


async def test_a_migration_that_fails_is_told_and_tried_again(moving: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log has the command's own words, requests go on, and the next try waits."""
    moving.write_text("usage_plugin: {data_dir: data, migrate_from: old, storage: {backend: memory}}\n")
    runtime = Runtime(load_config(moving))
    try:
        await eventually(lambda: "migration.failed" in caplog.text)
        assert "storage.backend is memory" in caplog.text
        assert "again_in_seconds=30" in caplog.text
        assert state(runtime) == "failed"
    finally:
        await runtime.close()


async def test_a_worker_that_ends_takes_the_migration_with_it(moving: Path, old: OldTracker) -> None:
    """Nothing goes on behind the proxy's back; the next start goes on."""
    old.days({f"user-{number}": {"2026-01-01": record()} for number in range(50_000)})
    runtime = Runtime(load_config(moving))
    await eventually(lambda: runtime._migration is not None and runtime._migration._process is not None)
    process = runtime._migration._process
    await runtime.close()
    assert process.poll() is not None


def test_the_command_line_moves_in(old: OldTracker, house: House, moving: Path, tmp_path: Path) -> None:
    """`migrate`, `profiles`, `profile`, `status` and `import`, as a person types them."""
    from click.testing import CliRunner  # noqa: PLC0415

    from usage_plugin.cli import main  # noqa: PLC0415

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, ["--config", str(moving), *arguments])
        assert result.exit_code == code, result.output
        return result.stdout

    old.months({"bo": {"2026-01": record(1, -1)}})
    plan = json.loads(run("migrate", str(old.directory), "--dry-run", "--format", "json"))
    assert (plan["dry_run"], plan["imported"], plan["rejected"], plan["totals"]["cost"]) == (True, 1, 1, "4.50")
    shown = run("migrate", str(old.directory))
    for words in (
        "(format 1): imported",
        "cost USD",
        "total_cost: found -1",
        "They are in force",
        "counts and sums match the imported data",
    ):
        assert words in shown
    assert "nothing to import; all data was imported before" in run("migrate", str(old.directory))
    assert "migration     done: " in run("status")
    assert json.loads(run("status", "--format", "json"))["migration"]["state"] == "done"
    (ann,) = json.loads(run("profiles", "--format", "json"))["profiles"]
    assert (ann["user"], ann["tier"], ann["email"]) == ("ann", "premium", "ann@example.org")
    run("profile", "bo", "--tier", "enterprise", "--username", "Bo", "--inactive")
    run("profile", "bo", "--email", "bo@example.org", "--username", "")
    (bo,) = json.loads(run("profiles", "--user", "bo", "--format", "json"))["profiles"]
    assert (bo["tier"], bo["email"], bo["username"], bo["is_active"]) == ("enterprise", "bo@example.org", None, False)
    assert bo["metadata"]["changed_by"]
    assert len(run("profiles", "--format", "jsonl").splitlines()) == 2
    assert "enterprise" in run("profiles")
    run("profile", "bo", code=2)
    run("profile", "bo", "--tier", " ", code=2)
    run("profiles", "--user", "nobody", code=1)
    broken = old.write("daily_usage.json", '{"eva": {"2026-01-01": {"total_requests": 1}')
    shown = run("migrate", str(old.directory), code=1)
    assert f"{broken.name} was not renamed" in shown
    assert "premature EOF" in shown
    assert "right here" not in shown
    export = tmp_path / "spend.jsonl"
    export.write_text(
        json.dumps({"request_id": "a", "startTime": "2026-01-02T00:00:00Z", "spend": 0.25, "user": "ann"})
    )
    assert json.loads(run("import", "litellm-spend-logs", str(export), "--format", "json"))["cost"] == "0.25"
    assert "already imported" in run("import", "litellm-spend-logs", str(export), "--before", "2026-01-03")
    (row,) = json.loads(run("report", "--month", "2026-01", "--user", "ann", "--format", "json"))["rows"]
    assert row["cost"] == "4.75"
