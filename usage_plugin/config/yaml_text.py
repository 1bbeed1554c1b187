"""Parse YAML, and reject texts that it reads otherwise than people do: duplicate keys, anchors, numbers.

Numbers become decimals of their text, never floats, and `os.environ/NAME` is replaced. No key of ours is known here.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import yaml

from usage_plugin.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FROM_ENVIRONMENT = "os.environ/"
_INTEGER = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"

Location = tuple[str | int, ...]

_DEEPEST = 100
_MOST_NODES = 2_000_000
"""The number of values in a file with limits for 200,000 users."""
_MOST_ALIASED = 500_000
_LONGEST_NUMBER = 20


_Fastest: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The parser in C, if available: PyYAML's own takes many seconds for limits of thousands of users."""


class _Loader(_Fastest):  # type: ignore[misc, valid-type]  # the base is known at run time only
    """YAML as LiteLLM reads it, except that a number with a point stays as exact as it was written."""


def _exact_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Decimal | float:
    text = str(loader.construct_scalar(node)).replace("_", "")
    try:
        return Decimal(text)
    except ArithmeticError:
        return float(loader.construct_yaml_float(node))


_Loader.add_constructor(_FLOAT, _exact_number)


def compose(text: str, path: Path) -> yaml.Node | None:
    """Parse a text into nodes, which have line numbers.

    Raises:
        ConfigError: The text is not valid YAML, nests too deep, is too large, or expands to too much by aliases.
    """
    try:
        has_aliases = _check_extent(text, path)
        root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        hint = None
        if "alias" in str(error) or "anchor" in str(error):
            hint = 'YAML reads an unquoted * as an alias; put quotes around the name: "*@example.com".'
        raise ConfigError(f"Invalid YAML in {path}: {error}.", hint=hint) from None
    if root is not None and has_aliases:
        _check_aliases(root, path)
    return root


def _check_extent(text: str, path: Path) -> bool:
    """Check depth and size before nodes are built; return whether the text has aliases.

    The parser builds nodes by recursion in C: 100,000 brackets crash the process. Its events come one by one.
    """
    depth, has_aliases = 0, False
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _DEEPEST:
                where = _line_of(event.start_mark)
                raise ConfigError(f"{path}: {where}expected at most {_DEEPEST} levels.", hint="Reduce the nesting.")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            has_aliases = True
        if count > _MOST_NODES:
            raise ConfigError(f"{path}: expected at most {_MOST_NODES:,} values.", hint="Is it the right file?")
    return has_aliases


def _line_of(mark: Any) -> str:  # either of PyYAML's two kinds
    return f"line {mark.line + 1}: " if mark is not None else ""


def _check_aliases(root: yaml.Node, path: Path) -> None:
    """Check the size to which aliases expand, without expanding them.

    Nine lists of nine aliases each, nine deep, are 387 million values in 400 bytes.
    """
    known: dict[int, tuple[int, int]] = {}
    begun: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting[-1]
        if id(node) in known:
            waiting.pop()
            continue
        children = children_of(node)
        if id(node) not in begun:
            begun.add(id(node))
            for child in children:
                if id(child) in begun and id(child) not in known:
                    line = child.start_mark.line + 1
                    raise ConfigError(
                        f"{path}: line {line}: the value contains itself.", hint="Write it without the alias."
                    )
                if id(child) not in known:
                    waiting.append(child)
            continue
        sizes, depths = zip(*(known[id(child)] for child in children), strict=True) if children else ((), ())
        known[id(node)] = size, depth = sum(sizes) + 1, max(depths, default=0) + 1
        waiting.pop()
        line = node.start_mark.line + 1
        if size > len(known) + _MOST_ALIASED:
            raise ConfigError(
                f"{path}: line {line}: expected aliases of at most {_MOST_ALIASED:,} values.",
                hint="Use fewer aliases of aliases.",
            )
        if depth > _DEEPEST:
            raise ConfigError(
                f"{path}: line {line}: expected aliases of at most {_DEEPEST} levels.", hint="Reduce the nesting."
            )


