"""The real proxy with a hybrid store, whose database is deleted and corrupted while requests run."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from typing import TYPE_CHECKING

import pytest

from tests.proxy.conftest import LIMITS, proxy_config, running
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.proxy.conftest import Upstream

pytestmark = pytest.mark.proxy


async def test_no_request_fails_for_the_database(tmp_path: Path, upstream: Upstream) -> None:
    """While the database is deleted and corrupted, every request is answered and reported; the database is rebuilt."""
    config = proxy_config(upstream, {"limits": LIMITS, "storage": {"backend": "hybrid"}})
    database = tmp_path / "data" / "usage.db"
    text = json.dumps({"in": 0, "out": 1000})
    with running(tmp_path, config) as proxy:
        client = proxy.client()

        async def send(count: int) -> None:
            for _ in range(count):
                await client.chat.completions.create(
                    model="cent", user="mixed-hybrid", max_tokens=1000, messages=[{"role": "user", "content": text}]
                )

        def rows() -> int:
            connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
            try:
                return int(connection.execute("SELECT count(*) FROM events").fetchone()[0])
            except sqlite3.Error:
                return -1
            finally:
                connection.close()

        def reported() -> tuple[int, str]:
            total = proxy.cli("report")["total"]
            return total["requests"], total["cost"]

        sending = asyncio.gather(*(send(15) for _ in range(2)))
        await asyncio.sleep(0)
        await eventually(database.exists)
        database.unlink()
        await sending
        assert await asyncio.to_thread(reported) == (30, "0.30")
        await eventually(lambda: database.exists() and rows() == 30)

        sending = asyncio.gather(*(send(15) for _ in range(2)))
        database.write_bytes(b"not a database, but something else\n" * 1_000)
        await sending
        assert await asyncio.to_thread(reported) == (60, "0.60")
        await eventually(lambda: rows() == 60)
        await eventually(lambda: proxy.cli("status")["problems"] == [])
        await client.close()
