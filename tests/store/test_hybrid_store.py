"""The hybrid store: its behaviour while its database is unavailable, and the recovery."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import asynccontextmanager
from datetime import date
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

from tests.support.waiting import eventually
from usage_plugin.backends.hybrid import database as database_module
from usage_plugin.backends.hybrid import hybrid_store, replication
from usage_plugin.domain.store import Reports, UsageFilter
from usage_plugin.errors import ConfigError, StorageUnavailableError
from usage_plugin.plugins.interface import BackendContext
from usage_plugin.plugins.manager import Plugins
from usage_plugin.runtime import BUILTIN_PLUGINS
from usage_plugin.testing.builders import NOON, TODAY, batch_of, make_event, make_sum, sums_batch
from usage_plugin.testing.store_model import contents_of, totals_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from usage_plugin.domain.store import UsageStore

BERLIN = ZoneInfo("Europe/Berlin")
BACKENDS = Plugins(BUILTIN_PLUGINS, entry_points=False).storage_backends
EVERYTHING = UsageFilter()
MANY = 3_000


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usage_plugin.backends.sqlite.connections._BUSY_TIMEOUT", 0.1)
    monkeypatch.setattr(replication, "CHECK_INTERVAL", 0.05)
    monkeypatch.setattr(replication, "MAX_PAUSE", 0.1)
    monkeypatch.setattr(database_module, "RETRY_AFTER", 0.05)


class Folder:
    """A data folder, and the records that either part has alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / "usage.db"

    @asynccontextmanager
    async def opened(self, name: str = "hybrid", **options: Any) -> AsyncIterator[UsageStore]:
        backend = BACKENDS[name]
        context = BackendContext(self.path, BERLIN, storage_backends=BACKENDS)
        async with backend.open(backend.options_model.model_validate(options), context) as store:
            yield store

    async def agree(self) -> None:
        """Each part alone has the records of the other."""
        async with self.opened("partitioned") as files, self.opened("sqlite") as store:
            in_files, in_database = await contents_of(files), await contents_of(store)
        assert in_database.events == in_files.events
        assert in_database.sums == in_files.sums
        assert {w: n for w, n in in_database.watermarks.items() if w != "(left over)"} == in_files.watermarks

    def rows(self) -> int:
        connection = sqlite3.connect(self.database)
        try:
            return int(connection.execute("SELECT count(*) FROM events").fetchone()[0])
        finally:
            connection.close()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "data")


async def count(store: UsageStore) -> int:
    return (await totals_in(store)).requests


def trouble_of(store: UsageStore) -> str | None:
    assert isinstance(store, Reports)
    return store.trouble


async def test_both_parts_have_everything(folder: Folder) -> None:
    """Appended records are in the files and in the database, and either can be read alone."""
    async with folder.opened() as store:
        await store.append("w", batch_of("w", 1, 20))
        await store.append_sums("old", sums_batch())
        await store.forget("bo", most=100)
        assert await store.prune(events_before=NOON + 1, days_before=date(2020, 1, 1), most=100) >= 0
        assert trouble_of(store) is None
    await folder.agree()


@pytest.mark.parametrize("how", ["deleted", "replaced", "damaged", "damaged while closed"])
async def test_a_database_that_is_lost_is_made_anew(folder: Folder, how: str, caplog: pytest.LogCaptureFixture) -> None:
    """Reports are complete at every moment, nothing is refused, and the database is back by itself."""
    async with folder.opened() as store:
        await store.append("w", batch_of("w", 1, 20))
        await store.append_sums("old", sums_batch())
        before = await count(store)
        if how == "deleted":
            folder.database.unlink()
        elif how == "replaced":
            folder.database.rename(folder.path / "elsewhere.db")
            sqlite3.connect(folder.database).close()
        elif how == "damaged":
            folder.database.write_bytes(b"not a database, but something else\n" * 1_000)
        await store.append("w", batch_of("w", 21, 5))
        assert await count(store) == before + 5
    if how == "damaged while closed":
        folder.database.write_bytes(b"not a database, but something else\n" * 1_000)
    async with folder.opened() as store:
        await store.append("w", batch_of("w", 26, 5))
        assert await count(store) == before + 10
        await eventually(lambda: folder.rows() == 30)
        await eventually(lambda: trouble_of(store) is None)
    await folder.agree()
    if "damaged" in how:
        (kept,) = folder.path.glob("usage.db.damaged-*[0-9]")
        assert kept.read_bytes().startswith(b"not a database")
        assert "database.damaged" in caplog.text


