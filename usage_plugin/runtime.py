"""The one place that puts the parts together: `Runtime` for a worker of the proxy, `open_reader` for readers."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from usage_plugin.config import ENFORCE_VARIABLE, Config, ConfigFile
from usage_plugin.domain.clock import Clock, SystemClock
from usage_plugin.domain.limits import NO_MEMBERSHIP
from usage_plugin.domain.pseudonyms import Pseudonyms, is_key_pseudonym, is_pseudonym
from usage_plugin.domain.store import UsageFilter, UsageStore
from usage_plugin.domain.windows import local_date
from usage_plugin.errors import ConfigError, LedgerError, PluginError, StorageError, UsagePluginError
from usage_plugin.log import get_logger, short_error
from usage_plugin.migration.automatic import AutomaticMigration
from usage_plugin.plugins.interface import (
    LedgerBackend,
    Restorable,
    StorageBackend,
    Surroundings,
    check_options,
    choose,
)
from usage_plugin.plugins.loading import Chosen
from usage_plugin.plugins.manager import Plugins
from usage_plugin.plugins.resolving import Resolvers
from usage_plugin.tracking import secret
from usage_plugin.tracking.admission import Admission, AdmissionPolicy, Pressure
from usage_plugin.tracking.alerts import Alerts
from usage_plugin.tracking.cache import UsageCache
from usage_plugin.tracking.failures import Failures
from usage_plugin.tracking.flusher import LAST_PATIENCE, Unstorable
from usage_plugin.tracking.imperfections import Imperfections
from usage_plugin.tracking.keeper import Keeper
from usage_plugin.tracking.listeners import Listeners
from usage_plugin.tracking.persons import Person
from usage_plugin.tracking.problems import Problems
from usage_plugin.tracking.pruning import Pruner, Retention
from usage_plugin.tracking.recorder import Recorder
from usage_plugin.tracking.refusals import RefusalLog
from usage_plugin.tracking.rules import NOTE, RulesInForce
from usage_plugin.tracking.seeding import Seeder
from usage_plugin.tracking.tracker import UsageReader
from usage_plugin.tracking.workers import Workers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from usage_plugin.domain.ledger import Ledger
    from usage_plugin.domain.limits import LimitSet, Membership
    from usage_plugin.domain.store import Aggregate, DailySum
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.plugins.interface import Restoration

BUILTIN_PLUGINS = (
    "usage_plugin.ledgers.sqlite",
    "usage_plugin.backends.memory",
    "usage_plugin.backends.sqlite",
    "usage_plugin.backends.partitioned",
    "usage_plugin.backends.hybrid",
)

OPTIONAL_PLUGINS = {"chroma": "usage_plugin.observers.chroma"}
"""Plugins of ours that are off unless the YAML names them."""

NEEDS_RESTART = ("data_dir", "timezone", "storage", "ledger", "cache", "privacy", "migrate_from", "plugins")
"""Keys of the YAML that are read at the start only."""

TICK_SECONDS = 1.0

log = get_logger()


class NothingRecordedError(UsagePluginError):
    """Nothing has been recorded yet."""


def load_plugins(config: Config) -> Plugins:
    """Load the built-in plugins, those of installed packages, and what the YAML names.

    Raises:
        PluginError: one of them cannot be used.
        ConfigError: its options are wrong.
    """
    surroundings = _surroundings(config)
    chosen = [
        Chosen(
            f"usage_plugin.plugins.{at}",
            plugin.path and surroundings.config_dir / plugin.path.expanduser(),
            plugin.package,
            plugin.name,
            plugin.enabled,
            plugin.options,
        )
        for at, plugin in enumerate(config.plugins)
    ]
    return Plugins(BUILTIN_PLUGINS, chosen, surroundings, optional=OPTIONAL_PLUGINS)


def _surroundings(config: Config) -> Surroundings:
    return Surroundings(
        config.data_dir,
        config.timezone,
        config.path.parent.absolute(),
        config.path.absolute() if config.path.name else None,
    )


class Parts:
    """The chosen backends with their checked options: what opens the ledger and the store."""

    def __init__(self, config: Config, plugins: Plugins | None = None) -> None:
        """Choose and check the backends.

        Raises:
            ConfigError: there is no such backend, or its options are wrong.
            PluginError: a plugin cannot be used.
        """
        self.plugins = plugins or load_plugins(config)
        self.config = config
        self._surroundings = replace(_surroundings(config), storage_backends=self.plugins.storage_backends)
        self._storage: StorageBackend[Any] = choose(
            "usage_plugin.storage", config.storage.backend, self.plugins.storage_backends
        )
        self._storage_options = check_options(
            "usage_plugin.storage.options", self._storage.options_model, config.storage.options
        )
        self._storage.check(self._storage_options, self._surroundings)
        self._ledger: LedgerBackend[Any] = choose(
            "usage_plugin.ledger", config.ledger.backend, self.plugins.ledger_backends
        )
        self._ledger_options = check_options(
            "usage_plugin.ledger.options", self._ledger.options_model, config.ledger.options
        )

    def open_ledger(self) -> Ledger:
        """Open the ledger for the calling thread."""
        return self._ledger.open(self._ledger_options, self._surroundings)

    @contextmanager
    def scratch_ledger(self) -> Iterator[Ledger]:
        """Open an empty SQLite ledger in a temporary folder, which is deleted at the end."""
        with TemporaryDirectory(prefix="usage-plugin-") as folder:
            backend = self.plugins.ledger_backends["sqlite"]
            ledger = backend.open(backend.options_model(), replace(self._surroundings, data_dir=Path(folder)))
            try:
                yield ledger
            finally:
                ledger.close()

    def has_ledger(self) -> bool:
        """Say whether there is anything to read; readers create nothing."""
        return self._ledger.exists(self._ledger_options, self._surroundings)

    def open_store(self) -> AbstractAsyncContextManager[UsageStore]:
        """Open the store."""
        return self._storage.open(self._storage_options, self._surroundings)

    @asynccontextmanager
    async def open_store_for_reading(self) -> AsyncIterator[UsageStore]:
        """Open the store; one that cannot be opened raises once it is asked for something.

        What stands in the ledger must be readable just then.
        """
        async with AsyncExitStack() as stack:
            store: UsageStore
            try:
                store = await stack.enter_async_context(self.open_store())
            except StorageError as error:
                store = _ClosedStore(error)
            yield store

    def restore(self, *, dry_run: bool) -> AsyncIterator[Restoration]:
        """Make one copy of the history anew out of the other.

        Raises:
            ConfigError: the store keeps one copy only.
        """
        if not isinstance(self._storage, Restorable):
            raise ConfigError(
                f"usage_plugin.storage.backend: {self._storage.name} keeps one copy of the history.",
                hint="Only `hybrid` has files that its database can be restored from.",
            )
        return self._storage.restore(self._storage_options, self._surroundings, dry_run=dry_run)

    def workers(self) -> Workers:
        """See the workers of the data folder."""
        return Workers(self.config.data_dir / "workers")

    @property
    def secret_path(self) -> Path:
        """The file of the secret that pseudonyms are made with."""
        return self.config.data_dir / secret.FILE

    def pseudonyms(self) -> Pseudonyms | None:
        """Make pseudonyms as the proxy does; None without a secret."""
        found = secret.read_secret(self.secret_path)
        return None if found is None else self._pseudonyms(found)

    def make_pseudonyms(self) -> Pseudonyms:
        """Make pseudonyms, and the secret if there is none."""
        return self._pseudonyms(secret.make_secret(self.secret_path))

    def _pseudonyms(self, found: bytes) -> Pseudonyms:
        return Pseudonyms(found, hides_persons=self.config.privacy.user == "pseudonym")

    def unstorable(self, clock: Clock) -> Unstorable:
        """Find the file of events that the store never takes."""
        return Unstorable(self.config.data_dir / "unstorable.jsonl", clock)

    def resolvers(self, failures: Failures) -> Resolvers:
        """Make the chosen resolvers ready.

        Raises:
            ConfigError: there is no such resolver.
            PluginError: one of them cannot begin.
        """
        resolvers = Resolvers(self.plugins.resolvers, failures)
        resolvers.choose(self.config.identity.user_resolvers, self.config.identity.groups_from)
        return resolvers

    def cache(self) -> UsageCache:
        """Make an empty cache of the configured size."""
        cache = self.config.cache
        return UsageCache(size=cache.size, retention_days=cache.retention_days, zone=self.config.timezone)


class Runtime:
    """Everything one worker of the proxy needs, from its start to its end."""

    def __init__(self, config: Config, *, plugins: Plugins | None = None, clock: Clock | None = None) -> None:
        """Open the ledger and start the keeper's thread.

        Raises:
            UsagePluginError: the configuration, a plugin or the ledger does not work.
        """
        self.parts = parts = Parts(config, plugins)
        self.plugins = parts.plugins
        self.config = config
        self.clock = clock or SystemClock()
        self._failures = Failures(self.clock)
        self.resolvers = parts.resolvers(self._failures)
        self.enforce = os.environ.get(ENFORCE_VARIABLE, "on").strip().lower() not in ("off", "0", "false", "no")
        self.pseudonyms = parts.make_pseudonyms()
        self.rules = RulesInForce(config.limit_set(self.pseudonyms, self.resolvers.membership()))
        self.pressure = Pressure()
        self.cache = parts.cache()
        self.ledger = parts.open_ledger()
        secret.note_secret(self.ledger, self.pseudonyms, parts.secret_path, self.clock.now())
        self.rules.follow(self.ledger, self.clock.now())
        self._workers = parts.workers()
        self._workers.join()
        self._listeners = Listeners(
            self._failures,
            alerts=self.plugins.listeners("usage_threshold_crossed"),
            refusals=self.plugins.listeners("usage_request_refused"),
            events=self.plugins.listeners("usage_event_recorded"),
        )
        self.alerts = Alerts(self.clock, self._listeners.alerts)
        self.imperfections = Imperfections(self.ledger, self.clock)
        self.admission = Admission(
            self.ledger,
            self.rules,
            self.clock,
            worker=self._workers.name,
            imperfections=self.imperfections,
            policy=_policy(config, enforce=self.enforce),
            pressure=self.pressure,
        )
        self.recorder = Recorder(
            self.ledger,
            self.rules,
            self.cache,
            self.clock,
            imperfections=self.imperfections,
            alerts=self.alerts,
            audience=self._listeners.events,
            pressure=self.pressure,
        )
        self.refusals = RefusalLog(self.ledger, self._listeners.refusals)
        file = ConfigFile(config.path, config) if config.path.name else None
        self._following = _Following(self, file, asyncio.get_running_loop(), self._workers)
        seeder = Seeder(self.rules, self._workers, config.timezone, self.clock)
        self._keeper = Keeper(
            self._open_again,
            parts.open_store,
            self._workers,
            self.clock,
            unstorable=parts.unstorable(self.clock),
            seeder=seeder,
            limits=lambda: self.config.limits,
            pruner=Pruner(self._retention, config.timezone, self.clock, lacking=seeder.lacking),
            audience=self._listeners.events,
            chores=(
                *self._following.chores,
                self.alerts.hand_over,
                self._failures.hand_over,
                self._see_to_migration,
            ),
        )
        self._migration = _migration(config, self.clock)
        self.resolvers.start()
        self._listeners.start()
        self._keeper.start()

    def _open_again(self) -> Ledger:
        """Open the ledger for another thread; never a new one in the place of one that was deleted."""
        self.ledger.check_place()
        return self.parts.open_ledger()

    @property
    def limits(self) -> LimitSet:
        """The limits in force now."""
        return self.rules.limits

    async def tick(self) -> None:
        """Do this worker's own small chores for ever: hand on what was counted, keep the cache within its retention."""
        cleaned = self.clock.monotonic()
        every = self.config.cache.cleanup_interval // timedelta(microseconds=1)
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                self.refusals.flush()
                self.imperfections.flush()
                if self.clock.monotonic() - cleaned > every:
                    cleaned = self.clock.monotonic()
                    self.cache.clean_up(local_date(self.clock.now(), self.config.timezone))
            except Exception:
                # Whatever it was, the next tick must come.
                log.exception("tick.failed")

    def _retention(self) -> Retention:
        return Retention(**self.config.retention.model_dump())

    def _see_to_migration(self, ledger: Ledger) -> None:
        if self._migration and self._workers.keeps:
            self._migration.see_to_it(ledger)

    async def close(self, seconds: float = 10.0) -> None:
        """Write everything that is still in memory, flush the outbox if this worker is the keeper, and let go.

        Plugins get a moment to be told what waits for them.
        """
        try:
            await self.recorder.drain(seconds)
            # There is no next time.
            self.refusals.flush(patience=LAST_PATIENCE)
            self.imperfections.flush(patience=LAST_PATIENCE)
        finally:
            self._keeper.stop(seconds)
            if self._migration:
                self._migration.stop()
            self.resolvers.stop()
            # Not on the loop: a plugin may need it to come to an end.
            await asyncio.to_thread(self._listeners.stop)
            with suppress(LedgerError):
                self._failures.hand_over(self.ledger)
            self._workers.leave()
            self.ledger.close()


