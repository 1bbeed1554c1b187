"""Watch for changes while a worker runs: of the YAML, groups, adjustments, the ledger's file, the outbox's size."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from usage_plugin.errors import ConfigError, LedgerError, PluginError
from usage_plugin.log import get_logger
from usage_plugin.tracking.admission.active_limits import NOTE
from usage_plugin.tracking.admission.decide import AdmissionPolicy
from usage_plugin.tracking.notifications.health import HealthNotes

if TYPE_CHECKING:
    import asyncio

    from usage_plugin.config import ActiveConfig, Config, ConfigFile
    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.ledger import Ledger
    from usage_plugin.domain.limit_set import LimitSet
    from usage_plugin.domain.liveness import Workers
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.domain.pseudonyms import Pseudonyms
    from usage_plugin.domain.request_ledger import RequestLedger
    from usage_plugin.plugins.identity_resolvers import Resolvers
    from usage_plugin.runtime.composition import Parts
    from usage_plugin.tracking.admission.active_limits import ActiveLimits
    from usage_plugin.tracking.admission.decide import Decider, WorkerFaults

NEEDS_RESTART = ("data_dir", "timezone", "storage", "ledger", "cache", "privacy", "migrate_from", "plugins")
"""The keys of the YAML that are read only at the start."""

log = get_logger()


class WatchedRuntime(Protocol):
    """The parts of a worker that depend on changes."""

    active_config: ActiveConfig
    clock: Clock
    parts: Parts
    opened: OpenLedger
    ledger: Ledger
    pseudonyms: Pseudonyms
    resolvers: Resolvers
    rules: ActiveLimits
    decider: Decider
    faults: WorkerFaults

    @property
    def config(self) -> Config:
        """The configuration in force."""

    @property
    def limits(self) -> LimitSet:
        """The limits in force."""

    @property
    def request_ledger(self) -> RequestLedger:
        """The ledger as requests use it."""


class ChangeWatcher:
    """Detect changes in the keeper's thread of one worker, and apply them to its runtime."""

    def __init__(
        self, runtime: WatchedRuntime, file: ConfigFile | None, loop: asyncio.AbstractEventLoop, workers: Workers
    ) -> None:
        self._runtime = runtime
        self._file = file
        self._loop = loop
        self._workers = workers
        self._problems = HealthNotes(runtime.clock)
        # The loop uses the rules of the start: it has settled nothing by others.
        self._used_by_loop = runtime.rules.digest
        self._announced = ("", "")
        self._is_full = False
        self.chores = (
            self._check_ledger,
            self._check_file,
            self._check_groups,
            self._check_adjustments,
            self._announce_rules,
            self._measure_outbox,
        )

    def _check_ledger(self, _: OpenLedger) -> None:
        """Stop admission if the ledger's file was deleted or replaced: the next process to start uses another one."""
        # The file of the request path, not that of this thread, which may have been opened later.
        file = self._runtime.opened.file
        if file is None:
            return
        gone = ""
        try:
            file.check_place()
        except LedgerError as error:
            gone = error.message
        faults = self._runtime.faults
        if gone and not faults.ledger_gone:
            log.error("ledger.gone", message=gone, hint="Restore it, or restart the proxy with all its workers.")
        elif faults.ledger_gone and not gone:
            log.info("ledger.is_back", path=self._runtime.ledger.location)
        faults.ledger_gone = gone

    def _check_file(self, opened: OpenLedger) -> None:
        """Apply a changed YAML; an invalid one is rejected, and the previous one stays in force."""
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
            self._problems.tell(opened.operations, "config", file.mistakes)

    def _replace(self, config: Config) -> None:
        runtime = self._runtime
        old = runtime.config
        kept = {name: getattr(old, name) for name in NEEDS_RESTART if getattr(config, name) != getattr(old, name)}
        try:
            runtime.resolvers.choose(config.identity.user_resolvers, config.identity.groups_from)
        except (ConfigError, PluginError) as error:
            # Its plugin is not loaded yet, or does not work: the previous identity settings stay.
            kept["identity"] = old.identity
            if self._workers.keeps:
                log.error("config.identity_refused", path=str(config.path), message=str(error))  # noqa: TRY400
        runtime.resolvers.start()
        if self._workers.keeps:
            if kept:
                log.warning("config.needs_restart", keys=list(kept), path=str(config.path))
            for deprecation in config.deprecations:
                log.warning("config.warning", message=deprecation.text, hint=deprecation.remedy)
            log.info("config.reread", limits=[limit.name for limit in config.limits], path=str(config.path))
        config = config.model_copy(update=kept)
        runtime.active_config.current = config
        runtime.decider.policy = admission_policy(config, enforce=runtime.active_config.enforce)
        self._replace_rules()

    def _replace_rules(self) -> None:
        runtime = self._runtime
        runtime.rules.replace(runtime.config.limit_set(runtime.pseudonyms, runtime.resolvers.membership()))

    def _check_groups(self, _: OpenLedger) -> None:
        """Apply changes of the groups that resolvers know."""
        if self._runtime.resolvers.have_changed(self._runtime.limits.membership):
            self._replace_rules()

    def _check_adjustments(self, opened: OpenLedger) -> None:
        self._runtime.rules.follow(opened.operations, self._runtime.clock.now())

    def _announce_rules(self, opened: OpenLedger) -> None:
        """Record the rules that this worker uses, once it no longer settles anything by earlier ones."""
        # A worker that was declared dead has another name afterwards.
        name, digest = self._workers.name, self._runtime.rules.digest
        if (name, digest) == self._announced:
            return
        if self._used_by_loop == digest:
            opened.operations.note(NOTE + name, digest)
            self._announced = (name, digest)
        else:
            # Checked on the loop, because it may be in the middle of a settlement by the previous rules.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._use, digest)

    def _use(self, digest: str) -> None:
        if not self._runtime.request_ledger.pending and digest == self._runtime.rules.digest:
            self._used_by_loop = digest

    def _measure_outbox(self, opened: OpenLedger) -> None:
        storage, faults = self._runtime.config.storage, self._runtime.faults
        most = self._runtime.parts.outbox_max
        full = opened.ledger.waiting().size >= most
        if full != self._is_full:
            self._is_full = faults.outbox_full = full
            faults.drops_events = full and storage.on_outbox_full == "allow"
        if self._workers.keeps:
            problem = f"The outbox is full: {most} bytes wait for the store." if full else None
            self._problems.tell(opened.operations, "outbox", problem)


def admission_policy(config: Config, *, enforce: bool) -> AdmissionPolicy:
    """Return the policy of admission.

    Args:
        config: The configuration.
        enforce: Whether limits refuse requests at all.
    """
    admission = config.admission
    return AdmissionPolicy(
        enforce=enforce,
        max_wait=admission.max_wait // timedelta(microseconds=1),
        on_lost=admission.on_lost,
        admit_without_ledger=admission.on_ledger_error == "allow",
        admit_without_outbox=config.storage.on_outbox_full == "allow",
    )
