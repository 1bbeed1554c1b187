"""The `usage_plugin:` section of the proxy's YAML, read strictly.

`load_config` finds the file, reads the section and gives a `Config`, or raises a `ConfigError` that lists every
mistake with its line, its path, the value found and the remedy. Numbers keep their text on the way (never a float),
and `os.environ/NAME` is looked up. Knows nothing of LiteLLM beyond the place where it is told its own file.
"""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from zoneinfo import ZoneInfo

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from usage_plugin.domain.limits import Action, Limit, LimitSet, Match, MatchKey, Override, Unit
from usage_plugin.domain.money import parse_usd
from usage_plugin.domain.subjects import DIMENSIONS, Dimension
from usage_plugin.domain.windows import WINDOW_KINDS, WindowKind, WindowRule, start_of_day, to_instant
from usage_plugin.errors import ConfigError, MoneyError

SECTION = "usage_plugin"
CONFIG_VARIABLE = "USAGE_PLUGIN_CONFIG"
DATA_DIR_VARIABLE = "USAGE_PLUGIN_DATA_DIR"
ENFORCE_VARIABLE = "USAGE_PLUGIN_ENFORCE"
_LITELLM_VARIABLE = "CONFIG_FILE_PATH"
_FROM_ENVIRONMENT = "os.environ/"

_MATCH_KEYS: tuple[str, ...] = (*(d for d in DIMENSIONS if d != "global"), "group")
_LARGEST_COUNT = 2**62
_FOLDED = frozenset({"user", "team", "end_user", "organization"})
"""Dimensions whose names `identity.casefold` folds."""

# What people write out of habit, and what it is called here.
_REMEDIES = {
    "rpm_limit": "write max_requests with window: minute",
    "tpm_limit": "write max_total_tokens with window: minute",
    "rpm": "write max_requests with window: minute",
    "tpm": "write max_total_tokens with window: minute",
    "max_budget": "write max_cost",
    "budget": "write max_cost",
    "budget_duration": "write window, for example window: month",
    "max_tokens": "write max_total_tokens, max_input_tokens or max_output_tokens",
    "users": "write match: {user: [...]}",
    "models": "write match: {model: [...]}",
    "tz": "write timezone",
}


def _parse_zone(value: object) -> ZoneInfo:
    if isinstance(value, ZoneInfo):
        return value
    try:
        return ZoneInfo(str(value))
    except (KeyError, ValueError, OSError):
        raise ValueError(f"{value!r} is no time zone; write a name such as Europe/Berlin or UTC") from None


def _parse_duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    found = re.fullmatch(r"([1-9]\d{0,5})\s*(s|m|h|d)", str(value))
    if not found:
        raise ValueError(f"{value!r} is no duration; write a number with s, m, h or d, for example 1h")
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    return timedelta(**{units[found[2]]: int(found[1])})


def _parse_names(value: object) -> tuple[str, ...]:
    """One name or a list of them; YAML's other types are what happens to unquoted names."""
    names: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    if not names:
        raise ValueError("found [], which names nobody; leave the key out, or name somebody")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{name!r} is not text: YAML read it as {type(name).__name__}; put quotes around it")
    return tuple(unicodedata.normalize("NFC", name.strip()) for name in names)


def _parse_group(value: object) -> tuple[str, ...]:
    return () if value == [] else _parse_names(value)


def _parse_cost(value: object) -> int | None:
    if value == "unlimited":
        return None
    if isinstance(value, bool) or not isinstance(value, int | Decimal | str):
        raise ValueError(f"{value!r} is not an amount; write USD such as 5 or 0.25, or unlimited")
    try:
        return parse_usd(value)
    except MoneyError as error:
        raise ValueError(f"{error.message} Write USD such as 5 or 0.25, 0 to block, or unlimited") from None


def _parse_count(value: object) -> int | None:
    if value == "unlimited":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST_COUNT:
        raise ValueError(f"{value} is not a count; write a whole number, 0 to block, or unlimited")
    return value


def _parse_until(value: object) -> date | datetime:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = datetime.fromisoformat(value.replace("Z", "+00:00")) if "T" in value else date.fromisoformat(value)
    if not isinstance(value, date):
        raise ValueError(f"{value!r} is no date; write YYYY-MM-DD (that day included)")
    return value


def _parse_per(value: object) -> tuple[str, ...]:
    names = () if value == [] else _parse_names(value)
    unknown = [name for name in names if name not in DIMENSIONS]
    if unknown or not names:
        found = repr(unknown[0]) if unknown else "[]"
        raise ValueError(f"{found} is no dimension; write one of {', '.join(DIMENSIONS)}, or a list of them")
    if len(set(names)) < len(names) or ("global" in names and len(names) > 1):
        raise ValueError(f"{list(names)} cannot be combined: name each dimension once, and global alone")
    return names


