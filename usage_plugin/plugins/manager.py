"""Validate plugins and collect the objects that they register. Only this module calls pluggy's untyped hooks.

An invalid plugin stops the start, since a plugin that is silently not called is worse than none. The error names the
plugin, its origin, the hook and the remedy.
"""

from __future__ import annotations

import difflib
import inspect
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pluggy
from pydantic import BaseModel

from usage_plugin.errors import PluginError
from usage_plugin.plugins import MARK, PROJECT, hookspecs
from usage_plugin.plugins.discovery import FIX_OR_DISABLE, find_plugins
from usage_plugin.plugins.interface import BackendContext, IdentityResolver, LedgerBackend, StorageBackend
from usage_plugin.plugins.interface_checks import abstract_leaves, describe_missing, documentation_of
from usage_plugin.tracking.notifications.publishers import Hooked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from usage_plugin.plugins.discovery import ConfiguredPlugin, FoundPlugin

TRACE_VARIABLE = "USAGE_PLUGIN_TRACE_PLUGINS"

NO_CONTEXT = BackendContext(Path(), ZoneInfo("UTC"))
_NONE: Mapping[str, str] = MappingProxyType({})

HOOKS = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("usage_")}
"""All hooks by name."""


@dataclass(frozen=True, slots=True)
class LoadedPlugin:
    """A plugin in use.

    Attributes:
        found: The plugin and its origin.
        hooks: The names of the hooks that it implements.
        registers: The objects that it registered, such as `storage backend sqlite`.
    """

    found: FoundPlugin
    hooks: tuple[str, ...]
    registers: tuple[str, ...]


class Plugins:
    """The plugins in use: the built-in ones, those of installed packages, and files.

    Attributes:
        loaded: All plugins.
        storage_backends: The registered storage backends by name; likewise `ledger_backends` and `resolvers`.
    """

    def __init__(
        self,
        builtin: Sequence[str],
        chosen: Sequence[ConfiguredPlugin] = (),
        context: BackendContext = NO_CONTEXT,
        *,
        optional: Mapping[str, str] = _NONE,
        entry_points: bool = True,
    ) -> None:
        """Load the plugins.

        Args:
            builtin: The modules of the built-in plugins.
            chosen: The entries of `plugins` in the YAML.
            context: The context of plugins with a class `Plugin`.
            optional: The modules of plugins that are loaded only if the YAML names them, by name.
            entry_points: Whether to load the entry-point group `usage_plugin` too.

        Raises:
            PluginError: A plugin cannot be loaded, is invalid, or uses the name of another.
            ConfigError: The options of a plugin are invalid.
        """
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._found: dict[str, FoundPlugin] = {}
        self._registered: dict[str, list[str]] = {}
        for found in find_plugins(builtin, chosen, context, optional=optional, entry_points=entry_points):
            self._register(found)
        self.storage_backends: dict[str, StorageBackend[Any]] = self._collect(
            "usage_register_storage_backends", StorageBackend, "storage backend"
        )
        self.ledger_backends: dict[str, LedgerBackend[Any]] = self._collect(
            "usage_register_ledgers", LedgerBackend, "ledger"
        )
        self.resolvers: dict[str, IdentityResolver] = self._collect(
            "usage_register_identity_resolvers", IdentityResolver, "identity resolver"
        )
        self.loaded = [
            LoadedPlugin(found, self._hooks_of(found), tuple(self._registered.get(found.name, ())))
            for found in self._found.values()
        ]

    @property
    def brought(self) -> list[FoundPlugin]:
        """The plugins that are not built in."""
        return [plugin.found for plugin in self.loaded if plugin.found.source != "built-in"]

    def listeners(self, hook: str) -> list[Hooked]:
        """Return the subscribers of a notification, as functions of its one argument."""
        return [
            Hooked(call.plugin_name, call.function if call.argnames else _without_argument(call.function))
            for call in self._calls(hook)
        ]

    def _register(self, found: FoundPlugin) -> None:
        known = self._found.get(found.name)
        if known is not None:
            raise PluginError(
                f"expected unique names of plugins; found two named {found.name}: {known.location} and"
                f" {found.location}.",
                hint="Rename the file, or disable one with enabled: false under usage_plugin.plugins.",
            )
        has_hooks = False
        for name in dir(found.implements):
            function = getattr(found.implements, name, None)
            marks = getattr(function, MARK, None)
            if callable(function) and isinstance(marks, dict):
                has_hooks = True
                _check_fits(found, str(marks.get("specname") or name), function, marks)
            elif name in HOOKS and inspect.isroutine(function):
                raise PluginError(f"{name} of the plugin {found} has no @hookimpl.", hint="Write @hookimpl above it.")
        if not has_hooks:
            raise PluginError(f"The plugin {found} implements no hook.", hint=f"The hooks are {', '.join(HOOKS)}.")
        try:
            self._manager.register(found.implements, name=found.name)
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"Invalid plugin {found}: {error}.") from error
        self._found[found.name] = found

    def _collect(self, hook: str, kind: type, word: str) -> dict[str, Any]:
        """Return the objects that a hook registers, by name; pluggy's hooks have no types, so they are checked here."""
        collected: dict[str, Any] = {}
        origin: dict[str, FoundPlugin] = {}
        for call in self._calls(hook):
            found = self._found[call.plugin_name]
            try:
                objects = call.function()
            except (Exception, SystemExit) as error:
                unfinished = abstract_leaves(kind, call.function.__module__)
                if isinstance(error, TypeError) and unfinished:
                    lacking = describe_missing(unfinished[0], kind)
                    raise PluginError(
                        f"{unfinished[0].__name__} of the plugin {found} is an incomplete {kind.__name__}: {lacking}.",
                        hint=f"Each method is documented: {documentation_of(kind)}",
                    ) from error
                raise PluginError(
                    f"The plugin {found} failed in {hook}: {type(error).__name__}: {error}.",
                    hint=FIX_OR_DISABLE,
                ) from error
            _trace(found, hook, objects)
            for made in _checked(objects, kind, f"{hook} of the plugin {found}"):
                if made.name in collected:
                    raise PluginError(
                        f"{found} and {origin[made.name]} both register the {word} {made.name!r}.",
                        hint="Disable one of them with enabled: false under usage_plugin.plugins.",
                    )
                collected[made.name], origin[made.name] = made, found
                self._registered.setdefault(found.name, []).append(f"{word} {made.name}")
        return collected

    def _calls(self, hook: str) -> list[pluggy.HookImpl]:
        calls: list[pluggy.HookImpl] = getattr(self._manager.hook, hook).get_hookimpls()
        return calls

    def _hooks_of(self, found: FoundPlugin) -> tuple[str, ...]:
        return tuple(hook for hook in HOOKS if any(call.plugin_name == found.name for call in self._calls(hook)))