def _migration(config: Config, clock: Clock) -> AutomaticMigration | None:
    source = config.migration_source
    return AutomaticMigration(source, config.path, config.data_dir / "migration.log", clock) if source else None


def _policy(config: Config, *, enforce: bool) -> AdmissionPolicy:
    admission = config.admission
    return AdmissionPolicy(
        enforce=enforce,
        busy_wait=admission.busy_wait // timedelta(microseconds=1),
        on_lost=admission.on_lost,
        admit_without_ledger=admission.on_ledger_error == "allow",
        admit_without_outbox=config.storage.on_outbox_full == "allow",
    )


class _Following:
    """What one worker follows, in its keeper's thread: the YAML, the adjustments, the size of the outbox."""

    def __init__(
        self, runtime: Runtime, file: ConfigFile | None, loop: asyncio.AbstractEventLoop, workers: Workers
    ) -> None:
        self._runtime = runtime
        self._file = file
        self._loop = loop
        self._workers = workers
        self._problems = Problems(runtime.clock)
        # The rules of the start are the loop's own: it has settled nothing by others.
        self._used_by_loop = runtime.rules.digest
        self._told = ""
        self._is_full = False
        self.chores = (
            self._watch_ledger,
            self._follow_file,
            self._follow_groups,
            self._follow_adjustments,
            self._tell_rules,
            self._measure_outbox,
        )

    def _watch_ledger(self, ledger: Ledger) -> None:
        """Admit nothing by a ledger that was deleted or replaced: whoever starts next counts in another."""
        del ledger  # this thread's, which may have been opened later
        gone = ""
        try:
            self._runtime.ledger.check_place()
        except LedgerError as error:
            gone = error.message
        pressure = self._runtime.pressure
        if gone and not pressure.ledger_gone:
            log.error("ledger.gone", message=gone, hint="Put it back, or restart the proxy with all its workers.")
        elif pressure.ledger_gone and not gone:
            log.info("ledger.is_back", path=self._runtime.ledger.location)
        pressure.ledger_gone = gone

    def _follow_file(self, ledger: Ledger) -> None:
        """Put a changed YAML in force; an invalid one is refused, and the old one stays."""
        file = self._file
        if file is None:
            return
        try:
            config = file.changed()
        except ConfigError as error:
            if self._workers.keeps:
                log.error("config.refused", path=str(file.path), message=str(error))  # noqa: TRY400
        else:
            if config is not None:
                self._replace(config)
        if self._workers.keeps:
            self._problems.tell(ledger, "config", file.mistakes)

    def _replace(self, config: Config) -> None:
        runtime = self._runtime
        old = runtime.config
        kept = {name: getattr(old, name) for name in NEEDS_RESTART if getattr(config, name) != getattr(old, name)}
        try:
            runtime.resolvers.choose(config.identity.user_resolvers, config.identity.groups_from)
        except (ConfigError, PluginError) as error:
            # It comes with a plugin that is not loaded yet, or does not work: who somebody is stays as it was.
            kept["identity"] = old.identity
            if self._workers.keeps:
                log.error("config.identity_refused", path=str(config.path), message=str(error))  # noqa: TRY400
        runtime.resolvers.start()
        if self._workers.keeps:
            if kept:
                log.warning("config.needs_restart", keys=list(kept), path=str(config.path))
            log.info("config.reread", limits=[limit.name for limit in config.limits], path=str(config.path))
        config = config.model_copy(update=kept)
        runtime.config = config
        runtime.admission.policy = _policy(config, enforce=runtime.enforce)
        self._replace_rules()

    def _replace_rules(self) -> None:
        runtime = self._runtime
        runtime.rules.replace(runtime.config.limit_set(runtime.pseudonyms, runtime.resolvers.membership()))

    def _follow_groups(self, _: Ledger) -> None:
        """Put groups in force that a resolver knows otherwise now."""
        if self._runtime.resolvers.have_changed(self._runtime.limits.membership):
            self._replace_rules()

    def _follow_adjustments(self, ledger: Ledger) -> None:
        self._runtime.rules.follow(ledger, self._runtime.clock.now())

    def _tell_rules(self, ledger: Ledger) -> None:
        """Leave word of the rules that this worker goes by, once nothing is settled by others any more."""
        digest = self._runtime.rules.digest
        if digest == self._told:
            return
        if self._used_by_loop == digest:
            ledger.note(NOTE + self._workers.name, digest)
            self._told = digest
        else:
            # Asked there, because the loop may be in the middle of a settlement by the rules before.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._use, digest)

    def _use(self, digest: str) -> None:
        if not self._runtime.recorder.pending and digest == self._runtime.rules.digest:
            self._used_by_loop = digest

    def _measure_outbox(self, ledger: Ledger) -> None:
        storage, pressure = self._runtime.config.storage, self._runtime.pressure
        full = ledger.waiting().size >= storage.outbox_max
        if full != self._is_full:
            self._is_full = pressure.outbox_full = full
            pressure.leaves_gaps = full and storage.on_outbox_full == "allow"
        if self._workers.keeps:
            problem = f"It is full: {storage.outbox_max} bytes wait for the store." if full else None
            self._problems.tell(ledger, "outbox", problem)


