"""What a ledger promises, on the real SQLite file."""

from __future__ import annotations

import multiprocessing
import sqlite3
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from usage_plugin.domain.ledger import (
    AccountKey,
    Adjustment,
    AlertKey,
    Balance,
    Charge,
    Hold,
    Imperfection,
    OutboxEntry,
    RefusalCount,
)
from usage_plugin.errors import LedgerBusyError, LedgerError, StorageVersionError
from usage_plugin.ledgers.sqlite import ledger as module
from usage_plugin.ledgers.sqlite import records, upkeep, wal
from usage_plugin.ledgers.sqlite.ledger import SqliteLedger
from usage_plugin.sqlite_file import has_wal_reset_bug

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection

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
    return Hold(account, END, amount, maximum, if_lost=amount)


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


def test_recovery_charges_what_the_holds_say(ledger: SqliteLedger, path: Path) -> None:
    """What a dead worker left open is charged as its holds say, by whichever worker, with the event it carries."""
    ledger.reserve("a", "w", 5, [hold(DAY, 30, 100), Hold(TEAM, END, 7, None, if_lost=2)], "draft")
    other = SqliteLedger(path)
    recovered = other.recover("a")
    other.close()
    assert recovered is not None
    assert recovered.balances == {DAY: Balance(30, 0), TEAM: Balance(2, 0)}
    assert [entry.event for entry in ledger.outbox(0, 10)] == ["draft"]
    assert ledger.settle("a", [Charge(DAY, END, 99)], "too late") is None
    assert not ledger.release("a")
    assert ledger.balances([DAY]) == {DAY: Balance(30, 0)}


def test_a_rolling_window_is_the_sum_of_its_buckets(ledger: SqliteLedger) -> None:
    """A hold with `since` is judged on all buckets of its subject from there on, and held on its own one only."""
    old, first, second, other = (AccountKey(1, *at) for at in ((10, "ann"), (20, "ann"), (30, "ann"), (20, "bo")))
    for number, account in enumerate((old, first, other)):
        ledger.reserve(str(number), "w", 5, [hold(account, 40, None)], "e")
    ledger.settle("1", [Charge(first, END, 25)], "e")
    asked = Hold(second, END, 60, 100, if_lost=60, since=20)
    assert ledger.reserve("a", "w", 5, [asked._replace(amount=76)], "e") == (False, (Balance(25, 0),))
    assert ledger.reserve("b", "w", 5, [hold(TEAM, 1, 1), asked], "e") == (True, (Balance(), Balance(25, 0)))
    assert ledger.reserve("c", "w", 5, [asked._replace(amount=16)], "e") == (False, (Balance(25, 60),))
    assert ledger.balances([first, second]) == {first: Balance(25, 0), second: Balance(0, 60)}
    assert [account.key for account in ledger.buckets(1, "ann", 20)] == [first, second]
    assert [account.key for account in ledger.accounts(1, 20)] == [first, second, other]


def test_an_account_lasts_as_long_as_its_last_use_says(ledger: SqliteLedger) -> None:
    """A session's account ends when it has not been used for a while: each use may put that off, none brings it on."""
    for number, end in enumerate((100, 300, 200)):
        ledger.reserve(str(number), "w", 5, [Hold(DAY, end, 1, None, 1)], "e")
        assert ledger.buckets(1, "ann", 0)[0].window_end == max(100, min(number * 300, 300))
    ledger.settle("0", [Charge(DAY, 400, 1)], "e")
    assert ledger.buckets(1, "ann", 0)[0].window_end == 400


def test_a_released_request_leaves_no_trace(ledger: SqliteLedger) -> None:
    """Nothing is charged and nothing recorded; the holds are free. It cannot be settled any more."""
    ledger.reserve("a", "w", 5, [hold(DAY, 30, 100)], "draft")
    assert ledger.release("a")
    assert not ledger.release("a")
    assert ledger.settle("a", [], "event") is None
    assert ledger.balances([DAY]) == {DAY: Balance()}
    assert (ledger.outbox(0, 10), ledger.open_reservations()) == ([], [])


