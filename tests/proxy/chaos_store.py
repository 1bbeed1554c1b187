"""A store that fails on command: the SQLite store, with a fault before `append`.

The module is copied next to its entry point (`install`) and uses only the package's public API, as a third party's
would. The file named by CHAOS_FAULT holds the current fault; reads are not affected.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usage_plugin.backends.sqlite import SqliteBackend
from usage_plugin.errors import StorageUnavailableError
from usage_plugin.plugins import hookimpl
from usage_plugin.plugins.interface import StorageBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FAULTS = ("refuse", "forget", "hang", "bug")
"""In order: it does not write; it writes and reports a failure; it is slow; it raises an error that stores must not
raise."""


class FlakyBackend(SqliteBackend):
    name = "flaky"

    @asynccontextmanager
    async def open(self, options: Any, surroundings: Any) -> AsyncIterator[Any]:
        if fault() == "refuse":
            raise StorageUnavailableError("planned")
        async with super().open(options, surroundings) as store:
            append = store.append

            async def flaky(*batch: Any) -> None:
                now = fault()
                if now == "refuse":
                    raise StorageUnavailableError("planned")
                if now == "bug":
                    raise RuntimeError("planned")
                if now == "hang":
                    await asyncio.sleep(2)
                await append(*batch)
                if now == "forget":
                    raise StorageUnavailableError("planned")

            store.append = flaky
            yield store


def fault() -> str:
    path = os.environ.get("CHAOS_FAULT")
    return Path(path).read_text() if path and Path(path).exists() else ""


@hookimpl
def usage_register_storage_backends() -> list[StorageBackend[Any]]:
    return [FlakyBackend()]


def install(folder: Path) -> None:
    """Create a folder that is, on PYTHONPATH, an installed package with this plugin."""
    about = folder / "chaos_store-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: chaos-store\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[usage_plugin]\nchaos = chaos_store\n")
    shutil.copy(__file__, folder / "chaos_store.py")