def _parse_match(value: object) -> Match:
    if isinstance(value, Match):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f'{value!r} matches nothing; write for example {{user: ann}} or {{model: "o3*"}}')
    conditions = []
    for key, names in value.items():
        if key not in _MATCH_KEYS:
            raise ValueError(f"{key!r} is no dimension to match; write one of {', '.join(_MATCH_KEYS)}")
        conditions.append((cast("MatchKey", key), _parse_names(names)))
    return Match(tuple(conditions))


Zone = Annotated[ZoneInfo, BeforeValidator(_parse_zone)]
Duration = Annotated[timedelta, BeforeValidator(_parse_duration)]
Names = Annotated[tuple[str, ...], BeforeValidator(_parse_names)]
GroupName = Annotated[str, BeforeValidator(lambda value: _parse_names(value)[0])]
Group = Annotated[tuple[str, ...], BeforeValidator(_parse_group)]
Cost = Annotated[int | None, BeforeValidator(_parse_cost)]
Count = Annotated[int | None, BeforeValidator(_parse_count)]
Until = Annotated[date | datetime, BeforeValidator(_parse_until)]
Per = Annotated[tuple[Dimension, ...], BeforeValidator(_parse_per)]
MatchField = Annotated[Match, BeforeValidator(_parse_match)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, strict=True)


_AMOUNTS: dict[str, Unit] = {
    "max_cost": "usd",
    "max_total_tokens": "total_tokens",
    "max_input_tokens": "input_tokens",
    "max_output_tokens": "output_tokens",
    "max_requests": "requests",
}


class _Amount(_Section):
    """Exactly one of the five amounts."""

    max_cost: Cost = None
    max_total_tokens: Count = None
    max_input_tokens: Count = None
    max_output_tokens: Count = None
    max_requests: Count = None

    @model_validator(mode="after")
    def _exactly_one(self) -> _Amount:
        given = [name for name in _AMOUNTS if name in self.model_fields_set]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"exactly one of {', '.join(_AMOUNTS)} is needed, found {found}")
        return self

    @property
    def key(self) -> str:
        """The one that was given."""
        return next(name for name in _AMOUNTS if name in self.model_fields_set)

    @property
    def amount(self) -> int | None:
        """Its value, in its unit; None for unlimited."""
        value: int | None = getattr(self, self.key)
        return value


class OverrideConfig(_Amount):
    """Another amount for those who match; the first override that matches counts."""

    match: MatchField
    until: Until | None = None


class LimitConfig(_Amount):
    """One entry of `limits`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    per: Per
    window: WindowKind
    timezone: Zone | None = None
    match: MatchField = Match()
    overrides: Annotated[tuple[OverrideConfig, ...], Field(strict=False)] = ()
    action: Action = "block"
    dry_run: bool = False
    allow_unpriced: Names = ()

    @model_validator(mode="after")
    def _fits_together(self) -> LimitConfig:
        for override in self.overrides:
            if override.key != self.key:
                raise ValueError(f"an override says {override.key}, but the limit says {self.key}: write the same")
        if self.allow_unpriced and self.key != "max_cost":
            raise ValueError("allow_unpriced only means something with max_cost")
        if self.window == "request" and self.key == "max_requests":
            raise ValueError("max_requests with window: request is always one request; choose a longer window")
        return self

    def build(self, zone: ZoneInfo) -> Limit:
        """Make the domain's rule; `zone` is where days begin if the limit does not say."""
        mine = self.timezone or zone
        return Limit(
            name=self.name,
            per=self.per,
            unit=_AMOUNTS[self.key],
            amount=self.amount,
            window=WindowRule(self.window),
            zone=mine,
            match=self.match,
            overrides=tuple(Override(o.match, o.amount, _end_of(o.until, mine)) for o in self.overrides),
            action=self.action,
            dry_run=self.dry_run,
            allow_unpriced=self.allow_unpriced,
        )


def _end_of(until: date | datetime | None, zone: ZoneInfo) -> int | None:
    """Find the instant at which an override ends: behind its last day, or at the moment given."""
    if until is None:
        return None
    if isinstance(until, datetime):
        return to_instant(until if until.tzinfo else until.replace(tzinfo=zone))
    try:
        return start_of_day(until + timedelta(days=1), zone)
    except OverflowError:
        return None  # The last day of the calendar: as good as never.


class BackendConfig(_Section):
    """Which backend, and its options, which it validates itself."""

    backend: str = "sqlite"
    options: dict[str, Any] = {}


