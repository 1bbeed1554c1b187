"""What a ledger promises, on the real SQLite file."""

from __future__ import annotations

import multiprocessing
import sqlite3
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from usage_plugin.domain.ledger import AccountKey, Balance, Charge, Hold, OutboxEntry, RefusalCount
from usage_plugin.errors import LedgerBusyError, LedgerError, StorageVersionError
from usage_plugin.ledgers.sqlite import ledger as module
from usage_plugin.ledgers.sqlite.ledger import SqliteLedger
from usage_plugin.sqlite_file import has_wal_reset_bug

if TYPE_CHECKING:
    from collections.abc import Iterator

DAY = AccountKey(1, 0, "ann")
TEAM = AccountKey(2, 0, "research")
END = 86_400_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[SqliteLedger]:
    opened = SqliteLedger(path)
    yield opened
    opened.close()


def hold(account: AccountKey, amount: int, maximum: int | None) -> Hold:
    return Hold(account, END, amount, maximum)


def test_a_reservation_holds_on_every_account(ledger: SqliteLedger) -> None:
    """An admitted request is reserved on all its accounts, and told the balances before it."""
    assert ledger.reserve("a", "w", 5, [hold(DAY, 30, 100), hold(TEAM, 30, None)], "e").admitted
    second = ledger.reserve("b", "w", 6, [hold(DAY, 70, 100)], "e")
    assert (second.admitted, second.balances) == (True, (Balance(0, 30),))
    assert ledger.balances([DAY, TEAM]) == {DAY: Balance(0, 100), TEAM: Balance(0, 30)}


def test_a_reservation_is_all_or_nothing(ledger: SqliteLedger) -> None:
    """If one account has no room, nothing is held anywhere, and the balances tell why."""
    ledger.reserve("a", "w", 5, [hold(TEAM, 80, 100)], "e")
    refused = ledger.reserve("b", "w", 6, [hold(DAY, 30, 100), hold(TEAM, 30, 100)], "e")
    assert (refused.admitted, refused.balances) == (False, (Balance(), Balance(0, 80)))
    assert ledger.balances([DAY, TEAM]) == {DAY: Balance(), TEAM: Balance(0, 80)}
    assert [reservation.event_id for reservation in ledger.open_reservations()] == ["a"]


def test_what_needs_nothing_always_fits(ledger: SqliteLedger) -> None:
    """A request that costs nothing is admitted on an account that is spent, or blocked with 0."""
    ledger.reserve("a", "w", 5, [hold(DAY, 100, 100)], "e")
    assert ledger.reserve("b", "w", 6, [hold(DAY, 0, 100)], "e").admitted
    assert ledger.reserve("c", "w", 7, [hold(TEAM, 0, 0)], "e").admitted
    assert not ledger.reserve("d", "w", 8, [hold(TEAM, 1, 0)], "e").admitted


def test_settling_frees_charges_and_records_at_once(ledger: SqliteLedger) -> None:
    """Settling turns a hold into what was really spent, also on accounts it did not hold on."""
    ledger.reserve("a", "w", 5, [hold(DAY, 30, 100), hold(TEAM, 30, 100)], "draft")
    settled = ledger.settle("a", [Charge(DAY, END, 12), Charge(AccountKey(3, 0, "x"), END, 12)], "event")
    assert settled is not None
    assert settled.balances == {DAY: Balance(12, 0), TEAM: Balance(0, 0), AccountKey(3, 0, "x"): Balance(12, 0)}
    assert ledger.outbox(0, 10) == [OutboxEntry(settled.seq, "event")]
    assert ledger.open_reservations() == []


def test_the_first_settlement_wins(ledger: SqliteLedger) -> None:
    """Whoever settles second is told so, and changes nothing; nor does settling what was never reserved."""
    ledger.reserve("a", "w", 5, [hold(DAY, 30, 100)], "draft")
    assert ledger.settle("a", [Charge(DAY, END, 12)], "first")
    assert ledger.settle("a", [Charge(DAY, END, 99)], "second") is None
    assert ledger.recover("a") is None
    assert ledger.settle("never", [Charge(DAY, END, 99)], "x") is None
    assert ledger.balances([DAY]) == {DAY: Balance(12, 0)}
    assert [entry.event for entry in ledger.outbox(0, 10)] == ["first"]


def test_recovery_charges_what_was_held(ledger: SqliteLedger) -> None:
    """What a dead worker left open is charged as reserved, with the event the reservation carries."""
    ledger.reserve("a", "w", 5, [hold(DAY, 30, 100), hold(TEAM, 7, None)], "draft")
    recovered = ledger.recover("a")
    assert recovered is not None
    assert recovered.balances == {DAY: Balance(30, 0), TEAM: Balance(7, 0)}
    assert [entry.event for entry in ledger.outbox(0, 10)] == ["draft"]


