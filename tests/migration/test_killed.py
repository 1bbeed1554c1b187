"""A migration that is killed at any moment and repeated gives the result of one run."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.migration.conftest import House, OldTracker, limits_of, profile_of, record
from usage_plugin.migration.legacy_sources import STATE_FILE

USERS, DAYS = 200, 30


def fill(old: OldTracker) -> None:
    days = {
        f"user-{user}": {f"2026-01-{day + 1:02d}": record(user + day + 1, (user * 31 + day) / 7) for day in range(DAYS)}
        for user in range(USERS)
    }
    old.days(days)
    old.tree({f"user-{user}": {"2026-02-01": record(2, user)} for user in range(USERS)})
    old.months({f"user-{user}": {"2025-12": record(2, user / 3)} for user in range(USERS)})
    old.write("user_profiles.json", {"users": [profile_of(f"user-{user}") for user in range(USERS)]})
    old.write(
        "spending_limits.json", {"limits": [limits_of(f"user-{user}", daily_limit=user) for user in range(USERS)]}
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of one run."""
    folder = tmp_path_factory.mktemp("whole")
    old = OldTracker(folder / "old")
    fill(old)
    path = folder / "config.yaml"
    path.write_text("usage_plugin: {data_dir: data}\n")
    house = House(path)
    assert house.migrate(old.directory).imported == USERS * (DAYS + 2)
    return result_of(house)


def result_of(house: House) -> dict[str, Any]:
    lines = house.config.migrated_limits.read_text().splitlines()
    return {"days": house.days(), "profiles": house.profiles(), "limits": lines[1:]}


def start(house: House, old: OldTracker) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "usage_plugin.cli", "migrate", str(old.directory), "--config", str(house.path)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def stored(house: House) -> int:
    """How many sums the store has, seen from outside."""
    path = house.config.data_dir / "usage.db"
    if not path.exists():
        return 0
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("SELECT coalesce(max(seq), 0) FROM watermarks").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
    finally:
        connection.close()


def is_reading(house: House) -> bool:
    return bool(list((house.config.data_dir / "migration").glob("*.db")))


def is_importing(house: House) -> bool:
    return stored(house) > 0


def is_renaming(old: OldTracker) -> bool:
    return bool(list(old.directory.glob("*.legacy_backup")))


def test_killed_while_it_reads_imports_and_renames(old: OldTracker, house: House, whole: dict[str, Any]) -> None:
    """SIGKILL in each phase, one after the other; the final state equals that of one run."""
    fill(old)
    house.path.write_text("usage_plugin: {data_dir: data}\n")
    phases = [lambda: is_reading(house), lambda: is_importing(house), lambda: is_renaming(old)]
    killed = 0
    for is_reached in phases:
        process = start(house, old)
        while process.poll() is None:
            if is_reached():
                process.kill()
                break
            time.sleep(0.002)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed, "each run was over before it could be killed"
    last = start(house, old)
    _, errors = last.communicate(timeout=120)
    assert last.returncode == 0, errors
    assert result_of(house) == whole
    names = [path.name for path in old.directory.iterdir()]
    assert [name for name in names if not name.endswith(".legacy_backup")] == [STATE_FILE]


@pytest.mark.soak
def test_killed_again_and_again(old: OldTracker, house: House, whole: dict[str, Any]) -> None:
    """A little later each time, until a run gets through."""
    fill(old)
    house.path.write_text("usage_plugin: {data_dir: data}\n")
    seconds, killed = 0.3, 0
    while True:
        process = start(house, old)
        try:
            _, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
            seconds += 0.05
            continue
        assert process.returncode == 0, errors
        break
    assert killed
    assert result_of(house) == whole
