"""The core on a Valkey server: exact numbers, one hash tag, and servers that fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.valkey import RunningServer, server_binary, valkey_opening, valkey_server
from tests.support.waiting import wait_until
from usage_plugin.domain.ledger import AccountKey, Balance, Charge, Hold, Ledger, OpenReservation
from usage_plugin.errors import LedgerError, StorageVersionError
from usage_plugin.ledgers.valkey import ValkeyOptions
from usage_plugin.ledgers.valkey.opening import has_ledger, open_valkey_ledger
from usage_plugin.ledgers.valkey.server import KEY_NAMES
from usage_plugin.testing.builders import ANN, END, TEAM, hold, record_new, settle_open

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def options(valkey: RunningServer, tmp_path: Path) -> ValkeyOptions:
    return ValkeyOptions.model_validate(valkey_opening(valkey, tmp_path / "usage").options)


@pytest.fixture
def ledger(options: ValkeyOptions) -> Iterator[Ledger]:
    opened = open_valkey_ledger(options)
    yield opened.ledger
    opened.ledger.close()


# ── exact amounts ────────────────────────────────────────────────────────────────────────────────────────────────────

MOST = 2**63 - 1
AMOUNTS = st.integers(0, 2**62) | st.sampled_from([0, 1, 10**9 - 1, 10**9, 2**53 - 1, 2**53, 2**53 + 1, 2**62, MOST])


@given(AMOUNTS, AMOUNTS, AMOUNTS, st.integers(-2, 2))
def test_amounts_are_exact(valkey: RunningServer, spent: int, held: int, amount: int, room: int):
    """A request is admitted up to the last nano-dollar, also where a float cannot count them."""
    prefix = f"exact-{spent}-{held}-{amount}-{room}"[:64]
    opened = open_valkey_ledger(ValkeyOptions.model_validate({"url": valkey.url, "prefix": prefix}))
    try:
        record_new(opened.ledger, [Charge(ANN, END, spent)], "e")
        opened.ledger.reserve("held", "w", 5, [hold(ANN, held, None)], "e")
        maximum = max(0, min(MOST, spent + held + amount + room))
        asked = opened.ledger.reserve("asked", "w", 5, [hold(ANN, amount, maximum)], "e")
        assert asked.balances == (Balance(spent, held),)
        assert asked.admitted is (amount == 0 or spent + held + amount <= maximum)
        assert opened.ledger.balances([ANN])[ANN].reserved == min(MOST, held + amount * asked.admitted)
    finally:
        valkey.command("UNLINK", *(f"{{{prefix}}}:{name}" for name in KEY_NAMES))
        opened.ledger.close()


@given(st.lists(st.integers(-(2**62), 2**62), max_size=5))
def test_corrections_are_exact(valkey: RunningServer, differences: list[int]):
    """Sums below zero too, as `verify` reports them."""
    opened = open_valkey_ledger(ValkeyOptions.model_validate({"url": valkey.url, "prefix": "corrections"}))
    try:
        spent = 0
        for number, difference in enumerate(differences):
            opened.ledger.correct(f"c{number}", [Charge(ANN, END, difference)])
            spent = min(MOST, spent + difference)
            if spent < -(2**63):
                return
        assert opened.ledger.balances([ANN]) == {ANN: Balance(spent)}
        assert bool(opened.ledger.verify()) is (spent < 0)
    finally:
        valkey.command("UNLINK", *(f"{{corrections}}:{name}" for name in KEY_NAMES))
        opened.ledger.close()


TEXTS = st.text(min_size=1, max_size=20)


@given(TEXTS, TEXTS, TEXTS, TEXTS)
def test_texts_are_taken_as_they_are(valkey: RunningServer, event_id: str, worker: str, subject: str, event: str):
    """Also with line feeds, quotes and characters that the script uses itself."""
    ledger = open_valkey_ledger(ValkeyOptions.model_validate({"url": valkey.url, "prefix": "texts"})).ledger
    account, other = AccountKey(1, 20, subject), AccountKey(1, 20, f"{subject}\n{subject}")
    try:
        record_new(ledger, [Charge(other, END, 100)], "e")
        asked = hold(account, 7, 10)._replace(since=0)
        assert ledger.reserve(event_id, worker, 5, [asked], event).admitted
        assert ledger.reserve(event_id, worker, 5, [asked], event) == (True, (Balance(),), {})
        assert ledger.open_reservations() == [OpenReservation(event_id, worker, 5, event)]
        assert [one.key for one in ledger.accounts(1, 0, subject)] == [account]
        assert {one.key for one in ledger.accounts(1, 0)} == {account, other}
        refused = ledger.reserve(f"{event_id}2", worker, 5, [asked], event)
        assert [one.key for buckets in refused.buckets.values() for one in buckets] == [account]
        assert ledger.recover(event_id) == (2, {account: Balance(7)})
        assert ledger.outbox(1, 1) == [(2, event)]
        assert ledger.verify() == []
    finally:
        valkey.command("UNLINK", *(f"{{texts}}:{name}" for name in KEY_NAMES))
        ledger.close()


def test_numbers_beyond_64_bits_are_refused(ledger: Ledger):
    """Before anything is sent, with the cause that marks them as never writable."""
    for bad in (
        hold(ANN, 2**63, None),
        hold(AccountKey(2**63, 0, "x"), 1, None),
        hold(ANN._replace(window_start=-(2**64)), 1, None),
    ):
        with pytest.raises(LedgerError, match="64 bits") as refused:
            ledger.reserve("a", "w", 5, [bad], "e")
        assert isinstance(refused.value.__cause__, OverflowError)
    with pytest.raises(LedgerError) as refused:
        ledger.record("a", [], "half a pair: \ud800")
    assert isinstance(refused.value.__cause__, UnicodeError)
    assert ledger.reserve("a", "w", 5, [hold(ANN, 1, 2**70)], "e").admitted


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_keys_have_one_hash_tag(valkey: RunningServer, options: ValkeyOptions, ledger: Ledger):
    """So they are in one slot."""
    ledger.reserve("a", "w", 5, [hold(ANN, 1, None), hold(TEAM, 1, None)], "e")
    ledger.reserve("b", "w", 5, [], "e")
    settle_open(ledger, "a", [], "e")
    ledger.abandon("c")
    ledger.maintain(END)
    ledger.abandon("d")
    keys = [part for part in valkey.command("KEYS", f"*{options.prefix}*").split(b"\r\n") if part[:1] not in b"*$"]
    assert len(keys) >= 9
    assert all(key.startswith(b"{%s}:" % options.prefix.encode()) for key in keys)


def test_ledgers_with_other_prefixes_are_others(valkey: RunningServer, options: ValkeyOptions, ledger: Ledger):
    """They share a server and nothing else."""
    record_new(ledger, [Charge(ANN, END, 5)], "e")
    other_options = options.model_copy(update={"prefix": options.prefix[:-2] + "-x"})
    assert not has_ledger(other_options)
    other = open_valkey_ledger(other_options).ledger
    assert other.balances([ANN]) == {ANN: Balance()}
    assert other.writer != ledger.writer
    other.close()


# ── servers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_server_without_memory_does_nothing(tmp_path_factory: pytest.TempPathFactory):
    """A verb fails whole, and works again when there is room."""
    with valkey_server(tmp_path_factory.mktemp("v")) as server:
        ledger = open_valkey_ledger(ValkeyOptions.model_validate({"url": server.url})).ledger
        ledger.reserve("a", "w", 5, [hold(ANN, 30, 100)], "e")
        server.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(LedgerError, match="no memory left"):
            ledger.settle("a", [Charge(ANN, END, 12)], "event")
        with pytest.raises(LedgerError, match="no memory left"):
            ledger.reserve("b", "w", 5, [hold(ANN, 30, 100)], "e")
        assert ledger.balances([ANN]) == {ANN: Balance(0, 30)}
        assert ledger.outbox(0, 10) == []
        server.command("CONFIG", "SET", "maxmemory", "0")
        assert settle_open(ledger, "a", [Charge(ANN, END, 12)], "event") == (1, {ANN: Balance(12, 0)})
        assert ledger.verify() == []
        ledger.close()


def test_a_killed_server_has_everything_that_it_synced(tmp_path_factory: pytest.TempPathFactory):
    """Entries that were read as durable are there after SIGKILL and a restart, and so is the writer."""
    folder = tmp_path_factory.mktemp("v")
    with valkey_server(folder) as server:
        ledger = open_valkey_ledger(ValkeyOptions.model_validate({"url": server.url})).ledger
        writer = ledger.writer
        for number in range(20):
            record_new(ledger, [Charge(ANN, END, 1)], f"event-{number}")
        ledger.reserve("open", "w", 5, [Hold(ANN, END, 3, None, 3)], "draft")
        assert len(ledger.outbox(0, 100, durable=True)) == 20
        assert b"cmdstat_waitaof:calls=1" in server.command("INFO", "commandstats")
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(LedgerError, match="does not answer"):
            ledger.balances([ANN])
    with valkey_server(folder) as server:
        assert ledger.balances([ANN]) == {ANN: Balance(20, 3)}, "the connection is made again"
        again = open_valkey_ledger(ValkeyOptions.model_validate({"url": server.url})).ledger
        assert again.writer == writer
        assert [one.event_id for one in again.open_reservations()] == ["open"]
        assert [entry.event for entry in again.outbox(0, 100)] == [f"event-{number}" for number in range(20)]
        assert again.verify() == []
        again.close()
        ledger.close()


def test_a_newer_ledger_is_refused(valkey: RunningServer, options: ValkeyOptions, ledger: Ledger):
    """A newer version may keep it in another way."""
    valkey.command("HSET", f"{{{options.prefix}}}:meta", "schema", "2")
    with pytest.raises(StorageVersionError, match="has schema 2"):
        open_valkey_ledger(options)


# ── the server of the tests ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_server_ends_with_its_test_process(tmp_path_factory: pytest.TempPathFactory):
    """Also if that is killed: no server is left on the machine."""
    server_binary()
    code = (
        "import pathlib, sys, time; from tests.support.valkey import valkey_server\n"
        "with valkey_server(pathlib.Path(sys.argv[1])) as server: print(server.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path_factory.mktemp("v"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        os.kill(pid, 0)
        process.kill()
    wait_until(lambda: not is_running(pid))


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