def test_a_request_without_limits_is_still_recorded(ledger: SqliteLedger) -> None:
    """No account is needed for a reservation, nor for its settlement."""
    assert ledger.reserve("a", "w", 5, [], "draft").admitted
    assert ledger.settle("a", [], "event") is not None


def test_everything_survives_reopening(path: Path) -> None:
    """What a verb has done is there when the file is opened again, and the writer is the same."""
    first = SqliteLedger(path)
    first.reserve("a", "w", 5, [hold(DAY, 30, 100)], "draft")
    first.reserve("b", "w", 6, [hold(DAY, 30, 100)], "draft")
    first.settle("a", [Charge(DAY, END, 12)], "event")
    first.close()
    second = SqliteLedger(path)
    assert second.writer == first.writer
    assert second.balances([DAY]) == {DAY: Balance(12, 30)}
    assert [r.event_id for r in second.open_reservations()] == ["b"]
    assert len(second.outbox(0, 10)) == 1
    second.close()


def test_numbers_are_never_used_twice(ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest entry stays, however much is acknowledged, so the next number is always new."""
    monkeypatch.setattr(module, "KEPT_ENTRIES", 1)
    seqs = []
    for number in range(5):
        ledger.reserve(str(number), "w", 5, [], "draft")
        settled = ledger.settle(str(number), [], "event")
        assert settled is not None
        seqs.append(settled.seq)
        ledger.acknowledge(settled.seq)
    assert seqs == [1, 2, 3, 4, 5]
    assert [entry.seq for entry in ledger.outbox(0, 10)] == [5]


def test_acknowledging_goes_forward_only(ledger: SqliteLedger) -> None:
    """An older acknowledgement that comes late takes nothing back."""
    ledger.acknowledge(7)
    ledger.acknowledge(3)
    assert ledger.acknowledged() == 7


def settle(ledger: SqliteLedger, event: str) -> int:
    ledger.reserve(event, "w", 5, [], "draft")
    settled = ledger.settle(event, [], event)
    assert settled is not None
    return settled.seq


def test_a_ledger_that_is_behind_goes_on_behind_the_store(ledger: SqliteLedger) -> None:
    """What was settled under numbers that the store has seen gets new ones; none of them comes again."""
    old = [settle(ledger, name) for name in "abc"]
    ledger.acknowledge(1)
    ledger.agree(100)
    assert old == [1, 2, 3]
    waiting = ledger.outbox(ledger.acknowledged(), 10)
    assert [entry.event for entry in waiting] == ["b", "c"]
    assert min(entry.seq for entry in waiting) > 100 == ledger.acknowledged()
    assert settle(ledger, "d") > waiting[-1].seq


def test_an_empty_ledger_gives_no_number_that_the_store_has_seen(ledger: SqliteLedger) -> None:
    """The gap that this leaves shows no event."""
    ledger.agree(100)
    assert settle(ledger, "a") == 101
    assert ledger.outbox(0, 10) == [OutboxEntry(101, "a")]


def test_a_store_that_is_behind_gets_again_what_is_still_there(ledger: SqliteLedger) -> None:
    """After the store was restored from a backup, the entries it lacks wait for it once more."""
    for name in "abc":
        settle(ledger, name)
    ledger.acknowledge(3)
    ledger.agree(1)
    assert [entry.event for entry in ledger.outbox(ledger.acknowledged(), 10)] == ["b", "c"]


def test_accounts_of_a_window_are_listed_by_subject(ledger: SqliteLedger) -> None:
    """Reports see each account of one limit and window, and no other's."""
    for subject in ("zoe", "ann"):
        ledger.reserve(subject, "w", 5, [hold(AccountKey(1, 0, subject), 5, None)], "e")
    ledger.reserve("next", "w", 5, [hold(AccountKey(1, END, "ann"), 5, None)], "e")
    assert [account.key.subject for account in ledger.accounts(1, 0)] == ["ann", "zoe"]


def test_refusals_are_counted_and_looked_up(ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts add up by minute; the last refusals can be looked up, older ones go."""
    monkeypatch.setattr(module, "KEPT_REFUSALS", 2)
    row = RefusalCount(10, "daily", "ann", "spent", 2)
    ledger.count_refusals([row], [("R1", 1, "{}"), ("R2", 2, "{}")])
    ledger.count_refusals([row._replace(times=3)], [("R3", 3, '{"a": 1}')])
    assert ledger.refusal_counts(10) == [row._replace(times=5)]
    assert ledger.refusal_counts(11) == []
    assert [ledger.refusal(ref) for ref in ("R1", "R2", "R3")] == [None, "{}", '{"a": 1}']


def test_closed_windows_go_and_open_ones_stay(ledger: SqliteLedger) -> None:
    """Tidying drops accounts a day after their window, but never one that something is reserved on."""
    accounts = {"old": (0, 1_000), "held": (0, 1_000), "open": (500, END * 10)}
    for subject, (start, end) in accounts.items():
        ledger.reserve(subject, "w", 5, [Hold(AccountKey(1, start, subject), end, 5, None)], "e")
        if subject != "held":
            ledger.settle(subject, [], "event")
    ledger.tidy(END)
    assert len(ledger.accounts(1, 0)) == 2, "a day has not passed"
    ledger.tidy(END * 2)
    assert [account.key.subject for account in ledger.accounts(1, 0)] == ["held"]
    assert [account.key.subject for account in ledger.accounts(1, 500)] == ["open"]


def test_the_log_does_not_grow_for_ever(ledger: SqliteLedger, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is worth copying, the write-ahead log is copied and cut."""
    wal = path.with_name("ledger.db-wal")
    sizes = []
    for number in range(600):
        ledger.reserve(str(number), "w", 5, [hold(DAY, 1, None)], "e" * 500)
        sizes.append(wal.stat().st_size)
        ledger.shorten_log()
    assert 2**20 <= max(sizes) < 1.1 * 2**20
    monkeypatch.setattr(module, "_LOG_WORTH_COPYING", 1)
    ledger.shorten_log()
    assert wal.stat().st_size == 0


def test_a_busy_ledger_says_so_at_once(ledger: SqliteLedger, path: Path) -> None:
    """While another process writes, every verb of the request path raises LedgerBusyError and does nothing."""
    ledger.reserve("a", "w", 5, [hold(DAY, 1, None)], "e")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerBusyError):
        ledger.reserve("b", "w", 5, [hold(DAY, 1, None)], "e")
    with pytest.raises(LedgerBusyError):
        ledger.settle("a", [], "event")
    other.execute("COMMIT")
    other.close()
    assert ledger.balances([DAY]) == {DAY: Balance(0, 1)}


def test_an_error_within_a_transaction_leaves_none_open(ledger: SqliteLedger) -> None:
    """A number or a text that SQLite cannot keep is a LedgerError, and the next request is served."""
    for amount, event in ((2**70, "e"), (1, "\ud800")):
        with pytest.raises(LedgerError):
            ledger.reserve("a", "w", 5, [hold(DAY, amount, None)], event)
    assert ledger.reserve("a", "w", 5, [hold(DAY, 1, None)], "e").admitted
    with pytest.raises(LedgerError):
        ledger.settle("a", [Charge(DAY, END, 2**70)], "e")
    assert ledger.settle("a", [Charge(DAY, END, 1)], "e")
    assert ledger.balances([DAY]) == {DAY: Balance(1, 0)}


def test_files_are_private(ledger: SqliteLedger, path: Path) -> None:
    """The folder is the owner's only, and so are the file and what SQLite keeps beside it."""
    del ledger
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    """A file that is no database, and one from a newer version, are errors that name the file."""
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"not a database, but long enough to be looked at" * 50)
    with pytest.raises(LedgerError, match=r"broken\.db"):
        SqliteLedger(broken)
    newer = tmp_path / "newer.db"
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    with pytest.raises(StorageVersionError, match="schema 999"):
        SqliteLedger(newer)


