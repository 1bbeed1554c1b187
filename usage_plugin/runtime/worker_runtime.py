"""`Runtime`: the application in one worker of the proxy, from its start to its end."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from usage_plugin.config import ENFORCE_VARIABLE, ActiveConfig, Config, ConfigFile
from usage_plugin.domain.windows import local_date
from usage_plugin.errors import LedgerError
from usage_plugin.ledgers.workers.fleet_workers import FleetWorkers
from usage_plugin.log import get_logger
from usage_plugin.migration.background import AutomaticMigration
from usage_plugin.moving.mark import check_not_moved
from usage_plugin.runtime.change_watcher import ChangeWatcher, admission_policy
from usage_plugin.runtime.composition import Parts
from usage_plugin.runtime.data_folder import prepare_data_folder
from usage_plugin.runtime.rule_differences import RuleDifferences
from usage_plugin.runtime.worker_description import describe_this_worker
from usage_plugin.tracking.admission.active_limits import ActiveLimits
from usage_plugin.tracking.admission.alerts import Alerts
from usage_plugin.tracking.admission.decide import Decider, WorkerFaults
from usage_plugin.tracking.admission.recorder import Recorder
from usage_plugin.tracking.admission.refusals import RefusalLog
from usage_plugin.tracking.admission.remedies import Admission
from usage_plugin.tracking.admission.remote_request_ledger import RemoteRequestLedger
from usage_plugin.tracking.ledger_thread import LedgerThread
from usage_plugin.tracking.maintenance.backfill import Backfill
from usage_plugin.tracking.maintenance.keeper import Keeper
from usage_plugin.tracking.maintenance.retention import Pruner, Retention
from usage_plugin.tracking.notifications.anomalies import Anomalies
from usage_plugin.tracking.notifications.plugin_failures import PluginFailures
from usage_plugin.tracking.notifications.publishers import Publishers
from usage_plugin.tracking.privacy import secret

if TYPE_CHECKING:
    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.limit_set import LimitSet
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.plugins.manager import Plugins

log = get_logger()


class Runtime:
    """The application in one worker of the proxy, from its start to its end."""

    def __init__(self, config: Config, *, plugins: Plugins | None = None, clock: Clock | None = None) -> None:
        """Open the ledger and start the keeper's thread.

        Raises:
            UsagePluginError: The configuration, a plugin or the ledger cannot be used.
        """
        prepare_data_folder(config.data_dir)
        self.parts = parts = Parts(config, plugins)
        self.plugins = parts.plugins
        enforce = os.environ.get(ENFORCE_VARIABLE, "on").strip().lower() not in ("off", "0", "false", "no")
        self.active_config = ActiveConfig(config, enforce=enforce)
        self.clock = clock or parts.clock()
        self._failures = PluginFailures(self.clock)
        self.resolvers = parts.resolvers(self._failures)
        self.pseudonyms = parts.make_pseudonyms()
        self.rules = ActiveLimits(config.limit_set(self.pseudonyms, self.resolvers.membership()))
        self.faults = WorkerFaults()
        self.cache = parts.cache()
        self.opened = opened = parts.open_ledger()
        self.ledger, self.operations, self.profiles = opened.ledger, opened.operations, opened.profiles
        self._workers = workers = parts.workers(self.clock)
        try:
            secret.note_secret(self.operations, self.pseudonyms, parts.secret, self.clock.now())
            # Before anything else asks for the time: a server's clock is known from then on.
            workers.join()
            # Again, now that a move sees this worker: it may have begun in between.
            check_not_moved(opened)
            self.rules.follow(self.operations, self.clock.now())
        except BaseException:
            workers.leave()
            opened.close()
            raise
        self._listeners = Publishers(
            self._failures,
            alerts=self.plugins.listeners("usage_threshold_crossed"),
            refusals=self.plugins.listeners("usage_request_refused"),
            events=self.plugins.listeners("usage_event_recorded"),
        )
        self.alerts = Alerts(self.clock, self._listeners.alerts)
        self.anomalies = Anomalies(self.clock)
        self.ledger_thread = LedgerThread(self._open_again)
        self.request_ledger = parts.request_ledger(self.ledger, self._workers, self.clock, self.ledger_thread)
        self.decider = Decider(
            self.request_ledger,
            self.rules,
            self.clock,
            worker=lambda: self._workers.name,
            anomalies=self.anomalies,
            policy=admission_policy(config, enforce=enforce),
            faults=self.faults,
        )
        self.admission = Admission(self.decider, self.clock)
        self.recorder = Recorder(
            self.request_ledger,
            self.rules,
            self.cache,
            self.clock,
            anomalies=self.anomalies,
            alerts=self.alerts,
            publisher=self._listeners.events,
            faults=self.faults,
        )
        self.refusals = RefusalLog(self._listeners.refusals)
        file = ConfigFile(config.path, config) if config.path.name else None
        self._loop = asyncio.get_running_loop()
        self._started_at = self.clock.now()
        self._watcher = ChangeWatcher(self, file, self._loop, self._workers)
        seeder = Backfill(self.rules, self._workers, config.timezone, self.clock)
        differences = [RuleDifferences(workers, self.clock).compare] if isinstance(workers, FleetWorkers) else []
        self._keeper = Keeper(
            self._open_again,
            parts.open_store,
            self._workers,
            self.clock,
            unstorable=parts.unstorable(self.clock),
            open_as_keeper=parts.keeper_opening(self._workers),
            seeder=seeder,
            limits=lambda: self.config.limits,
            pruner=Pruner(self._retention, config.timezone, self.clock, lacking=seeder.lacking),
            publisher=self._listeners.events,
            chores=(
                *self._watcher.chores,
                *differences,
                lambda opened: self.alerts.hand_over(opened.operations),
                lambda opened: self._failures.hand_over(opened.operations),
                lambda opened: self.refusals.hand_over(opened.operations),
                lambda opened: self.anomalies.hand_over(opened.operations),
                self._supervise_migration,
            ),
        )
        self._migration = _migration(config, self.clock)
        self.resolvers.start()
        self._listeners.start()
        if isinstance(workers, FleetWorkers):
            workers.watch(self._details, self._reassert)
        self._keeper.start()

    def _open_again(self) -> OpenLedger:
        """Open the ledger for another thread; never create a new one in place of a deleted one."""
        if self.opened.file is not None:
            self.opened.file.check_place()
        return self.parts.open_ledger()

    def _details(self) -> str:
        """Describe this worker for the fleet's register."""
        ledger = self.request_ledger
        if not isinstance(ledger, RemoteRequestLedger):
            return "{}"
        return describe_this_worker(self._started_at, self.rules.digest, ledger.summary()).encode()

    def _reassert(self) -> None:
        ledger = self.request_ledger
        if isinstance(ledger, RemoteRequestLedger):
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(ledger.reassert)

    @property
    def config(self) -> Config:
        """The configuration in force now."""
        return self.active_config.current

    @property
    def limits(self) -> LimitSet:
        """The limits in force now."""
        return self.rules.limits

    async def tick(self) -> None:
        """Drop old entries of the cache at intervals, without end."""
        while True:
            await asyncio.sleep(self.config.cache.cleanup_interval.total_seconds())
            try:
                self.cache.clean_up(local_date(self.clock.now(), self.config.timezone))
            except Exception:
                # The next round must run after any error.
                log.exception("cache.not_cleaned")

    def _retention(self) -> Retention:
        return Retention(**self.config.retention.model_dump())

    def _supervise_migration(self, opened: OpenLedger) -> None:
        if self._migration and self._workers.keeps:
            self._migration.supervise(opened.operations)

    async def close(self, seconds: float = 10.0) -> None:
        """Write all data in memory, flush the outbox if this worker is the keeper, and release all resources.

        Plugins get a moment to receive the notifications that wait for them.
        """
        try:
            await self.request_ledger.close(seconds)
        finally:
            self._keeper.stop(seconds)
            if self._migration:
                self._migration.stop()
            self.resolvers.stop()
            # Not on the loop: a plugin may need the loop to finish.
            await asyncio.to_thread(self._listeners.stop)
            with suppress(LedgerError):
                self._failures.hand_over(self.operations)
            self.ledger_thread.close()
            self._workers.leave()
            self.opened.close()


def _migration(config: Config, clock: Clock) -> AutomaticMigration | None:
    source = config.migration_source
    return AutomaticMigration(source, config.path, config.data_dir / "migration.log", clock) if source else None
