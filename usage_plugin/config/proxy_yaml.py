"""The proxy's YAML as LiteLLM sees it: with the files that it includes, and values from the environment.

The running plugin and the command line read through here alike. LiteLLM itself takes six seconds to import, so its
merging is repeated here; `tests/proxy/test_same_eyes.py` compares both for a set of shapes.
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
"""Variables that LiteLLM does not take from the YAML."""


class Part(NamedTuple):
    """A value of a top-level key, and the file it stands in."""

    file: Path
    node: yaml.Node


def text_of(path: Path, hint: str | None = None) -> str:
    """Read a file of text.

    Raises:
        ConfigError: it is not a regular file, too large, not UTF-8, or cannot be read.
    """
    try:
        return read_regular(path, MOST_BYTES).decode("utf-8")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path} cannot be read: {why}.", hint=hint) from error


class ProxyYaml:
    """A YAML file, merged with what it includes as LiteLLM merges it.

    Lists are joined; every other value of an included file replaces the one before.

    Attributes:
        path: the file that was named.
        files: every file that was read, this one first.
    """

    def __init__(self, path: Path, read: Callable[[Path, str | None], str] = text_of) -> None:
        """Read the files.

        Args:
            path: the file.
            read: gives the text of a file; its second argument is a hint for errors.

        Raises:
            ConfigError: one of them is missing or not valid YAML, or `include` is not a list of paths.
        """
        self.path = path
        self.files: list[Path] = []
        self.own_sections: dict[str, list[Part]] = {}
        self._parts: dict[str, list[Part]] = {}
        root = _absolute(path)
        waiting = self._add(path, compose(read(path, None), path))
        seen = {root}
        while waiting:
            name, declared_in = waiting.pop(0)
            found = _resolve(name, declared_in, root)
            if found in seen:
                continue
            seen.add(found)
            text = read(
                found, f"include in {declared_in} names it; a relative path starts from the folder of that file."
            )
            node = compose(text, found)
            if not isinstance(node, yaml.MappingNode) and node is not None and construct(node, found):
                raise ConfigError(f"{found} cannot be included: expected keys and their values.")
            waiting += self._add(found, node)

    def _add(self, path: Path, root: yaml.Node | None) -> list[tuple[str, Path]]:
        """Merge a document; return what it includes, and itself as the file that says so."""
        self.files.append(path)
        if isinstance(root, yaml.MappingNode):
            for key, value in root.value:
                self.own_sections.setdefault(str(key.value), []).append(Part(path, value))
        included: list[tuple[str, Path]] = []
        entries = {str(key.value): value for key, value in entries_of(root, path)}
        for name, node in entries.items():
            part = Part(path, node)
            if name == _INCLUDE:
                included = [(entry, _absolute(path)) for entry in _included(part)]
                continue
            known = self._parts.get(name)
            joined = known is not None and all(isinstance(one.node, yaml.SequenceNode) for one in (*known, part))
            self._parts[name] = [*known, part] if known is not None and joined else [part]
        return included

    def __contains__(self, name: str) -> bool:
        """Whether there is such a top-level key."""
        return name in self._parts

    def parts(self, name: str) -> list[Part]:
        """Return the values of a top-level key; more than one only where lists are joined."""
        return self._parts.get(name, [])

    def value(self, name: str, *, resolved: bool = True, exact: bool = True) -> Any:  # another's section
        """Make the value of a top-level key; None if there is none.

        Args:
            name: the key.
            resolved: whether `os.environ/NAME` is replaced as LiteLLM replaces it.
            exact: whether numbers with a point are decimals, as they were written.
        """
        values = [construct(part.node, part.file, exact=exact) for part in self.parts(name)]
        value = [item for one in values for item in one] if len(values) > 1 else next(iter(values), None)
        return _as_litellm_resolves(value) if resolved else value

    def document(self) -> dict[str, Any]:
        """Make plain values of everything, as YAML can be written again."""
        return {name: self.value(name, resolved=False, exact=False) for name in self._parts}

    def environment(self) -> Mapping[str, str]:
        """Return the environment as the proxy's is once LiteLLM has read the YAML."""
        declared = self.value(_ENVIRONMENT)
        own = declared.items() if isinstance(declared, dict) else ()
        more = {str(name): str(value) for name, value in own if value is not None and name not in _BLOCKED_VARIABLES}
        return {**os.environ, **more}


def _included(part: Part) -> list[str]:
    entries = construct(part.node, part.file)
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        line = part.node.start_mark.line + 1
        raise ConfigError(
            f"{part.file}: line {line}: include: expected a list of paths; found {str(entries)[:60]!r}.",
            hint="Write for example include: [models.yaml].",
        )
    return entries


def _absolute(path: Path) -> Path:
    return type(path)(os.path.abspath(path))  # noqa: PTH100  # as LiteLLM does: links stay what they are


def _resolve(name: str, declared_in: Path, root: Path) -> Path:
    """Find an included file: beside the file that names it, else beside the first one."""
    beside, at_root = _absolute(declared_in.parent / name), _absolute(root.parent / name)
    return at_root if not os.path.lexists(beside) and os.path.lexists(at_root) else beside


def _as_litellm_resolves(value: Any) -> Any:
    """Replace `os.environ/NAME` where LiteLLM does: in values of mappings, and not in lists of texts.

    A variable that is not set becomes None.
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
