"""The keys of the section `usage_plugin:`, except those of a limit."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, model_validator

from usage_plugin.config.deprecated_keys import Deprecation  # noqa: TC001  # pydantic needs it at run time
from usage_plugin.config.field_types import (
    Days,
    Group,
    MostBytes,
    Name,
    Names,
    SecretField,
    SecretPath,
    Size,
    Unmetered,
    Weekday,
    Zone,
    days,
    duration,
)
from usage_plugin.config.limit_config import LimitConfig, Section
from usage_plugin.domain.globs import fits
from usage_plugin.domain.limit_set import NO_MEMBERSHIP, LimitSet, Membership
from usage_plugin.domain.limits import Limit, Match
from usage_plugin.domain.subjects import spelled

if TYPE_CHECKING:
    from usage_plugin.domain.pseudonyms import Pseudonyms

FOLDED = frozenset({"user", "team", "end_user", "organization"})
"""The dimensions whose names `identity.casefold` folds."""

Disputes = Literal["higher", "computed", "litellm"]
"""The choice between two costs."""

OutputTokens = Annotated[int, Field(ge=1, le=10_000_000)]


class BackendConfig(Section):
    """The name of a backend, and its options, which it validates itself."""

    backend: str = "sqlite"
    options: dict[str, Any] = Field(default_factory=dict, repr=False)


class StorageConfig(BackendConfig):
    """The store of the history.

    Attributes:
        outbox_max: The maximum size of the events that wait for the store, in bytes. None: the default of the ledger.
        on_outbox_full: The treatment of new requests at that size. An allowed one leaves a gap in the history.
    """

    outbox_max: Size | None = None
    on_outbox_full: Literal["deny", "allow"] = "deny"


class AdmissionConfig(Section):
    """The settings that all limits share.

    Attributes:
        default_max_output_tokens: The output bound of a request without one.
        default_reasoning_tokens: The same for reasoning models, unless `default_max_output_tokens` is given.
        max_output_tokens: The same by model; the first matching glob counts.
        status_when_spent: The HTTP status of a refusal that a short wait cannot lift.
        max_wait: The maximum wait of a request that would fit once others settle.
        on_short_budget: The treatment of a request that would fit with fewer output tokens.
        on_ledger_error: The treatment of requests while the ledger is not available.
        orphan_grace: The time after which a hold is settled that no hook has settled.
        on_lost: The charge for a request whose worker died, and whose usage is unknown.
        worker_lost_after: The time without a sign of life after which a worker of another host is declared dead.
        on_unmetered: The treatment of requests without a meter, or the cost of each in nano-dollars.
        on_cut_stream: The charge for a stream that the client cut.
        on_disputed_cost: The cost to charge where ours and LiteLLM's differ by more than 1 %. It is one choice for all
            models, or a choice by glob, of which the first match counts.
    """

    default_max_output_tokens: OutputTokens = 4096
    default_reasoning_tokens: OutputTokens = 25_000
    max_output_tokens: dict[Name, OutputTokens] = Field(default_factory=dict)
    status_when_spent: Literal[402, 403, 429] = 402
    max_wait: Annotated[timedelta, duration("0s", "60s", example="2s")] = timedelta(seconds=2)
    on_short_budget: Literal["deny", "clamp"] = "deny"
    on_ledger_error: Literal["deny", "allow"] = "deny"
    orphan_grace: Annotated[timedelta, duration("1s", "1d", example="60s")] = timedelta(seconds=60)
    on_lost: Literal["charge", "charge_input", "release"] = "charge"
    worker_lost_after: Annotated[timedelta, duration("2s", "1h", example="30s")] = timedelta(seconds=30)
    on_unmetered: Unmetered = "allow"
    on_cut_stream: Literal["estimate", "reserved"] = "estimate"
    on_disputed_cost: Disputes | dict[Name, Disputes] = "higher"

    def output_tokens_of(self, model: str, *, reasons: bool = False) -> int:
        """Return the output bound of a request without one."""
        for glob, tokens in self.max_output_tokens.items():
            if fits((glob,), model):
                return tokens
        written = self.model_fields_set
        if reasons and ("default_max_output_tokens" not in written or "default_reasoning_tokens" in written):
            return self.default_reasoning_tokens
        return self.default_max_output_tokens

    def disputed_cost_of(self, model: str | None) -> Disputes:
        """Return the cost to charge for a model where ours and LiteLLM's differ."""
        if isinstance(self.on_disputed_cost, str):
            return self.on_disputed_cost
        return next((which for glob, which in self.on_disputed_cost.items() if fits((glob,), model or "")), "higher")


