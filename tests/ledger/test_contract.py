"""Every registered ledger keeps the contract: a new one is here by itself."""

from __future__ import annotations

from usage_plugin.plugins.manager import Plugins
from usage_plugin.runtime import BUILTIN_PLUGINS
from usage_plugin.testing import LedgerContract

for _name, _backend in Plugins(BUILTIN_PLUGINS, entry_points=False).ledger_backends.items():
    _class = f"Test{_name.title()}Ledger"
    globals()[_class] = type(_class, (LedgerContract,), {"backend": _backend, "__module__": __name__})
