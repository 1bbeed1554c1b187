"""The file that the section stands in: which one it is, what is wrong with it, and whether it has changed."""

from __future__ import annotations

import contextlib
import hashlib
import os
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from usage_plugin.config.limit_config import Section
from usage_plugin.config.proxy_yaml import ProxyYaml, text_of
from usage_plugin.config.sections import Config, LimitsFile
from usage_plugin.config.yaml_text import Location, compose, construct, lines_of, misleading, with_environment
from usage_plugin.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import yaml

    from usage_plugin.config.limit_config import LimitConfig
    from usage_plugin.config.proxy_yaml import Part

SectionT = TypeVar("SectionT", bound=Section)

SECTION = "usage_plugin"
CONFIG_VARIABLE = "USAGE_PLUGIN_CONFIG"
DATA_DIR_VARIABLE = "USAGE_PLUGIN_DATA_DIR"
ENFORCE_VARIABLE = "USAGE_PLUGIN_ENFORCE"
_LITELLM_VARIABLE = "CONFIG_FILE_PATH"
_MOST_MISTAKES = 100
_LONGEST_MISTAKE = 2_000

# What people write out of habit, and what it is called here.
_REMEDIES = {
    "rpm_limit": "write max_requests with window: minute",
    "tpm_limit": "write max_total_tokens with window: minute",
    "rpm": "write max_requests with window: minute",
    "tpm": "write max_total_tokens with window: minute",
    "max_budget": "write max_cost",
    "soft_budget": "write alert_at, for example alert_at: [80]",
    "budget": "write max_cost",
    "budget_duration": "write window, for example window: month",
    "max_tokens": "write max_total_tokens, max_input_tokens or max_output_tokens",
    "max_parallel": "write max_parallel_requests",
    "rolling": "write window: {rolling: 5h}",
    "users": "write match: {user: [...]}",
    "models": "write match: {model: [...]}",
    "tz": "write timezone",
}

_SHAPES = {"model_type": "keys and their values", "dict_type": "keys and their values", "tuple_type": "a list"}

# What has keys of its own, for those who wrote a word in its place.
_EXAMPLES = {
    "storage": "{backend: hybrid}",
    "ledger": "{backend: sqlite}",
    "admission": "{busy_wait: 2s}",
    "max_output_tokens": '{"o3*": 32000}',
    "cache": "{size: 1000}",
    "identity": "{user: [key, end_user]}",
    "retention": "{events: 90d}",
    "privacy": "{user: pseudonym}",
    "plugins": "{path: ./my_plugin.py}",
    "limits": "{name: daily, per: user, window: day, max_cost: 5}",
    "overrides": "{match: {user: eva}, max_cost: 40}",
    "match": "{user: eva}",
    "groups": '{power: [dana, "*@research.corp"]}',
}


def find_config(explicit: str | os.PathLike[str] | None = None) -> Path:
    """Find the YAML: the one named, `USAGE_PLUGIN_CONFIG`, LiteLLM's `CONFIG_FILE_PATH`, `./config.yaml`.

    Raises:
        ConfigError: there is none.
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
                raise ConfigError(f"{path} (from {source}) is no file.", hint="Name the proxy's YAML.")
    raise ConfigError(
        "No configuration found.", hint=f"Name the proxy's YAML with --config FILE or {CONFIG_VARIABLE}=FILE."
    )


def load_config(path: Path) -> Config:
    """Read the `usage_plugin:` section of a YAML file.

    A proxy's YAML without the section gets the defaults: everything is recorded, nothing refused.

    Raises:
        ConfigError: with every mistake found, a line each.
    """
    return _Reading(path).config()


def with_limits(config: Config, file: Path) -> Config:
    """Put the limits of a file, as `limits_from` names them, in place of all others; groups and zone stay.

    Raises:
        ConfigError: with every mistake found, a line each.
    """
    limits = _limits_in(text_of(file), file, os.environ)
    changed = config.model_copy(update={"limits": limits})
    try:
        changed.check_names()
    except ValueError as error:
        raise _mistakes(file, [str(error)]) from None
    return changed


def config_of(values: Mapping[str, Any]) -> Config:
    """Check a section that a program made: the keys and values of the YAML. A relative `data_dir` begins here.

    Raises:
        ConfigError: with every mistake found, a line each.
    """
    try:
        config = Config.model_validate(_exact(values))
    except ValidationError as error:
        mistakes = [_explain(mistake, {}, (SECTION,)) for mistake in error.errors()]
        raise ConfigError("\n  ".join(["The configuration cannot be used:", *mistakes])) from None
    for key in ("limits_from", "migrate_from"):
        if getattr(config, key):
            raise ConfigError(f"{SECTION}.{key}: only a YAML file can name others.", hint="Name that file instead.")
    return config.model_copy(update={"data_dir": config.data_dir.expanduser().resolve()})


def _exact(value: Any) -> Any:  # what a program wrote in place of YAML
    """Take floats for what they are written as, as the YAML is read."""
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, dict):
        return {key: _exact(item) for key, item in value.items()}
    return [_exact(item) for item in value] if isinstance(value, list) else value


def read_proxy_section(path: Path, name: str) -> Any:  # somebody else's section
    """Read another top-level section of the proxy's YAML, as LiteLLM sees it; None if there is none."""
    return ProxyYaml(path).value(name)


