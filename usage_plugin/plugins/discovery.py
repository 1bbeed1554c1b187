"""Where plugins come from: the package itself, installed distributions, files. Nothing is registered here."""

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


@dataclass(frozen=True, slots=True)
class ConfiguredPlugin:
    """A plugin that the YAML speaks of; one of `path`, `package` and `name` is set.

    Attributes:
        where: the key of the YAML, for errors.
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
        name: one plugin has it; of a file the name without `.py`, of a package that of the entry point.
        location: the distribution with its version, or the file.
        implements: the object with the hook implementations.
    """

    name: str
    source: Source
    location: str
    implements: object

    def __str__(self) -> str:
        """Name it for errors."""
        return f"{self.name} ({self.location})"


def find_plugins(
    builtin: Sequence[str],
    chosen: Sequence[ConfiguredPlugin],
    context: BackendContext,
    *,
    optional: Mapping[str, str],
    entry_points: bool,
) -> Iterator[FoundPlugin]:
    """Load every plugin that is not switched off, the built-in ones first; of `optional` those that are named.

    Raises:
        PluginError: one of them cannot be loaded.
        ConfigError: its options are wrong.
    """
    ours = f"usage_plugin {__version__}"
    for name in builtin:
        yield FoundPlugin(name, "built-in", ours, _loaded(name, ours, import_module, name))
    for choice in chosen:
        if choice.name is not None:
            _check_there_is(choice, optional)
            if choice.enabled:
                loaded = _loaded(choice.name, ours, import_module, optional[choice.name])
                yield FoundPlugin(choice.name, "optional", ours, _made(choice.name, ours, loaded, choice, context))
    installed = list(metadata.entry_points(group=PROJECT)) if entry_points else []
    packages = _by_package(chosen, installed)
    for point in installed:
        told = packages.get(_normal(_distribution(point)))
        if told is None or told.enabled:
            location = f"{_distribution(point)} {point.dist.version if point.dist else ''}".strip()
            loaded = _loaded(point.name, location, point.load)
            yield FoundPlugin(point.name, "package", location, _made(point.name, location, loaded, told, context))
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
            f"The plugin {name} ({location}) cannot be imported: {type(error).__name__}: {error}.",
            hint="Mend it, or switch it off with enabled: false under usage_plugin.plugins.",
        ) from error


def _made(name: str, location: str, loaded: Any, choice: ConfiguredPlugin | None, context: BackendContext) -> object:
    """Make a module's `Plugin` with its options, if it has one; else the module itself is the plugin."""
    options = choice.options if choice else {}
    where = f"{choice.where if choice else 'usage_plugin.plugins'}.options"
    factory = getattr(loaded, "Plugin", None) if isinstance(loaded, ModuleType) else None
    if factory is None:
        if options:
            raise PluginError(
                f"{where}: the plugin {name} ({location}) takes no options.",
                hint="Leave them out. A plugin that takes some has a class Plugin, which is made with them.",
            )
        return loaded
    beside = [name for name, value in vars(loaded).items() if hasattr(value, MARK)]
    if beside:
        raise PluginError(
            f"The plugin {name} ({location}) has a class Plugin, so its {', '.join(beside)} would not be called.",
            hint="Make it a method of Plugin.",
        )
    model = getattr(loaded, "Options", NoOptions)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise PluginError(
            f"Options of the plugin {name} ({location}) checks nothing.",
            hint="Make it a subclass of usage_plugin.plugins.interface.Options.",
        )
    checked = check_options(where, model, options)
    try:
        return factory(checked, context)
    except UsagePluginError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"The plugin {name} ({location}) cannot begin: Plugin(options, context) raised "
            f"{type(error).__name__}: {error}.",
            hint="Mend it, or switch it off with enabled: false under usage_plugin.plugins.",
        ) from error


def _check_there_is(choice: ConfiguredPlugin, optional: Mapping[str, str]) -> None:
    if choice.name not in optional:
        raise PluginError(
            f"{choice.where}.name: no plugin {choice.name!r} comes with usage_plugin"
            f" (there are: {', '.join(sorted(optional)) or 'none'}).",
            hint="A plugin of your own is named by its path, one that is installed by its package.",
        )


def _by_package(
    chosen: Sequence[ConfiguredPlugin], installed: Sequence[metadata.EntryPoint]
) -> dict[str, ConfiguredPlugin]:
    """Find what the YAML says of packages; what it says of none, or twice of one, is a mistake."""
    there_are = {_normal(_distribution(point)) for point in installed}
    packages: dict[str, ConfiguredPlugin] = {}
    for choice in chosen:
        if choice.package is None:
            continue
        name = _normal(choice.package)
        if name in packages:
            raise PluginError(
                f"{choice.where}.package: {choice.package!r} is named before, under {packages[name].where}.",
                hint="Name a package once.",
            )
        if name not in there_are:
            raise PluginError(
                f"{choice.where}.package: no plugin comes with an installed package {choice.package!r}"
                f" (there are: {', '.join(sorted(there_are)) or 'none'}).",
                hint="Install it, or take the line out.",
            )
        packages[name] = choice
    return packages


def _distribution(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist else "?"


def _normal(name: str) -> str:
    """Write a distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
