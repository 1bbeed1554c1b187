"""Every registered ledger keeps the contracts of its parts."""

from __future__ import annotations

from tests.support.postgres import OnPostgres
from tests.support.valkey import OnValkey
from usage_plugin.plugins.interface import SharedLedgerBackend
from usage_plugin.plugins.manager import Plugins
from usage_plugin.runtime import BUILTIN_PLUGINS
from usage_plugin.testing import (
    ErasableContract,
    FleetContract,
    KeeperTermContract,
    LedgerContract,
    LedgerTransportContract,
    OperationsLogContract,
    ProfileStoreContract,
)

OPENED: dict[str, tuple[type, ...]] = {"postgres": (OnPostgres,), "valkey": (OnValkey,)}
"""Ledgers outside of the data folder, with the class that opens them."""

EVERY = (LedgerContract, OperationsLogContract, ProfileStoreContract, ErasableContract)
SHARED = (FleetContract, LedgerTransportContract, KeeperTermContract)

for _backend in Plugins(BUILTIN_PLUGINS, entry_points=False).ledger_backends.values():
    for _contract in (*EVERY, *(SHARED if isinstance(_backend, SharedLedgerBackend) else ())):
        _class = f"Test{_backend.name.title()}{_contract.__name__.removesuffix('Contract')}"
        globals()[_class] = type(
            _class, (*OPENED.get(_backend.name, ()), _contract), {"backend": _backend, "__module__": __name__}
        )
