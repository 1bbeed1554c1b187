"""The proxy's YAML as LiteLLM reads it: merged with the files it includes, with values from the environment.

Both the running plugin and the command line use this module. Importing LiteLLM takes six seconds, so its merging is
implemented again here; `tests/proxy/test_same_eyes.py` compares both for a set of shapes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from usage_plugin.atomic_files import read_regular
from usage_plugin.config.yaml_text import FROM_ENVIRONMENT, compose, construct, entries_of
from usage_plugin.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

MOST_BYTES = 64 << 20
_INCLUDE = "include"
_ENVIRONMENT = "environment_variables"
_BLOCKED_VARIABLES = frozenset(
    {
        "PATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_INSERT_LIBRARIES", "PYTHONPATH",
        "PYTHONSTARTUP", "PYTHONHOME", "HOME", "USER", "SHELL", "LOGNAME", "NO_PROXY", "no_proxy",
    }
)  # fmt: skip
"""The variables that LiteLLM does not accept from the YAML."""


class YamlPart(NamedTuple):
    """The value of a top-level key, and its file."""

    file: Path
    node: yaml.Node


def text_of(path: Path, hint: str | None = None) -> str:
    """Return the text of a file.

    Raises:
        ConfigError: The file is not a regular one, too large, not UTF-8, or not readable.
    """
    try:
        return read_regular(path, MOST_BYTES).decode("utf-8")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"Cannot read {path}: {why}.", hint=hint) from error


class ProxyYaml:
    """A YAML file, merged with its included files as LiteLLM merges them.

    Lists are joined; any other value of an included file replaces the previous one.

    Attributes:
        path: The file itself.
        files: All files that were read, the file itself first.
    """

    def __init__(self, path: Path, read: Callable[[Path, str | None], str] = text_of) -> None:
        """Read the files.

        Args:
            path: The file.
            read: Returns the text of a file; its second argument is a hint for errors.

        Raises:
            ConfigError: A file is missing or not valid YAML, or `include` is not a list of paths.
        """
        self.path = path
        self.files: list[Path] = []
        self.own_sections: dict[str, list[YamlPart]] = {}
        self._parts: dict[str, list[YamlPart]] = {}
        root = _absolute(path)
        waiting = self._add(path, compose(read(path, None), path))
        seen = {root}
        while waiting:
            name, declared_in = waiting.pop(0)
            found = _resolve(name, declared_in, root)
            if found in seen:
                continue
            seen.add(found)
            text = read(found, f"include in {declared_in} names it; a relative path starts in the folder of that file.")
            node = compose(text, found)
            if not isinstance(node, yaml.MappingNode) and node is not None and construct(node, found):
                raise ConfigError(f"Cannot include {found}: expected keys and their values.")
            waiting += self._add(found, node)

    def _add(self, path: Path, root: yaml.Node | None) -> list[tuple[str, Path]]:
        """Merge a document; return the paths that it includes, each with this document's path."""
        self.files.append(path)
        if isinstance(root, yaml.MappingNode):
            for key, value in root.value:
                self.own_sections.setdefault(str(key.value), []).append(YamlPart(path, value))
        included: list[tuple[str, Path]] = []
        entries = {str(key.value): value for key, value in entries_of(root, path)}
        for name, node in entries.items():
            part = YamlPart(path, node)
            if name == _INCLUDE:
                included = [(entry, _absolute(path)) for entry in _included(part)]
                continue
            known = self._parts.get(name)
            joined = known is not None and all(isinstance(one.node, yaml.SequenceNode) for one in (*known, part))
            self._parts[name] = [*known, part] if known is not None and joined else [part]
        return included

    def __contains__(self, name: str) -> bool:
        """Whether the top-level key exists."""
        return name in self._parts

    def parts(self, name: str) -> list[YamlPart]:
        """Return the values of a top-level key; more than one only where lists are joined."""
        return self._parts.get(name, [])

    def value(self, name: str, *, resolved: bool = True, exact: bool = True) -> Any:  # a section of LiteLLM's
        """Return the value of a top-level key; None if it is absent.

        Args:
            name: The key.
            resolved: Whether `os.environ/NAME` is replaced as LiteLLM replaces it.
            exact: Whether numbers with a point are returned as decimals, as they were written.
        """
        values = [construct(part.node, part.file, exact=exact) for part in self.parts(name)]
        value = [item for one in values for item in one] if len(values) > 1 else next(iter(values), None)
        return _as_litellm_resolves(value) if resolved else value

    def document(self) -> dict[str, Any]:
        """Return all values in a form that can be dumped as YAML."""
        return {name: self.value(name, resolved=False, exact=False) for name in self._parts}

    def environment(self) -> Mapping[str, str]:
        """Return the proxy's environment after LiteLLM has read the YAML."""
        declared = self.value(_ENVIRONMENT)
        own = declared.items() if isinstance(declared, dict) else ()
        more = {str(name): str(value) for name, value in own if value is not None and name not in _BLOCKED_VARIABLES}
        return {**os.environ, **more}


def _included(part: YamlPart) -> list[str]:
    entries = construct(part.node, part.file)
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        line = part.node.start_mark.line + 1
        raise ConfigError(
            f"{part.file}: line {line}: include: expected a list of paths; found {str(entries)[:60]!r}.",
            hint="Write for example include: [models.yaml].",
        )
    return entries


def _absolute(path: Path) -> Path:
    return type(path)(os.path.abspath(path))  # noqa: PTH100  # as LiteLLM does: links are not resolved


def _resolve(name: str, declared_in: Path, root: Path) -> Path:
    """Return the path of an included file: in the folder of the including file, else in that of the first file."""
    nearby, at_root = _absolute(declared_in.parent / name), _absolute(root.parent / name)
    return at_root if not os.path.lexists(nearby) and os.path.lexists(at_root) else nearby


def _as_litellm_resolves(value: Any) -> Any:
    """Replace `os.environ/NAME` where LiteLLM does: in values of mappings, not in lists of texts.

    An unset variable becomes None.
    """
    if isinstance(value, dict):
        return {key: _resolved(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_litellm_resolves(item) if isinstance(item, dict) else item for item in value]
    return value


def _resolved(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(FROM_ENVIRONMENT):
        return _as_litellm_resolves(value)
    text = os.environ.get(value.replace(FROM_ENVIRONMENT, ""))
    word = text.strip().lower() if text is not None else None
    return word == "true" if word in ("true", "false") else text
