"""The default ledger: a small, hot SQLite file that all workers of one host share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usage_plugin.ledgers.sqlite.ledger import SqliteLedger
from usage_plugin.plugins import hookimpl
from usage_plugin.plugins.interface import BackendContext, LedgerBackend, NoOptions

if TYPE_CHECKING:
    from pathlib import Path

    from usage_plugin.domain.ledger import Ledger


class SqliteLedgerBackend(LedgerBackend[NoOptions]):
    """Keeps the accounts in `ledger.db` in the data folder."""

    name = "sqlite"
    options_model = NoOptions

    def exists(self, options: NoOptions, context: BackendContext) -> bool:
        """Say whether the file is there."""
        del options
        return _file(context).is_file()

    def open(self, options: NoOptions, context: BackendContext) -> Ledger:
        """Open the file, creating it if there is none."""
        del options
        return SqliteLedger(_file(context))


def _file(context: BackendContext) -> Path:
    return context.data_dir / "ledger.db"


@hookimpl
def usage_register_ledgers() -> list[LedgerBackend[Any]]:
    """Register the SQLite ledger."""
    return [SqliteLedgerBackend()]
