"""The keys of the section `usage_plugin:`, apart from those of a limit."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, model_validator

from usage_plugin.config.field_types import (
    Days,
    Group,
    MostBytes,
    Name,
    Names,
    Size,
    Unmetered,
    Weekday,
    Zone,
    duration,
)
from usage_plugin.config.limit_config import LimitConfig, Section
from usage_plugin.domain.limits import NO_MEMBERSHIP, Limit, LimitSet, Match, Membership, fits
from usage_plugin.domain.subjects import spelled

if TYPE_CHECKING:
    from usage_plugin.domain.pseudonyms import Pseudonyms

FOLDED = frozenset({"user", "team", "end_user", "organization"})
"""Dimensions whose names `identity.casefold` folds."""

Disputes = Literal["higher", "computed", "litellm"]
"""Which of two costs is charged."""

OutputTokens = Annotated[int, Field(ge=1, le=10_000_000)]


class BackendConfig(Section):
    """Which backend, and its options, which it validates itself."""

    backend: str = "sqlite"
    options: dict[str, Any] = Field(default_factory=dict)


class StorageConfig(BackendConfig):
    """What keeps the history.

    Attributes:
        outbox_max: how many bytes of events may wait for it.
        on_outbox_full: what becomes of new requests then; those that are let through leave a gap.
    """

    outbox_max: Size = 10**9
    on_outbox_full: Literal["deny", "allow"] = "deny"


class AdmissionConfig(Section):
    """What holds for all limits.

    Attributes:
        default_max_output_tokens: the output bound of a request that names none.
        default_reasoning_tokens: the same for models that think before they answer, unless the other one is written.
        max_output_tokens: the same for some models; of several globs that fit the first counts.
        status_when_spent: the HTTP status of a refusal that waiting will not lift soon.
        busy_wait: how long a request waits that would fit once others settle.
        on_short_budget: what becomes of a request that would fit with fewer output tokens.
        on_ledger_error: what becomes of requests while the ledger does not work.
        orphan_grace: how long a hold is kept that no hook settled.
        on_lost: what is charged if the worker dies and nobody knows what the request used.
        on_unmetered: what becomes of requests that nothing meters; or what each costs, in nano-dollars.
        on_cut_stream: what is charged for a stream that the client cut.
        on_disputed_cost: which cost is charged where ours and LiteLLM's differ by more than 1 %, for all models or by
            globs, of which the first that fits counts.
    """

    default_max_output_tokens: OutputTokens = 4096
    default_reasoning_tokens: OutputTokens = 25_000
    max_output_tokens: dict[Name, OutputTokens] = Field(default_factory=dict)
    status_when_spent: Literal[402, 403, 429] = 402
    busy_wait: Annotated[timedelta, duration("0s", "60s", example="2s")] = timedelta(seconds=2)
    on_short_budget: Literal["reject", "clamp"] = "reject"
    on_ledger_error: Literal["deny", "allow"] = "deny"
    orphan_grace: Annotated[timedelta, duration("1s", "1d", example="60s")] = timedelta(seconds=60)
    on_lost: Literal["charge", "charge_input", "release"] = "charge"
    on_unmetered: Unmetered = "allow"
    on_cut_stream: Literal["estimate", "reserved"] = "estimate"
    on_disputed_cost: Disputes | dict[Name, Disputes] = "higher"

    def output_tokens_of(self, model: str, *, reasons: bool = False) -> int:
        """Return the output bound of a request for a model that names none."""
        for glob, tokens in self.max_output_tokens.items():
            if fits((glob,), model):
                return tokens
        written = self.model_fields_set
        if reasons and ("default_max_output_tokens" not in written or "default_reasoning_tokens" in written):
            return self.default_reasoning_tokens
        return self.default_max_output_tokens

    def disputed_cost_of(self, model: str | None) -> Disputes:
        """Return which cost of a model is charged where ours and LiteLLM's differ."""
        if isinstance(self.on_disputed_cost, str):
            return self.on_disputed_cost
        return next((which for glob, which in self.on_disputed_cost.items() if fits((glob,), model or "")), "higher")


