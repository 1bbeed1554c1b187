"""Checks plugins and collects what they register. The only place that calls pluggy's untyped hooks.

Whatever does not fit stops the start, with an error that names the plugin, where it comes from, the hook and the
remedy: a plugin that is silently not called is worse than none.
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
from usage_plugin.plugins.discovery import find_plugins
from usage_plugin.plugins.interface import BackendContext, IdentityResolver, LedgerBackend, StorageBackend
from usage_plugin.plugins.interface_checks import abstract_leaves, describe_missing
from usage_plugin.tracking.listeners import Hooked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from usage_plugin.plugins.discovery import ConfiguredPlugin, FoundPlugin

TRACE_VARIABLE = "USAGE_PLUGIN_TRACE_PLUGINS"

NO_CONTEXT = BackendContext(Path(), ZoneInfo("UTC"))
_NONE: Mapping[str, str] = MappingProxyType({})

HOOKS = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("usage_")}
"""Every hook by its name."""


@dataclass(frozen=True, slots=True)
class LoadedPlugin:
    """A plugin in use.

    Attributes:
        found: what it is and where it comes from.
        hooks: names of the hooks that it implements.
        registers: what it has registered, `storage backend sqlite` and the like.
    """

    found: FoundPlugin
    hooks: tuple[str, ...]
    registers: tuple[str, ...]


class Plugins:
    """The plugins in use: the built-in ones, those of installed packages, and files.

    Attributes:
        loaded: all of them.
        storage_backends: by name, as `ledger_backends` and `resolvers`.
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
        """Load them.

        Args:
            builtin: modules with hook implementations.
            chosen: what the YAML says of plugins.
            context: what those are told that have a class `Plugin`.
            optional: modules of plugins that are loaded if the YAML names them, by name.
            entry_points: whether to load the entry-point group `usage_plugin` too.

        Raises:
            PluginError: a plugin cannot be loaded, does not fit, or takes a name that is taken.
            ConfigError: the options of one are wrong.
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
        """List who wants to be told by a notification, as functions of what there is to tell."""
        return [
            Hooked(call.plugin_name, call.function if call.argnames else _without_argument(call.function))
            for call in self._calls(hook)
        ]

    def _register(self, found: FoundPlugin) -> None:
        known = self._found.get(found.name)
        if known is not None:
            raise PluginError(
                f"Two plugins have the name {found.name}: {known.location} and {found.location}.",
                hint="Rename the file, or switch one off with enabled: false under usage_plugin.plugins.",
            )
        has_hooks = False
        for name in dir(found.implements):
            function = getattr(found.implements, name, None)
            marks = getattr(function, MARK, None)
            if callable(function) and isinstance(marks, dict):
                has_hooks = True
                _check_fits(found, str(marks.get("specname") or name), function, marks)
            elif name in HOOKS and inspect.isroutine(function):
                raise PluginError(f"{name} of the plugin {found} is not marked.", hint="Write @hookimpl above it.")
        if not has_hooks:
            raise PluginError(f"The plugin {found} implements no hook.", hint=f"There are: {', '.join(HOOKS)}.")
        try:
            self._manager.register(found.implements, name=found.name)
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"The plugin {found} does not fit: {error}.") from error
        self._found[found.name] = found

    def _collect(self, hook: str, kind: type, word: str) -> dict[str, Any]:
        """Collect what a hook registers; pluggy's hooks have no types, so this is where they get theirs."""
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
                        f"{unfinished[0].__name__} of the plugin {found} is not a whole {kind.__name__}: {lacking}.",
                        hint=f"usage_plugin.plugins.interface.{kind.__name__} says what each must do.",
                    ) from error
                raise PluginError(
                    f"The plugin {found} failed in {hook}: {type(error).__name__}: {error}.",
                    hint="Mend it, or switch it off with enabled: false under usage_plugin.plugins.",
                ) from error
            _trace(found, hook, objects)
            for made in _checked(objects, kind, f"{hook} of the plugin {found}"):
                if made.name in collected:
                    raise PluginError(
                        f"{found} and {origin[made.name]} both register a {word} named {made.name!r}.",
                        hint="Switch one of them off with enabled: false under usage_plugin.plugins.",
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
    """Refuse an implementation that would not be called, or not as its author thinks.

    Raises:
        PluginError: there is no such hook, or it is called otherwise.
    """
    where = f"{hook} of the plugin {found}"
    if hook not in HOOKS:
        close = difflib.get_close_matches(hook, HOOKS, n=1)
        raise PluginError(
            f"There is no hook {hook}, which the plugin {found} implements.",
            hint=f"Is {close[0]} meant?" if close else f"There are: {', '.join(HOOKS)}.",
        )
    if marks.get("hookwrapper") or marks.get("wrapper"):
        raise PluginError(f"{where} is a wrapper.", hint="Hooks are called one plugin at a time: write a plain one.")
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise PluginError(
            f"{where} is no plain function, so calling it would do nothing.",
            hint="Write def, without async and yield: it is called in a thread, where it may wait.",
        )
    given = list(inspect.signature(HOOKS[hook]).parameters)
    wanted = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    unknown = [name for name in wanted if name not in given]
    if unknown:
        raise PluginError(
            f"{where} wants {', '.join(unknown)}, which it is not given.",
            hint=f"It is called as {hook}({', '.join(given)}).",
        )


def _checked(objects: Any, kind: type[Any], where: str) -> list[Any]:
    """Refuse what is no list of the right objects with names.

    Raises:
        PluginError: it names what was found instead.
    """
    if not isinstance(objects, list | tuple):
        raise PluginError(
            f"{where} returned {type(objects).__name__}.", hint=f"It must return a list of {kind.__name__}."
        )
    for made in objects:
        if not isinstance(made, kind):
            of_class = f"the class {made.__name__}" if isinstance(made, type) else type(made).__name__
            raise PluginError(f"{where} returned {of_class}.", hint=f"It must return objects of a {kind.__name__}.")
        if not isinstance(getattr(made, "name", None), str) or not made.name:
            raise PluginError(f"{where} returned a {type(made).__name__} without a name.", hint='Give it name = "…".')
        model = getattr(made, "options_model", None)
        if kind in (StorageBackend, LedgerBackend) and not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise PluginError(
                f"{where} returned a {type(made).__name__} without an options_model.",
                hint="Give it a subclass of usage_plugin.plugins.interface.Options, or NoOptions.",
            )
    return list(objects)


def _without_argument(function: Callable[[], object]) -> Callable[[Any], object]:
    return lambda _: function()


def _trace(found: FoundPlugin, hook: str, objects: object) -> None:
    if os.environ.get(TRACE_VARIABLE) == "1":
        sys.stderr.write(f"usage_plugin: {hook} of {found} -> {objects!r}\n")
