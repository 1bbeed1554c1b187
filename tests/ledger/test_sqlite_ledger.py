"""Properties of the SQLite ledger itself; the contract is in test_contract.py."""

from __future__ import annotations

import multiprocessing
import sqlite3
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from usage_plugin.domain.ledger import AccountKey, Balance, Charge, NotSettled, Settled
from usage_plugin.domain.operations import Anomaly, RefusalCount
from usage_plugin.errors import LedgerBusyError, LedgerError, StorageVersionError
from usage_plugin.ledgers.sqlite import ended_ids, maintenance, open_sqlite_ledger, outbox, wal
from usage_plugin.ledgers.sqlite import operations as operations_module
from usage_plugin.sqlite_file import has_wal_reset_bug
from usage_plugin.testing.builders import ANN, END, TEAM, hold, record_new, settle_one

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from usage_plugin.domain.ledger import Ledger
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.domain.operations import OperationsLog


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "ledger.db"


@pytest.fixture
def opened(path: Path) -> Iterator[OpenLedger]:
    opened = open_sqlite_ledger(path)
    yield opened
    opened.close()


@pytest.fixture
def ledger(opened: OpenLedger) -> Ledger:
    return opened.ledger


@pytest.fixture
def operations(opened: OpenLedger) -> OperationsLog:
    return opened.operations


def test_a_free_row_may_be_taken_by_another_worker(ledger: Ledger, path: Path) -> None:
    """Free rows are reused; one that the keeper deleted and another worker now uses stays that worker's."""
    other = open_sqlite_ledger(path).ledger
    settle_one(ledger, "a")
    other.maintain(END)
    other.reserve("b", "other", 5, [hold(TEAM, 7, None)], "b")
    ledger.reserve("c", "w", 6, [hold(ANN, 5, None)], "c")
    assert [(r.event_id, r.worker, r.event) for r in ledger.open_reservations()] == [
        ("b", "other", "b"),
        ("c", "w", "c"),
    ]
    assert ledger.recover("b")
    other.reserve("d", "other", 7, [], "d")
    assert other.settle("b", [Charge(TEAM, END, 99)], "too late") is NotSettled.BEFORE
    assert [r.event_id for r in ledger.open_reservations()] == ["c", "d"]
    assert ledger.balances([ANN, TEAM]) == {ANN: Balance(0, 5), TEAM: Balance(7, 0)}
    other.close()


