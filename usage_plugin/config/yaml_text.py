"""What YAML makes of a text, where it could be misunderstood: doubled keys, anchors, numbers, the environment.

Numbers keep their text on the way (never a float), and `os.environ/NAME` is looked up. Knows none of our keys.
"""

from __future__ import annotations

import contextlib
import os
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import yaml

from usage_plugin.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_FROM_ENVIRONMENT = "os.environ/"
_INTEGER = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"

Location = tuple[str | int, ...]


_Fastest: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""A file with limits for thousands of users takes PyYAML's own parser many seconds."""


class _Loader(_Fastest):  # type: ignore[misc, valid-type]  # which of the two is known at run time only
    """YAML as LiteLLM reads it, but a number with a point stays as exact as it was written."""


def _exact_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Decimal | float:
    text = str(loader.construct_scalar(node)).replace("_", "")
    try:
        return Decimal(text)
    except ArithmeticError:
        return float(loader.construct_yaml_float(node))


_Loader.add_constructor(_FLOAT, _exact_number)


def compose(text: str, path: Path) -> yaml.Node | None:
    """Parse a text into nodes, which know their lines."""
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        hint = None
        if "alias" in str(error) or "anchor" in str(error):
            hint = 'YAML takes an unquoted * for an alias; put quotes around the name: "*@example.com".'
        raise ConfigError(f"{path} is not valid YAML: {error}.", hint=hint) from None


def construct(node: yaml.Node, path: Path) -> Any:  # YAML's values are anything
    """Make values of a node."""
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
    finally:
        loader.dispose()


def misleading(node: yaml.Node, where: str, inside: tuple[yaml.Node, ...] = ()) -> list[str]:
    """Find what YAML reads otherwise than people do: keys that stand twice, numbers that are not decimal.

    And anchors that contain themselves, which nothing can read.
    """
    if any(node is outer for outer in inside):
        return [f"line {node.start_mark.line + 1}: {where} contains itself; write it out"]
    inside = (*inside, node)
    mistakes = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                mistakes.append(f"line {key.start_mark.line + 1}: {where}.{name} stands twice; write it once")
            seen.add(name)
            mistakes += misleading(value, f"{where}.{name}", inside)
    elif isinstance(node, yaml.SequenceNode):
        for at, item in enumerate(node.value):
            mistakes += misleading(item, f"{where}.{at}", inside)
    elif _is_disguised(node):
        mistakes.append(f"line {node.start_mark.line + 1}: {where}: found {node.value}, {_DISGUISED}")
    return mistakes


_DISGUISED = "which YAML reads as octal, hexadecimal or base 60; write a decimal number, or quotes around it"


def _is_disguised(node: yaml.Node) -> bool:
    """Tell numbers that are not what they look like: `010` is 8, and `1:30` is 90."""
    if node.tag == _INTEGER:
        return not re.fullmatch(r"[-+]?(0|[1-9][0-9_]*)", node.value)
    return node.tag == _FLOAT and ":" in node.value


def lines_of(node: yaml.Node, where: Location = ()) -> dict[Location, int]:
    """Map each path below a node to the line where it stands."""
    lines = {where: node.start_mark.line + 1}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines.update(lines_of(value, (*where, key.value)))
            lines[(*where, key.value)] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for at, item in enumerate(node.value):
            lines.update(lines_of(item, (*where, at)))
    return lines


def with_environment(value: Any, path: Path) -> Any:  # YAML's values are anything
    """Replace each `os.environ/NAME` in a value."""
    if isinstance(value, dict):
        return {key: with_environment(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [with_environment(item, path) for item in value]
    if isinstance(value, str) and value.startswith(_FROM_ENVIRONMENT):
        name = value.removeprefix(_FROM_ENVIRONMENT)
        if name not in os.environ:
            raise ConfigError(f"{path}: {value} is asked for, but {name} is not set.", hint=f"Set {name}.")
        return _read_variable(name, path)
    return value


def _read_variable(name: str, path: Path) -> Any:  # a number stays a number: read as YAML would read it
    text = os.environ[name]
    with contextlib.suppress(yaml.YAMLError, ValueError):
        node = yaml.compose(text, Loader=_Loader)
        if isinstance(node, yaml.ScalarNode):
            if _is_disguised(node):
                raise ConfigError(f"{path}: {name} is {text}, {_DISGUISED}.")
            loaded = construct(node, path)
            if isinstance(loaded, int | Decimal):
                return loaded
    return text
