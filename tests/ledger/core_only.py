"""A ledger backend with a core of its own that uses the other parts of the SQLite ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usage_plugin.ledgers.sqlite import open_sqlite_ledger
from usage_plugin.plugins.interface import LedgerBackend, NoOptions

if TYPE_CHECKING:
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.plugins.interface import Surroundings


class CoreOnlyBackend(LedgerBackend[NoOptions]):
    name = "core-only"
    options_model = NoOptions

    def exists(self, options: NoOptions, surroundings: Surroundings) -> bool:
        del options
        return (surroundings.data_dir / "core.db").is_file()

    def open(self, options: NoOptions, surroundings: Surroundings) -> OpenLedger:
        del options
        core = open_sqlite_ledger(surroundings.data_dir / "core.db")
        others = open_sqlite_ledger(surroundings.data_dir / "ledger.db")
        return others.with_core(core.ledger, core.erasable, file=core.file)