def proxy_yaml_of(path: Path) -> Path:
    """Find the proxy's YAML where our section is in a file of its own, by LiteLLM's `CONFIG_FILE_PATH`."""
    named = os.environ.get(_LITELLM_VARIABLE)
    if named and Path(named).is_file() and "model_list" not in ProxyYaml(path):
        return Path(named).absolute()
    return path


class ConfigFile:
    """A configuration that is in force, and the files it came from, which somebody may be editing.

    `changed` is cheap and meant to be asked about once a second. What it finds is taken only when the next call finds
    the same: until then an editor may still be writing, or have moved the file away.
    """

    def __init__(self, path: Path, config: Config | None = None) -> None:
        """Begin with what stands in the file, or with a configuration that was read from it before.

        Raises:
            ConfigError: the file cannot be used.
        """
        self.path = path
        self._known: tuple[_Look, ...] = ()
        self._digest = b""
        self._others: tuple[Path, ...] = ()
        if config is None:
            self._known = self._look()
            reading = _Reading(path)
            config = reading.config()
            self._take(reading)
        self._found = self._known
        self.config = config
        self.mistakes: str | None = None
        """What is wrong with the files as they are now, if they cannot be used."""

    def changed(self) -> Config | None:
        """Give the configuration that is in force from now on, if it is another one.

        Raises:
            ConfigError: what stands in the files now cannot be used, and `config` stays in force; raised once.
        """
        look = self._look()
        if look == self._known:
            return None
        if look != self._found:
            self._found = look
            return None
        self._known = look
        try:
            config = self._reread(gone=not look[0])
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

    def _reread(self, *, gone: bool) -> Config | None:
        """Read what stands in the files; None if those are the texts that were read last, usable or not."""
        if gone:
            self._digest = b""
            raise ConfigError(f"{self.path} is gone.", hint="What was read from it stays in force.")
        try:
            before = _Reading(self.path)
        except ConfigError:
            self._digest = b""
            raise
        for path in self._others:
            before.glance(path)
        if before.digest == self._digest:
            return None
        reading = _Reading(self.path)
        try:
            return reading.config()
        finally:
            self._take(reading)

    def _take(self, reading: _Reading) -> None:
        self._digest = reading.digest
        self._others = reading.others

    def _look(self) -> tuple[_Look, ...]:
        """Tell one state of the files from another without reading them; nothing for one that is not there."""
        return tuple(map(_look_at, (self.path, *self._others)))


_Look = tuple[int, ...]


def _look_at(path: Path) -> _Look:
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_size, found.st_ino)