def children_of(node: yaml.Node) -> list[yaml.Node]:
    """Return the nodes below a node, keys included."""
    if isinstance(node, yaml.MappingNode):
        return [child for entry in node.value for child in entry]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def construct(node: yaml.Node, path: Path, *, exact: bool = True) -> Any:  # YAML's values are anything
    """Return the value of a node; `exact` keeps numbers with a point as they were written."""
    loader = _Loader("") if exact else _Fastest("")
    try:
        return loader.construct_document(node)
    except (yaml.YAMLError, TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"Cannot read {path}: {error}.") from None
    finally:
        loader.dispose()


def entries_of(root: yaml.Node | None, path: Path) -> list[tuple[yaml.Node, yaml.Node]]:
    """Return the keys and values of a document that is a mapping, including those merged by `<<`."""
    if not isinstance(root, yaml.MappingNode):
        return []
    loader = _Loader("")
    try:
        loader.flatten_mapping(root)
    except yaml.YAMLError as error:
        raise ConfigError(f"Cannot read {path}: {error}.") from None
    finally:
        loader.dispose()
    entries: list[tuple[yaml.Node, yaml.Node]] = root.value
    return entries


def misleading(node: yaml.Node, where: str, inside: tuple[yaml.Node, ...] = ()) -> list[str]:
    """Return an error for each duplicate key, number that is not decimal, and anchor that contains itself."""
    if any(node is outer for outer in inside):
        return [f"line {node.start_mark.line + 1}: {where} contains itself; write it without the alias"]
    inside = (*inside, node)
    mistakes = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                mistakes.append(
                    f"line {key.start_mark.line + 1}: {where}: expected text as a key; found a list or mapping"
                )
                continue
            name = str(key.value)
            if name in seen:
                mistakes.append(f"line {key.start_mark.line + 1}: {where}.{name}: duplicate key; write it once")
            seen.add(name)
            mistakes += misleading(value, f"{where}.{name}", inside)
    elif isinstance(node, yaml.SequenceNode):
        for at, item in enumerate(node.value):
            mistakes += misleading(item, f"{where}.{at}", inside)
    elif _is_disguised(node):
        mistakes.append(f"line {node.start_mark.line + 1}: {where}: found {node.value}, {_DISGUISED}")
    return mistakes


_DISGUISED = "which YAML reads as octal, hexadecimal or base 60; write a decimal number, or put quotes around it"


def _is_disguised(node: yaml.Node) -> bool:
    """Whether a number differs from its look: `010` is 8, and `1:30` is 90."""
    if node.tag == _INTEGER:
        return not re.fullmatch(r"[-+]?(0|[1-9][0-9_]*)", node.value)
    return node.tag == _FLOAT and ":" in node.value


def lines_of(node: yaml.Node, where: Location = ()) -> dict[Location, int]:
    """Return the line of each path below a node."""
    lines = {where: node.start_mark.line + 1}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines.update(lines_of(value, (*where, key.value)))
            lines[(*where, key.value)] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for at, item in enumerate(node.value):
            lines.update(lines_of(item, (*where, at)))
    return lines


def with_environment(value: Any, path: Path, environment: Mapping[str, str]) -> Any:  # YAML's values are anything
    """Replace each `os.environ/NAME` in a value of our section."""
    if isinstance(value, dict):
        return {key: with_environment(item, path, environment) for key, item in value.items()}
    if isinstance(value, list):
        return [with_environment(item, path, environment) for item in value]
    if isinstance(value, str) and value.startswith(FROM_ENVIRONMENT):
        name = value.removeprefix(FROM_ENVIRONMENT)
        if name not in environment:
            raise ConfigError(f"{path}: {value} refers to {name}, which is not set.", hint=f"Set {name}.")
        return _read_variable(name, environment[name], path)
    return value


def _read_variable(name: str, text: str, path: Path) -> Any:  # a number, as YAML would read it, or the text
    with contextlib.suppress(yaml.YAMLError, ValueError):
        begin = list(itertools.islice(yaml.parse(text, Loader=_Loader), 3))
        # Only a scalar is built into a node, so that endless brackets do no harm.
        node = yaml.compose(text, Loader=_Loader) if isinstance(begin[-1], yaml.ScalarEvent) else None
        if isinstance(node, yaml.ScalarNode):
            if _is_disguised(node):
                found = text if len(text) <= _LONGEST_NUMBER else "a long number"  # which may be a secret
                raise ConfigError(f"{path}: {name} is {found}, {_DISGUISED}.")
            loaded = construct(node, path)
            if isinstance(loaded, int | Decimal):
                return loaded
    return text
