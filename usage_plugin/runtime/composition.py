"""The composition root: create the plugins, the ledger, the store and the files of a data folder by the YAML."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from usage_plugin.domain.clock import ServerClock, SystemClock
from usage_plugin.domain.erasure import Erasable
from usage_plugin.domain.ledger import Ledger
from usage_plugin.domain.operations import OperationsLog
from usage_plugin.domain.profiles import ProfileStore
from usage_plugin.domain.pseudonyms import Pseudonyms
from usage_plugin.domain.store import UsageStore
from usage_plugin.errors import ConfigError, StorageError
from usage_plugin.ledgers.workers.file_locked_workers import FileLockedWorkers
from usage_plugin.ledgers.workers.fleet_workers import FleetWorkers
from usage_plugin.moving.mark import check_not_moved
from usage_plugin.plugins.ability_checks import abilities_of, check_abilities, probable_mistakes
from usage_plugin.plugins.backend_errors import naming
from usage_plugin.plugins.discovery import ConfiguredPlugin
from usage_plugin.plugins.identity_resolvers import Resolvers
from usage_plugin.plugins.interface import (
    BackendContext,
    LedgerBackend,
    Restorable,
    SharedLedgerBackend,
    StorageBackend,
    check_options,
    choose,
)
from usage_plugin.plugins.interface_checks import check_verbs
from usage_plugin.plugins.manager import Plugins
from usage_plugin.tracking.admission.local_request_ledger import LocalRequestLedger
from usage_plugin.tracking.admission.remote_request_ledger import RemoteRequestLedger
from usage_plugin.tracking.history.cache import UsageCache
from usage_plugin.tracking.maintenance.flusher import Unstorable
from usage_plugin.tracking.privacy import secret
from usage_plugin.tracking.privacy.secret import SecretSource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from usage_plugin.config import Config
    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.liveness import Workers
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.domain.store import Aggregate, DailySum
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.plugins.interface import Restoration
    from usage_plugin.tracking.ledger_thread import LedgerThread
    from usage_plugin.tracking.notifications.plugin_failures import PluginFailures

BUILTIN_PLUGINS = (
    "usage_plugin.ledgers.sqlite",
    "usage_plugin.ledgers.postgres",
    "usage_plugin.ledgers.valkey",
    "usage_plugin.backends.memory",
    "usage_plugin.backends.sqlite",
    "usage_plugin.backends.partitioned",
    "usage_plugin.backends.hybrid",
    "usage_plugin.backends.postgres",
    "usage_plugin.backends.objects",
)

OPTIONAL_PLUGINS = {"chroma": "usage_plugin.contrib.chroma"}
"""The plugins of this package that are off unless the YAML names them."""


def load_plugins(config: Config) -> Plugins:
    """Load the built-in plugins, those of installed packages, and those that the YAML names.

    Raises:
        PluginError: A plugin cannot be loaded or is invalid.
        ConfigError: The options of a plugin are invalid.
    """
    context = _context(config)
    chosen = [
        ConfiguredPlugin(
            f"usage_plugin.plugins.{at}",
            plugin.path and context.config_dir / plugin.path.expanduser(),
            plugin.package,
            plugin.name,
            plugin.enabled,
            plugin.options,
        )
        for at, plugin in enumerate(config.plugins)
    ]
    return Plugins(BUILTIN_PLUGINS, chosen, context, optional=OPTIONAL_PLUGINS)


def _context(config: Config) -> BackendContext:
    return BackendContext(
        config.data_dir,
        config.timezone,
        config.path.parent.absolute(),
        config.path.absolute() if config.path.name else None,
    )


class Parts:
    """The chosen backends with their validated options, which open the ledger and the store."""

    def __init__(self, config: Config, plugins: Plugins | None = None) -> None:
        """Choose and validate the backends.

        Raises:
            ConfigError: A backend does not exist, its options are invalid, or it needs a configured secret.
            PluginError: A plugin cannot be loaded or is invalid.
        """
        self.plugins = plugins or load_plugins(config)
        self.config = config
        self._context = replace(_context(config), storage_backends=self.plugins.storage_backends)
        self._storage: StorageBackend[Any] = choose(
            "usage_plugin.storage", config.storage.backend, self.plugins.storage_backends
        )
        self._storage_owner = self._owner(f"storage backend {self._storage.name}")
        check_verbs(UsageStore, type(self._storage).__module__, self._storage_owner)
        check_abilities(self._storage, self._storage_owner)
        self._storage_options = check_options(
            "usage_plugin.storage.options", self._storage.options_model, config.storage.options
        )
        with naming(self._storage, self._storage_owner):
            self._storage.check(self._storage_options, self._context)
        self._ledger: LedgerBackend[Any] = choose(
            "usage_plugin.ledger", config.ledger.backend, self.plugins.ledger_backends
        )
        for port in (Ledger, OperationsLog, ProfileStore, Erasable):
            check_verbs(port, type(self._ledger).__module__, self._owner(f"ledger {self._ledger.name}"))
        self._ledger_options = check_options(
            "usage_plugin.ledger.options", self._ledger.options_model, config.ledger.options
        )
        self._ledger.check(self._ledger_options, self._context)
        self.secret = self._secret_source()

    def _owner(self, registered: str) -> str:
        """Return a backend with its plugin, for errors."""
        plugin = next((str(one.found) for one in self.plugins.loaded if registered in one.registers), "")
        return f"the {registered} of the plugin {plugin}"

    @property
    def store_abilities(self) -> list[str]:
        """The optional abilities of the storage backend and its store."""
        return abilities_of(self._storage)

    @property
    def probable_mistakes(self) -> list[str]:
        """The methods of the store that were probably meant to be an ability, and are not."""
        return probable_mistakes(self._storage, self._storage_owner)

    def open_ledger(self) -> OpenLedger:
        """Open the ledger for the calling thread.

        Raises:
            LedgerMovedError: It was moved elsewhere, or is being moved.
        """
        opened = self.open_marked_ledger()
        try:
            check_not_moved(opened)
        except BaseException:
            opened.close()
            raise
        return opened

    def open_marked_ledger(self) -> OpenLedger:
        """Open the ledger for a move: also one that was moved elsewhere, or is not complete."""
        return self._ledger.open(self._ledger_options, self._context)

    def keeper_opening(self, workers: Workers) -> Callable[[], OpenLedger] | None:
        """Return the function that opens the ledger in the keeper's present term; None for a ledger in a file."""
        shared = self._ledger
        if not isinstance(shared, SharedLedgerBackend):
            return None

        def open_in_term() -> OpenLedger:
            term = workers.term
            return shared.open_as_keeper(self._ledger_options, self._context, lambda: term)

        return open_in_term

    def request_ledger(
        self, ledger: Ledger, workers: Workers, clock: Clock, reader: LedgerThread
    ) -> LocalRequestLedger | RemoteRequestLedger:
        """Return the ledger as requests use it.

        Args:
            ledger: the ledger, open for the event loop's thread.
            workers: the workers, including this one.
            clock: the time that is sent to a server.
            reader: a thread that reads a ledger on a server.
        """
        if not isinstance(self._ledger, SharedLedgerBackend):
            return LocalRequestLedger(ledger)
        transport = self._ledger.transport(self._ledger_options, self._context, clock)
        return RemoteRequestLedger(transport, ledger.location, worker=lambda: workers.name, reader=reader)

    def ledger_trouble(self) -> list[str] | None:
        """Return the settings of the ledger's server that endanger it; None for a ledger in a file.

        Raises:
            LedgerError: The server does not answer.
        """
        if not isinstance(self._ledger, SharedLedgerBackend):
            return None
        return self._ledger.trouble(self._ledger_options, self._context)

    @property
    def outbox_max(self) -> int:
        """The maximum size of the events that wait for the store, in bytes."""
        return self.config.storage.outbox_max or self._ledger.outbox_max

    def clock(self) -> Clock:
        """Return the clock: that of the ledger's server, or the machine's."""
        return ServerClock() if isinstance(self._ledger, SharedLedgerBackend) else SystemClock()

    @contextmanager
    def scratch_ledger(self) -> Iterator[OpenLedger]:
        """Open an empty SQLite ledger in a temporary folder, which is deleted at the end."""
        with TemporaryDirectory(prefix="usage-plugin-") as folder:
            backend = self.plugins.ledger_backends["sqlite"]
            opened = backend.open(backend.options_model(), replace(self._context, data_dir=Path(folder)))
            try:
                yield opened
            finally:
                opened.close()

    def has_ledger(self) -> bool:
        """Whether the ledger exists; readers create nothing."""
        return self._ledger.exists(self._ledger_options, self._context)

    def open_store(self) -> AbstractAsyncContextManager[UsageStore]:
        """Open the store."""
        return self._storage.open(self._storage_options, self._context)

    @asynccontextmanager
    async def open_store_for_import(self) -> AsyncIterator[UsageStore]:
        """Open the store for a command that writes to it.

        Raises:
            PluginError: The backend of a plugin raised an error that is not one of ours.
        """
        with naming(self._storage, self._storage_owner):
            async with self.open_store() as store:
                yield store

    @asynccontextmanager
    async def open_store_for_reading(self) -> AsyncIterator[UsageStore]:
        """Open the store; a store that cannot be opened raises its error at the first call instead.

        The data in the ledger must stay readable in that case.

        Raises:
            PluginError: The backend of a plugin raised an error that is not one of ours.
        """
        with naming(self._storage, self._storage_owner):
            async with AsyncExitStack() as stack:
                store: UsageStore
                try:
                    store = await stack.enter_async_context(self.open_store())
                except StorageError as error:
                    store = _ClosedStore(error)
                yield store

    def restore(self, *, dry_run: bool) -> AsyncIterator[Restoration]:
        """Restore one copy of the history from the other.

        Raises:
            ConfigError: The store keeps one copy only.
        """
        if not isinstance(self._storage, Restorable):
            raise ConfigError(
                f"usage_plugin.storage.backend: {self._storage.name} keeps only one copy of the history.",
                hint="Only the database of `hybrid` can be restored, from its files.",
            )
        return self._storage.restore(self._storage_options, self._context, dry_run=dry_run)

    def workers(self, clock: Clock | None = None) -> Workers:
        """Return the workers of the ledger.

        Args:
            clock: follows the time of the ledger's server, if it is a `ServerClock`.
        """
        local = FileLockedWorkers(self.config.data_dir / "workers")
        if not isinstance(self._ledger, SharedLedgerBackend):
            return local
        return FleetWorkers(
            local,
            partial(self._ledger.register, self._ledger_options, self._context),
            clock if isinstance(clock, ServerClock) else ServerClock(),
            lost_after=self.config.admission.worker_lost_after.total_seconds(),
        )

    @property
    def secret_path(self) -> Path:
        """The file of the data folder's own secret."""
        return self.config.data_dir / secret.FILE

    def _secret_source(self) -> SecretSource:
        privacy = self.config.privacy
        if privacy.secret is not None:
            return SecretSource(bytes.fromhex(privacy.secret.get_secret_value()), is_configured=True)
        if privacy.secret_file is not None:
            return SecretSource(self._context.config_dir / privacy.secret_file.expanduser(), is_configured=True)
        if isinstance(self._ledger, SharedLedgerBackend):
            # The first host would create a secret that the others lack, and each would count a key for itself.
            raise ConfigError(
                f"usage_plugin.privacy.secret: expected a secret, since hosts share the ledger {self._ledger.name};"
                " found none.",
                hint="`openssl rand -hex 32` makes one. Give it to every host and command, for example with privacy:"
                " {secret: os.environ/USAGE_PLUGIN_SECRET}, or with secret_file. To keep the pseudonyms of a data"
                f" folder, use the content of its file, such as {self.secret_path}.",
            )
        return SecretSource(self.secret_path)

    def pseudonyms(self) -> Pseudonyms | None:
        """Return the pseudonyms of the secret; None if the data folder has none yet, and none is configured."""
        found = self.secret.read()
        return None if found is None else self._pseudonyms(found)

    def make_pseudonyms(self) -> Pseudonyms:
        """Return the pseudonyms of the secret; create the data folder's if it is used and does not exist."""
        return self._pseudonyms(self.secret.make())

    def pseudonyms_for(self, operations: OperationsLog) -> Pseudonyms:
        """Return the pseudonyms for a command that writes names into an open ledger.

        Raises:
            SecretError: The ledger is used with another secret than the configured one.
        """
        pseudonyms = self.make_pseudonyms()
        secret.check_secret(operations, pseudonyms, self.secret)
        return pseudonyms

    def _pseudonyms(self, found: bytes) -> Pseudonyms:
        return Pseudonyms(found, hides_persons=self.config.privacy.user == "pseudonym")

    def unstorable(self, clock: Clock) -> Unstorable:
        """Return the file of events that the store has rejected for good."""
        return Unstorable(self.config.data_dir / "unstorable.jsonl", clock)

    def resolvers(self, failures: PluginFailures) -> Resolvers:
        """Return the chosen resolvers, refreshed once.

        Raises:
            ConfigError: A resolver does not exist.
            PluginError: The first refresh of a resolver failed.
        """
        resolvers = Resolvers(self.plugins.resolvers, failures)
        resolvers.choose(self.config.identity.user_resolvers, self.config.identity.groups_from)
        return resolvers

    def cache(self) -> UsageCache:
        """Return an empty cache of the configured size."""
        cache = self.config.cache
        return UsageCache(size=cache.size, retention_days=cache.retention, zone=self.config.timezone)


class _ClosedStore(UsageStore):
    """A store that could not be opened: each call raises the error."""

    def __init__(self, error: StorageError) -> None:
        self._error = error

    async def append(self, writer: str, events: Sequence[tuple[int, UsageEvent]]) -> None:  # noqa: ARG002
        raise self._error

    async def append_sums(self, writer: str, sums: Sequence[tuple[int, DailySum]]) -> None:  # noqa: ARG002
        raise self._error

    async def watermark(self, writer: str) -> int:  # noqa: ARG002
        raise self._error

    async def aggregate(self, *what: Any) -> Aggregate:  # noqa: ARG002
        raise self._error

    def events(self, *what: Any, **how: Any) -> AsyncIterator[UsageEvent]:  # noqa: ARG002
        raise self._error

    def daily(self, *what: Any) -> AsyncIterator[Sequence[DailySum]]:  # noqa: ARG002
        raise self._error

    async def prune(self, **what: Any) -> int:  # noqa: ARG002
        raise self._error

    async def forget(self, user: str, *, most: int) -> int:  # noqa: ARG002
        raise self._error

    async def size(self) -> int:
        raise self._error

    async def health(self) -> None:
        raise self._error
