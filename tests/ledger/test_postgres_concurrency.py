"""The PostgreSQL ledger with many transactions at once: exact, and without deadlocks."""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import psycopg
import pytest

from tests.support.postgres import PATIENCE, PostgresOpening, PostgresServer
from usage_plugin.domain.ledger import AccountKey, Balance, Charge, Hold, Ledger, OutboxEntry
from usage_plugin.errors import LedgerBusyError
from usage_plugin.testing.builders import ANN, END, TEAM, hold

WORKERS, TURNS = 4, 25

AnswerT = TypeVar("AnswerT")


@contextmanager
def no_deadlock(bare: psycopg.Connection[Any]) -> Iterator[None]:
    """Check that the server has found no deadlock meanwhile, also none that was resolved by a repetition."""

    def deadlocks() -> int:
        row = bare.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchone()
        assert row is not None
        return int(row[0])

    before = deadlocks()
    yield
    assert deadlocks() == before


def until_free(call: Callable[[], AnswerT]) -> AnswerT:
    """Repeat a call that has waited too long for a lock, as on a busy machine."""
    while True:
        try:
            return call()
        except (LedgerBusyError, psycopg.errors.LockNotAvailable):
            continue


def test_random_sets_of_accounts_never_deadlock(opening: PostgresOpening, bare: psycopg.Connection[Any]) -> None:
    """Four workers that reserve and settle on random accounts, new ones too, never wait for each other in a circle."""
    opened = opening.open()
    meeting = threading.Barrier(WORKERS)

    def work(seed: int) -> None:
        chosen = random.Random(seed)
        ledger = opening.open().ledger
        for turn in range(TURNS):
            meeting.wait(PATIENCE)
            known, new = (
                [AccountKey(key, start + at, "ann") for key in (1, 2) for at in range(4)] for start in (0, 9 + 4 * turn)
            )
            accounts = chosen.sample(known, 5) + chosen.sample(new, 5)
            # Requests with rolling windows wait for each other from the beginning; few, so that others meet later.
            since = chosen.choice((0, None, None, None, None))
            holds = [Hold(account, END, 5, 10**9, 5, since) for account in accounts]
            name = f"{seed}-{turn}"
            assert until_free(partial(ledger.reserve, name, "w", 5, holds, "draft")).admitted
            chosen.shuffle(accounts)
            assert until_free(partial(ledger.settle, name, [Charge(account, END, 2) for account in accounts], "event"))
        ledger.close()

    with no_deadlock(bare), ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(work, range(WORKERS)))
    requests = WORKERS * TURNS
    assert [entry.seq for entry in opened.ledger.outbox(0, 1_000)] == list(range(1, requests + 1))
    spent = [account.balance.spent for key in (1, 2) for account in opened.ledger.accounts(key, 0)]
    assert sum(spent) == requests * 10 * 2
    assert opened.ledger.verify() == []
    opened.close()


