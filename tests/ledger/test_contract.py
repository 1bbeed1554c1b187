"""Every registered ledger keeps the contracts of its parts."""

from __future__ import annotations

from usage_plugin.plugins.manager import Plugins
from usage_plugin.runtime import BUILTIN_PLUGINS
from usage_plugin.testing import ErasableContract, LedgerContract, OperationsLogContract, ProfileStoreContract

for _backend in Plugins(BUILTIN_PLUGINS, entry_points=False).ledger_backends.values():
    for _contract in (LedgerContract, OperationsLogContract, ProfileStoreContract, ErasableContract):
        _class = f"Test{_backend.name.title()}{_contract.__name__.removesuffix('Contract')}"
        globals()[_class] = type(_class, (_contract,), {"backend": _backend, "__module__": __name__})
