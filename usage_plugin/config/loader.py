"""Load the section `usage_plugin:` from a YAML file or a program, and detect changes of the file."""

from __future__ import annotations

import contextlib
import hashlib
import os
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from usage_plugin.config.deprecated_keys import upgrade
from usage_plugin.config.error_messages import config_error, describe, place, short
from usage_plugin.config.limit_config import Section
from usage_plugin.config.proxy_yaml import ProxyYaml, text_of
from usage_plugin.config.sections import Config, LimitsFile
from usage_plugin.config.yaml_text import Location, compose, construct, lines_of, misleading, with_environment
from usage_plugin.errors import ConfigError
from usage_plugin.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    import yaml

    from usage_plugin.config.limit_config import LimitConfig
    from usage_plugin.config.proxy_yaml import YamlPart

SectionT = TypeVar("SectionT", bound=Section)

SECTION = "usage_plugin"
CONFIG_VARIABLE = "USAGE_PLUGIN_CONFIG"
DATA_DIR_VARIABLE = "USAGE_PLUGIN_DATA_DIR"
ENFORCE_VARIABLE = "USAGE_PLUGIN_ENFORCE"
_LITELLM_VARIABLE = "CONFIG_FILE_PATH"

log = get_logger()


def find_config(explicit: str | os.PathLike[str] | None = None) -> Path:
    """Return the path of the YAML.

    The first of these counts: `explicit`, `USAGE_PLUGIN_CONFIG`, LiteLLM's `CONFIG_FILE_PATH`, `./config.yaml`.

    Raises:
        ConfigError: The file was not found.
    """
    for source, name in (
        ("--config", explicit),
        (CONFIG_VARIABLE, os.environ.get(CONFIG_VARIABLE)),
        (_LITELLM_VARIABLE, os.environ.get(_LITELLM_VARIABLE)),
        ("the current folder", "config.yaml"),
    ):
        if name:
            path = Path(name).expanduser().absolute()
            if path.is_file():
                return path
            if source != "the current folder":
                raise ConfigError(f"Config file not found: {path} (from {source}).", hint="Name the proxy's YAML.")
    raise ConfigError(
        "No config file found.", hint=f"Name the proxy's YAML with --config FILE or {CONFIG_VARIABLE}=FILE."
    )


def load_config(path: Path) -> Config:
    """Load the section `usage_plugin:` of a YAML file.

    A proxy's YAML without the section gets the defaults: everything is recorded, no request is refused.

    Raises:
        ConfigError: The file is invalid; the message has a line for each mistake.
    """
    return _Loading(path).config()


def with_limits(config: Config, file: Path) -> Config:
    """Return a configuration with the limits of a file, in the format of `limits_from`, in place of its own.

    Groups and time zone stay.

    Raises:
        ConfigError: The file is invalid; the message has a line for each mistake.
    """
    limits = _limits_in(text_of(file), file, os.environ)
    changed = config.model_copy(update={"limits": limits})
    try:
        changed.check_names()
    except ValueError as error:
        raise config_error(file, [str(error)]) from None
    return changed


def config_of(values: Mapping[str, Any]) -> Config:
    """Validate a section that a program passes: the keys and values of the YAML.

    A relative `data_dir` starts in the current folder.

    Raises:
        ConfigError: The section is invalid; the message has a line for each mistake.
    """
    config = _section_config(_exact(values), {}, "the section that the program passed")
    for key in ("limits_from", "migrate_from"):
        if getattr(config, key):
            raise ConfigError(
                f"{SECTION}.{key}: expected in a YAML file only.", hint="Write the section to a file, and name that."
            )
    for deprecation in config.deprecations:
        log.warning("config.warning", message=deprecation.text, hint=deprecation.remedy)
    return config.model_copy(update={"data_dir": config.data_dir.expanduser().resolve()})


def _exact(value: Any) -> Any:  # a program's values, in place of YAML's
    """Convert floats to the decimals that they are written as, as the loader of YAML does."""
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, dict):
        return {key: _exact(item) for key, item in value.items()}
    return [_exact(item) for item in value] if isinstance(value, list) else value