def send(
    connection: psycopg.Connection[Any], schema: str, sender: str, number: int, verbs: list[list[Any]]
) -> list[Any]:
    """Do a batch, as the transport does; return its answers."""
    head = [sender, number, time.time_ns() // 1000, None]
    row = until_free(
        partial(
            connection.execute,
            f"SELECT {schema}.usage_v1_batch(%s::jsonb, %s::jsonb, false) -> 'answers'",
            (json.dumps(head), json.dumps(verbs)),
        )
    ).fetchone()
    assert row is not None
    answers: list[Any] = row[0]
    return answers


def test_batches_never_deadlock(opening: PostgresOpening, bare: psycopg.Connection[Any]) -> None:
    """Four workers send batches on the same accounts while a keeper recovers their requests; each ends once.

    Meanwhile members beat, join, and are buried, and the keeper is replaced.
    """
    opened = opening.open()
    register = opening.register()
    schema = opening.options["schema"]
    term = [register.join("keeper", "host", "{}").term]
    is_over = threading.Event()

    def work(seed: int) -> int:
        """Return the number of requests that were settled here."""
        chosen = random.Random(seed)
        held: list[str] = []
        settled = 0
        mine = opening.register()
        mine.join(f"w{seed}", "host", "{}")
        with psycopg.connect(opening.options["url"], autocommit=True) as connection:
            for turn in range(TURNS):
                verbs: list[list[Any]] = [
                    ["settle", name, [[3, chosen.randrange(8), "all", END, 1]], "{}", "key"] for name in held[:6]
                ]
                for number in range(8):
                    rolling = [1, chosen.randrange(8), "ann", END, 1, 100, 1, 0]
                    calendar = [2, 8 * turn + chosen.randrange(8), "bo", END, 1, None, 0, None]
                    name = f"{seed}-{turn}-{number}"
                    verbs.append(["reserve", name, f"w{seed}", 5, [rolling, calendar], "{}"])
                calendar[0] = 4
                verbs.append(["reassert", f"{seed}-{turn}-again", f"w{seed}", 5, [calendar], "{}"])
                chosen.shuffle(verbs)
                answers = list(
                    zip(verbs, send(connection, schema, str(uuid.UUID(int=seed)), turn + 1, verbs), strict=True)
                )
                assert not [answer for _, answer in answers if isinstance(answer, dict) and "error" in answer]
                settled += sum("seq" in answer for verb, answer in answers if verb[0] == "settle")
                held = held[6:] + [verb[1] for verb, answer in answers if answer is None or answer.get("admitted")]
                until_free(partial(mine.beat, f"w{seed}", "{}"))
        mine.close()
        return settled

    def keep() -> int:
        """Return the number of requests that were recovered here."""
        kept = opening.open_as_keeper(lambda: term[0])
        watching = opening.register()
        recovered = number = 0
        while not is_over.is_set():
            if until_free(partial(watching.keep, "keeper", term[0])):
                term[0] += 1
            some = kept.ledger.open_reservations()[::5]
            recovered += sum(bool(until_free(partial(kept.ledger.recover, one.event_id))) for one in some)
            number += 1
            beats = until_free(partial(watching.join, f"other {number}", "host", "{}")).member(f"other {number}")
            assert beats is not None
            assert until_free(partial(watching.bury, f"other {number}", beats.beats))
            until_free(partial(watching.stop_keeping, "keeper"))
        watching.close()
        kept.close()
        return recovered

    with no_deadlock(bare), ThreadPoolExecutor(WORKERS + 1) as pool:
        keeping = pool.submit(keep)
        try:
            ended = sum(pool.map(work, range(WORKERS)))
        finally:
            is_over.set()
        ended += keeping.result(PATIENCE)
    assert [entry.seq for entry in opened.ledger.outbox(0, 10_000)] == list(range(1, ended + 1))
    rolling = [account.balance for account in opened.ledger.accounts(1, 0)]
    assert sum(balance.spent + balance.reserved for balance in rolling) <= 100
    assert all(account.window_end == END for key in (1, 2, 3, 4) for account in opened.ledger.accounts(key, 0))
    assert opened.ledger.verify() == []
    register.close()
    opened.close()


@pytest.mark.parametrize("is_new", [False, True], ids=["existing", "new"])
@pytest.mark.parametrize("verb", ["reserve", "record"])
def test_accounts_are_locked_in_the_order_of_their_key(
    verb: str,
    is_new: bool,
    ledger: Ledger,
    opening: PostgresOpening,
    postgres: PostgresServer,
    bare: psycopg.Connection[Any],
) -> None:
    """A verb that waits for an account has not locked a later one, for any order of its arguments."""
    lock = f"SELECT {opening.options['schema']}.usage_v1_lock(jsonb_build_array(%s::jsonb))"
    first, last = (AccountKey(1, 0, name) for name in ("Z", "a"))
    if not is_new:
        ledger.correct("both", [Charge(last, END, 1), Charge(first, END, 1)])
    other = opening.open()
    with ThreadPoolExecutor(1) as pool:
        with bare.transaction(force_rollback=True):
            bare.execute(lock, (json.dumps([*first, 0, 0, None, 0, None]),))
            if verb == "reserve":
                waiting = pool.submit(other.ledger.reserve, "a", "w", 5, [hold(last, 1, 9), hold(first, 1, 9)], "draft")
            else:
                waiting = pool.submit(other.ledger.record, "a", [Charge(last, END, 1), Charge(first, END, 1)], "event")
            _wait_until_one_waits(bare)
            with psycopg.connect(postgres.url) as third, third.transaction(force_rollback=True):
                third.execute("SET LOCAL lock_timeout = '300ms'")
                third.execute(lock, (json.dumps([*last, 0, 0, None, 0, None]),))
        assert waiting.result(PATIENCE)
    other.close()


def test_a_refusal_in_a_batch_leaves_no_account(ledger: Ledger, bare: psycopg.Connection[Any]) -> None:
    """An account that a batch has created and not used is gone at its end; one that is used with 0 stays."""
    schema = ledger.location.rpartition(" ")[2]
    verbs = [
        ["reserve", "a", "w", 5, [[*ANN, END, 1, 0, 1, None], [*TEAM, END, 1, None, 1, None]], "{}"],
        ["reserve", "b", "w", 5, [[*TEAM, END, 0, None, 0, None]], "{}"],
        ["abandon", "c"],
        ["free", "b", [[*ANN]]],
        ["release", "b"],
        ["record", "d", [], "event", "key"],
    ]
    bare.execute(f"SELECT {schema}.usage_v1_join('w', 'host', '{{}}', true)")
    answers = send(bare, schema, str(uuid.UUID(int=1)), 1, verbs)
    assert [answers[0]["admitted"], answers[1]["admitted"], *answers[2:5]] == [False, True, True, False, True]
    assert answers[5] == {"seq": 1, "balances": []}
    assert [account.key for key in (1, 2) for account in ledger.accounts(key, 0)] == [TEAM]


@pytest.mark.parametrize("meanwhile", ["another takes the room", "it is abandoned", "it arrives twice"])
def test_a_reservation_that_has_waited_decides_again(
    meanwhile: str, ledger: Ledger, opening: PostgresOpening, bare: psycopg.Connection[Any]
) -> None:
    """A reservation that finds room, and then waits for another transaction, answers by the state after that one."""
    schema = opening.options["schema"]
    sent = ("a", "w", 5, [hold(ANN, 60, 100), hold(TEAM, 1, None)], "draft")
    other = opening.open()
    with ThreadPoolExecutor(1) as pool:
        with bare.transaction():
            if meanwhile == "it is abandoned":
                bare.execute(f"SELECT {schema}.usage_v1_abandon('a')")
            else:
                name, accounts = ("b", [ANN]) if meanwhile == "another takes the room" else ("a", [ANN, TEAM])
                holds = [
                    [*key, END, amount, most, amount, None] for key, amount, most in ((ANN, 60, 100), (TEAM, 1, None))
                ]
                bare.execute(
                    f"SELECT {schema}.usage_v1_reserve(%s, 'w', 5, %s, 'draft')",
                    (name, json.dumps(holds[: len(accounts)])),
                )
            waiting = pool.submit(other.ledger.reserve, *sent)
            _wait_until_one_waits(bare)
        answer = waiting.result(PATIENCE)
    if meanwhile == "it arrives twice":
        assert answer[:2] == (True, (Balance(), Balance()))
        assert ledger.balances([ANN, TEAM]) == {ANN: Balance(0, 60), TEAM: Balance(0, 1)}
    else:
        taken = Balance(0, 60 * (meanwhile == "another takes the room"))
        assert answer[:2] == (False, (taken, Balance()))
        assert ledger.balances([ANN]) == {ANN: taken}
        assert ledger.accounts(TEAM.limit_key, 0) == []
    other.close()


def _wait_until_one_waits(bare: psycopg.Connection[Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not bare.execute("SELECT FROM pg_locks WHERE NOT granted").fetchall():
        assert time.monotonic() < deadline, "it does not wait"


def test_two_buckets_of_one_window_admit_no_more_than_it_allows(opening: PostgresOpening) -> None:
    """Workers that reserve in different buckets of one rolling window at once never pass its maximum together."""
    opening.open().close()
    for turn in range(10):
        meeting = threading.Barrier(2)

        def work(bucket: int, turn: int = turn, meeting: threading.Barrier = meeting) -> int:
            opened = opening.open()
            meeting.wait(PATIENCE)
            account = AccountKey(1, bucket, f"ann {turn}")
            answers = [
                opened.ledger.reserve(f"{turn}-{bucket}-{number}", "w", 5, [Hold(account, END, 1, 5, 1, since=0)], "e")
                for number in range(5)
            ]
            opened.close()
            return sum(answer.admitted for answer in answers)

        with ThreadPoolExecutor(2) as pool:
            assert sum(pool.map(work, (10, 20))) == 5


def test_no_number_is_visible_before_an_earlier_one(ledger: Ledger, bare: psycopg.Connection[Any]) -> None:
    """While a transaction has a number, others wait, then they are busy and have done nothing."""
    schema = ledger.location.rpartition(" ")[2]
    with bare.transaction():
        bare.execute(f"SELECT {schema}.usage_v1_append('first')")
        with pytest.raises(LedgerBusyError):
            ledger.record("a", [Charge(ANN, END, 1)], "second")
        assert ledger.outbox(0, 10) == []
    assert ledger.record("a", [Charge(ANN, END, 1)], "second") == (2, {ANN: Balance(1, 0)})
    assert ledger.outbox(0, 10) == [OutboxEntry(1, "first"), OutboxEntry(2, "second")]
