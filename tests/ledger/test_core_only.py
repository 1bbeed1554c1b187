"""A ledger with a core of its own maintains and closes both files: the core's, and the one of the lent parts.

`examples/core_ledger` keeps the contract of the core; here are the lent parts, and the upkeep.
"""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from usage_plugin.domain.open_ledger import OpenLedger
from usage_plugin.domain.operations import RefusalCount
from usage_plugin.errors import LedgerBusyError, LedgerError
from usage_plugin.ledgers.sqlite import SqliteLedgerBackend, open_sqlite_ledger
from usage_plugin.ledgers.sqlite.file import LedgerFile
from usage_plugin.plugins.interface import BackendContext, NoOptions
from usage_plugin.testing import OperationsLogContract, ProfileStoreContract
from usage_plugin.testing.builders import settle_one

FILES = ("core.db", "ledger.db")


def open_both(folder: Path, *, has_file: bool = True) -> OpenLedger:
    """Open a core and its lender, both in SQLite."""
    core, lender = (open_sqlite_ledger(folder / name) for name in FILES)
    return lender.with_core(core.ledger, core.erasable, file=core.file if has_file else None)


class LendingBackend(SqliteLedgerBackend):
    """Opens both; it is pickled into other processes."""

    name = "lending"

    def open(self, options: NoOptions, context: BackendContext) -> OpenLedger:
        context.data_dir.mkdir(parents=True, exist_ok=True)
        return open_both(context.data_dir)


class TestLentOperationsLog(OperationsLogContract):
    backend = LendingBackend()


class TestLentProfileStore(ProfileStoreContract):
    backend = LendingBackend()


def rows_without_the_log(path: Path, table: str, folder: Path) -> int:
    """Count the rows of a table in a copy of the file alone, as it is on the disk without its write-ahead log."""
    copy = shutil.copy(path, folder / f"copy-of-{path.name}")
    connection = sqlite3.connect(copy)
    try:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    except sqlite3.OperationalError:  # not even the table is in the file yet
        return 0
    finally:
        connection.close()


def refuse(opened: OpenLedger, number: int) -> None:
    count = RefusalCount(number, "daily", f"ann-{number}", "spent", 1)
    opened.operations.count_refusals([count], [(f"REF-{number}", number, "{}")])


def test_the_logs_of_both_files_are_shortened(tmp_path: Path) -> None:
    """Settlements reach the core's file, and refusals the lender's."""
    opened = open_both(tmp_path)
    for number in range(200):
        settle_one(opened.ledger, str(number))
        refuse(opened, number)
    assert rows_without_the_log(tmp_path / "core.db", "outbox", tmp_path) == 0
    assert rows_without_the_log(tmp_path / "ledger.db", "refusal_counts", tmp_path) == 0
    assert opened.file is not None
    opened.file.shorten_log()
    assert rows_without_the_log(tmp_path / "core.db", "outbox", tmp_path) == 200
    assert rows_without_the_log(tmp_path / "ledger.db", "refusal_counts", tmp_path) == 200
    opened.close()


@pytest.mark.parametrize("name", FILES)
def test_the_replacement_of_either_file_is_noticed(tmp_path: Path, name: str) -> None:
    """The error has the name of the file."""
    opened = open_both(tmp_path)
    assert opened.file is not None
    opened.file.check_place()
    (tmp_path / name).rename(tmp_path / "elsewhere")
    with pytest.raises(LedgerError, match=name):
        opened.file.check_place()
    (tmp_path / name).touch()
    with pytest.raises(LedgerError, match=name):
        opened.file.check_place()
    opened.close()


def test_a_core_without_a_file_leaves_the_upkeep_of_the_lender(tmp_path: Path) -> None:
    """A core on a server has no file, and the lent parts still have theirs."""
    opened = open_both(tmp_path, has_file=False)
    refuse(opened, 1)
    assert opened.file is not None
    opened.file.shorten_log()
    assert rows_without_the_log(tmp_path / "ledger.db", "refusal_counts", tmp_path) == 1
    opened.close()


def test_a_busy_core_does_not_stop_the_upkeep_of_the_lender(tmp_path: Path) -> None:
    """Its error is raised after the others had their turn, so that the keeper tries again."""
    core, lender = (open_sqlite_ledger(tmp_path / name) for name in FILES)

    class Busy(LedgerFile):
        def shorten_log(self) -> None:
            raise LedgerBusyError

    busy = Busy(tmp_path / "core.db")
    opened = lender.with_core(core.ledger, core.erasable, file=busy)
    refuse(opened, 1)
    assert opened.file is not None
    with pytest.raises(LedgerBusyError):
        opened.file.shorten_log()
    assert rows_without_the_log(tmp_path / "ledger.db", "refusal_counts", tmp_path) == 1
    opened.close()
    busy.close()


def test_the_lender_is_closed_after_a_core_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that stays open would keep its log for ever."""
    opened = open_both(tmp_path)
    close = opened.ledger.close

    def fail() -> None:
        close()
        raise LedgerError("The core cannot be closed.")

    monkeypatch.setattr(opened.ledger, "close", fail)
    with pytest.raises(LedgerError, match="The core cannot be closed"):
        opened.close()
    with pytest.raises(LedgerError, match="closed database"):
        opened.operations.refusal("REF-1")
