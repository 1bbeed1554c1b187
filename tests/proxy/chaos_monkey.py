"""The chaos monkey: kills workers and whole proxies, and makes the store unavailable, at random."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.proxy.chaos_store import FAULTS
from usage_plugin.ledgers.workers.file_locked_workers import FileLockedWorkers

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests.proxy.conftest import Proxy


class Monkey:
    """Perform one fault after another, and keep a diary of them."""

    def __init__(self, proxy: Proxy, rng: random.Random, fault: Path) -> None:
        self._proxy = proxy
        self._random = rng
        self._fault = fault
        self._data = proxy.folder / "data"
        self._began = time.monotonic()
        self.diary: list[str] = []

    async def rage(self, seconds: float) -> None:
        """Cause a fault every few seconds; some of them stop the whole proxy."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await asyncio.sleep(self._random.uniform(1, 10))
            deed = self._random.choices(
                (self.kill_worker, self.fail_store, self.lock_store, self.restart), (4, 4, 2, 2)
            )[0]
            await deed()

    async def kill_worker(self) -> None:
        # Find workers by the locks they hold: by now, a process id alone may be another process's.
        if living := FileLockedWorkers(self._data / "workers").living():
            victim = int(self._random.choice(living).partition("-")[0])
            self._note(f"kill worker {victim} of {len(living)}")
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)

    async def fail_store(self, kind: str | None = None, seconds: float | None = None) -> None:
        kind = kind or self._random.choice(FAULTS)
        self._note(f"store: {kind}")
        self._fault.write_text(kind)
        await asyncio.sleep(seconds or self._random.uniform(1, 8))
        self._fault.write_text("")
        self._note("store: works")

    async def lock_store(self, seconds: float | None = None) -> None:
        """Hold the store's write lock, sometimes for longer than the store waits for it."""
        self._note("store: locked")
        await asyncio.to_thread(self._lock, seconds or self._random.uniform(1, 15))
        self._note("store: unlocked")

    def _lock(self, seconds: float) -> None:
        connection = sqlite3.connect(self._data / "usage.db", timeout=30, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            time.sleep(seconds)
            connection.execute("ROLLBACK")
        finally:
            connection.close()

    async def restart(self, how: signal.Signals | None = None) -> None:
        """Stop the whole proxy, usually with SIGKILL, and start it again."""
        how = how or self._random.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
        self._note(f"end the proxy by {how.name}")
        await asyncio.to_thread(self._proxy.stop, how)
        await asyncio.to_thread(self._proxy.start)
        self._note("the proxy is back")

    def _note(self, deed: str) -> None:
        self.diary.append(f"{time.monotonic() - self._began:7.1f} s  {deed}")
