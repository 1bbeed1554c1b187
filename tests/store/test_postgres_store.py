"""The PostgreSQL store, beyond the contract in `test_contract.py`."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import date
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from tests.support.postgres import PASSWORD, PostgresServer, PostgresStoreOpening, append_in_months, new_schema
from usage_plugin.backends.postgres import PostgresBackend, PostgresOptions
from usage_plugin.backends.postgres.store import PostgresStore
from usage_plugin.domain.store import GROUPINGS, UsageFilter
from usage_plugin.domain.windows import FOREVER, Window
from usage_plugin.errors import ConfigError, StorageError, StorageUnavailableError, StorageVersionError
from usage_plugin.ledgers.postgres import PostgresLedgerBackend
from usage_plugin.plugins.interface import BackendContext, check_options
from usage_plugin.postgres import async_server
from usage_plugin.testing.builders import DAY, NOON, TODAY, batch_of, make_event, make_sum, numbered_from, settle_one
from usage_plugin.testing.child_processes import reports, start
from usage_plugin.testing.faults import Faults, growing
from usage_plugin.testing.openings import BERLIN, LedgerOpening
from usage_plugin.testing.store_model import (
    EVERYTHING,
    FIRST_DAY,
    LAST_DAY,
    StoreModel,
    books_with,
    contents_of,
    events_of,
    forget_all,
    prune_all,
    totals_in,
)

MONTH = 31 * DAY
Bare = psycopg.Connection[Any]


@pytest.fixture
def opening(postgres: PostgresServer, tmp_path: Path) -> PostgresStoreOpening:
    return PostgresStoreOpening(PostgresBackend(), tmp_path, {"url": postgres.url, "schema": new_schema()})


@pytest.fixture
async def store(opening: PostgresStoreOpening) -> AsyncIterator[PostgresStore]:
    async with opening.open() as opened:
        assert isinstance(opened, PostgresStore)
        yield opened


@pytest.fixture
def bare(postgres: PostgresServer) -> Iterator[Bare]:
    """A connection that is not the store's."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        yield connection


def with_options(opening: PostgresStoreOpening, **options: str) -> PostgresStoreOpening:
    return PostgresStoreOpening(opening.backend, opening.data_dir, {**opening.options, **options})


def partitions_of(bare: Bare, opening: PostgresStoreOpening) -> list[str]:
    rows = bare.execute(
        "SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid WHERE inhparent = %s::regclass ORDER BY 1",
        (f"{opening.options['schema']}.store_events",),
    ).fetchall()
    return [name for (name,) in rows]


def writer_of(store: PostgresStore) -> int:
    """Return the process of the server that serves the store's writing connection."""
    connection = store._server._writer._connection
    assert connection is not None
    return connection.info.backend_pid


async def works_again(store: PostgresStore) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            return await store.health()
        except StorageUnavailableError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "mysql://ann:s3cret@db/usage"}, r"^usage_plugin\.storage\.options\.url: expected a URL such as"),
        ({"url": "postgresql://ann:s3cret%@db/usage"}, r"^usage_plugin\.storage\.options\.url: found a %"),
        ({"url": "postgresql://ann:s3cret@db/usage?sslmod=require"}, r"^usage_plugin\.storage\.options\.url: .*sslmod"),
        ({"url": "postgresql://ann:s3cret@db/x", "schema": "Robert'); --"}, "usage_plugin.storage.options.schema"),
        ({"url": "postgresql://ann:s3cret@db/x", "connect_timeout": 0}, "usage_plugin.storage.options.connect_timeout"),
        ({"ur": "postgresql://ann:s3cret@db/x"}, "usage_plugin.storage.options.url"),
    ],
)  # fmt: skip
def test_invalid_options_are_named_without_the_password(options: dict[str, Any], said: str) -> None:
    """An invalid option is an error with its key in the YAML; no part of a password is in it."""
    with pytest.raises(ConfigError, match=said) as raised:
        PostgresBackend().check(
            check_options("usage_plugin.storage.options", PostgresOptions, options), BackendContext(Path(), BERLIN)
        )
    assert "s3cret" not in str(raised.value)