def test_the_wal_reset_bug_is_known_by_version() -> None:
    """SQLite 3.51.3, 3.50.7 and 3.44.6 fixed it, each on its branch."""
    bad = [(3, 40, 1), (3, 44, 5), (3, 50, 6), (3, 51, 2), (3, 45, 0)]
    good = [(3, 44, 6), (3, 50, 7), (3, 51, 3), (3, 52, 0)]
    assert [has_wal_reset_bug(version) for version in bad + good] == [True] * 5 + [False] * 4


def spender(path: Path, worker: int, start: threading.Event) -> None:
    """Ask for 5 of 1,000 until refused, settling at 2, as several processes at once."""
    ledger = SqliteLedger(path)
    start.wait()
    number = 0
    while True:
        number += 1
        try:
            if not ledger.reserve(f"{worker}-{number}", "w", 5, [hold(DAY, 5, 1_000)], "e").admitted:
                break
        except LedgerBusyError:
            continue
        while True:
            try:
                ledger.settle(f"{worker}-{number}", [Charge(DAY, END, 2)], "event")
                break
            except LedgerBusyError:
                continue
    ledger.close()


def test_processes_share_a_limit_exactly(path: Path) -> None:
    """Four processes that start on a new file at once never pass the limit, and lose no event."""
    context = multiprocessing.get_context("spawn")
    start = context.Event()
    processes = [context.Process(target=spender, args=(path, worker, start)) for worker in range(4)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    ledger = SqliteLedger(path)
    balance = ledger.balances([DAY])[DAY]
    events = ledger.outbox(0, 10_000)
    ledger.close()
    assert balance.reserved == 0
    assert 1_000 - 4 * 5 < balance.spent <= 1_000
    assert balance.spent == 2 * len(events)
    assert len({entry.seq for entry in events}) == len(events)
