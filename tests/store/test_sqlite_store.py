"""The SQLite store, beyond the contract in `test_contract.py`."""

from __future__ import annotations

import sqlite3
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

from usage_plugin.backends.sqlite.sqlite_store import SqliteStore, open_store
from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.subjects import FORGOTTEN
from usage_plugin.domain.windows import local_date
from usage_plugin.errors import StorageError, StorageUnavailableError, StorageVersionError
from usage_plugin.testing.builders import make_event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture
async def open_sqlite(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    async with AsyncExitStack() as stack:

        async def opened(zone: ZoneInfo = BERLIN) -> SqliteStore:
            return await stack.enter_async_context(open_store(tmp_path / "usage.db", zone))

        yield opened


async def test_the_file_is_private(open_sqlite: Callable[..., Any], tmp_path: Path) -> None:
    """The owner only may read it."""
    await open_sqlite()
    assert (tmp_path / "usage.db").stat().st_mode & 0o777 == 0o600


async def test_a_forgotten_name_stands_nowhere(open_sqlite: Callable[..., Any], tmp_path: Path) -> None:
    """After an erasure, the user's name is nowhere, unless it is also a model's or a team's."""
    store = await open_sqlite()
    await store.append("w", [(1, make_event(user="ann")), (2, make_event(user="bo", team="bo"))])
    for user in ("ann", "bo"):
        while await store.forget(user, most=10):
            pass
    connection = sqlite3.connect(tmp_path / "usage.db")
    names = {name for (name,) in connection.execute("SELECT name FROM names WHERE name IS NOT NULL")}
    connection.close()
    assert names == {FORGOTTEN, "gpt", "openai", "bo"}


async def test_a_name_goes_on_behind_a_nul(open_sqlite: Callable[..., Any]) -> None:
    """SQLite's own functions cut a text there; with very many other names in the same batch."""
    store = await open_sqlite()
    names = ["a", "a\x00", "a\x00b", "a\x00c", "\x00", *(f"u{number}" for number in range(2_000))]
    await store.append("w", [(seq, make_event(user=name)) for seq, name in enumerate(names, start=1)])
    day = local_date(make_event().started_at, BERLIN)
    groups = (await store.aggregate(("user",), day, day, UsageFilter())).groups
    assert {name: totals.requests for (name,), totals in groups.items()} == dict.fromkeys(names, 1)


async def test_a_locked_file_is_unavailable(
    open_sqlite: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another process holds the lock for long, an append raises, adds nothing, and works afterwards."""
    monkeypatch.setattr("usage_plugin.backends.sqlite.connections._BUSY_TIMEOUT", 0.1)
    store = await open_sqlite()
    other = sqlite3.connect(tmp_path / "usage.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageUnavailableError):
        await store.append("w", [(1, make_event())])
    with pytest.raises(StorageUnavailableError):
        await store.health()
    other.execute("COMMIT")
    other.close()
    await store.append("w", [(1, make_event())])
    assert await store.watermark("w") == 1


async def test_a_file_keeps_to_its_zone(open_sqlite: Callable[..., Any]) -> None:
    """Daily sums of one zone are not read as another's: the error has the remedy."""
    await open_sqlite()
    with pytest.raises(StorageError, match=r"Europe/Berlin.*Set usage_plugin\.timezone to Europe"):
        await open_sqlite(ZoneInfo("UTC"))


async def test_a_newer_schema_is_refused(open_sqlite: Callable[..., Any], tmp_path: Path) -> None:
    """A file that a newer version wrote is left alone."""
    connection = sqlite3.connect(tmp_path / "usage.db")
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    with pytest.raises(StorageVersionError):
        await open_sqlite()
