"""`open_reader`: read access to a data folder, whether the proxy runs or not."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from usage_plugin.domain.limit_set import NO_MEMBERSHIP
from usage_plugin.domain.pseudonyms import is_key_pseudonym, is_pseudonym
from usage_plugin.errors import NothingRecordedError, PluginError, SecretError
from usage_plugin.ledgers.workers.fleet_workers import FleetWorkers
from usage_plugin.log import get_logger, short_error
from usage_plugin.runtime.composition import Parts
from usage_plugin.tracking.history.reader import UsageReader
from usage_plugin.tracking.notifications.plugin_failures import PluginFailures
from usage_plugin.tracking.privacy.erasure import Person
from usage_plugin.tracking.privacy.secret import check_secret

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from usage_plugin.config import Config
    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.limit_set import LimitSet, Membership
    from usage_plugin.domain.liveness import Workers
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.domain.store import UsageFilter, UsageStore
    from usage_plugin.plugins.manager import Plugins

log = get_logger()


class Reader:
    """Read access to a data folder: it changes nothing, whether the proxy runs or not."""

    def __init__(self, parts: Parts, opened: OpenLedger, store: UsageStore, workers: Workers, clock: Clock) -> None:
        """Use open parts; `open_reader` opens them."""
        self.parts = parts
        self.config = parts.config
        self.clock = clock
        self.secret = parts.secret
        self.pseudonyms = parts.pseudonyms()
        self._membership = _membership(parts, clock)
        self.limits = self.limits_of(parts.config).adjusted(opened.operations.adjustments(clock.now()))
        self.opened = opened
        self.ledger, self.operations, self.profiles = opened.ledger, opened.operations, opened.profiles
        self.erasable = opened.erasable
        self.workers = workers
        self.unstorable = parts.unstorable(clock)
        self.plugins = parts.plugins
        self.store = store
        self.tracker = UsageReader(opened.ledger, store, parts.cache(), parts.config.timezone, clock)

    def check_secret(self) -> None:
        """Check that names are found: that a configured secret is the ledger's.

        Raises:
            SecretError: It is another one.
        """
        if self.pseudonyms is not None:
            check_secret(self.operations, self.pseudonyms, self.secret)

    def limits_of(self, config: Config) -> LimitSet:
        """Return the limits of a configuration, for the names as they are kept here; without adjustments."""
        made = config.limit_set(self.pseudonyms, self._membership)
        return made.knowing({}, hides_persons=config.privacy.user == "pseudonym")

    def kept(self, dimension: str, name: str) -> str:
        """Return the form in which a typed name is kept; from then on the limits map it back to the name.

        Raises:
            SecretError: The name is kept as a pseudonym, and the secret is missing or not the ledger's.
        """
        name = self.config.identity.as_kept(dimension, name)
        is_person = dimension in ("user", "end_user") and self.limits.hides_persons
        if not is_person and dimension != "api_key":
            return name
        if self.pseudonyms is None:
            if is_pseudonym(name) or is_key_pseudonym(name):
                return name
            raise SecretError(
                f"Secret not found: {self.secret}. It is needed to derive the pseudonym of a name.",
                hint="Restore it from a backup, or write the pseudonym itself.",
            )
        if not (is_pseudonym(name) or is_key_pseudonym(name)):
            self.check_secret()
        kept = self.pseudonyms.kept_of(dimension, name)
        if is_person and kept != name:
            self.limits = self.limits.knowing({kept: name})
        return kept

    def person(self, name: str) -> Person:
        """Return all names of a person: their own, and the pseudonym under which they may be kept.

        Raises:
            SecretError: The secret is missing or not the ledger's.
        """
        return Person(frozenset({name, self.pseudonym(name)}), self.limits)

    def pseudonym(self, name: str) -> str:
        """Return a person's pseudonym, whether they are kept under it or not.

        Raises:
            SecretError: The secret is missing or not the ledger's.
        """
        if self.pseudonyms is None:
            raise SecretError(
                f"Secret not found: {self.secret}. It is needed to derive the pseudonym of a name.",
                hint="Restore it from a backup, or start the proxy once, which creates a new one.",
            )
        self.check_secret()
        return self.pseudonyms.of_person(name)

    def kept_filter(self, usage_filter: UsageFilter) -> UsageFilter:
        """Replace typed names by the form in which they are kept."""
        return replace(usage_filter, **{name: self.kept(name, value) for name, value in usage_filter.wanted().items()})


def _membership(parts: Parts, clock: Clock) -> Membership:
    """Return group membership; a failing resolver must not prevent reading, just as it does not stop a worker."""
    try:
        return parts.resolvers(PluginFailures(clock)).membership()
    except PluginError as error:
        log.warning("identity.groups_unknown", **short_error(error))
        return NO_MEMBERSHIP


@asynccontextmanager
async def open_reader(
    config: Config, *, plugins: Plugins | None = None, clock: Clock | None = None
) -> AsyncIterator[Reader]:
    """Open the ledger and the store for reading.

    Raises:
        NothingRecordedError: The ledger does not exist.
    """
    parts = Parts(config, plugins)
    if not parts.has_ledger():
        raise NothingRecordedError(
            f"Nothing has been recorded in {config.data_dir} yet.",
            hint="Start the proxy with the callback usage_plugin.proxy.callback, or name its YAML with --config.",
        )
    clock = clock or parts.clock()
    workers = parts.workers(clock)
    async with AsyncExitStack() as stack:
        opened = parts.open_ledger()
        stack.callback(opened.close)
        if isinstance(workers, FleetWorkers):
            # It sets the clock by the server's.
            workers.view()
            stack.callback(workers.leave)
        store = await stack.enter_async_context(parts.open_store_for_reading())
        yield Reader(parts, opened, store, workers, clock)
