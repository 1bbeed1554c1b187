"""The default ledger: a small, hot SQLite file that all workers of one host share.

Each part is a class of its own over one `LedgerFile`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usage_plugin.domain.open_ledger import OpenLedger
from usage_plugin.ledgers.sqlite.erasable import SqliteErasable
from usage_plugin.ledgers.sqlite.file import LedgerFile
from usage_plugin.ledgers.sqlite.ledger import SqliteLedger
from usage_plugin.ledgers.sqlite.operations import SqliteOperationsLog
from usage_plugin.ledgers.sqlite.profiles import SqliteProfileStore
from usage_plugin.plugins import hookimpl
from usage_plugin.plugins.interface import BackendContext, LedgerBackend, NoOptions

if TYPE_CHECKING:
    from pathlib import Path


class SqliteLedgerBackend(LedgerBackend[NoOptions]):
    """Keep the ledger in `ledger.db` in the data folder."""

    name = "sqlite"
    options_model = NoOptions

    def exists(self, options: NoOptions, context: BackendContext) -> bool:
        """Whether the file exists."""
        del options
        return _file(context).is_file()

    def open(self, options: NoOptions, context: BackendContext) -> OpenLedger:
        """Open the file; create it if it is missing."""
        del options
        return open_sqlite_ledger(_file(context))


def open_sqlite_ledger(path: Path) -> OpenLedger:
    """Open a file for the calling thread; create it if it is missing.

    Raises:
        LedgerError: the file cannot be opened, or is not a ledger.
        StorageVersionError: a newer version wrote it.
    """
    file = LedgerFile(path)
    return OpenLedger(
        SqliteLedger(file), SqliteOperationsLog(file), SqliteProfileStore(file), SqliteErasable(file), file
    )


def _file(context: BackendContext) -> Path:
    return context.data_dir / "ledger.db"


@hookimpl
def usage_register_ledgers() -> list[LedgerBackend[Any]]:
    """Register the SQLite ledger."""
    return [SqliteLedgerBackend()]