async def test_a_locked_database_is_waited_for(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process holds the lock, events are accepted, reports are complete, and the trouble is named."""
    monkeypatch.setattr(hybrid_store, "LAG_TIMEOUT", 0.1)
    async with folder.opened() as store:
        await store.append("w", batch_of("w", 1, 5))
        other = sqlite3.connect(folder.database, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for first in range(6, 30, 4):
            await store.append("w", batch_of("w", first, 4))
        assert await count(store) == 29
        assert len([event async for event in store.events((0, 2 * NOON), EVERYTHING)]) == 29
        await eventually(lambda: "locked" in (trouble_of(store) or ""))
        await store.health()
        with pytest.raises(StorageUnavailableError, match="requires the database"):
            await store.forget("ann", most=10)
        assert await store.prune(events_before=2 * NOON, days_before=TODAY, most=10) == 0
        other.execute("ROLLBACK")
        other.close()
        await eventually(lambda: folder.rows() == 29)
        await eventually(lambda: trouble_of(store) is None)
    await folder.agree()


async def test_a_read_only_database_is_left_behind_and_caught_up(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that accepts nothing stays unchanged; afterwards it receives the missing records, in slices."""
    connect = sqlite3.connect
    is_read_only = True

    def connecting(*what: Any, **how: Any) -> sqlite3.Connection:
        connection = connect(*what, **how)
        if is_read_only:
            connection.execute("PRAGMA query_only = ON")
        return connection

    async with folder.opened() as store:
        await store.append("w", batch_of("w", 1, 5))
    monkeypatch.setattr(sqlite3, "connect", connecting)
    async with folder.opened() as store:
        for first in range(6, MANY, 500):
            await store.append("w", batch_of("w", first, 500))
        await eventually(lambda: "readonly" in (trouble_of(store) or ""))
        assert await count(store) == MANY + 5
        assert folder.rows() == 5
        is_read_only = False
        await eventually(lambda: folder.rows() == MANY + 5)
        await eventually(lambda: trouble_of(store) is None)
    await folder.agree()


async def test_a_database_that_goes_away_within_a_stream_is_no_matter(folder: Folder) -> None:
    """A stream that began in the database goes on in the files, without a gap or a repetition."""
    async with folder.opened() as store:
        events = batch_of("w", 1, 2_500)
        await store.append("w", events)
        seen = []
        async for event in store.events((0, 2 * NOON), EVERYTHING):
            seen.append(event)
            if len(seen) == 10:
                opened: Any = store
                await opened._database._opened.store._reader.close()
        assert seen == sorted((event for _, event in events), key=lambda event: (event.started_at, event.event_id))


async def test_a_database_from_before_moves_in(folder: Folder) -> None:
    """A change from `sqlite` to `hybrid` keeps the history: events, pruned days, imports, and watermarks."""
    async with folder.opened("sqlite") as store:
        await store.append("w", batch_of("w", 1, 1_200))
        await store.append_sums("old", sums_batch())
        await store.prune(events_before=NOON + 300 * 60_000_000, days_before=date(2020, 1, 1), most=10_000)
        before = await contents_of(store)
    async with folder.opened() as reader:
        assert (await contents_of(reader)).sums == before.sums, "also before it has moved in"
    for _ in range(2):
        async with folder.opened() as store:
            assert await store.watermark("w") == 1_200
            found = await contents_of(store)
            assert (found.events, found.sums) == (before.events, before.sums)
    async with folder.opened() as store:
        await store.append("w", batch_of("w", 1_201, 3))
    await folder.agree()


async def test_files_from_before_make_a_database(folder: Folder) -> None:
    """A change from `partitioned` to `hybrid` derives a database from the files, pruned days included."""
    async with folder.opened("partitioned") as store:
        await store.append("w", batch_of("w", 1, 600))
        await store.append_sums("old", [(1, make_sum())])
        await store.prune(events_before=NOON + 100 * 60_000_000, days_before=date(2020, 1, 1), most=10_000)
        await store.forget("bo", most=10_000)
        kept = len((await contents_of(store)).events)
        assert kept > 300
    async with folder.opened() as store:
        assert await store.watermark("w") == 600
        await eventually(lambda: folder.rows() == kept and trouble_of(store) is None)
        await store.append("w", [(601, make_event())])
        await eventually(lambda: folder.rows() == kept + 1)
    await folder.agree()


async def test_one_process_writes_to_the_database(folder: Folder) -> None:
    """Records that another process adds to the files reach the database through the replicating process."""
    async with folder.opened() as store, folder.opened() as other:
        await store.append("w", batch_of("w", 1, 3))
        await other.append("x", batch_of("x", 1, 3))
        assert await count(other) == await count(store) == 6
        await eventually(lambda: folder.rows() == 6)
    await folder.agree()


async def test_closing_ends_also_if_its_cancellation_is_swallowed(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Python 3.12, `asyncio.wait_for` drops a cancellation that comes together with its result."""
    waits = asyncio.wait_for

    async def swallowing(awaitable: Any, timeout: float) -> Any:
        try:
            return await waits(awaitable, timeout)
        except asyncio.CancelledError:
            return None

    monkeypatch.setattr(asyncio, "wait_for", swallowing)
    opened = folder.opened()
    store = await opened.__aenter__()
    await store.append("w", batch_of("w", 1, 3))
    closing = asyncio.create_task(opened.__aexit__(None, None, None))
    await asyncio.wait([closing], timeout=20)
    assert closing.done()
    closing.result()
    await folder.agree()


def test_wrong_parts_are_refused_before_anything_is_opened(folder: Folder) -> None:
    """A part that does not exist, has other options or lacks a capability is an error of the configuration."""
    backend = BACKENDS["hybrid"]
    context = BackendContext(folder.path, BERLIN, storage_backends=BACKENDS)
    for options, words in (
        ({"database": {"backend": "nothing"}}, r"options\.database\.backend: expected one of .*; found 'nothing'"),
        ({"files": {"backend": "partitioned", "options": {"paht": "x"}}}, r"options\.files\.options\.paht"),
        ({"database": {"backend": "memory"}}, "rebuilt from files, such as sqlite; found memory"),
        ({"files": {"backend": "sqlite"}}, "expected a backend of files.*found sqlite.*Write partitioned"),
        ({"files": {"backend": "partitioned", "options": {"paht": "x"}}}, "unknown option; known options: path"),
    ):
        with pytest.raises(ConfigError, match=words):
            backend.check(backend.options_model.model_validate(options), context)
    assert not folder.path.exists()
