"""Types of the objects that plugins register: backends, which open a store or a ledger, and identity resolvers."""

from __future__ import annotations

import importlib.util
import re
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict, ValidationError

from usage_plugin.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.fleet import FleetRegister
    from usage_plugin.domain.ledger_batch import LedgerTransport
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.domain.store import UsageStore
    from usage_plugin.domain.usage import UsageTotals


class Options(BaseModel):
    """The options of a backend or a plugin, as written under `options:`; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoOptions(Options):
    """A backend or a plugin without options."""


BackendT = TypeVar("BackendT")
OptionsT = TypeVar("OptionsT", bound=Options)

_CREDENTIALS = re.compile(r"(?<=://)[^\s'\"]*@")


def check_options(where: str, model: type[BaseModel], options: Mapping[str, Any]) -> Any:
    """Validate options against their model.

    Args:
        where: The key of the YAML with the options, for the error.
        model: The model of the options.
        options: The options, as written.

    Raises:
        ConfigError: The options are invalid; the message has every mistake.
    """
    try:
        return model.model_validate(options)
    except ValidationError as error:
        raise ConfigError("; ".join(_described(where, model, mistake) for mistake in error.errors())) from None


def _described(where: str, model: type[BaseModel], mistake: Mapping[str, Any]) -> str:
    """Return a mistake for people.

    The value is left out where it may be a credential: that of an unknown option, which may be a misspelt one, and all
    options together.
    """
    location = mistake["loc"]
    place = ".".join([where, *map(str, location)])
    if mistake["type"] == "extra_forbidden" and len(location) == 1:
        known = ", ".join(field.alias or name for name, field in model.model_fields.items()) or "none"
        return f"{place}: unknown option; known options: {known}"
    found = f"found {_CREDENTIALS.sub('…@', repr(mistake['input']))}: " if location else ""
    return f"{place}: {found}{mistake['msg']}"


def check_installed(where: str, backend: str, module: str, package: str) -> None:
    """Check that the driver of a built-in backend is installed, without importing it.

    Args:
        where: The key of the YAML that contains `backend`, for the error.
        backend: The name of the backend, and of the extra of this package with its driver.
        module: The module of the driver.
        package: The name of the driver, for the error.

    Raises:
        ConfigError: It is not installed; the hint has the command that installs it.
    """
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"{where}.backend: {backend} requires {package}, which is not installed.",
            hint=f'Run: pip install "usage-plugin[{backend}]"',
        )


def choose(where: str, name: str, backends: Mapping[str, BackendT]) -> BackendT:
    """Return the backend of a name.

    Args:
        where: The key of the YAML that contains `backend`, for the error.
        name: The name, as written.
        backends: The registered backends.

    Raises:
        ConfigError: No backend of this name is registered.
    """
    if name not in backends:
        raise ConfigError(
            f"{where}.backend: expected one of {', '.join(sorted(backends))}; found {name!r}.",
            hint="A backend from a package is available once the package is installed.",
        )
    return backends[name]


@dataclass(frozen=True, slots=True)
class BackendContext:
    """The context of a backend or a plugin, in addition to its own options.

    Attributes:
        data_dir: The folder of its files, which may not exist yet.
        zone: The time zone of the days in daily sums.
        config_dir: The base of relative paths: the folder of the YAML, or the current folder without a YAML.
        config_file: The YAML, for a plugin that works in another process; None if a program passed the configuration.
        storage_backends: All registered backends by name, for a backend that is composed of others.
    """

    data_dir: Path
    zone: ZoneInfo
    config_dir: Path = Path()
    config_file: Path | None = None
    storage_backends: Mapping[str, StorageBackend[Any]] = field(default_factory=dict)


class StorageBackend(ABC, Generic[OptionsT]):
    """A provider of stores under a name.

    Attributes:
        name: The name for `storage.backend`.
        options_model: The model that validates `storage.options`.
    """

    name: ClassVar[str]
    options_model: type[OptionsT]

    @abstractmethod
    def open(self, options: OptionsT, context: BackendContext) -> AbstractAsyncContextManager[UsageStore]:
        """Return a context manager that opens the store. Several processes may have it open at once."""

    def check(self, options: OptionsT, context: BackendContext) -> None:
        """Check that the store can be opened with these options; create nothing.

        Raises:
            ConfigError: It cannot.
        """


@runtime_checkable
class Renewable(Protocol):
    """A capability of storage backends: build a new store next to the old one, then replace the old one."""

    def beside(self, options: Any, context: BackendContext) -> Any:
        """Return the options of the new store, after removing the remains of an earlier one."""

    def take_place(self, options: Any, context: BackendContext, *, aside: str | None) -> Path | None:
        """Replace the old store with the new one, which no process has open.

        Args:
            options: The options of the old store.
            context: The context of both stores.
            aside: The suffix under which the old store is kept; None deletes it.

        Returns:
            The path of the old store; None if there was none, or if it was deleted.
        """


class Restoration(NamedTuple):
    """The progress of a restoration.

    Attributes:
        records: The number of events and sums read so far; `most` is the maximum.
        totals: The totals of each part, known at the end.
        aside: The path of the old database.
        is_done: Whether the new database has replaced the old one.
    """

    records: int
    most: int
    totals: Mapping[str, UsageTotals | None]
    aside: Path | None = None
    is_done: bool = False


@runtime_checkable
class Restorable(Protocol):
    """A capability of storage backends with two copies of the history: restore one copy from the other."""

    def restore(self, options: Any, context: BackendContext, *, dry_run: bool) -> AsyncIterator[Restoration]:
        """Restore the copy and yield the progress; with `dry_run`, only read everything.

        Raises:
            StorageUnavailableError: Another process is writing to the store.
        """


BACKEND_ABILITIES: tuple[type, ...] = (Renewable, Restorable)
"""All abilities that a storage backend may have."""


class LedgerBackend(ABC, Generic[OptionsT]):
    """A provider of ledgers under a name.

    Attributes:
        name: The name for `ledger.backend`.
        options_model: The model that validates `ledger.options`.
        outbox_max: The default of `storage.outbox_max`, in bytes. A ledger in memory needs a smaller one.
    """

    name: ClassVar[str]
    options_model: type[OptionsT]
    outbox_max: ClassVar[int] = 10**9

    @abstractmethod
    def exists(self, options: OptionsT, context: BackendContext) -> bool:
        """Whether the ledger exists; create nothing."""

    @abstractmethod
    def open(self, options: OptionsT, context: BackendContext) -> OpenLedger:
        """Open the ledger for one thread. Several threads and processes may have it open at once."""

    def check(self, options: OptionsT, context: BackendContext) -> None:
        """Check that the ledger can be opened with these options; create nothing, and query no server.

        Raises:
            ConfigError: It cannot.
        """


class SharedLedgerBackend(LedgerBackend[OptionsT]):
    """A provider of ledgers on a server, which the workers of many hosts share.

    `open` serves readers and the threads of workers. The request path uses a transport, which does not block the event
    loop.
    """

    @abstractmethod
    def transport(self, options: OptionsT, context: BackendContext, clock: Clock) -> LedgerTransport:
        """Return a connection for the request path, which connects with its first batch.

        Args:
            options: The options.
            context: The context.
            clock: The time that batches carry.
        """

    @abstractmethod
    def register(self, options: OptionsT, context: BackendContext) -> FleetRegister:
        """Connect to the register of the fleet, for one thread. Create the ledger if it does not exist."""

    @abstractmethod
    def open_as_keeper(self, options: OptionsT, context: BackendContext, term: Callable[[], int]) -> OpenLedger:
        """Open the ledger for a thread of the keeper.

        Every writing method of its parts raises `KeeperReplacedError`, and changes nothing, unless `term()` is the
        present term of the register at that instant.
        """

    @abstractmethod
    def trouble(self, options: OptionsT, context: BackendContext) -> list[str]:
        """Return the settings of the server that endanger the ledger, each with its remedy, for people."""


class Claim(NamedTuple):
    """The known facts of a request whose key has no user of its own. Values that the client chose are not verified.

    Attributes:
        end_user: The client's own statement of its user, unchanged.
        headers: The client's headers with lower-case names, as LiteLLM passes them on.
        jwt: The claims of the token that LiteLLM has verified; empty without a token.
        key_alias: The name of the key.
        team: The team of the key.
        organization: The organization of the key.
    """

    end_user: object
    headers: Mapping[str, str]
    jwt: Mapping[str, Any]
    key_alias: str | None
    team: str | None
    organization: str | None


class IdentityResolver(ABC):
    """Resolve the user of a request (`user_of`), the groups of a user (`groups_of`), or both.

    Both are called on the event loop, `groups_of` in other threads too, and must answer from memory. Read files and
    query servers in `refresh`, which may block.

    Attributes:
        name: The name for `resolver:NAME` in `identity.user`, and for `identity.groups_from`.
    """

    name: ClassVar[str]

    def user_of(self, claim: Claim) -> str | None:  # noqa: ARG002  # for subclasses that override it
        """Return the user of a request; None if this resolver does not know the user.

        Called for each request that no earlier source has resolved. If it raises, the request is refused with 503:
        the next source could charge another user.
        """
        return None

    def groups_of(self, user: str) -> Iterable[str]:  # noqa: ARG002  # for subclasses that override it
        """Return the groups of a user, in addition to those of the YAML.

        The answer is cached until `refresh` returns another version, so it may depend on nothing else. If it raises,
        the user has no group of this resolver until the next call, a second later.
        """
        return ()

    def refresh(self) -> str:
        """Reload the resolver's data if it has changed, and return its version, such as a digest or a number.

        Called first at the start, where an exception stops the start. Then it is called once a second, in a thread of
        its own in each worker. There an exception is logged and counted, and the previous data stays in use. Workers
        with the same data must return the same version.
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
