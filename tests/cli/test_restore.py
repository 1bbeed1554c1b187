from __future__ import annotations

import fcntl

import pytest

from tests.cli.conftest import CONFIG, MINUTE, Books, Commands
from usage_plugin.config import load_config
from usage_plugin.testing.builders import NOON


@pytest.fixture
def config_path(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.replace("data_dir: ./data", "data_dir: ./data\n  storage: {backend: hybrid}"))
    return path


@pytest.fixture
def filled(books):
    """Books with a hundred events of three users, flushed."""
    for number in range(100):
        books.add(user=f"user {number % 3}", started_at=NOON - number * MINUTE, cost=number)
    books.flush()
    return books


def reports(run):
    return [run.json("report", "--by", by) for by in ("user", "day", "model")] + [run.json("events", "--last", "200")]


def test_the_database_is_restored_from_the_files_alone(run, filled, config_path):
    """Reports are the same after the database was lost and restored, and the database has it all by itself."""
    before = reports(run)
    database = config_path.parent / "data" / "usage.db"
    database.unlink()
    done = run.json("restore")
    assert done == {
        "restored": True,
        "records": 100,
        "before": [
            {"part": "files", "requests": 100, "cost": "0.00000495"},
            {"part": "database", "requests": 0, "cost": "0.00"},
        ],
        "aside": str(next(config_path.parent.glob("data/usage.db.before-restore-*"))),
    }
    assert reports(run) == before
    config_path.write_text(CONFIG)
    assert reports(run) == before, "read from the database alone"


def test_the_old_database_is_kept(run, filled, config_path):
    """The old database, damaged or not, is moved aside and named."""
    database = config_path.parent / "data" / "usage.db"
    database.write_bytes(b"not a database\n" * 1_000)
    told = run.ok("restore")
    (kept,) = config_path.parent.glob("data/usage.db.before-restore-*")
    assert kept.read_bytes().startswith(b"not a database")
    assert str(kept) in told
    assert "The files have 100 events and sums; the database was rebuilt from them." in told
    assert "missing" in told


def test_a_dry_run_changes_nothing(run, filled, config_path):
    """With --dry-run the files are read and nothing is changed."""
    folder = config_path.parent / "data"
    before = {path: path.stat().st_ino for path in folder.rglob("usage.db*")}
    done = run.json("restore", "--dry-run")
    assert (done["restored"], done["records"], done["aside"]) == (False, 100, None)
    assert "nothing was changed" in run.ok("restore", "--dry-run")
    assert {path: path.stat().st_ino for path in folder.rglob("usage.db*") if path in before} == before
    assert not list(folder.glob("*before-restore*"))


def test_nothing_is_restored_under_a_running_worker(run, filled, config_path):
    """While a worker writes to the store, restore fails with a message that has the remedy."""
    data = config_path.parent / "data"
    with (data / "hybrid.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = run("restore")
    assert refused.exit_code == 1
    assert "Stop the proxy first." in refused.stderr
    assert not list(data.glob("*before-restore*"))


def test_files_that_cannot_list_their_records_are_rejected(tmp_path, noon):
    """A part that lacks a required capability is named, with the remedy, and causes no crash."""
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG + "  storage: {backend: hybrid, options: {files: {backend: memory}}}\n")
    refused = Commands(path)("restore")
    assert refused.exit_code == 1
    assert (
        "storage.options.files.backend: expected a backend of files, such as partitioned; found memory.\nWrite partitioned"
        in refused.stderr
    )


def test_only_a_hybrid_store_can_be_restored(tmp_path, noon):
    """With another backend the command says which one it is for."""
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    books = Books(load_config(path))
    books.ledger.close()
    refused = Commands(path)("restore")
    assert refused.exit_code == 1
    assert "sqlite keeps only one copy" in refused.stderr
