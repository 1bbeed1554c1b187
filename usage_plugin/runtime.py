"""The one place that puts the parts together: `Runtime` for a worker of the proxy, `open_reader` for readers."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from usage_plugin.config import ENFORCE_VARIABLE, Config
from usage_plugin.domain.clock import Clock, SystemClock
from usage_plugin.errors import ConfigError, UsagePluginError
from usage_plugin.log import get_logger
from usage_plugin.plugins.interface import LedgerBackend, StorageBackend, Surroundings
from usage_plugin.plugins.manager import Plugins
from usage_plugin.tracking.admission import Admission
from usage_plugin.tracking.cache import UsageCache
from usage_plugin.tracking.keeper import Keeper
from usage_plugin.tracking.recorder import Recorder
from usage_plugin.tracking.refusals import RefusalLog
from usage_plugin.tracking.tracker import UsageTracker
from usage_plugin.tracking.workers import Workers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from contextlib import AbstractAsyncContextManager

    from usage_plugin.domain.ledger import Ledger
    from usage_plugin.domain.store import UsageStore

BUILTIN_PLUGINS = (
    "usage_plugin.ledgers.sqlite",
    "usage_plugin.backends.memory",
    "usage_plugin.backends.sqlite",
)

log = get_logger()


class NothingRecordedError(UsagePluginError):
    """Nothing has been recorded yet."""


class Parts:
    """The chosen backends with their checked options: what opens the ledger and the store."""

    def __init__(self, config: Config, plugins: Plugins | None = None) -> None:
        """Choose and check the backends.

        Raises:
            ConfigError: there is no such backend, or its options are wrong.
        """
        plugins = plugins or Plugins(BUILTIN_PLUGINS)
        self.config = config
        self._surroundings = Surroundings(config.data_dir, config.timezone)
        self._storage: StorageBackend[Any] = _choose("storage", config.storage.backend, plugins.storage_backends)
        self._storage_options = _check("storage", self._storage.options_model, config.storage.options)
        self._ledger: LedgerBackend[Any] = _choose("ledger", config.ledger.backend, plugins.ledger_backends)
        self._ledger_options = _check("ledger", self._ledger.options_model, config.ledger.options)

    def open_ledger(self) -> Ledger:
        """Open the ledger for the calling thread."""
        return self._ledger.open(self._ledger_options, self._surroundings)

    def has_ledger(self) -> bool:
        """Say whether there is anything to read; readers create nothing."""
        return self._ledger.exists(self._ledger_options, self._surroundings)

    def open_store(self) -> AbstractAsyncContextManager[UsageStore]:
        """Open the store."""
        return self._storage.open(self._storage_options, self._surroundings)

    def workers(self) -> Workers:
        """See the workers of the data folder."""
        return Workers(self.config.data_dir / "workers")

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
        parts = Parts(config, plugins)
        self.config = config
        self.clock = clock or SystemClock()
        self.enforce = os.environ.get(ENFORCE_VARIABLE, "on").strip().lower() not in ("off", "0", "false", "no")
        self.limits = config.limit_set()
        self.cache = parts.cache()
        self.ledger = parts.open_ledger()
        self._workers = parts.workers()
        self._workers.join()
        self.admission = Admission(self.ledger, self.limits, worker=self._workers.name, enforce=self.enforce)
        self.recorder = Recorder(self.ledger, self.limits, self.cache, self.clock)
        self.refusals = RefusalLog(self.ledger)
        self._keeper = Keeper(parts.open_ledger, parts.open_store, self._workers, self.clock)
        self._keeper.start()

    async def close(self, seconds: float = 10.0) -> None:
        """Write everything that is still in memory, flush the outbox if this worker is the keeper, and let go."""
        try:
            await self.recorder.drain(seconds)
            self.refusals.flush()
        finally:
            self._keeper.stop(seconds)
            self._workers.leave()
            self.ledger.close()


class Reader:
    """Everything a reader needs: it changes nothing, whether the proxy runs or not."""

    def __init__(self, parts: Parts, ledger: Ledger, store: UsageStore, clock: Clock) -> None:
        """Take the open parts; `open_reader` makes them."""
        self.config = parts.config
        self.clock = clock
        self.limits = parts.config.limit_set().adjusted(ledger.adjustments(clock.now()))
        self.ledger = ledger
        self.workers = parts.workers()
        self.store = store
        self.tracker = UsageTracker(ledger, store, parts.cache(), parts.config.timezone, clock)


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
        async with parts.open_store() as store:
            yield Reader(parts, ledger, store, clock or SystemClock())
    finally:
        ledger.close()


BackendT = Any


def _choose(kind: str, name: str, backends: Mapping[str, BackendT]) -> BackendT:
    if name not in backends:
        raise ConfigError(
            f"usage_plugin.{kind}.backend: found {name!r}; there are {', '.join(sorted(backends))}.",
            hint="A backend of a package that is not installed is not there.",
        )
    return backends[name]


def _check(kind: str, model: type[BaseModel], options: Mapping[str, Any]) -> BaseModel:
    try:
        return model.model_validate(options)
    except ValidationError as error:
        where = f"usage_plugin.{kind}.options"
        mistakes = "; ".join(
            f"{'.'.join([where, *map(str, mistake['loc'])])}: found {mistake['input']!r}: {mistake['msg']}"
            for mistake in error.errors()
        )
        raise ConfigError(mistakes) from None