def test_what_was_never_reserved_can_be_recorded(ledger: SqliteLedger) -> None:
    """A request that was let through without a reservation is charged, and in the outbox, in one step."""
    recorded = ledger.record([Charge(DAY, END, 3)], "event")
    assert recorded == (1, {DAY: Balance(3, 0)})
    assert ledger.outbox(0, 10) == [OutboxEntry(1, "event")]
    with pytest.raises(LedgerError):
        ledger.record([Charge(DAY, END, 2**70)], "event")
    assert ledger.record([], "next").seq == 2


def test_a_free_row_may_be_taken_by_another_worker(ledger: SqliteLedger, path: Path) -> None:
    """Rows of ended reservations serve again; one that the keeper dropped and another worker has now stays the other's."""
    other = SqliteLedger(path)
    settle(ledger, "a")
    other.tidy(END)
    other.reserve("b", "other", 5, [hold(TEAM, 7, None)], "b")
    ledger.reserve("c", "w", 6, [hold(DAY, 5, None)], "c")
    assert [(r.event_id, r.worker, r.event) for r in ledger.open_reservations()] == [
        ("b", "other", "b"),
        ("c", "w", "c"),
    ]
    assert ledger.recover("b")
    other.reserve("d", "other", 7, [], "d")
    assert other.settle("b", [Charge(TEAM, END, 99)], "too late") is None
    assert [r.event_id for r in ledger.open_reservations()] == ["c", "d"]
    assert ledger.balances([DAY, TEAM]) == {DAY: Balance(0, 5), TEAM: Balance(7, 0)}
    other.close()


def test_nothing_is_reserved_twice(ledger: SqliteLedger) -> None:
    """An id that is open already is an error, and stays as it was."""
    ledger.reserve("a", "w", 5, [hold(DAY, 30, 100)], "e")
    with pytest.raises(LedgerError, match="reserved already"):
        ledger.reserve("a", "w", 5, [hold(DAY, 40, 100)], "e")
    assert ledger.settle("a", [], "event")
    assert ledger.balances([DAY]) == {DAY: Balance()}


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


def test_accounts_are_listed_by_subject(ledger: SqliteLedger) -> None:
    """Reports see each account of one limit from a time on, and no other's."""
    for limit_key, start, subject in ((1, END, "zoe"), (1, 0, "zoe"), (1, END, "ann"), (1, -1, "old"), (2, 0, "bo")):
        ledger.record([Charge(AccountKey(limit_key, start, subject), END, 5)], "e")
    assert [account.key[1:] for account in ledger.accounts(1, 0)] == [(END, "ann"), (0, "zoe"), (END, "zoe")]


