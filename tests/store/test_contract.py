"""Every registered backend keeps the contract: a new one is here by itself."""

from __future__ import annotations

from tests.support.object_server import StoreOnObjects
from tests.support.postgres import StoreOnPostgres
from usage_plugin.plugins.manager import Plugins
from usage_plugin.runtime import BUILTIN_PLUGINS
from usage_plugin.testing import StoreContract

BACKENDS = Plugins(BUILTIN_PLUGINS, entry_points=False).storage_backends
FORGETS = {"memory"}
"""Keep nothing when they are closed, and say so in their documentation."""
OPENED: dict[str, tuple[type, ...]] = {"postgres": (StoreOnPostgres,), "objects": (StoreOnObjects,)}
"""Stores outside of the data folder, with the class that opens them."""

for _name, _backend in BACKENDS.items():
    _class = f"Test{_name.title()}Store"
    globals()[_class] = type(
        _class,
        (*OPENED.get(_name, ()), StoreContract),
        {"backend": _backend, "durable": _name not in FORGETS, "__module__": __name__},
    )
