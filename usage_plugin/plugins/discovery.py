"""Load plugins from the package itself, from installed distributions and from files; registration comes later."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib import import_module, metadata
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from usage_plugin import __version__
from usage_plugin.errors import PluginError, UsagePluginError
from usage_plugin.plugins import MARK, PROJECT
from usage_plugin.plugins.file_loader import load_file
from usage_plugin.plugins.interface import NoOptions, check_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from usage_plugin.plugins.interface import BackendContext

Source = Literal["built-in", "optional", "package", "file"]

FIX_OR_DISABLE = "Fix it, or disable it with enabled: false under usage_plugin.plugins."


@dataclass(frozen=True, slots=True)
class ConfiguredPlugin:
    """An entry of `plugins` in the YAML; exactly one of `path`, `package` and `name` is set.

    Attributes:
        where: The key of the YAML, for errors.
    """

    where: str
    path: Path | None = None
    package: str | None = None
    name: str | None = None
    enabled: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FoundPlugin:
    """A plugin that was loaded.

    Attributes:
        name: The unique name: of a file its name without `.py`, of a package that of the entry point.
        location: The distribution with its version, or the file.
        implements: The object with the hook implementations.
    """

    name: str
    source: Source
    location: str
    implements: object

    def __str__(self) -> str:
        """Return the name and the location, for errors."""
        return f"{self.name} ({self.location})"


def find_plugins(
    builtin: Sequence[str],
    chosen: Sequence[ConfiguredPlugin],
    context: BackendContext,
    *,
    optional: Mapping[str, str],
    entry_points: bool,
) -> Iterator[FoundPlugin]:
    """Load every enabled plugin, the built-in ones first; of `optional` those that the YAML names.

    Raises:
        PluginError: A plugin cannot be loaded.
        ConfigError: The options of a plugin are invalid.
    """
    ours = f"usage_plugin {__version__}"
    for name in builtin:
        yield FoundPlugin(name, "built-in", ours, _loaded(name, ours, import_module, name))
    for choice in chosen:
        if choice.name is not None:
            _check_known(choice, optional)
            if choice.enabled:
                loaded = _loaded(choice.name, ours, import_module, optional[choice.name])
                yield FoundPlugin(choice.name, "optional", ours, _made(choice.name, ours, loaded, choice, context))
    installed = list(metadata.entry_points(group=PROJECT)) if entry_points else []
    packages = _by_package(chosen, installed)
    for point in installed:
        entry = packages.get(_normal(_distribution(point)))
        if entry is None or entry.enabled:
            location = f"{_distribution(point)} {point.dist.version if point.dist else ''}".strip()
            loaded = _loaded(point.name, location, point.load)
            yield FoundPlugin(point.name, "package", location, _made(point.name, location, loaded, entry, context))
    for choice in chosen:
        if choice.path is not None and choice.enabled:
            name, location = choice.path.stem, str(choice.path)
            loaded = _loaded(name, location, load_file, choice.path)
            yield FoundPlugin(name, "file", location, _made(name, location, loaded, choice, context))


def _loaded(name: str, location: str, load: Callable[..., Any], *what: object) -> Any:
    try:
        return load(*what)
    except UsagePluginError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"Cannot import the plugin {name} ({location}): {type(error).__name__}: {error}.",
            hint=FIX_OR_DISABLE,
        ) from error


def _made(name: str, location: str, loaded: Any, choice: ConfiguredPlugin | None, context: BackendContext) -> object:
    """Return an object of the module's class `Plugin`, if it has one; else the module itself is the plugin."""
    options = choice.options if choice else {}
    where = f"{choice.where if choice else 'usage_plugin.plugins'}.options"
    factory = getattr(loaded, "Plugin", None) if isinstance(loaded, ModuleType) else None
    if factory is None:
        if options:
            raise PluginError(
                f"{where}: expected no options for the plugin {name} ({location}).",
                hint="Leave them out. A plugin with options has a class Plugin, whose constructor receives them.",
            )
        return loaded
    outside = [name for name, value in vars(loaded).items() if hasattr(value, MARK)]
    if outside:
        raise PluginError(
            f"The plugin {name} ({location}) has a class Plugin; expected {', '.join(outside)} as methods of it.",
            hint="Move them into Plugin: functions of the module would not be called.",
        )
    model = getattr(loaded, "Options", NoOptions)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise PluginError(
            f"Options of the plugin {name} ({location}): expected a subclass of"
            f" usage_plugin.plugins.Options; found {model!r}.",
            hint="Derive it from Options.",
        )
    checked = check_options(where, model, options)
    try:
        return factory(checked, context)
    except UsagePluginError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"The plugin {name} ({location}) failed to start: Plugin(options, context) raised "
            f"{type(error).__name__}: {error}.",
            hint=FIX_OR_DISABLE,
        ) from error


def _check_known(choice: ConfiguredPlugin, optional: Mapping[str, str]) -> None:
    if choice.name not in optional:
        raise PluginError(
            f"{choice.where}.name: expected one of {', '.join(sorted(optional)) or 'none'}; found {choice.name!r}.",
            hint="Write path for a plugin of your own, and package for an installed one.",
        )


def _by_package(
    chosen: Sequence[ConfiguredPlugin], installed: Sequence[metadata.EntryPoint]
) -> dict[str, ConfiguredPlugin]:
    """Return the YAML's entries by package.

    Raises:
        PluginError: A package is not installed, or has two entries.
    """
    available = {_normal(_distribution(point)) for point in installed}
    packages: dict[str, ConfiguredPlugin] = {}
    for choice in chosen:
        if choice.package is None:
            continue
        name = _normal(choice.package)
        if name in packages:
            raise PluginError(
                f"{choice.where}.package: duplicate of {packages[name].where}; found {choice.package!r} twice.",
                hint="Name a package once.",
            )
        if name not in available:
            raise PluginError(
                f"{choice.where}.package: expected an installed package with a plugin"
                f" ({', '.join(sorted(available)) or 'none'}); found {choice.package!r}.",
                hint="Install it, or remove the entry.",
            )
        packages[name] = choice
    return packages


def _distribution(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist else "?"


def _normal(name: str) -> str:
    """Return a distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