class CacheConfig(Section):
    """The bounded cache of recent sums, by user and day.

    Attributes:
        size: The maximum number of entries.
        retention: The days after which an entry is dropped.
        cleanup_interval: The interval between two cleanups.
    """

    size: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
    retention: Annotated[int, days(3660, example="7d")] = 7
    cleanup_interval: Annotated[timedelta, duration("1s", "3660d", example="1h")] = timedelta(hours=1)


RESOLVER = "resolver:"
"""The prefix of a source in `identity.user` that a plugin registers."""


def _check_sources(sources: tuple[str, ...]) -> tuple[str, ...]:
    for source in sources:
        if source not in ("key", "end_user") and not re.fullmatch(rf"header:[A-Za-z0-9-]+|{RESOLVER}\S+", source):
            raise ValueError(f"expected key, end_user, header:NAME or resolver:NAME; found {source!r}")
    return sources


class IdentityConfig(Section):
    """How a request is attributed to a user.

    Attributes:
        user: The sources of the user's name, in order of precedence.
        on_missing: The treatment of a request without a name: the shared subject `(anonymous)`, or a refusal.
        casefold: Whether names that differ in case only are the same name.
        json_field: The field with the name, for a claim that is JSON. Without it such a claim is refused.
        groups_from: The resolvers of group membership, in addition to `groups`.
    """

    user: Annotated[Names, AfterValidator(_check_sources)] = ("key", "end_user")
    on_missing: Literal["shared", "deny"] = "shared"
    casefold: bool = False
    json_field: str | None = None
    groups_from: Names = ()

    def folds(self, dimension: str) -> bool:
        """Whether names of this dimension that differ in case only are the same name."""
        return self.casefold and dimension in FOLDED

    def as_kept(self, dimension: str, name: str) -> str:
        """Return the spelling of a name in requests, for a name that a query asks for."""
        return spelled(name, casefold=self.casefold) if dimension in FOLDED else name

    @property
    def user_resolvers(self) -> tuple[str, ...]:
        """The resolvers among the sources of the user."""
        return tuple(source.removeprefix(RESOLVER) for source in self.user if source.startswith(RESOLVER))


