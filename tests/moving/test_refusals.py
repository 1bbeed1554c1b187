"""A move that would lose or mix something is refused with a remedy, and so is the use of a ledger that was moved."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from tests.moving.places import SECRET, Place, fill, live_until_killed, place
from tests.support.postgres import new_schema
from usage_plugin.cli import main
from usage_plugin.config import load_config
from usage_plugin.errors import LedgerMovedError
from usage_plugin.ledgers.workers.file_locked_workers import FileLockedWorkers
from usage_plugin.moving.mark import Mark, read_mark, write_mark
from usage_plugin.runtime import Runtime
from usage_plugin.testing.builders import NOON
from usage_plugin.testing.child_processes import PATIENCE, reports, start

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.postgres import PostgresServer

OTHER = "fedcba9876543210" * 4


@pytest.fixture
def old(tmp_path: Path) -> Place:
    """A place with records."""
    found = place(tmp_path / "old")
    fill(found, Random(3), 8)
    return found


@pytest.fixture
def new(tmp_path: Path) -> Place:
    """An empty place."""
    return place(tmp_path / "new")


def move(old: Place, new: Place, *arguments: str) -> dict[str, Any]:
    """Run the command, which must succeed, and return its JSON."""
    done = CliRunner().invoke(
        main, ["move-ledger", "--config", str(old.path), "--to", str(new.path), "--format", "json", *arguments]
    )
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def refusal(old: Place, new: Place, *arguments: str) -> str:
    """Run the command, which must fail, and return its message with the remedy."""
    done = CliRunner().invoke(main, ["move-ledger", "--config", str(old.path), "--to", str(new.path), *arguments])
    assert done.exit_code == 1, done.output
    assert not done.stdout
    assert SECRET not in done.stderr
    assert OTHER not in done.stderr
    return done.stderr


async def start_proxy(where: Place) -> None:
    """Start a worker as the proxy does."""
    Runtime(load_config(where.path))


def mark_of(where: Place) -> Mark | None:
    opened = where.parts.open_marked_ledger()
    try:
        return read_mark(opened.operations)
    finally:
        opened.close()


def test_a_dry_run_shows_the_records_and_changes_nothing(old: Place, new: Place) -> None:
    """The numbers are those of the old place, and the new one is not even created."""
    before = old.read()
    told = move(old, new, "--dry-run")
    assert (told["moved"], told["target"]) == (False, None)
    assert told["records"]["accounts"] == len(before["accounts"])
    assert told["records"]["events_in_the_outbox"] == before["waiting"]
    assert told["records"]["requests_in_the_history"] == sum(one.requests for one in before["sums"].values())
    assert not (new.path.parent / "data").exists()
    assert old.read() == before
    assert mark_of(old) is None


def test_a_repetition_finds_that_everything_was_moved(old: Place, new: Place) -> None:
    """The second run changes nothing, also when the new ledger was used meanwhile."""
    told = move(old, new)
    assert (told["moved"], told["moved_before"]) == (True, False)
    assert told["records"]["events_in_the_outbox"] == 0
    fill(new, Random(4), 4)
    before = new.read()
    assert move(old, new)["moved_before"]
    assert new.read() == before


def test_every_command_names_the_new_place(old: Place, new: Place) -> None:
    """With the old YAML each command ends with an error; so does a proxy at its start, and leaves no worker."""
    move(old, new)
    for command in (["status"], ["report"], ["adjustments"], ["profile", "ann", "--tier", "premium"]):
        done = CliRunner().invoke(main, ["--config", str(old.path), *command])
        assert done.exit_code == 1
        assert "was moved to" in done.stderr
        assert str(new.path) in done.stderr

    with pytest.raises(LedgerMovedError, match="was moved to"):
        asyncio.run(start_proxy(old))
    assert old.parts.workers().living() == []


def test_a_worker_that_starts_during_the_first_step_stops_again(
    old: Place, new: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mark that is set after a worker has opened the ledger, and before others see it, is noticed all the same."""
    join = FileLockedWorkers.join

    def join_late(self: FileLockedWorkers) -> None:
        opened = old.parts.open_ledger()
        write_mark(opened.operations, Mark("leaving", "w", "there", str(new.path), NOON))
        opened.close()
        join(self)

    monkeypatch.setattr(FileLockedWorkers, "join", join_late)

    with pytest.raises(LedgerMovedError, match="is being moved to there"):
        asyncio.run(start_proxy(old))
    assert old.parts.workers().living() == []


@pytest.mark.parametrize("side", ["old", "new"])
def test_nothing_is_moved_while_a_worker_lives(old: Place, new: Place, side: str) -> None:
    """A proxy on either side is named, and nothing stays marked."""
    used = {"old": old, "new": new}[side]
    workers = used.parts.workers()
    workers.join()
    told = refusal(old, new)
    assert workers.name in told
    assert str(used.path) in told
    assert "Stop the proxy" in told
    assert mark_of(old) is mark_of(new) is None
    workers.leave()
    assert move(old, new)["moved"]