def read_proxy_section(path: Path, name: str) -> Any:  # a section of LiteLLM's
    """Return another top-level section of the proxy's YAML, as LiteLLM reads it; None if it is absent."""
    return ProxyYaml(path).value(name)


def proxy_yaml_of(path: Path) -> Path:
    """Return the path of the proxy's YAML; LiteLLM's `CONFIG_FILE_PATH` if our section has a file of its own."""
    named = os.environ.get(_LITELLM_VARIABLE)
    if named and Path(named).is_file() and "model_list" not in ProxyYaml(path):
        return Path(named).absolute()
    return path


class ConfigFile:
    """The configuration in force, and the files it was loaded from, which may be edited at any time.

    `changed` is cheap and meant to be called about once a second. A change counts once two calls in a row find the same
    state. Until then, an editor may still be writing, or may have moved the file away.
    """

    def __init__(self, path: Path, config: Config | None = None) -> None:
        """Load the file, or take a configuration that was loaded from it.

        Raises:
            ConfigError: The file is invalid.
        """
        self.path = path
        self._known: tuple[_FileState, ...] = ()
        self._digest = b""
        self._others: tuple[Path, ...] = ()
        if config is None:
            self._known = self._states()
            loading = _Loading(path)
            config = loading.config()
            self._remember(loading)
        self._found = self._known
        self.config = config
        self.mistakes: str | None = None
        """The error of the files' current content, if it is invalid."""

    def changed(self) -> Config | None:
        """Return the new configuration if the files hold another one; None otherwise.

        Raises:
            ConfigError: The new content is invalid, and `config` stays in force. It is raised once.
        """
        states = self._states()
        if states == self._known:
            return None
        if states != self._found:
            self._found = states
            return None
        self._known = states
        try:
            config = self._reload(is_missing=not states[0])
        except ConfigError as error:
            self.mistakes = str(error)
            raise
        if config is None:
            return None
        self.mistakes = None
        if config == self.config:
            return None
        self.config = config
        return config

    def _reload(self, *, is_missing: bool) -> Config | None:
        """Load the files; return None if their texts are those of the last load, valid or not."""
        if is_missing:
            self._digest = b""
            raise ConfigError(f"Config file not found: {self.path}.", hint="The last configuration stays in force.")
        try:
            before = _Loading(self.path)
        except ConfigError:
            self._digest = b""
            raise
        for path in self._others:
            before.glance(path)
        if before.digest == self._digest:
            return None
        loading = _Loading(self.path)
        try:
            return loading.config()
        finally:
            self._remember(loading)

    def _remember(self, loading: _Loading) -> None:
        self._digest = loading.digest
        self._others = loading.others

    def _states(self) -> tuple[_FileState, ...]:
        """Return the state of each file without reading it."""
        return tuple(map(_state_of, (self.path, *self._others)))


_FileState = tuple[int, ...]
"""Time, size and inode of a file; empty for a missing one."""


def _state_of(path: Path) -> _FileState:
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_size, found.st_ino)