class Reader:
    """Everything a reader needs: it changes nothing, whether the proxy runs or not."""

    def __init__(self, parts: Parts, ledger: Ledger, store: UsageStore, clock: Clock) -> None:
        """Take the open parts; `open_reader` makes them."""
        self.parts = parts
        self.config = parts.config
        self.clock = clock
        self.secret_path = parts.secret_path
        self.pseudonyms = parts.pseudonyms()
        self._membership = _membership(parts, clock)
        self.limits = self.limits_of(parts.config).adjusted(ledger.adjustments(clock.now()))
        self.ledger = ledger
        self.workers = parts.workers()
        self.unstorable = parts.unstorable(clock)
        self.plugins = parts.plugins
        self.store = store
        self.tracker = UsageReader(ledger, store, parts.cache(), parts.config.timezone, clock)

    def limits_of(self, config: Config) -> LimitSet:
        """Make the limits of a configuration, for the names that are kept here; without adjustments."""
        made = config.limit_set(self.pseudonyms, self._membership)
        return made.knowing({}, hides_persons=config.privacy.user == "pseudonym")

    def kept(self, dimension: str, name: str) -> str:
        """Give what is kept of a name that somebody typed; from then on the limits know whom it is of.

        Raises:
            SecretError: it has a pseudonym, and there is no secret to make it with.
        """
        is_person = dimension in ("user", "end_user") and self.limits.hides_persons
        if not is_person and dimension != "api_key":
            return name
        if self.pseudonyms is None:
            if is_pseudonym(name) or is_key_pseudonym(name):
                return name
            raise secret.SecretError(
                f"{self.secret_path} is missing, so it cannot be said under which name this is kept.",
                hint="Put it back from a backup, or write the pseudonym itself.",
            )
        kept = self.pseudonyms.kept_of(dimension, name)
        if is_person and kept != name:
            self.limits = self.limits.knowing({kept: name})
        return kept

    def person(self, name: str) -> Person:
        """Find all names of a person: their own, and the pseudonym they may have been kept under.

        Raises:
            SecretError: there is no secret to make it with.
        """
        return Person(frozenset({name, self.pseudonym(name)}), self.limits)

    def pseudonym(self, name: str) -> str:
        """Give a person's pseudonym, whether they are kept under it or not.

        Raises:
            SecretError: there is no secret to make it with.
        """
        if self.pseudonyms is None:
            raise secret.SecretError(
                f"{self.secret_path} is missing, and with it the way to the pseudonym of a name.",
                hint="Put it back from a backup, or start the proxy once, which makes a new one.",
            )
        return self.pseudonyms.of_person(name)

    def kept_filter(self, usage_filter: UsageFilter) -> UsageFilter:
        """Put what is kept in place of the names that somebody typed."""
        return replace(usage_filter, **{name: self.kept(name, value) for name, value in usage_filter.wanted().items()})


