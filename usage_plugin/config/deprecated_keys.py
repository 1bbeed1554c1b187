"""Keys and values of the YAML that have a newer name. They work for one minor version, with a warning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from usage_plugin.config.yaml_text import Location

REMOVED_IN = "0.2"


class Deprecation(NamedTuple):
    """A key or value of the YAML that will be removed.

    Attributes:
        text: The place in the YAML.
        remedy: The new name.
    """

    text: str
    remedy: str


class Upgrade(NamedTuple):
    """A section in which every deprecated key and value is replaced by its successor.

    Attributes:
        values: The section.
        deprecations: The replacements.
        conflicts: The path and the error of each key that is given under both names.
        written: For each path in `values` with a new name, the path in the YAML.
    """

    values: dict[str, Any]
    deprecations: tuple[Deprecation, ...]
    conflicts: list[tuple[Location, str]]
    written: dict[Location, Location]


def _same(value: Any) -> Any:
    return value


def _days(value: Any) -> Any:
    is_count = isinstance(value, int) and not isinstance(value, bool)
    return f"{value}d" if is_count else value


_KEYS: tuple[tuple[str, str, str, Callable[[Any], Any]], ...] = (
    ("admission", "busy_wait", "max_wait", _same),
    ("cache", "retention_days", "retention", _days),
)
_VALUES = (("admission", "on_short_budget", "reject", "deny"),)


def upgrade(section: Mapping[str, Any]) -> Upgrade:
    """Replace the deprecated keys and values of the section `usage_plugin:`."""
    found = Upgrade({**section}, (), [], {})
    deprecations: list[Deprecation] = []
    for part, old, new, convert in _KEYS:
        values = found.values.get(part)
        if not isinstance(values, dict) or old not in values:
            continue
        if new in values:
            error = f"found both {new} and {old}, its deprecated name; write {new} alone"
            found.conflicts.append(((part, old), error))
            continue
        found.values[part] = {(new if key == old else key): value for key, value in values.items()}
        found.values[part][new] = value = convert(values[old])
        found.written[part, new] = (part, old)
        example = f" {value}" if convert is not _same else ""
        deprecations.append(_deprecation(f"{part}.{old}", f"{new}:{example}" if example else new))
    for part, key, old, new in _VALUES:
        values = found.values.get(part)
        if isinstance(values, dict) and values.get(key) == old:
            found.values[part] = {**values, key: new}
            deprecations.append(_deprecation(f"{part}.{key}: {old}", new))
    return found._replace(deprecations=tuple(deprecations))


def _deprecation(where: str, new: str) -> Deprecation:
    return Deprecation(f"{where} is deprecated", f"write {new}; the old form will be removed in version {REMOVED_IN}")