def test_the_driver_is_an_extra(opening: PostgresStoreOpening, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without psycopg the error has the command that installs it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r'usage_plugin\.storage\.backend.*pip install "usage-plugin\[postgres\]"'):
        opening.open()


def test_importing_the_backend_loads_no_driver() -> None:
    """A proxy with another store does not pay for the driver."""
    code = "import sys, usage_plugin.backends.postgres; sys.exit('psycopg' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_a_refused_connection_is_explained_without_the_password(
    opening: PostgresStoreOpening, postgres: PostgresServer
) -> None:
    """A wrong password and an unreachable server are unavailable stores with a remedy, without any password."""
    for old, new in (("w%25rd", "wrong"), (f":{postgres.port}", ":1")):
        with pytest.raises(StorageUnavailableError, match=r"The store .* cannot be reached") as raised:
            async with with_options(opening, url=postgres.url.replace(old, new)).open():
                pass
        assert raised.value.hint
        for secret in (PASSWORD, "wrong", "w%25rd", "ss%2F"):
            assert secret not in str(raised.value)


async def test_days_of_another_zone_are_refused(opening: PostgresStoreOpening, store: PostgresStore) -> None:
    """The error names both zones, and the remedy."""
    tokyo = PostgresStoreOpening(opening.backend, opening.data_dir, opening.options, ZoneInfo("Asia/Tokyo"))
    with pytest.raises(StorageError, match=r"Europe/Berlin.*Asia/Tokyo.*Set usage_plugin\.timezone"):
        async with tokyo.open():
            pass


# ── the schema ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_ledger_may_have_the_same_schema(opening: PostgresStoreOpening, store: PostgresStore) -> None:
    """Both keep their tables, versions and migrations apart."""
    opened = LedgerOpening(PostgresLedgerBackend(), opening.data_dir, opening.options).open()
    assert settle_one(opened.ledger, "a") == 1
    await store.append("w", batch_of("w", 1, 3))
    assert opened.ledger.verify() == []
    opened.close()
    async with opening.open() as again:
        assert await contents_of(again) == books_with(3).contents()


async def test_two_versions_of_the_schema_work_side_by_side(
    opening: PostgresStoreOpening, store: PostgresStore, bare: Bare
) -> None:
    """A newer schema that admits this version is used, also by open stores; one that does not is refused."""
    versions = f"{opening.options['schema']}.store_versions"
    await store.append("w", batch_of("w", 1, 1))
    bare.execute(f"ALTER TABLE {opening.options['schema']}.store_events ADD COLUMN added text DEFAULT 'x'")
    bare.execute(f"INSERT INTO {versions} VALUES (999, 1)")
    for number, opened in enumerate((opening.open(), opening.open()), 2):
        async with opened as other:
            await other.append("w", batch_of("w", number, 1))
            await store.append("v", [(number, make_event(started_at=NOON + number * MONTH))])
    assert (await totals_in(store)).requests == 5
    bare.execute(f"UPDATE {versions} SET oldest = 999 WHERE number = 999")
    with pytest.raises(StorageVersionError, match="Install the version"):
        async with opening.open():
            pass