class _Loading:
    """One load of the YAML, of the files that it includes, and of the files with limits that it names.

    Attributes:
        others: The files that were looked for besides the YAML, whether they exist or not.
        digest: A digest of all texts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._texts: dict[Path, str] = {}
        self._text = text_of(path)

    @property
    def others(self) -> tuple[Path, ...]:
        return tuple(self._texts)

    @property
    def digest(self) -> bytes:
        texts = [self._text, *(f"{path}\0{self._texts[path]}" for path in sorted(self._texts))]
        return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).digest()

    def glance(self, path: Path) -> None:
        """Remember a file's text; an empty one if it cannot be read."""
        self._texts[path] = ""
        with contextlib.suppress(ConfigError):
            self._texts[path] = text_of(path)

    def _text_of(self, path: Path, hint: str | None = None) -> str:
        if path == self.path:
            return self._text
        self._texts[path] = ""
        self._texts[path] = text = text_of(path, hint)
        return text

    def config(self) -> Config:
        path = self.path
        proxy_yaml = ProxyYaml(path, self._text_of)
        environment = proxy_yaml.environment()
        section = _section_of(proxy_yaml)
        file, node = section if section is not None else (path, None)
        values = _values_of(node, file, SECTION, environment)
        if data_dir := os.environ.get(DATA_DIR_VARIABLE):
            values["data_dir"] = data_dir
        config = _section_config(values, lines_of(node) if node is not None else {}, file)
        # Relative to the proxy's YAML, also for a section in an included file: moving the section must not move data.
        base = Path.cwd() if data_dir else path.parent
        config = config.model_copy(update={"data_dir": (base / config.data_dir.expanduser()).resolve(), "path": path})
        if config.migrate_from is not None:
            self.glance(config.migrated_limits)  # the migration may write it later
        more = [limit for file in config.limit_files() for limit in self._limits_of(file, environment)]
        if not more:
            return config
        config = config.model_copy(update={"limits": (*config.limits, *more)})
        try:
            config.check_names()
        except ValueError as error:
            files = ", ".join(str(file) for file in config.limit_files())
            raise config_error(path, [f"{SECTION}: {error} (together with {files})"]) from None
        return config

    def _limits_of(self, file: Path, environment: Mapping[str, str]) -> tuple[LimitConfig, ...]:
        text = self._text_of(file, "limits_from names it; a relative path starts in the folder of the YAML.")
        return _limits_in(text, file, environment)


def _section_config(values: dict[str, Any], lines: Mapping[Location, int], source: Path | str) -> Config:
    upgraded = upgrade(values)
    mistakes = [f"{place(path, lines, (SECTION,))}: {error}" for path, error in upgraded.conflicts]
    if not mistakes:
        try:
            config = Config.model_validate(upgraded.values)
        except ValidationError as error:
            for mistake in error.errors():
                location = tuple(mistake["loc"])
                written = upgraded.written.get(location, location)
                mistakes.append(describe(mistake, written, lines, (SECTION,)))
        else:
            return config.model_copy(update={"deprecations": upgraded.deprecations})
    raise config_error(source, mistakes)


def _limits_in(text: str, file: Path, environment: Mapping[str, str]) -> tuple[LimitConfig, ...]:
    root = compose(text, file)
    values = _values_of(root, file, "the file", environment)
    try:
        return LimitsFile.model_validate(values).limits
    except ValidationError as error:
        lines = lines_of(root) if root is not None else {}
        mistakes = [describe(mistake, tuple(mistake["loc"]), lines, ()) for mistake in error.errors()]
        raise config_error(file, mistakes) from None


def _values_of(node: yaml.Node | None, path: Path, where: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of a mapping; reject spellings that YAML reads otherwise than people do."""
    values: Any = None
    if node is not None:
        mistakes = misleading(node, where)
        if mistakes:
            raise config_error(path, mistakes)
        values = construct(node, path)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise config_error(path, [f"{where}: expected keys such as limits; found {short(values)}"])
    found: dict[str, Any] = with_environment(values, path, environment)
    return found


def _section_of(proxy_yaml: ProxyYaml) -> YamlPart | None:
    found = proxy_yaml.own_sections.get(SECTION, [])
    if len(found) > 1:
        files = list(dict.fromkeys(part.file for part in found))
        if len(files) == 1:
            raise config_error(files[0], [f"{SECTION}: duplicate key; write it once"])
        # LiteLLM would let the last one replace the others, and their limits would be lost without a warning.
        raise config_error(
            proxy_yaml.path, [f"{SECTION}: found in {' and '.join(map(str, files))}; write it in one of them"]
        )
    parts = proxy_yaml.parts(SECTION)
    if parts:
        return parts[0]
    if "model_list" in proxy_yaml:
        return None
    raise ConfigError(f"{proxy_yaml.path} has no section {SECTION}.", hint="Add the section, or name the proxy's YAML.")