class AdmissionConfig(_Section):
    """What holds for all limits.

    Attributes:
        default_max_output_tokens: the output bound of a request that names none.
        status_when_spent: the HTTP status of a refusal that waiting will not lift soon.
    """

    default_max_output_tokens: Annotated[int, Field(ge=1, le=10_000_000)] = 4096
    status_when_spent: Literal[402, 403, 429] = 402


class CacheConfig(_Section):
    """The bounded cache of recent sums, by user and day."""

    size: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
    retention_days: Annotated[int, Field(ge=1, le=3660)] = 7
    cleanup_interval: Duration = timedelta(hours=1)


def _check_sources(sources: tuple[str, ...]) -> tuple[str, ...]:
    for source in sources:
        if source not in ("key", "end_user") and not re.fullmatch(r"header:[A-Za-z0-9-]+", source):
            raise ValueError(f"{source!r} names nobody; write key, end_user or header:NAME")
    return sources


class IdentityConfig(_Section):
    """Who the user of a request is.

    Attributes:
        user: sources in order; the first that names somebody wins.
        on_missing: what happens when none does: the shared subject `(anonymous)`, or a refusal.
        casefold: whether names that differ in case only are one.
        json_field: the field to take out of a claim that is JSON; without it such a claim is refused.
    """

    user: Annotated[Names, AfterValidator(_check_sources)] = ("key", "end_user")
    on_missing: Literal["shared", "deny"] = "shared"
    casefold: bool = False
    json_field: str | None = None