async def test_each_transaction_may_have_a_connection_of_its_own(
    opening: PostgresStoreOpening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept in the session: a pooler may hand each transaction to another connection."""
    connections: list[Any] = []
    begun = async_server._Lane._begun

    async def pooled(self: Any, begin: str) -> Any:
        if len(connections) < 3:
            connections.append(await self._connect())
        connections.append(connections.pop(0))
        await connections[-1].execute("DISCARD ALL")
        self._connection = connections[-1]
        return await begun(self, begin)

    async def left_open(self: Any) -> None:
        self._connection = None

    monkeypatch.setattr(async_server._Lane, "_begun", pooled)
    monkeypatch.setattr(async_server._Lane, "close", left_open)
    async with opening.open() as store:
        assert isinstance(store, PostgresStore)
        for number in range(7):
            await store.append("w", batch_of("w", number + 1, 1))
            await store.append_sums("old", [(number + 1, make_sum(user=f"old {number}"))])
        assert len([page async for page in store.in_order_of_cost(("user",), FIRST_DAY, LAST_DAY, EVERYTHING)]) == 1
        await forget_all(store, "ann", most=2)
        await store.compact()
        books = books_with(7)
        books.append_sums("old", [(number + 1, make_sum(user=f"old {number}")) for number in range(7)])
        books.forget("ann")
        assert await contents_of(store) == books.contents()
        await store.health()
    for connection in connections:
        await connection.close()


# ── partitions ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_events_are_kept_by_month(opening: PostgresStoreOpening, store: PostgresStore, bare: Bare) -> None:
    """Each event is in the partition of its month in UTC, from the first month of the calendar to the last."""
    begin = 1_798_761_600_000_000  # 2027-01-01
    last = FOREVER - DAY  # the last day that has a day after it
    for number, instant in enumerate((begin - 1, begin, 0, -1, last), 1):
        await store.append("w", [(number, make_event(started_at=instant))])
    months = ["1969_12", "1970_01", "2026_12", "2027_01", "9999_12"]
    assert partitions_of(bare, opening) == [f"store_events_{month}" for month in months]
    assert [event.started_at for event in await events_of(store, Window(-5, 2**62))] == [-1, 0, begin - 1, begin, last]


@pytest.mark.parametrize("instant", [2**63 - 1, 2**63, -(2**62)])
async def test_an_impossible_time_is_refused(store: PostgresStore, instant: int) -> None:
    """An event outside of the calendar is refused for ever, and the store goes on."""
    with pytest.raises(StorageError) as raised:
        await store.append("w", [(1, make_event(started_at=instant))])
    assert not isinstance(raised.value, StorageUnavailableError)
    await store.append("w", batch_of("w", 1, 2))
    assert await contents_of(store) == books_with(2).contents()


async def test_processes_create_the_partitions_once(opening: PostgresStoreOpening, bare: Bare) -> None:
    """Four processes that need the same new months at once, in a new schema, all store their events."""
    children = [start(append_in_months, opening, f"w{number}", 12) for number in range(4)]
    assert [reports(*child) for child in children] == [["stored"]] * 4
    assert [process.exitcode for process, _ in children] == [0] * 4
    assert len(partitions_of(bare, opening)) == 12
    async with opening.open() as store:
        assert (await totals_in(store)).requests == 4 * 24
        assert len(await events_of(store)) == 4 * 24


async def test_other_months_are_not_visited(opening: PostgresStoreOpening, store: PostgresStore, bare: Bare) -> None:
    """Reading, appending and pruning of one month do not wait for the others."""
    await store.append("w", numbered_from(1, (make_event(started_at=NOON + at * MONTH) for at in range(3))))
    bare.execute(f"BEGIN; LOCK TABLE {opening.options['schema']}.store_events_2026_12 IN ACCESS EXCLUSIVE MODE")

    async def use_the_first_and_the_last() -> None:
        assert len(await events_of(store, Window(NOON, NOON + 1))) == 1
        newest = [event async for event in store.events(Window(NOON + 40 * DAY, 2**62), EVERYTHING, newest_first=True)]
        assert len(newest) == 1
        await store.append("w", [(4, make_event(started_at=NOON + 1))])
        assert await store.prune(events_before=NOON + 1, days_before=FIRST_DAY, most=10) == 1

    await asyncio.wait_for(use_the_first_and_the_last(), 8)  # less than the wait for a lock
    bare.execute("COMMIT")
    assert len(await events_of(store)) == 3


async def test_an_old_month_is_dropped(opening: PostgresStoreOpening, store: PostgresStore, bare: Bare) -> None:
    """A month goes with its table, at once, and its sums stay; the month of the boundary goes in slices."""
    events = [make_event(started_at=NOON + at * DAY) for at in range(-60, 30)]
    await store.append("w", numbered_from(1, events))
    before = events[70].started_at
    counts = []
    while count := await store.prune(events_before=before, days_before=FIRST_DAY, most=5):
        counts.append(count)
        if len(counts) == 1:
            assert partitions_of(bare, opening) == [f"store_events_2026_{month}" for month in ("10", "11", "12")]
    assert max(counts) == 5
    assert await events_of(store) == events[70:]
    assert (await totals_in(store)).requests == 90
    assert partitions_of(bare, opening) == ["store_events_2026_12"]


async def test_a_month_that_is_read_goes_in_slices(
    opening: PostgresStoreOpening, store: PostgresStore, bare: Bare
) -> None:
    """A long reader delays neither retention nor, for more than a moment, others; the empty table goes later."""
    await store.append("w", numbered_from(1, (make_event(started_at=NOON + at * DAY) for at in range(30))))
    bare.execute(f"BEGIN; SELECT count(*) FROM {opening.options['schema']}.store_events")
    later = NOON + 20 * DAY
    counts = [await store.prune(events_before=later, days_before=FIRST_DAY, most=6) for _ in range(5)]
    assert counts == [6, 6, 6, 2, 0]
    assert partitions_of(bare, opening) == ["store_events_2026_11", "store_events_2026_12"]
    bare.execute("COMMIT")
    assert await store.prune(events_before=later, days_before=FIRST_DAY, most=6) == 0
    assert partitions_of(bare, opening) == ["store_events_2026_12"]
    await store.append("w", [(31, make_event(started_at=NOON))])
    assert partitions_of(bare, opening) == ["store_events_2026_11", "store_events_2026_12"]


async def test_a_dropped_month_is_created_again(opening: PostgresStoreOpening, store: PostgresStore) -> None:
    """A process that knows a month appends to it, although another one has dropped it."""
    await store.append("w", batch_of("w", 1, 1))
    async with opening.open() as other:
        await prune_all(other, NOON + MONTH, FIRST_DAY, most=10)
    await store.append("w", batch_of("w", 2, 1))
    assert [event.cost for event in await events_of(store)] == [2]
    assert (await totals_in(store)).requests == 2


@pytest.mark.parametrize("seed", range(2))
async def test_retention_while_appending_loses_no_sum(opening: PostgresStoreOpening, seed: int) -> None:
    """Two writers and a forgetting keeper, which prunes across months, end as they would one after the other."""
    rng = random.Random(seed)
    books = StoreModel(BERLIN)
    cutoff = NOON + 40 * DAY
    batches = {
        writer: [
            numbered_from(
                1 + 10 * at,
                [make_event(started_at=NOON + rng.randrange(100) * DAY, user=rng.choice("abc")) for _ in range(10)],
            )
            for at in range(15)
        ]
        for writer in ("one", "two")
    }
    async with opening.open() as first, opening.open() as second, opening.open() as keeper:

        async def append(store: Any, writer: str) -> None:
            for batch in batches[writer]:
                books.append(writer, batch)
                await store.append(writer, batch)

        appending = asyncio.gather(append(first, "one"), append(second, "two"))
        while not appending.done():
            await keeper.prune(events_before=cutoff, days_before=TODAY, most=7)
            await keeper.forget("b", most=7)
        await appending
        await prune_all(keeper, cutoff, TODAY, most=50)
        await forget_all(keeper, "b", most=50)
        books.prune(cutoff, TODAY)
        books.forget("b")
        assert await contents_of(first) == books.contents()
        await _check_all_sums(keeper, books)


async def _check_all_sums(store: Any, books: StoreModel) -> None:
    for by in [(), *((one,) for one in GROUPINGS), ("month", "model"), ("user", "month")]:
        for last in (LAST_DAY, date(2026, 12, 20)):
            found = await store.aggregate(by, FIRST_DAY, last, EVERYTHING)
            assert found.groups == books.aggregate(by, FIRST_DAY, last, EVERYTHING), by


# ── size and traces ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_size_shrinks_with_each_slice(store: PostgresStore) -> None:
    """Retention by size sees what it deleted, although the server frees the space later."""
    events = [make_event(started_at=NOON + at, session="s" * 300) for at in range(3_000)]
    await store.append("w", numbered_from(1, events))
    sizes = [await store.size()]
    for _ in range(2):
        assert await store.prune(events_before=events[2_000].started_at, days_before=FIRST_DAY, most=1_000) == 1_000
        sizes.append(await store.size())
    assert sizes[0] - sizes[1] > 200_000
    assert sizes[1] - sizes[2] > 200_000


async def test_the_data_of_the_server_has_no_forgotten_name(
    opening: PostgresStoreOpening, store: PostgresStore, bare: Bare, postgres: PostgresServer
) -> None:
    """After compacting and a checkpoint, only the server's log has a forgotten name, and the size is exact again."""
    name = "person-to-be-forgotten"
    events = [make_event(user=name if at % 2 else "bo", end_user=name if at % 3 else None) for at in range(60)]
    await store.append("w", numbered_from(1, events))
    bare.execute("CHECKPOINT")
    assert postgres.files_with(name.encode())
    await forget_all(store, name, most=100)
    await store.compact()
    bare.execute("CHECKPOINT")
    assert postgres.files_with(name.encode()) == []
    rows = bare.execute(f"SELECT inserted, live FROM {opening.options['schema']}.store_partitions").fetchall()
    assert rows == [(len(await events_of(store)), len(await events_of(store)))]


# ── a server that fails ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_server_killed_at_any_step_of_an_append_leaves_all_or_nothing(
    opening: PostgresStoreOpening,
) -> None:
    """After `kill -9` of the server before any statement of an append, events, sums and watermark agree."""
    points = {f"usage_plugin.postgres.async_server.{name}": Exception() for name in ("execute", "copy")}
    faults = Faults(points)
    kills = 0
    with faults.installed():
        async with opening.open() as store:
            assert isinstance(store, PostgresStore)
            await store.append("w", batch_of("w", 1, 3))
            stored = 3
            for number in growing():
                with faults.at(number, lambda _: os.kill(writer_of(store), signal.SIGKILL)):
                    try:
                        await store.append("w", batch_of("w", stored + 1, 3))
                    except StorageUnavailableError:
                        kills += 1
                await works_again(store)
                found = await contents_of(store)
                assert found in (books_with(stored).contents(), books_with(stored + 3).contents())
                await store.append("w", batch_of("w", stored + 1, 3))
                stored += 3
                assert await contents_of(store) == books_with(stored).contents()
                if not faults.happened:
                    break
    assert kills > 5


