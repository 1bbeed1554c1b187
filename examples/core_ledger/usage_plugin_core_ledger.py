"""The ledger `core`: a core of its own, and the other parts of the SQLite ledger.

The core is another SQLite file, so that this example shows only how the two are combined. Put yours in its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usage_plugin.ledgers.sqlite import open_sqlite_ledger
from usage_plugin.plugins import hookimpl
from usage_plugin.plugins.ledger import BackendContext, LedgerBackend, NoOptions, OpenLedger

if TYPE_CHECKING:
    from pathlib import Path


class CoreBackend(LedgerBackend[NoOptions]):
    """Keep the core in `core.db` in the data folder, and everything else in `ledger.db`."""

    name = "core"
    options_model = NoOptions

    def exists(self, options: NoOptions, context: BackendContext) -> bool:
        """Whether there is a core; readers ask this first, because they create nothing."""
        del options
        return _core_file(context).is_file()

    def open(self, options: NoOptions, context: BackendContext) -> OpenLedger:
        """Open the core and the lender for the calling thread; create both if they are missing."""
        del options
        lender = open_sqlite_ledger(context.data_dir / "ledger.db")
        try:
            core = open_sqlite_ledger(_core_file(context))
        except BaseException:
            lender.close()
            raise
        return lender.with_core(core.ledger, core.erasable, file=core.file)


def _core_file(context: BackendContext) -> Path:
    return context.data_dir / "core.db"


@hookimpl
def usage_register_ledgers() -> list[LedgerBackend[Any]]:
    """Register the ledger."""
    return [CoreBackend()]
