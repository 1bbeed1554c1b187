"""What a plugin registers: backends, which know their options and how to open what they provide, and resolvers."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict, ValidationError

from usage_plugin.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.ledger import Ledger
    from usage_plugin.domain.store import UsageStore
    from usage_plugin.domain.usage import UsageTotals


class Options(BaseModel):
    """Options of a backend or a plugin, as written under `options:`; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoOptions(Options):
    """A backend or a plugin without options."""


BackendT = TypeVar("BackendT")
OptionsT = TypeVar("OptionsT", bound=Options)


def check_options(where: str, model: type[BaseModel], options: Mapping[str, Any]) -> Any:
    """Read options by their model.

    Args:
        where: the key of the YAML under which they stand, for the error.
        model: what they must fit.
        options: as they were written.

    Raises:
        ConfigError: with every mistake.
    """
    try:
        return model.model_validate(options)
    except ValidationError as error:
        known = ", ".join(model.model_fields) or "none"
        raise ConfigError(
            "; ".join(
                f"{'.'.join([where, *map(str, mistake['loc'])])}: found {mistake['input']!r}: "
                + (f"no such option; there are: {known}" if unknown else mistake["msg"])
                for mistake in error.errors()
                for unknown in [mistake["type"] == "extra_forbidden" and len(mistake["loc"]) == 1]
            )
        ) from None


def choose(where: str, name: str, backends: Mapping[str, BackendT]) -> BackendT:
    """Find a backend.

    Args:
        where: the key of the YAML under which `backend` stands, for the error.
        name: what is written there.
        backends: those that are registered.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in backends:
        raise ConfigError(
            f"{where}.backend: found {name!r}; there are {', '.join(sorted(backends))}.",
            hint="A backend of a package that is not installed is not there.",
        )
    return backends[name]


@dataclass(frozen=True, slots=True)
class BackendContext:
    """What a backend or a plugin is told beside its own options.

    Attributes:
        data_dir: where its files belong; the folder may not exist yet.
        zone: the zone whose days daily sums are kept by.
        config_dir: the folder of the YAML (the current one, if there is none), from which relative paths start.
        config_file: the YAML, for a plugin that works in another process; None if a program gave the configuration.
        storage_backends: all that are registered, by name, for a backend that is made of others.
    """

    data_dir: Path
    zone: ZoneInfo
    config_dir: Path = Path()
    config_file: Path | None = None
    storage_backends: Mapping[str, StorageBackend[Any]] = field(default_factory=dict)


class StorageBackend(ABC, Generic[OptionsT]):
    """Provides a store under a name.

    Attributes:
        name: what users write under `storage.backend`.
        options_model: validates `storage.options`.
    """

    name: ClassVar[str]
    options_model: type[OptionsT]

    @abstractmethod
    def open(self, options: OptionsT, context: BackendContext) -> AbstractAsyncContextManager[UsageStore]:
        """Open the store for the length of a context. Several processes may have it open at once."""

    def check(self, options: OptionsT, context: BackendContext) -> None:
        """Raise `ConfigError` if the store cannot be opened with these options; create nothing."""


@runtime_checkable
class Renewable(Protocol):
    """An ability of storage backends whose store can be built anew beside the old one, and then take its place."""

    def beside(self, options: Any, context: BackendContext) -> Any:
        """Give the options of a store beside, and see to it that there is none yet."""

    def take_place(self, options: Any, context: BackendContext, *, aside: str | None) -> Path | None:
        """Put the store beside, which nobody has open, in the place of the old one.

        Args:
            options: of the old one.
            context: as ever.
            aside: what the old one's name ends in from then on; None if it is not worth keeping.

        Returns:
            Where the old one is; None if there was none, or it is gone.
        """


class Restoration(NamedTuple):
    """How far a restoration is.

    Attributes:
        records: events and sums read so far; `most` is how many there can be.
        totals: of everything that is kept, by part; known at the end.
        aside: where the old database is.
        is_done: whether the new one is in its place.
    """

    records: int
    most: int
    totals: Mapping[str, UsageTotals | None]
    aside: Path | None = None
    is_done: bool = False


@runtime_checkable
class Restorable(Protocol):
    """An ability of storage backends that keep the history twice, so that one copy can be made of the other."""

    def restore(self, options: Any, context: BackendContext, *, dry_run: bool) -> AsyncIterator[Restoration]:
        """Make it anew, and say how far it is; with `dry_run` only read everything.

        Raises:
            StorageUnavailableError: somebody is writing to the store.
        """


class LedgerBackend(ABC, Generic[OptionsT]):
    """Provides a ledger under a name.

    Attributes:
        name: what users write under `ledger.backend`.
        options_model: validates `ledger.options`.
    """

    name: ClassVar[str]
    options_model: type[OptionsT]

    @abstractmethod
    def exists(self, options: OptionsT, context: BackendContext) -> bool:
        """Say whether there is a ledger to open; create nothing."""

    @abstractmethod
    def open(self, options: OptionsT, context: BackendContext) -> Ledger:
        """Open the ledger for use by one thread. Several threads and processes may have it open at once."""


class Claim(NamedTuple):
    """What is known of a request whose key is nobody's own. What the client chose is not to be trusted.

    Attributes:
        end_user: what the client says of its user, as it was sent.
        headers: the client's, with lower-case names, as LiteLLM hands them on.
        jwt: the claims of the token that LiteLLM has verified; empty if there was none.
        key_alias: the key's name, `team` and `organization` whose it is.
    """

    end_user: object
    headers: Mapping[str, str]
    jwt: Mapping[str, Any]
    key_alias: str | None
    team: str | None
    organization: str | None


class IdentityResolver(ABC):
    """Says who somebody is: which user a request is of (`user_of`), which groups a user is in (`groups_of`), or both.

    Both are called on the event loop, `groups_of` in other threads too, and must answer from memory: a file is read or
    a server asked in `refresh`, which may take its time.

    Attributes:
        name: what users write as `resolver:NAME` in `identity.user`, or under `identity.groups_from`.
    """

    name: ClassVar[str]

    def user_of(self, claim: Claim) -> str | None:  # noqa: ARG002  # for those who override it
        """Name the user of a request; None if this resolver does not know.

        Called for each request that gets as far as this source. If it raises, the request is refused with 503: to go on
        with the next source would charge somebody else.
        """
        return None

    def groups_of(self, user: str) -> Iterable[str]:  # noqa: ARG002  # for those who override it
        """List the groups that a user is in, beside those of the YAML.

        What it answers is remembered until `refresh` gives another version, so it may depend on nothing else. If it
        raises, the user is in no group of this resolver until it is asked again, a second later.
        """
        return ()

    def refresh(self) -> str:
        """Look whether anything has changed, and name the state of what is known: a digest, a number.

        Called once before anything else, where what it raises stops the start; then once a second in a thread of its
        own in each worker. There what it raises is logged and counted, and what was known stays. Workers that know the
        same must give the same name.
        """
        return ""


if not TYPE_CHECKING:  # a type checker must go on to report misspelt names

    def __getattr__(name: str) -> object:
        """Return a type by its deprecated name."""
        if name == "Surroundings":
            warnings.warn(
                "usage_plugin.plugins.interface.Surroundings is deprecated and will be removed in version 0.2;"
                " import BackendContext.",
                DeprecationWarning,
                stacklevel=2,
            )
            return BackendContext
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
