"""The `sqlite` backend: the whole history in one file."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usage_plugin.backends.sqlite.sqlite_store import open_store
from usage_plugin.plugins import hookimpl
from usage_plugin.plugins.interface import BackendContext, Options, StorageBackend

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from usage_plugin.domain.store import UsageStore


class SqliteOptions(Options):
    """Options of the `sqlite` backend.

    Attributes:
        path: The file; a relative path starts in the data folder.
    """

    path: Path = Path("usage.db")


class SqliteBackend(StorageBackend[SqliteOptions]):
    """The backend that keeps the history in `usage.db` in the data folder."""

    name = "sqlite"
    options_model = SqliteOptions

    def open(self, options: SqliteOptions, context: BackendContext) -> AbstractAsyncContextManager[UsageStore]:
        """Open the file; create it if it does not exist."""
        return open_store(context.data_dir / options.path, context.zone)

    def beside(self, options: SqliteOptions, context: BackendContext) -> SqliteOptions:
        """Return the options of the new file, after deleting the remains of an earlier one."""
        new = options.model_copy(update={"path": options.path.with_name(f"{options.path.name}.new")})
        for path in _files(context.data_dir / new.path):
            path.unlink(missing_ok=True)
        return new

    def take_place(self, options: SqliteOptions, context: BackendContext, *, aside: str | None) -> Path | None:
        """Replace the old file with the new one; move or delete the old one with its WAL."""
        path = context.data_dir / options.path
        kept = path.with_name(f"{path.name}.{aside}") if aside and path.exists() else None
        for old in _files(path):
            with suppress(FileNotFoundError):
                if kept is None:
                    old.unlink()
                else:
                    old.rename(kept.with_name(old.name.replace(path.name, kept.name, 1)))
        path.with_name(f"{path.name}.new").rename(path)
        return kept


def _files(path: Path) -> list[Path]:
    """Return a database file with its WAL and its shared-memory file."""
    return [path, *(path.with_name(f"{path.name}{ending}") for ending in ("-wal", "-shm"))]


@hookimpl
def usage_register_storage_backends() -> list[StorageBackend[Any]]:
    """Register the SQLite backend."""
    return [SqliteBackend()]