def test_seeding_sets_what_was_spent(ledger: SqliteLedger, path: Path) -> None:
    """A new limit's accounts become what the history says, holds stay, and nobody settles in between."""
    settle(ledger, "a")
    settle(ledger, "b")
    ledger.reserve("held", "w", 5, [hold(DAY, 30, None)], "e")
    ledger.record([Charge(DAY, END, 5)], "c")
    seen: list[OutboxEntry] = []
    other = SqliteLedger(path)

    def work_out(entries: Sequence[OutboxEntry]) -> list[Charge]:
        seen.extend(entries)
        with pytest.raises(LedgerBusyError):
            other.record([], "meanwhile")
        return [Charge(DAY, END, 17), Charge(TEAM, END, 4)]

    ledger.seed(1, work_out)
    assert [entry.event for entry in seen] == ["b", "c"]
    assert ledger.balances([DAY, TEAM]) == {DAY: Balance(17, 30), TEAM: Balance(4, 0)}
    with pytest.raises(ZeroDivisionError):
        ledger.seed(0, lambda _: [Charge(DAY, END, 1 // 0)])
    assert other.record([], "afterwards").seq == 4
    other.close()


def test_what_waits_for_the_store_is_measured(ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number is exact, the size too for a few entries; for many it is estimated from a sample."""
    assert ledger.waiting() == (0, 0)
    for number in range(1, 11):
        ledger.record([], "ä" * number)
    assert ledger.waiting() == (10, 110)
    ledger.acknowledge(4)
    assert ledger.waiting() == (6, 90)
    monkeypatch.setattr(module, "_SAMPLE", 3)
    assert ledger.waiting() == (6, 2 * (10 + 14 + 18))
    ledger.agree(100)
    assert ledger.waiting().events == 6
    ledger.agree(50)
    assert ledger.waiting().events == 6, "there is nothing between"
    ledger.acknowledge(106)
    assert ledger.waiting() == (0, 0)


def test_adjustments_are_kept_for_the_audit(ledger: SqliteLedger) -> None:
    """One that ends, by itself or early, is in force no more, but is listed for a year; each change is noticed."""
    made = Adjustment(0, "daily", "ann", 50, 20, made_at=100, until=200, actor="root", reason="demo")
    first = ledger.adjust(made)
    second = ledger.adjust(made._replace(amount=None, before=None, until=400))
    assert [first, second] == [made._replace(number=1), made._replace(number=2, amount=None, before=None, until=400)]
    assert ledger.adjustments(199) == [first, second]
    assert ledger.adjustments(200) == [second]
    version = ledger.adjustments_version()
    assert not ledger.end_adjustment(1, 200), "it ended by itself"
    assert not ledger.end_adjustment(3, 200)
    assert ledger.adjustments_version() == version
    assert ledger.end_adjustment(2, 300)
    assert not ledger.end_adjustment(2, 301)
    assert ledger.adjustments_version() != version
    assert ledger.adjustments(300) == []
    assert ledger.adjustments() == [first, second._replace(ended_at=300)]
    ledger.tidy(365 * END)
    assert len(ledger.adjustments()) == 2
    ledger.tidy(367 * END)
    assert ledger.adjustments() == []
    assert ledger.adjust(made).number == 3


def test_a_threshold_is_alerted_once(ledger: SqliteLedger, path: Path) -> None:
    """Whichever worker notes it first alerts; a year later it may be forgotten."""
    key = AlertKey(1, "ann", 0, 80)
    other = SqliteLedger(path)
    assert [ledger.alert(key, 5), other.alert(key, 5), other.alert(key._replace(threshold=90), 6)] == [
        True,
        False,
        True,
    ]
    ledger.tidy(365 * END)
    assert not ledger.alert(key, 6)
    ledger.tidy(367 * END)
    assert ledger.alert(key, 7)
    other.close()


def test_alerts_are_listed_and_acknowledged_once(ledger: SqliteLedger, path: Path) -> None:
    """Those of the subjects asked for, the newest first, with who has seen to them first."""
    other = SqliteLedger(path)
    for at, subject in ((5, "ann"), (6, "bo"), (7, "ann"), (8, "ann\x1fgpt")):
        assert ledger.alert(AlertKey(1, subject, 0, at), at, f'{{"at": {at}}}')
    assert [(noted.key, noted.at, noted.details, noted.acknowledged_by) for noted in other.alerts(5, ["ann", "x"])] == [
        (AlertKey(1, "ann", 0, 7), 7, '{"at": 7}', None),
        (AlertKey(1, "ann", 0, 5), 5, '{"at": 5}', None),
    ]
    assert other.alerts(5, []) == []
    (newest,) = other.alerts(6, ["ann"])
    assert [ledger.acknowledge_alert(newest.number, 9, "kim"), other.acknowledge_alert(newest.number, 10, "lee")] == [
        True,
        False,
    ]
    assert not ledger.acknowledge_alert(99, 9, "kim")
    assert other.alerts(6, ["ann"]) == [newest._replace(acknowledged_at=9, acknowledged_by="kim")]
    other.close()


def test_imperfections_add_up(ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by kind and what they concern; beyond a bound, under what their kind has in common."""
    monkeypatch.setattr(records, "KEPT_IMPERFECTIONS", 2)
    unpriced = Imperfection("unpriced", "gpt", 1, 10, 50, 60)
    ledger.count([unpriced, Imperfection("gap", "store", 1, 7, 5, 6)])
    ledger.count([unpriced._replace(times=2, first_at=40, last_at=55), Imperfection("unpriced", "o3", 1, 1, 1, 1)])
    ledger.count([Imperfection("unpriced", "o4", 4, 1, 1, 2), Imperfection("gap", "store", 1, 1, 6, 7)])
    assert ledger.imperfections() == [
        Imperfection("gap", "store", 2, 8, 5, 7),
        Imperfection("unpriced", "(others)", 5, 2, 1, 2),
        Imperfection("unpriced", "gpt", 3, 20, 40, 60),
    ]
    ledger.tidy(367 * END)
    assert ledger.imperfections() == []


def test_notes_are_left_for_others(ledger: SqliteLedger, path: Path) -> None:
    """A later note takes the place of an earlier one; a prefix is taken as it is."""
    other = SqliteLedger(path)
    for name, text in (("rules/b", "old"), ("rules/a", "x"), ("rules/b", "new"), ("rules%", "y"), ("store", "z")):
        other.note(name, text)
    assert ledger.notes("rules/") == {"rules/a": "x", "rules/b": "new"}
    ledger.note("rules/a", None)
    assert other.notes("rules") == {"rules/b": "new", "rules%": "y"}
    assert set(other.notes("")) == {"rules/b", "rules%", "store"}
    other.close()


def test_what_must_never_be_is_found(ledger: SqliteLedger, path: Path) -> None:
    """Holds without a reservation, reservations without their holds, and sums below zero; a good ledger has none."""
    ledger.reserve("a", "w", 5, [hold(DAY, 30, 100), hold(TEAM, 2, None)], "e")
    ledger.record([Charge(DAY, END, 5)], "e")
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


def test_a_damaged_file_is_found(ledger: SqliteLedger, path: Path) -> None:
    """A page that was overwritten is told, not raised."""
    for number in range(500):
        ledger.reserve(str(number), "w", 5, [hold(AccountKey(1, 0, str(number)), 1, None)], "e" * 50)
    ledger.close()
    content = bytearray(path.read_bytes())
    for page in range(len(content) // 1024 * 3 // 4, len(content) // 1024):
        content[page * 1024 : page * 1024 + 400] = b"\xff" * 400
    path.write_bytes(bytes(content))
    damaged = SqliteLedger(path)
    assert any("damaged" in problem for problem in damaged.verify())
    damaged.close()


def test_refusals_are_counted_and_looked_up(ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts add up by minute; the last refusals can be looked up, older ones go."""
    monkeypatch.setattr(records, "KEPT_REFUSALS", 2)
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
        ledger.reserve(subject, "w", 5, [Hold(AccountKey(1, start, subject), end, 5, None, 5)], "e")
        if subject != "held":
            ledger.settle(subject, [], "event")
    ledger.tidy(END)
    assert len(ledger.accounts(1, 0)) == 3, "a day has not passed"
    ledger.tidy(END * 2)
    assert [account.key.subject for account in ledger.accounts(1, 0)] == ["held", "open"]


def test_accounts_are_looked_at_in_turns(ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call looks at the next few accounts only, however many there are, and begins again after the last."""
    monkeypatch.setattr(upkeep, "_RANGES", 2)
    monkeypatch.setattr(upkeep, "_RANGE", 2)
    ledger.record([Charge(AccountKey(1, start, "ann"), 100, 1) for start in range(10)], "e")
    left = []
    for _ in range(4):
        ledger.tidy(END * 2)
        left.append(len(ledger.accounts(1, 0)))
    ledger.record([Charge(AccountKey(1, 0, "ann"), 100, 1)], "e")
    ledger.tidy(END * 2)
    assert [*left, len(ledger.accounts(1, 0))] == [6, 2, 0, 0, 0]


def test_the_log_does_not_grow_for_ever(ledger: SqliteLedger, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is worth copying, the write-ahead log is copied and cut."""
    log = path.with_name("ledger.db-wal")
    monkeypatch.setattr(wal, "COPY_EVERY", 0)
    monkeypatch.setattr(wal, "LONGEST_LOG", 2**20)
    for number in range(3_000):
        ledger.reserve(str(number), "w", 5, [hold(DAY, 1, None)], "e" * 500)
        if not number % 10:
            ledger.shorten_log()
    assert 2**20 <= log.stat().st_size < 1.1 * 2**20
    assert path.stat().st_size > 2**20
    assert ledger.verify() == []


def test_an_idle_ledger_writes_nothing(ledger: SqliteLedger, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is copied only if something was written, by whichever connection."""
    monkeypatch.setattr(wal, "COPY_EVERY", 0)
    other = SqliteLedger(path)
    sizes = []
    for write in (
        lambda: None,
        lambda: ledger.note("a", "b"),
        lambda: None,
        lambda: other.note("a", "c"),
        lambda: None,
    ):
        write()
        before = path.with_name("ledger.db-wal").stat().st_size
        ledger.shorten_log()
        sizes.append(path.with_name("ledger.db-wal").stat().st_size > before)
    assert sizes == [True, True, False, True, False]
    other.close()


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


def test_workers_can_start_at_the_same_instant(tmp_path: Path) -> None:
    """Whoever opens a new file first, the others wait; SQLite alone would give up at once."""
    for number in range(10):
        path = tmp_path / f"{number}.db"
        together = threading.Barrier(6)

        def start(path: Path = path, together: threading.Barrier = together) -> str:
            together.wait(20)
            ledger = SqliteLedger(path)
            ledger.close()
            return ledger.writer

        with ThreadPoolExecutor(6) as threads:
            started = [threads.submit(start) for _ in range(6)]
            assert len({one.result() for one in started}) == 1


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


def keep_log_short(path: Path, start: threading.Event, stop: threading.Event) -> None:
    """Copy the log all the time, and have it begin anew as often as possible."""
    wal.COPY_EVERY = 0
    wal.LONGEST_LOG = 2**17
    ledger = SqliteLedger(path)
    start.wait()
    while not stop.is_set():
        with suppress(LedgerBusyError):
            ledger.shorten_log()
            ledger.tidy(0)
    ledger.close()


def test_processes_share_a_limit_exactly(path: Path) -> None:
    """Four processes that start on a new file at once never pass the limit, and lose no event, beside a keeper."""
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
    ledger = SqliteLedger(path)
    assert ledger.verify() == []
    balance = ledger.balances([DAY])[DAY]
    events = ledger.outbox(0, 10_000)
    ledger.close()
    assert balance.reserved == 0
    assert 1_000 - 4 * 5 < balance.spent <= 1_000
    assert balance.spent == 2 * len(events)
    assert len({entry.seq for entry in events}) == len(events)


def serve_until_killed(path: Path, number: int, report: Connection) -> None:
    """Settle one request after the other and tell each; keep the log short in between."""
    wal.COPY_EVERY = 0
    wal.LONGEST_LOG = 2**16
    ledger = SqliteLedger(path)
    while True:
        number += 1
        ledger.reserve(str(number), "w", 5, [hold(DAY, 5, None)], f"draft-{number}")
        ledger.settle(str(number), [Charge(DAY, END, 2)], f"event-{number}")
        report.send(number)
        if not number % 20:
            ledger.shorten_log()


def test_a_killed_process_loses_nothing(path: Path) -> None:
    """Whatever was settled is there after SIGKILL, at whichever instant; at most one reservation is left open."""
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
        ledger = SqliteLedger(path)
        events = [entry.event for entry in ledger.outbox(0, 1_000_000)]
        assert {f"event-{number}" for number in told} <= set(events)
        assert len(events) == len(set(events)) <= len(told) + kills, (
            "a settlement may have been cut off before it was told"
        )
        left = ledger.open_reservations()
        assert len(left) <= 1
        assert ledger.verify() == []
        assert ledger.balances([DAY])[DAY] == Balance(2 * len(events), 5 * len(left))
        for reservation in left:
            assert ledger.release(reservation.event_id)
        ledger.close()