def test_the_newest_entry_stays(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest entry is always kept, for any acknowledgement, so the next number is always new."""
    monkeypatch.setattr(outbox, "KEPT_ENTRIES", 1)
    seqs = []
    for number in range(5):
        ledger.reserve(str(number), "w", 5, [], "draft")
        settled = ledger.settle(str(number), [], "event")
        assert isinstance(settled, Settled)
        seqs.append(settled.seq)
        ledger.acknowledge(settled.seq)
    assert seqs == [1, 2, 3, 4, 5]
    assert [entry.seq for entry in ledger.outbox(0, 10)] == [5]


def test_what_was_settled_is_known_when_its_entry_is_gone(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids are copied before their entries are deleted, even if the keeper has not copied them yet."""
    monkeypatch.setattr(outbox, "KEPT_ENTRIES", 1)
    for number in range(5):
        settle_one(ledger, str(number))
    ledger.acknowledge(5)
    assert [entry.seq for entry in ledger.outbox(0, 10)] == [5]
    other = open_sqlite_ledger(path).ledger
    assert [other.settle(str(number), [], "again") for number in range(5)] == [NotSettled.BEFORE] * 5
    other.close()


def test_ended_ids_are_forgotten(ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended ids are deleted after two generations of ten minutes, tombstones after a day, a slice at a time."""
    monkeypatch.setattr(ended_ids, "_SLICE", 2)
    now = END
    ledger.agree(10**12)
    ledger.maintain(now)
    for number in range(5):
        settle_one(ledger, str(number))
    ledger.abandon("abandoned")
    kept = []
    with closing(sqlite3.connect(path)) as looking:
        for _ in range(150):
            now += ended_ids.GENERATION
            ledger.maintain(now)
            kept.append(
                [looking.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("ended", "tombstones")]
            )
    assert [ended for ended, _ in kept[:5]] == [6, 4, 2, 0, 0]
    assert [tombstones for _, tombstones in kept].index(0) == ended_ids._KEPT_TOMBSTONES


def test_many_that_wait_are_measured_by_a_sample(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of waiting events is exact; above a few, their size is estimated from every nth."""
    monkeypatch.setattr(outbox, "_SAMPLE", 3)
    for number in range(1, 11):
        record_new(ledger, [], "ä" * number)
    ledger.acknowledge(4)
    assert ledger.waiting() == (6, 2 * (10 + 14 + 18))


def test_anomalies_are_bounded(operations: OperationsLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above a maximum number of rows, further concerns are counted together."""
    monkeypatch.setattr(operations_module, "KEPT_ANOMALIES", 2)
    for concerns, times in (("gpt", 1), ("o1", 1), ("o3", 1), ("gpt", 2), ("o4", 4)):
        operations.count_anomalies([Anomaly("unpriced", concerns, times, 1, 1, 2)])
    assert operations.anomalies() == [
        Anomaly("unpriced", "(others)", 5, 2, 1, 2),
        Anomaly("unpriced", "gpt", 3, 2, 1, 2),
        Anomaly("unpriced", "o1", 1, 1, 1, 2),
    ]


def test_what_must_never_be_is_found(ledger: Ledger, path: Path) -> None:
    """Holds without a reservation, reservations without holds and negative sums are reported, and nothing else."""
    ledger.reserve("a", "w", 5, [hold(ANN, 30, 100), hold(TEAM, 2, None)], "e")
    record_new(ledger, [Charge(ANN, END, 5)], "e")
    assert ledger.verify() == []
    other = sqlite3.connect(path)
    with other:
        other.execute("UPDATE accounts SET reserved = 31 WHERE limit_key = 1")
        other.execute("UPDATE accounts SET reserved = -1, spent = -4 WHERE limit_key = 2")
    found = "\n".join(ledger.verify())
    for words in ("31 are reserved; open reservations hold 30", "-1 are reserved", "below zero: -4 spent"):
        assert words in found
    with other:
        other.execute("DELETE FROM accounts")
        other.executemany("INSERT INTO accounts VALUES (9, ?, 0, 1, 0, 1)", [(str(number),) for number in range(50)])
    assert len(ledger.verify()) == 21, "a page of them, and how many more"
    other.close()


def test_a_damaged_file_is_found(ledger: Ledger, path: Path) -> None:
    """An overwritten page is reported, not raised."""
    for number in range(500):
        ledger.reserve(str(number), "w", 5, [hold(AccountKey(1, 0, str(number)), 1, None)], "e" * 50)
    ledger.close()
    content = bytearray(path.read_bytes())
    for page in range(len(content) // 2048 * 3 // 4, len(content) // 2048):
        content[page * 2048 : page * 2048 + 400] = b"\xff" * 400
    path.write_bytes(bytes(content))
    damaged = open_sqlite_ledger(path).ledger
    assert any("damaged" in problem for problem in damaged.verify())
    damaged.close()


def test_only_the_last_refusals_can_be_looked_up(operations: OperationsLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older details are deleted; the counts stay."""
    monkeypatch.setattr(operations_module, "KEPT_REFUSALS", 2)
    row = RefusalCount(10, "daily", "ann", "spent", 2)
    operations.count_refusals([row], [("R1", 1, "{}"), ("R2", 2, "{}")])
    operations.count_refusals([row], [("R3", 3, "{}")])
    assert operations.refusal_counts(10) == [row._replace(times=4)]
    assert [operations.refusal(ref) for ref in ("R1", "R2", "R3")] == [None, "{}", "{}"]


def test_accounts_are_looked_at_in_turns(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call examines only the next few accounts of any number, and restarts after the last."""
    monkeypatch.setattr(maintenance, "_RANGES", 2)
    monkeypatch.setattr(maintenance, "_RANGE", 2)
    record_new(ledger, [Charge(AccountKey(1, start, "ann"), 100, 1) for start in range(10)], "e")
    left = []
    for _ in range(4):
        ledger.maintain(END * 2)
        left.append(len(ledger.accounts(1, 0)))
    record_new(ledger, [Charge(AccountKey(1, 0, "ann"), 100, 1)], "e")
    ledger.maintain(END * 2)
    assert [*left, len(ledger.accounts(1, 0))] == [6, 2, 0, 0, 0]


def test_the_log_does_not_grow_for_ever(opened: OpenLedger, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above a size, the write-ahead log is copied and restarts at its beginning."""
    log = path.with_name("ledger.db-wal")
    monkeypatch.setattr(wal, "COPY_EVERY", 0)
    monkeypatch.setattr(wal, "LONGEST_LOG", 2**20)
    for number in range(3_000):
        opened.ledger.reserve(str(number), "w", 5, [hold(ANN, 1, None)], "e" * 500)
        if not number % 10:
            opened.file.shorten_log()
    assert 2**20 <= log.stat().st_size < 1.1 * 2**20
    assert path.stat().st_size > 2**20
    assert opened.ledger.verify() == []


def test_an_idle_ledger_writes_nothing(opened: OpenLedger, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is copied only after a write by any connection."""
    monkeypatch.setattr(wal, "COPY_EVERY", 0)
    other = open_sqlite_ledger(path)
    sizes = []
    for write in (
        lambda: None,
        lambda: opened.operations.note("a", "b"),
        lambda: None,
        lambda: other.operations.note("a", "c"),
        lambda: None,
    ):
        write()
        before = path.with_name("ledger.db-wal").stat().st_size
        opened.file.shorten_log()
        sizes.append(path.with_name("ledger.db-wal").stat().st_size > before)
    assert sizes == [True, True, False, True, False]
    other.close()


def test_a_busy_ledger_says_so_at_once(ledger: Ledger, path: Path) -> None:
    """While another process writes, every verb of the request path raises LedgerBusyError and changes nothing."""
    ledger.reserve("a", "w", 5, [hold(ANN, 1, None)], "e")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerBusyError):
        ledger.reserve("b", "w", 5, [hold(ANN, 1, None)], "e")
    with pytest.raises(LedgerBusyError):
        ledger.settle("a", [], "event")
    other.execute("COMMIT")
    other.close()
    assert ledger.balances([ANN]) == {ANN: Balance(0, 1)}


def test_an_error_within_a_transaction_leaves_none_open(ledger: Ledger) -> None:
    """A number or a text that SQLite cannot store raises LedgerError, and the next request is served."""
    for amount, event in ((2**70, "e"), (1, "\ud800")):
        with pytest.raises(LedgerError):
            ledger.reserve("a", "w", 5, [hold(ANN, amount, None)], event)
    assert ledger.reserve("a", "w", 5, [hold(ANN, 1, None)], "e").admitted
    with pytest.raises(LedgerError):
        ledger.settle("a", [Charge(ANN, END, 2**70)], "e")
    assert ledger.settle("a", [Charge(ANN, END, 1)], "e")
    assert ledger.balances([ANN]) == {ANN: Balance(1, 0)}


@pytest.mark.parametrize("unusual", [AccountKey(1, 0, "\ud800"), AccountKey(2**70, 0, "ann")])
def test_what_sqlite_cannot_look_up_is_an_error_of_the_ledger(ledger: Ledger, unusual: AccountKey) -> None:
    """A query for a text or a number that SQLite cannot store raises LedgerError, and the next query is answered."""
    with pytest.raises(LedgerError):
        ledger.balances([ANN, unusual])
    assert ledger.balances([ANN]) == {ANN: Balance(0, 0)}


def test_workers_can_start_at_the_same_instant(tmp_path: Path) -> None:
    """Workers that open a new file at once wait for the first one; SQLite alone would fail at once."""
    for number in range(10):
        path = tmp_path / f"{number}.db"
        together = threading.Barrier(6)

        def start(path: Path = path, together: threading.Barrier = together) -> str:
            together.wait(20)
            ledger = open_sqlite_ledger(path).ledger
            ledger.close()
            return ledger.writer

        with ThreadPoolExecutor(6) as threads:
            started = [threads.submit(start) for _ in range(6)]
            assert len({one.result() for one in started}) == 1


def test_files_are_private(ledger: Ledger, path: Path) -> None:
    """Only the owner can read the folder, the file and SQLite's files next to it."""
    del ledger
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    """A file that is not a database, and one from a newer version, raise errors that name the file."""
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"not a database, but long enough to be looked at" * 50)
    with pytest.raises(LedgerError, match=r"broken\.db"):
        open_sqlite_ledger(broken)
    newer = tmp_path / "newer.db"
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    with pytest.raises(StorageVersionError, match="expected schema 4 or older; found 999"):
        open_sqlite_ledger(newer)


def test_the_wal_reset_bug_is_known_by_version() -> None:
    """SQLite 3.51.3, 3.50.7 and 3.44.6 fixed it, each on its branch."""
    bad = [(3, 40, 1), (3, 44, 5), (3, 50, 6), (3, 51, 2), (3, 45, 0)]
    good = [(3, 44, 6), (3, 50, 7), (3, 51, 3), (3, 52, 0)]
    assert [has_wal_reset_bug(version) for version in bad + good] == [True] * 5 + [False] * 4


def spender(path: Path, worker: int, start: threading.Event) -> None:
    """Reserve 5 of 1,000 until rejected, and settle each at 2; several processes run this at once."""
    ledger = open_sqlite_ledger(path).ledger
    start.wait()
    number = 0
    while True:
        number += 1
        try:
            if not ledger.reserve(f"{worker}-{number}", "w", 5, [hold(ANN, 5, 1_000)], "e").admitted:
                break
        except LedgerBusyError:
            continue
        while True:
            try:
                ledger.settle(f"{worker}-{number}", [Charge(ANN, END, 2)], "event")
                break
            except LedgerBusyError:
                continue
    ledger.close()


def keep_log_short(path: Path, start: threading.Event, stop: threading.Event) -> None:
    """Copy the log continuously, and make it restart at its beginning as often as possible."""
    wal.COPY_EVERY = 0
    wal.LONGEST_LOG = 2**17
    opened = open_sqlite_ledger(path)
    start.wait()
    while not stop.is_set():
        with suppress(LedgerBusyError):
            opened.file.shorten_log()
            opened.ledger.maintain(0)
            opened.operations.maintain(0)
    opened.close()


def test_limits_hold_while_the_log_is_copied(path: Path) -> None:
    """Four processes never exceed the limit and lose no event while another one continuously restarts the log."""
    context = multiprocessing.get_context("spawn")
    start = context.Event()
    processes = [context.Process(target=spender, args=(path, worker, start)) for worker in range(4)]
    stop = context.Event()
    keeper = context.Process(target=keep_log_short, args=(path, start, stop))
    for process in (*processes, keeper):
        process.start()
    start.set()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    stop.set()
    keeper.join(60)
    assert keeper.exitcode == 0
    ledger = open_sqlite_ledger(path).ledger
    assert ledger.verify() == []
    balance = ledger.balances([ANN])[ANN]
    events = ledger.outbox(0, 10_000)
    ledger.close()
    assert balance.reserved == 0
    assert 1_000 - 4 * 5 < balance.spent <= 1_000
    assert balance.spent == 2 * len(events)
    assert len({entry.seq for entry in events}) == len(events)


def serve_until_killed(path: Path, number: int, report: Connection) -> None:
    """Settle one request after another and report each; keep the log short in between."""
    wal.COPY_EVERY = 0
    wal.LONGEST_LOG = 2**16
    opened = open_sqlite_ledger(path)
    ledger = opened.ledger
    while True:
        number += 1
        ledger.reserve(str(number), "w", 5, [hold(ANN, 5, None)], f"draft-{number}")
        ledger.settle(str(number), [Charge(ANN, END, 2)], f"event-{number}")
        report.send(number)
        if not number % 20:
            opened.file.shorten_log()


def test_a_process_that_is_killed_while_it_copies_the_log_loses_nothing(path: Path) -> None:
    """All settled requests are present after SIGKILL, even if the log has just restarted."""
    context = multiprocessing.get_context("spawn")
    told: list[int] = []
    for kills, pause in enumerate((0.02, 0.05, 0.1), start=1):
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=serve_until_killed, args=(path, kills * 1_000_000, sending))
        process.start()
        sending.close()
        told.append(receiving.recv())
        time.sleep(pause)
        process.kill()
        process.join(60)
        with suppress(EOFError):
            while True:
                told.append(receiving.recv())
        receiving.close()
        ledger = open_sqlite_ledger(path).ledger
        events = [entry.event for entry in ledger.outbox(0, 1_000_000)]
        assert {f"event-{number}" for number in told} <= set(events)
        assert len(events) == len(set(events)) <= len(told) + kills, (
            "a settlement may have been cut off before it was told"
        )
        left = ledger.open_reservations()
        assert len(left) <= 1
        assert ledger.verify() == []
        assert ledger.balances([ANN])[ANN] == Balance(2 * len(events), 5 * len(left))
        for reservation in left:
            assert ledger.release(reservation.event_id)
        ledger.close()
