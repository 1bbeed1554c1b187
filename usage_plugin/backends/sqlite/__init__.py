"""The `sqlite` backend: the whole history in one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from usage_plugin.backends.sqlite.store import open_store
from usage_plugin.plugins import hookimpl
from usage_plugin.plugins.interface import Options, StorageBackend, Surroundings

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from usage_plugin.domain.store import UsageStore


class SqliteOptions(Options):
    """Options of the `sqlite` backend.

    Attributes:
        path: the file; a relative one begins at the data folder.
    """

    path: Path = Path("usage.db")


class SqliteBackend(StorageBackend[SqliteOptions]):
    """Keeps the history in `usage.db` in the data folder."""

    name = "sqlite"
    options_model = SqliteOptions

    def open(self, options: SqliteOptions, surroundings: Surroundings) -> AbstractAsyncContextManager[UsageStore]:
        """Open the file, creating it if there is none."""
        return open_store(surroundings.data_dir / options.path, surroundings.zone)


@hookimpl
def usage_register_storage_backends() -> list[StorageBackend[Any]]:
    """Register the SQLite backend."""
    return [SqliteBackend()]