def _check_fits(found: FoundPlugin, hook: str, function: Callable[..., Any], marks: dict[str, Any]) -> None:
    """Check that an implementation can be called as the hook is.

    Raises:
        PluginError: The hook does not exist, or has another signature.
    """
    where = f"{hook} of the plugin {found}"
    if hook not in HOOKS:
        close = difflib.get_close_matches(hook, HOOKS, n=1)
        raise PluginError(
            f"The plugin {found} implements an unknown hook: {hook}.",
            hint=f"Did you mean {close[0]}?" if close else f"The hooks are {', '.join(HOOKS)}.",
        )
    if marks.get("hookwrapper") or marks.get("wrapper"):
        raise PluginError(
            f"{where}: expected a plain implementation; found a wrapper.",
            hint="Remove the wrapper option: hooks are called one plugin at a time.",
        )
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise PluginError(
            f"{where}: expected a plain function; found a coroutine function or a generator.",
            hint="Write def, without async and yield: it is called in a thread, where it may block.",
        )
    given = list(inspect.signature(HOOKS[hook]).parameters)
    wanted = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    unknown = [name for name in wanted if name not in given]
    if unknown:
        raise PluginError(
            f"{where} has unknown arguments: {', '.join(unknown)}.",
            hint=f"It is called as {hook}({', '.join(given)}).",
        )


def _checked(objects: Any, kind: type[Any], where: str) -> list[Any]:
    """Return the objects that a hook registered.

    Raises:
        PluginError: The value is not a list of the right objects with names.
    """
    if not isinstance(objects, list | tuple):
        raise PluginError(
            f"{where}: expected a list; found {type(objects).__name__}.",
            hint=f"Return a list of {kind.__name__} objects.",
        )
    for made in objects:
        if not isinstance(made, kind):
            of_class = f"the class {made.__name__}" if isinstance(made, type) else type(made).__name__
            raise PluginError(
                f"{where}: expected objects of {kind.__name__}; found {of_class}.",
                hint=f"Return a list of {kind.__name__} objects.",
            )
        if not isinstance(getattr(made, "name", None), str) or not made.name:
            raise PluginError(f"{where} returned a {type(made).__name__} without a name.", hint='Add name = "…".')
        model = getattr(made, "options_model", None)
        if kind in (StorageBackend, LedgerBackend) and not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise PluginError(
                f"{where} returned a {type(made).__name__} without an options_model.",
                hint="Set it to a subclass of usage_plugin.plugins.Options, or to NoOptions.",
            )
    return list(objects)


def _without_argument(function: Callable[[], object]) -> Callable[[Any], object]:
    return lambda _: function()


def _trace(found: FoundPlugin, hook: str, objects: object) -> None:
    if os.environ.get(TRACE_VARIABLE) == "1":
        sys.stderr.write(f"usage_plugin: {hook} of {found} -> {objects!r}\n")