def test_a_living_worker_of_another_host_stops_the_move_and_a_lost_one_delays_it(
    old: Place, tmp_path: Path, postgres: PostgresServer
) -> None:
    """A member of the fleet whose counter moves stops the move; a silent one is declared dead."""
    options = {"url": postgres.url, "schema": new_schema()}
    new = place(tmp_path / "new", "postgres", "postgres", options, lost_after="2s")
    elsewhere = place(tmp_path / "elsewhere", "postgres", "postgres", options, lost_after="2s")
    elsewhere.parts.open_ledger().close()
    process, receiving = start(live_until_killed, elsewhere.path)
    assert receiving.poll(PATIENCE)
    name = receiving.recv()
    assert name in refusal(old, new)
    assert mark_of(old) is None
    # As if its host were gone: another data folder has no file lock of it.
    process.kill()
    reports(process, receiving)
    assert move(old, new)["moved"]


def test_a_place_with_records_of_its_own_is_refused(old: Place, new: Place) -> None:
    """Neither its ledger nor its history is mixed with those of another place."""
    fill(new, Random(5), 4)
    before = new.read()
    assert "has records of its own" in refusal(old, new)
    assert new.read() == before
    (new.path.parent / "data" / "ledger.db").unlink()
    told = refusal(old, new)
    assert "has a history of its own" in told
    assert "Configure an empty storage" in told


def test_the_yaml_of_the_same_ledger_is_refused(old: Place) -> None:
    """A ledger is not moved onto itself."""
    assert "Both YAMLs name the same ledger" in refusal(old, old)


def test_another_secret_is_refused(old: Place, tmp_path: Path) -> None:
    """The error has both fingerprints and the remedy, and not the secret."""
    told = refusal(old, place(tmp_path / "new", secret=OTHER))
    assert "expected the secret with fingerprint" in told
    assert "found another one, with fingerprint" in told
    assert "Set it to the content of usage_plugin.privacy.secret" in told


def test_the_secret_of_a_data_folder_is_carried_over(tmp_path: Path) -> None:
    """The remedy names the file to copy; a configured secret with its content fits."""
    old, new = place(tmp_path / "old", secret=None), place(tmp_path / "new", secret=None)
    fill(old, Random(6), 4)
    told = refusal(old, new)
    secret = tmp_path / "old" / "data" / "secret"
    assert "found no secret" in told
    assert f"Copy the content of {secret} to the file {tmp_path / 'new' / 'data' / 'secret'}" in told
    assert move(old, place(tmp_path / "new", secret=secret.read_text().strip()))["moved"]


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("timezone", "Asia/Tokyo", "usage_plugin.timezone: expected Europe/Berlin"),
        ("storage", {"backend": "memory"}, "usage_plugin.storage.backend: memory"),
    ],
)
def test_places_that_do_not_fit_are_refused(old: Place, new: Place, key: str, value: object, error: str) -> None:
    """Another time zone would move events to other days, and memory loses them."""
    section = json.loads(new.path.read_text())["usage_plugin"]
    new.path.write_text(json.dumps({"usage_plugin": {**section, key: value}}))
    assert error in refusal(old, new)


def test_a_move_is_undone_until_the_new_ledger_is_used(old: Place, new: Place) -> None:
    """After `--undo` the old ledger works and the new one does not; a used new ledger must be moved back instead."""
    move(old, new)
    assert move(old, new, "--undo")["moved"] is False
    old.parts.open_ledger().close()
    with pytest.raises(LedgerMovedError, match="is not complete"):
        new.parts.open_ledger()
    assert "there is nothing to undo" in refusal(old, new, "--undo")
    fill(old, Random(8), 4)
    assert move(old, new)["moved"]
    assert new.read() == old.read()
    fill(new, Random(9), 4)
    told = refusal(old, new, "--undo")
    assert "was used since the move" in told
    assert f"--to {old.path}" in told
    with pytest.raises(LedgerMovedError):
        old.parts.open_ledger()


def test_a_ledger_is_moved_to_one_place_only(old: Place, new: Place, tmp_path: Path) -> None:
    """A third place gets nothing of a ledger that was moved, and an incomplete one cannot be moved."""
    third = place(tmp_path / "third")
    move(old, new)
    told = refusal(old, third)
    assert "it has been moved to" in told
    assert str(new.path) in told
    assert "was moved to" in refusal(old, third, "--undo")
    move(old, new, "--undo")
    assert "another move to it is not complete" in refusal(new, third)
    fill(third, Random(1), 2)
    assert "belongs to a move" in refusal(third, new)


def test_a_dry_run_cannot_be_undone(old: Place, new: Place) -> None:
    """The two options exclude each other."""
    arguments = ["move-ledger", "--config", str(old.path), "--to", str(new.path), "--undo", "--dry-run"]
    assert CliRunner().invoke(main, arguments).exit_code == 2


def test_people_read_a_table(old: Place, new: Place) -> None:
    """The table has the number of each kind of record, and the last line says what to start."""
    done = CliRunner().invoke(main, ["move-ledger", "--config", str(old.path), "--to", str(new.path)])
    assert done.exit_code == 0
    assert "open reservations" in done.stdout
    assert f"Both sides were compared, and are equal. Start the proxy with {new.path}." in done.stdout