class CacheConfig(Section):
    """The bounded cache of recent sums, by user and day."""

    size: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
    retention_days: Annotated[int, Field(ge=1, le=3660)] = 7
    cleanup_interval: Annotated[timedelta, duration("1s", "3660d", example="1h")] = timedelta(hours=1)


RESOLVER = "resolver:"
"""Begins a source of `identity.user` that a plugin registers."""


def _check_sources(sources: tuple[str, ...]) -> tuple[str, ...]:
    for source in sources:
        if source not in ("key", "end_user") and not re.fullmatch(rf"header:[A-Za-z0-9-]+|{RESOLVER}\S+", source):
            raise ValueError(f"{source!r} names nobody; write key, end_user, header:NAME or resolver:NAME")
    return sources


class IdentityConfig(Section):
    """Who the user of a request is.

    Attributes:
        user: sources in order; the first that names somebody wins.
        on_missing: what happens when none does: the shared subject `(anonymous)`, or a refusal.
        casefold: whether names that differ in case only are one.
        json_field: the field to take out of a claim that is JSON; without it such a claim is refused.
        groups_from: resolvers that say which groups a user is in, beside `groups`.
    """

    user: Annotated[Names, AfterValidator(_check_sources)] = ("key", "end_user")
    on_missing: Literal["shared", "deny"] = "shared"
    casefold: bool = False
    json_field: str | None = None
    groups_from: Names = ()

    def folds(self, dimension: str) -> bool:
        """Say whether names of this dimension that differ in case only are one."""
        return self.casefold and dimension in FOLDED

    def as_kept(self, dimension: str, name: str) -> str:
        """Spell a name that somebody asks for as requests have it."""
        return spelled(name, casefold=self.casefold) if dimension in FOLDED else name

    @property
    def user_resolvers(self) -> tuple[str, ...]:
        """The resolvers among the sources of the user."""
        return tuple(source.removeprefix(RESOLVER) for source in self.user if source.startswith(RESOLVER))


class PluginConfig(Section):
    """A plugin that is not always there: a file, what an installed package brings, or one of ours that is off.

    Attributes:
        path: of the file, from the folder of the YAML.
        package: name of the distribution, as pip knows it.
        name: of a plugin that comes with usage_plugin, and is off unless it is named.
        enabled: whether it is loaded.
        options: what it validates itself.
    """

    path: Annotated[Path | None, Field(strict=False)] = None
    package: str | None = None
    name: str | None = None
    enabled: bool = True
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> PluginConfig:
        if [self.path, self.package, self.name].count(None) != 2:
            raise ValueError(
                "name one source: path, a file of Python; package, an installed distribution; or name, a plugin that "
                "comes with usage_plugin"
            )
        return self


class LimitsFile(Section):
    """A file of its own with limits in it, named by `limits_from`."""

    limits: Annotated[tuple[LimitConfig, ...], Field(strict=False)]


class RetentionConfig(Section):
    """How long history is kept; None: without end.

    Attributes:
        events: days, counted back from now.
        daily: days; the sums of earlier days go.
        max_size: bytes of the store above which the oldest events go before their time.
    """

    events: Days = 90
    daily: Days = 5 * 366
    max_size: MostBytes = None

    @model_validator(mode="after")
    def _sums_outlive_events(self) -> RetentionConfig:
        if self.daily is not None and (self.events is None or self.events > self.daily):
            kept = "unlimited" if self.events is None else f"{self.events}d"
            raise ValueError(
                f"daily ({self.daily}d) is shorter than events ({kept}): events cannot outlive their day; lengthen"
                " daily or shorten events"
            )
        return self


class PrivacyConfig(Section):
    """Under which names persons are kept: those they have, or pseudonyms."""

    user: Literal["plain", "pseudonym"] = "plain"