class PluginConfig(Section):
    """A plugin from a file, from an installed package, or one of ours that is off by default.

    Attributes:
        path: The path of the file, relative to the folder of the YAML.
        package: The name of the distribution, as pip shows it.
        name: The name of a plugin of usage_plugin's that is off by default.
        enabled: Whether the plugin is loaded.
        options: Options, which the plugin validates itself.
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
                "expected exactly one of path (a Python file), package (an installed distribution) and name (a plugin"
                " that comes with usage_plugin)"
            )
        return self


class LimitsFile(Section):
    """A file of limits, which `limits_from` names."""

    limits: Annotated[tuple[LimitConfig, ...], Field(strict=False)]


class RetentionConfig(Section):
    """How long the history is kept; None is unlimited.

    Attributes:
        events: The age in days at which events are deleted.
        daily: The age in days at which daily sums are deleted.
        max_size: The size of the store in bytes, above which the oldest events are deleted early.
    """

    events: Days = 90
    daily: Days = 5 * 366
    max_size: MostBytes = None

    @model_validator(mode="after")
    def _sums_outlive_events(self) -> RetentionConfig:
        if self.daily is not None and (self.events is None or self.events > self.daily):
            kept = "unlimited" if self.events is None else f"{self.events}d"
            raise ValueError(
                f"expected daily to be at least events; found daily {self.daily}d and events {kept};"
                " lengthen daily or shorten events"
            )
        return self


class PrivacyConfig(Section):
    """The form in which users' names are kept, and the secret of the pseudonyms.

    Attributes:
        user: Whether users are kept under their names or under pseudonyms.
        secret: The secret, as hexadecimal digits.
        secret_file: A file with the secret; a relative path starts in the folder of the YAML. Without either, the data
            folder has a secret of its own.
    """

    user: Literal["plain", "pseudonym"] = "plain"
    secret: SecretField | None = None
    secret_file: SecretPath | None = None

    @model_validator(mode="after")
    def _one_source(self) -> PrivacyConfig:
        if self.secret is not None and self.secret_file is not None:
            raise ValueError("expected secret or secret_file; found both; remove one of them")
        return self


class Config(Section):
    """The whole section.

    Attributes:
        data_dir: The data folder, as an absolute path.
        limits: The limits, including those of the files in `limits_from`.
        path: The file with the section; empty if a program passed it.
        deprecations: The deprecated keys and values of the section.
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
    deprecations: Annotated[tuple[Deprecation, ...], Field(exclude=True)] = ()

    @model_validator(mode="after")
    def _names_are_known(self) -> Config:
        self.check_names()
        return self

    def check_names(self) -> None:
        """Check that the names of limits are unique, and that their groups exist.

        Raises:
            ValueError: A name is used twice, or a group does not exist.
        """
        seen: set[str] = set()
        for limit in self.limits:
            if limit.name in seen:
                raise ValueError(f"expected unique names of limits; found two named {limit.name!r}")
            seen.add(limit.name)
            for match in (limit.match, *(override.match for override in limit.overrides)):
                for key, names in match.conditions:
                    unknown = [name for name in names if key == "group" and name not in self.groups]
                    if unknown and not self.identity.groups_from:
                        known = ", ".join(self.groups) or "none"
                        raise ValueError(
                            f"limit {limit.name}: expected a name in groups ({known}); found {unknown[0]!r}"
                        )

    @property
    def migrated_limits(self) -> Path:
        """The file to which a migration writes the old limits."""
        return self.data_dir / "migrated_limits.yaml"

    @property
    def migration_source(self) -> Path | None:
        """The directory in `migrate_from`; a relative one starts in the folder of the YAML."""
        return None if self.migrate_from is None else self.path.parent / Path(self.migrate_from).expanduser()

    def limit_files(self) -> list[Path]:
        """Return the files with more limits, including the one that the migration of `migrate_from` has written."""
        files = [self.path.parent / Path(name).expanduser() for name in self.limits_from]
        written = self.migrated_limits
        if self.migrate_from is not None and written.is_file() and written not in map(Path.resolve, files):
            files.append(written)
        return files

    def limit_set(self, pseudonyms: Pseudonyms | None = None, membership: Membership = NO_MEMBERSHIP) -> LimitSet:
        """Return the limits in force.

        Args:
            pseudonyms: The pseudonyms under which users and keys are kept; None for a look at the rules alone.
            membership: Group membership in addition to `groups`.
        """
        groups: dict[str, tuple[str, ...]] = {name: self._folded(globs) for name, globs in self.groups.items()}
        limits = (limit.build(self.timezone, self.week_starts) for limit in self.limits)
        made = LimitSet(map(self._fold, limits), groups, membership=membership)
        return made if pseudonyms is None else made.under(pseudonyms)

    def _fold(self, limit: Limit) -> Limit:
        """Fold the names in a limit as those of requests are folded; models and groups keep their spelling."""
        if not self.identity.casefold:
            return limit
        overrides = tuple(o._replace(match=self._fold_match(o.match)) for o in limit.overrides)
        return replace(limit, match=self._fold_match(limit.match), overrides=overrides)

    def _fold_match(self, match: Match) -> Match:
        return Match(tuple((key, self._folded(globs) if key in FOLDED else globs) for key, globs in match.conditions))

    def _folded(self, globs: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(glob.casefold() for glob in globs) if self.identity.casefold else globs