def _membership(parts: Parts, clock: Clock) -> Membership:
    """Ask the resolvers for groups; what a worker goes on without must not keep anybody from reading."""
    try:
        return parts.resolvers(Failures(clock)).membership()
    except PluginError as error:
        log.warning("identity.groups_unknown", **short_error(error))
        return NO_MEMBERSHIP


@asynccontextmanager
async def open_reader(
    config: Config, *, plugins: Plugins | None = None, clock: Clock | None = None
) -> AsyncIterator[Reader]:
    """Open the ledger and the store for reading.

    Raises:
        NothingRecordedError: there is no ledger.
    """
    parts = Parts(config, plugins)
    if not parts.has_ledger():
        raise NothingRecordedError(
            f"Nothing has been recorded in {config.data_dir} yet.",
            hint="Start the proxy with the callback usage_plugin.proxy.callback, or name its YAML with --config.",
        )
    ledger = parts.open_ledger()
    try:
        async with parts.open_store_for_reading() as store:
            yield Reader(parts, ledger, store, clock or SystemClock())
    finally:
        ledger.close()


class _ClosedStore(UsageStore):
    """Stands for a store that could not be opened, until somebody wants something of it."""

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

    def daily(self, *what: Any) -> AsyncIterator[DailySum]:  # noqa: ARG002
        raise self._error

    async def prune(self, **what: Any) -> int:  # noqa: ARG002
        raise self._error

    async def forget(self, user: str, *, most: int) -> int:  # noqa: ARG002
        raise self._error

    async def size(self) -> int:
        raise self._error

    async def health(self) -> None:
        raise self._error