class Config(Section):
    """The whole section.

    Attributes:
        data_dir: absolute.
        limits: with those of the files that `limits_from` names.
        path: the file that the section stands in; empty if a program made it.
    """

    data_dir: Annotated[Path, Field(strict=False)] = Path("./data/usage")
    timezone: Zone = ZoneInfo("UTC")
    week_starts: Weekday = 0
    contact: str = ""
    storage: StorageConfig = StorageConfig()
    ledger: BackendConfig = BackendConfig()
    admission: AdmissionConfig = AdmissionConfig()
    cache: CacheConfig = CacheConfig()
    identity: IdentityConfig = IdentityConfig()
    retention: RetentionConfig = RetentionConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    plugins: Annotated[tuple[PluginConfig, ...], Field(strict=False)] = ()
    groups: dict[Name, Group] = Field(default_factory=dict)
    limits: Annotated[tuple[LimitConfig, ...], Field(strict=False)] = ()
    limits_from: Names = ()
    migrate_from: Name | None = None
    path: Annotated[Path, Field(exclude=True)] = Path()

    @model_validator(mode="after")
    def _names_are_known(self) -> Config:
        self.check_names()
        return self

    def check_names(self) -> None:
        """Check what the limits say of each other and of the groups.

        Raises:
            ValueError: a name stands twice, or a group is not there.
        """
        seen: set[str] = set()
        for limit in self.limits:
            if limit.name in seen:
                raise ValueError(f"two limits are named {limit.name!r}; a name is used once")
            seen.add(limit.name)
            for match in (limit.match, *(override.match for override in limit.overrides)):
                for key, names in match.conditions:
                    unknown = [name for name in names if key == "group" and name not in self.groups]
                    if unknown and not self.identity.groups_from:
                        known = ", ".join(self.groups) or "none"
                        raise ValueError(f"limit {limit.name}: no group {unknown[0]!r} in groups (there are: {known})")

    @property
    def migrated_limits(self) -> Path:
        """The file that a migration writes the old limits to."""
        return self.data_dir / "migrated_limits.yaml"

    @property
    def migration_source(self) -> Path | None:
        """The directory that `migrate_from` names; a relative one begins where the YAML stands."""
        return None if self.migrate_from is None else self.path.parent / Path(self.migrate_from).expanduser()

    def limit_files(self) -> list[Path]:
        """List the files with further limits; with `migrate_from` also what the migration wrote, once it is there."""
        files = [self.path.parent / Path(name).expanduser() for name in self.limits_from]
        written = self.migrated_limits
        if self.migrate_from is not None and written.is_file() and written not in map(Path.resolve, files):
            files.append(written)
        return files

    def limit_set(self, pseudonyms: Pseudonyms | None = None, membership: Membership = NO_MEMBERSHIP) -> LimitSet:
        """Make the limits in force; without pseudonyms, for those who only look at the rules.

        Args:
            pseudonyms: under which persons and keys are kept.
            membership: adds to the groups.
        """
        groups: dict[str, tuple[str, ...]] = {name: self._folded(globs) for name, globs in self.groups.items()}
        limits = (limit.build(self.timezone, self.week_starts) for limit in self.limits)
        made = LimitSet(map(self._fold, limits), groups, membership=membership)
        return made if pseudonyms is None else pseudonyms.applied_to(made)

    def _fold(self, limit: Limit) -> Limit:
        """Fold the names in a limit as those of requests are folded; models and groups have one spelling."""
        if not self.identity.casefold:
            return limit
        overrides = tuple(o._replace(match=self._fold_match(o.match)) for o in limit.overrides)
        return replace(limit, match=self._fold_match(limit.match), overrides=overrides)

    def _fold_match(self, match: Match) -> Match:
        return Match(tuple((key, self._folded(globs) if key in FOLDED else globs) for key, globs in match.conditions))

    def _folded(self, globs: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(glob.casefold() for glob in globs) if self.identity.casefold else globs
