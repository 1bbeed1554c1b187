"""Every registered ledger keeps the contracts of its parts, and so does one that uses parts of another."""

from __future__ import annotations

from tests.ledger.core_only import CoreOnlyBackend
from usage_plugin.plugins.manager import Plugins
from usage_plugin.runtime import BUILTIN_PLUGINS
from usage_plugin.testing import ErasableContract, LedgerContract, OperationsLogContract, ProfileStoreContract

for _backend in (*Plugins(BUILTIN_PLUGINS, entry_points=False).ledger_backends.values(), CoreOnlyBackend()):
    for _contract in (LedgerContract, OperationsLogContract, ProfileStoreContract, ErasableContract):
        _class = f"Test{_backend.name.title().replace('-', '')}{_contract.__name__.removesuffix('Contract')}"
        globals()[_class] = type(_class, (_contract,), {"backend": _backend, "__module__": __name__})