async def test_a_hung_server_leaves_the_event_loop_free(
    opening: PostgresStoreOpening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that accepts everything and answers nothing is given up; meanwhile the event loop runs."""
    monkeypatch.setattr(async_server, "PATIENCE", 0.5)
    async with opening.open() as store:
        assert isinstance(store, PostgresStore)
        await store.append("w", batch_of("w", 1, 1))
        pid = writer_of(store)
        os.kill(pid, signal.SIGSTOP)
        try:
            turns = 0
            appending = asyncio.create_task(store.append("w", batch_of("w", 2, 1)))
            while not appending.done():
                await asyncio.sleep(0.005)
                turns += 1
            assert turns > 20
            # The lost connection is replaced at once; its successor works.
            await appending
        finally:
            os.kill(pid, signal.SIGCONT)
        assert await contents_of(store) == books_with(2).contents()


async def test_a_server_that_hangs_within_a_transaction_is_given_up(
    opening: PostgresStoreOpening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that gets no answer raises, its transaction is rolled back, and the next append works."""
    monkeypatch.setattr(async_server, "PATIENCE", 0.5)
    faults = Faults({"usage_plugin.postgres.async_server.copy": Exception()})
    with faults.installed():
        async with opening.open() as store:
            assert isinstance(store, PostgresStore)
            await store.append("w", batch_of("w", 1, 1))
            pid = writer_of(store)
            with (
                faults.at(1, lambda _: os.kill(pid, signal.SIGSTOP)),
                pytest.raises(StorageUnavailableError, match=r"no answer within 0\.5 s"),
            ):
                await store.append("w", batch_of("w", 2, 1))
            os.kill(pid, signal.SIGCONT)
            await store.append("w", batch_of("w", 2, 1))
            assert await contents_of(store) == books_with(2).contents()


async def test_a_cut_connection_is_replaced(store: PostgresStore, bare: Bare) -> None:
    """After a restart of the server or a pooler, the next verb connects again and works."""
    await store.append("w", batch_of("w", 1, 1))
    assert await store.watermark("w") == 1
    for number in (2, 3):
        bare.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'usage_plugin'")
        await store.append("w", batch_of("w", number, 1))
        assert await store.watermark("w") == number


async def test_a_read_only_server_is_explained(opening: PostgresStoreOpening, store: PostgresStore) -> None:
    """A replica answers questions; an append is unavailable, with the remedy."""
    await store.append("w", batch_of("w", 1, 2))
    url = f"{opening.options['url']}?options=-cdefault_transaction_read_only%3Don"
    async with with_options(opening, url=url).open() as replica:
        assert await contents_of(replica) == books_with(2).contents()
        for use in (replica.append("w", batch_of("w", 3, 1)), replica.health()):
            with pytest.raises(StorageUnavailableError, match="target_session_attrs=read-write"):
                await use


async def test_missing_rights_are_explained(
    opening: PostgresStoreOpening, store: PostgresStore, bare: Bare, postgres: PostgresServer
) -> None:
    """A role that may only read can read; each missing right is an unavailable store with the remedy."""
    await store.append("w", batch_of("w", 1, 2))
    schema, role = opening.options["schema"], new_schema()
    bare.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    bare.execute(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    bare.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}")
    url = f"postgresql://{role}:x@127.0.0.1:{postgres.port}/postgres"
    async with with_options(opening, url=url).open() as reader:
        assert await contents_of(reader) == books_with(2).contents()
        for use in (reader.append("w", batch_of("w", 3, 1)), reader.health()):
            with pytest.raises(StorageUnavailableError, match="Grant the role of the URL the rights on the schema"):
                await use
    bare.execute(f"GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}")
    bare.execute("REVOKE TEMPORARY ON DATABASE postgres FROM PUBLIC")
    try:
        async with with_options(opening, url=url).open() as writer:
            for use in (writer.append("w", batch_of("w", 3, 1)), writer.health()):
                with pytest.raises(StorageUnavailableError, match="GRANT TEMPORARY ON DATABASE"):
                    await use
    finally:
        bare.execute("GRANT TEMPORARY ON DATABASE postgres TO PUBLIC")
        bare.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


# ── names and amounts ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_name_that_no_index_takes_is_refused_for_ever(store: PostgresStore) -> None:
    """A NUL, and a name of thousands of characters, are faults of the event: the flusher sets it aside."""
    long = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=9_000))
    for fields in ({"user": "a\x00b"}, {"user": long}, {"model": long}):
        with pytest.raises(StorageError) as raised:
            await store.append("w", [(1, make_event(**fields))])
        assert not isinstance(raised.value, StorageUnavailableError)
    await store.append("w", [(1, make_event(error="NUL \x00 and more", session=long))])
    assert (await events_of(store))[0].error == "NUL \x00 and more"


async def test_amounts_beyond_64_bits_are_exact(store: PostgresStore) -> None:
    """Sums and even single amounts have no maximum, and are integers."""
    most = 2**63 - 1
    events = [make_event(cost=cost, input_tokens=most) for cost in (most, most, 2**70 + 1)]
    await store.append("w", numbered_from(1, events))
    for by in ((), ("user",), ("day",), ("month",), ("model",)):
        (totals,) = (await store.aggregate(by, TODAY, TODAY, UsageFilter())).groups.values()
        assert (totals.cost, totals.input_tokens) == (2 * most + 2**70 + 1, 3 * most)
    assert sorted(event.cost or 0 for event in await events_of(store)) == [most, most, 2**70 + 1]
