"""Loads plugins and collects what they register. The only place that calls pluggy's untyped hooks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import pluggy

from usage_plugin.errors import PluginError
from usage_plugin.plugins import PROJECT, hookspecs
from usage_plugin.plugins.interface import LedgerBackend, StorageBackend
from usage_plugin.tracking.listeners import Hooked

if TYPE_CHECKING:
    from collections.abc import Sequence


class Plugins:
    """The plugins in use: the built-in ones, then those that installed packages bring."""

    def __init__(self, builtin: Sequence[str], *, entry_points: bool = True) -> None:
        """Load them.

        Args:
            builtin: modules with hook implementations.
            entry_points: whether to load the entry-point group `usage_plugin` too.

        Raises:
            PluginError: a plugin cannot be imported, misspells a hook, or takes a name that is taken.
        """
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        try:
            for module in builtin:
                self._manager.register(import_module(module), name=module)
            if entry_points:
                self._manager.load_setuptools_entrypoints(PROJECT)
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PluginError(f"A plugin does not fit: {error}.") from error
        except ImportError as error:
            raise PluginError(f"A plugin cannot be imported: {error}.") from error
        self.storage_backends: dict[str, StorageBackend[Any]] = self._by_name("usage_register_storage_backends")
        self.ledger_backends: dict[str, LedgerBackend[Any]] = self._by_name("usage_register_ledgers")

    def listeners(self, hook: str) -> list[Hooked]:
        """List who wants to be told by a notification, as functions of what there is to tell."""
        return [Hooked(call.plugin_name, call.function) for call in getattr(self._manager.hook, hook).get_hookimpls()]

    def _by_name(self, hook: str) -> dict[str, Any]:
        """Collect what a hook registers; pluggy's hooks have no types, so this is where they get theirs."""
        found: dict[str, Any] = {}
        origin: dict[str, str] = {}
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            plugin = implementation.plugin_name
            try:
                backends = implementation.function()
            except Exception as error:
                raise PluginError(f"The plugin {plugin} failed in {hook}: {error}.") from error
            for backend in backends:
                name = backend.name
                if name in found:
                    raise PluginError(f"{plugin} and {origin[name]} both register a backend named {name!r}.")
                found[name], origin[name] = backend, plugin
        return found