class _Reading:
    """Reads the YAML once with what it includes, and the files with limits that it names; remembers what it has read.

    Attributes:
        others: the files that were asked for beside the YAML, there or not.
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
        """Remember what a file holds now; nothing if it cannot be read."""
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
        config = _validated(Config, values, node, file, (SECTION,))
        # Where the proxy's YAML is, also for a section in an included file: moving the section must not move the data.
        base = Path.cwd() if data_dir else path.parent
        config = config.model_copy(update={"data_dir": (base / config.data_dir.expanduser()).resolve(), "path": path})
        if config.migrate_from is not None:
            self.glance(config.migrated_limits)  # it may come later
        more = [limit for file in config.limit_files() for limit in self._limits_of(file, environment)]
        if not more:
            return config
        config = config.model_copy(update={"limits": (*config.limits, *more)})
        try:
            config.check_names()
        except ValueError as error:
            files = ", ".join(str(file) for file in config.limit_files())
            raise _mistakes(path, [f"{SECTION}: {error} (together with {files})"]) from None
        return config

    def _limits_of(self, file: Path, environment: Mapping[str, str]) -> tuple[LimitConfig, ...]:
        text = self._text_of(file, "limits_from names it; a relative path begins where the YAML stands.")
        return _limits_in(text, file, environment)


def _limits_in(text: str, file: Path, environment: Mapping[str, str]) -> tuple[LimitConfig, ...]:
    root = compose(text, file)
    return _validated(LimitsFile, _values_of(root, file, "the file", environment), root, file, ()).limits


def _values_of(node: yaml.Node | None, path: Path, where: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Make values of a mapping, with nothing in it that YAML reads otherwise than people do."""
    values: Any = None
    if node is not None:
        mistakes = misleading(node, where)
        if mistakes:
            raise _mistakes(path, mistakes)
        values = construct(node, path)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise _mistakes(path, [f"{where}: found {_short(values)}, expected keys such as limits"])
    found: dict[str, Any] = with_environment(values, path, environment)
    return found


def _validated(
    model: type[SectionT], values: dict[str, Any], node: yaml.Node | None, path: Path, within: Location
) -> SectionT:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = lines_of(node) if node is not None else {}
        raise _mistakes(path, [_explain(mistake, lines, within) for mistake in error.errors()]) from None


def _section_of(proxy_yaml: ProxyYaml) -> Part | None:
    found = proxy_yaml.own_sections.get(SECTION, [])
    if len(found) > 1:
        files = list(dict.fromkeys(part.file for part in found))
        if len(files) == 1:
            raise _mistakes(files[0], [f"{SECTION}: stands twice; write it once"])
        # LiteLLM would let the last one replace the others, and their limits would be gone without a word.
        raise _mistakes(proxy_yaml.path, [f"{SECTION}: stands in {' and '.join(map(str, files))}; write it once"])
    parts = proxy_yaml.parts(SECTION)
    if parts:
        return parts[0]
    if "model_list" in proxy_yaml:
        return None
    raise ConfigError(f"{proxy_yaml.path} has no section {SECTION}.", hint="Add one, or name the proxy's YAML.")


def _explain(mistake: Mapping[str, Any], lines: Mapping[Location, int], within: Location) -> str:
    """Say one mistake in a line: where, what was found, what to write."""
    location = tuple(mistake["loc"])
    known = location
    while known and known not in lines:
        known = known[:-1]
    line = f"line {lines[known]}: " if known in lines else ""
    where = ".".join(map(str, (*within, *location))) or "the file"
    found = mistake["input"]
    kind = mistake["type"]
    if kind == "extra_forbidden":
        remedy = _REMEDIES.get(str(location[-1]), "no such key; see docs/configuration.md for all of them")
        return f"{line}{where}: found {_short(found)}; {remedy}"
    if kind == "missing":
        return f"{line}{where}: is missing"
    if kind == "value_error":
        return f"{line}{where}: {mistake['ctx']['error']}"
    if kind in ("model_type", "dict_type", "tuple_type"):
        named = [word for word in location if isinstance(word, str)]
        example = _EXAMPLES.get(named[-1]) if named else None
        if example and kind == "tuple_type":
            example = f"[{example}]"
        remedy = f"{_SHAPES[kind]}{f', such as {example}' if example else ''}"
        return f"{line}{where}: found {_short(found)}; write {remedy}"
    return f"{line}{where}: found {_short(found)}; {mistake['msg'][0].lower()}{mistake['msg'][1:]}"


def _short(value: object) -> str:
    text = str(value) if isinstance(value, Decimal) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _mistakes(path: Path, mistakes: list[str]) -> ConfigError:
    """Make an error of mistakes; a wrong file can have a million of them, or one that is as long."""
    shown = [
        line if len(line) <= _LONGEST_MISTAKE else f"{line[:_LONGEST_MISTAKE]}…" for line in mistakes[:_MOST_MISTAKES]
    ]
    if len(mistakes) > _MOST_MISTAKES:
        shown.append(f"and {len(mistakes) - _MOST_MISTAKES:,} more")
    return ConfigError("\n  ".join([f"{path} cannot be used:", *shown]))