class Config(_Section):
    """The whole section. `data_dir` is absolute; `path` the file it came from."""

    data_dir: Annotated[Path, Field(strict=False)] = Path("./data/usage")
    timezone: Zone = ZoneInfo("UTC")
    contact: str = ""
    storage: BackendConfig = BackendConfig()
    ledger: BackendConfig = BackendConfig()
    admission: AdmissionConfig = AdmissionConfig()
    cache: CacheConfig = CacheConfig()
    identity: IdentityConfig = IdentityConfig()
    groups: dict[GroupName, Group] = {}
    limits: Annotated[tuple[LimitConfig, ...], Field(strict=False)] = ()
    path: Annotated[Path, Field(exclude=True)] = Path()

    @model_validator(mode="after")
    def _names_are_known(self) -> Config:
        seen: set[str] = set()
        for limit in self.limits:
            if limit.name in seen:
                raise ValueError(f"two limits are named {limit.name!r}; a name is used once")
            seen.add(limit.name)
            for match in (limit.match, *(override.match for override in limit.overrides)):
                for key, names in match.conditions:
                    unknown = [name for name in names if key == "group" and name not in self.groups]
                    if unknown:
                        known = ", ".join(self.groups) or "none"
                        raise ValueError(f"limit {limit.name}: no group {unknown[0]!r} in groups (there are: {known})")
        return self

    def limit_set(self) -> LimitSet:
        """Make the limits in force."""
        groups: dict[str, tuple[str, ...]] = {name: self._folded(globs) for name, globs in self.groups.items()}
        return LimitSet((self._fold(limit.build(self.timezone)) for limit in self.limits), groups)

    def _fold(self, limit: Limit) -> Limit:
        """Fold the names in a limit as those of requests are folded; models and groups have one spelling."""
        if not self.identity.casefold:
            return limit
        overrides = tuple(o._replace(match=self._fold_match(o.match)) for o in limit.overrides)
        return replace(limit, match=self._fold_match(limit.match), overrides=overrides)

    def _fold_match(self, match: Match) -> Match:
        return Match(tuple((key, self._folded(globs) if key in _FOLDED else globs) for key, globs in match.conditions))

    def _folded(self, globs: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(glob.casefold() for glob in globs) if self.identity.casefold else globs


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
    root = _compose(path)
    section = _section_of(root, path)
    if section is None:
        values: Any = {}
    else:
        mistakes = _doubled_keys(section, SECTION, ())
        if mistakes:
            raise _mistakes(path, mistakes)
        values = _construct(section, path)
        if values is None:
            values = {}
    if not isinstance(values, dict):
        raise _mistakes(path, [f"{SECTION}: found {values!r}, expected keys such as limits"])
    values = _with_environment(values, path)
    if data_dir := os.environ.get(DATA_DIR_VARIABLE):
        values["data_dir"] = data_dir
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        lines = _lines(section) if section is not None else {}
        raise _mistakes(path, [_explain(mistake, lines) for mistake in error.errors()]) from None
    base = Path.cwd() if data_dir else path.parent
    return config.model_copy(update={"data_dir": (base / config.data_dir.expanduser()).resolve(), "path": path})


def read_proxy_section(path: Path, name: str) -> Any:  # somebody else's section
    """Read another top-level section of the proxy's YAML, for checks; None if there is none."""
    root = _compose(path)
    if isinstance(root, yaml.MappingNode):
        for key, value in root.value:
            if key.value == name:
                return _construct(value, path)
    return None


class _Loader(yaml.SafeLoader):
    """YAML as LiteLLM reads it, but a number with a point stays as exact as it was written."""


def _exact_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Decimal | float:
    text = str(loader.construct_scalar(node)).replace("_", "")
    try:
        return Decimal(text)
    except ArithmeticError:
        return float(loader.construct_yaml_float(node))


_Loader.add_constructor("tag:yaml.org,2002:float", _exact_number)


def _compose(path: Path) -> yaml.Node | None:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        hint = None
        if "alias" in str(error) or "anchor" in str(error):
            hint = 'YAML takes an unquoted * for an alias; put quotes around the name: "*@example.com".'
        raise ConfigError(f"{path} is not valid YAML: {error}.", hint=hint) from None


def _section_of(root: yaml.Node | None, path: Path) -> yaml.Node | None:
    entries = root.value if isinstance(root, yaml.MappingNode) else []
    found = [value for key, value in entries if key.value == SECTION]
    if len(found) > 1:
        raise _mistakes(path, [f"{SECTION}: stands twice; write it once"])
    if found:
        return found[0]  # type: ignore[no-any-return]
    if any(key.value == "model_list" for key, _ in entries):
        return None
    raise ConfigError(f"{path} has no section {SECTION}.", hint="Add one, or name the proxy's YAML.")


def _doubled_keys(node: yaml.Node, where: str, inside: tuple[yaml.Node, ...]) -> list[str]:
    """Find keys that stand twice, and anchors that contain themselves, which nothing can read."""
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
            mistakes += _doubled_keys(value, f"{where}.{name}", inside)
    elif isinstance(node, yaml.SequenceNode):
        for at, item in enumerate(node.value):
            mistakes += _doubled_keys(item, f"{where}.{at}", inside)
    return mistakes


def _construct(node: yaml.Node, path: Path) -> Any:  # YAML's values are anything
    loader = _Loader("")
    try:
        return loader.construct_document(node)
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
    finally:
        loader.dispose()


def _lines(node: yaml.Node, where: tuple[str | int, ...] = ()) -> dict[tuple[str | int, ...], int]:
    """Map each path of the section to the line where it stands."""
    lines = {where: node.start_mark.line + 1}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines.update(_lines(value, (*where, key.value)))
            lines[(*where, key.value)] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for at, item in enumerate(node.value):
            lines.update(_lines(item, (*where, at)))
    return lines


def _with_environment(value: Any, path: Path) -> Any:  # YAML's values are anything
    if isinstance(value, dict):
        return {key: _with_environment(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_environment(item, path) for item in value]
    if isinstance(value, str) and value.startswith(_FROM_ENVIRONMENT):
        name = value.removeprefix(_FROM_ENVIRONMENT)
        if name not in os.environ:
            raise ConfigError(f"{path}: {value} is asked for, but {name} is not set.", hint=f"Set {name}.")
        # A number stays a number: what stands in the environment is read as YAML would read it.
        with contextlib.suppress(yaml.YAMLError, ValueError):
            loaded = yaml.load(os.environ[name], Loader=_Loader)  # noqa: S506  # a SafeLoader
            if isinstance(loaded, int | Decimal):
                return loaded
        return os.environ[name]
    return value


def _explain(mistake: Mapping[str, Any], lines: Mapping[tuple[str | int, ...], int]) -> str:
    """Say one mistake in a line: where, what was found, what to write."""
    location = tuple(mistake["loc"])
    known = location
    while known and known not in lines:
        known = known[:-1]
    line = f"line {lines[known]}: " if known in lines else ""
    where = ".".join([SECTION, *map(str, location)])
    found = mistake["input"]
    kind = mistake["type"]
    if kind == "extra_forbidden":
        remedy = _REMEDIES.get(str(location[-1]), "no such key; see docs/configuration.md for all of them")
        return f"{line}{where}: found {_short(found)}; {remedy}"
    if kind == "missing":
        return f"{line}{where}: is missing"
    if kind == "value_error":
        return f"{line}{where}: {mistake['ctx']['error']}"
    if location and location[-1] == "window":
        return f"{line}{where}: found {_short(found)}; write one of {', '.join(WINDOW_KINDS)}"
    return f"{line}{where}: found {_short(found)}; {mistake['msg'][0].lower()}{mistake['msg'][1:]}"


def _short(value: object) -> str:
    text = str(value) if isinstance(value, Decimal) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _mistakes(path: Path, mistakes: list[str]) -> ConfigError:
    return ConfigError("\n  ".join([f"{path} cannot be used:", *mistakes]))
