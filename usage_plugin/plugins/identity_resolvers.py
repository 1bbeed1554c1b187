"""The resolvers that the YAML chooses, isolated so that their failures and delays do little harm.

`user_of` is called on the request path, where no earlier source of `identity.user` has an answer. Groups are part of
the active limits (`domain.limit_set.Membership`), which cache their matches, so few requests need them. Each resolver
refreshes its data in a thread of its own.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

from usage_plugin.domain.limit_set import NO_MEMBERSHIP, Membership
from usage_plugin.errors import ConfigError, PluginError, ResolverFailedError
from usage_plugin.log import get_logger, short_error
from usage_plugin.plugins.interface import IdentityResolver

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from usage_plugin.plugins.interface import Claim
    from usage_plugin.tracking.notifications.plugin_failures import PluginFailures

REFRESH_INTERVAL = 1.0
HANG_TIMEOUT = 30.0
"""The seconds after which a refresh counts as hanging."""

SLOW_NS = 5_000_000
"""The time of an answer above which its resolver is logged as slow: it delays every request of the worker."""

_ANY_ERROR = (Exception, SystemExit, asyncio.CancelledError)
"""All errors that a resolver may raise on the event loop; none of them ends the worker or the request's task."""

log = get_logger()


class Resolvers:
    """The resolvers in use, of the registered ones."""

    def __init__(self, registered: Mapping[str, IdentityResolver], failures: PluginFailures) -> None:
        """Keep the registered resolvers; none is in use yet."""
        self._registered = registered
        self._failures = failures
        self._watches: dict[str, _Watch] = {}
        self._for_groups: tuple[str, ...] = ()
        self._slow: set[str] = set()
        self._is_stale = False

    def choose(self, for_users: Sequence[str], for_groups: Sequence[str]) -> None:
        """Use these resolvers from now on, after a first refresh of each.

        Raises:
            ConfigError: A resolver does not exist, or lacks the method that it is chosen for.
            PluginError: The first refresh of a resolver failed. In both cases the previous choice stays.
        """
        self._check("user", for_users, "user_of")
        self._check("groups_from", for_groups, "groups_of")
        watches = {
            name: self._watches.get(name) or _Watch(name, self._registered[name], self._failures)
            for name in dict.fromkeys((*for_users, *for_groups))
        }
        dropped = self._watches.keys() - watches.keys()
        for name in dropped:
            self._watches[name].stop()
        self._watches, self._for_groups = watches, tuple(for_groups)

    def _check(self, key: str, names: Sequence[str], method: str) -> None:
        where = f"usage_plugin.identity.{key}"
        for name in names:
            if name not in self._registered:
                registered = ", ".join(sorted(self._registered)) or "none"
                raise ConfigError(
                    f"{where}: expected a registered resolver ({registered}); found {name!r}.",
                    hint="A resolver comes with a plugin: name its file or its package under usage_plugin.plugins.",
                )
            if getattr(type(self._registered[name]), method) is getattr(IdentityResolver, method):
                raise ConfigError(f"{where}: expected a resolver with {method}; {name!r} has none.")

    def user_of(self, name: str, claim: Claim) -> str | None:
        """Return the user of a request; None if the resolver does not know.

        Raises:
            ResolverFailedError: The resolver raised an error, or returned something else than a name.
        """
        started = time.perf_counter_ns()
        try:
            user = self._registered[name].user_of(claim)
            if user is not None and not isinstance(user, str):
                raise TypeError(f"user_of: expected a name; found {type(user).__name__}")
        except _ANY_ERROR as error:
            self._failures.add("unresolved", name, "user_of", short_error(error))
            raise ResolverFailedError from error
        took = time.perf_counter_ns() - started
        if took > SLOW_NS and name not in self._slow:
            self._slow.add(name)
            log.warning("identity.resolver_slow", resolver=name, microseconds=took // 1000)
        return user

    def membership(self) -> Membership:
        """Return the current group membership."""
        names = self._for_groups
        if not names:
            return NO_MEMBERSHIP
        return Membership(
            lambda user: [group for name in names for group in self._groups_of(name, user)],
            repr([(name, self._watches[name].version) for name in names]),
        )

    def _groups_of(self, name: str, user: str) -> tuple[str, ...]:
        try:
            answer = self._registered[name].groups_of(user)
            # A text is an iterable of its letters.
            groups = () if isinstance(answer, str) else tuple(answer)
            if isinstance(answer, str) or not all(isinstance(group, str) for group in groups):
                raise TypeError("groups_of: expected a list of names")
        except _ANY_ERROR as error:  # settlements call this too, and must not fail
            self._failures.add("unresolved", name, "groups_of", short_error(error))
            self._is_stale = True
            return ()
        return groups

    def have_changed(self, known: Membership) -> bool:
        """Whether group membership must be resolved again; called once a second."""
        stale, self._is_stale = self._is_stale, False
        for watch in self._watches.values():
            watch.report_if_hanging()
        return stale or self.membership().version != known.version

    def start(self) -> None:
        """Start to refresh the resolvers in use."""
        for watch in self._watches.values():
            watch.start()

    def stop(self) -> None:
        """Stop to refresh; a hanging resolver is abandoned."""
        for watch in self._watches.values():
            watch.stop()


class _Watch:
    """Refresh one resolver once a second, in a thread of its own, so that it blocks nothing else."""

    def __init__(self, name: str, resolver: IdentityResolver, failures: PluginFailures) -> None:
        """Refresh the resolver for the first time.

        Raises:
            PluginError: The refresh failed.
        """
        self._name = name
        self._resolver = resolver
        self._failures = failures
        self._stopping = threading.Event()
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._work, name=f"usage-plugin-resolver-{name}", daemon=True)
        try:
            self.version = resolver.refresh()
        except _ANY_ERROR as error:
            raise PluginError(
                f"The identity resolver {name} failed to start: {type(error).__name__}: {error}.",
                hint="Fix its data, or remove it from usage_plugin.identity.",
            ) from error

    def start(self) -> None:
        if not self._thread.is_alive() and not self._stopping.is_set():
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def report_if_hanging(self) -> None:
        since = self._busy_since
        if since is not None and time.monotonic() - since > HANG_TIMEOUT:
            self._failures.add("unresolved", self._name, "refresh", {"problem": "refresh hangs"})

    def _work(self) -> None:
        while not self._stopping.wait(REFRESH_INTERVAL):
            self._busy_since = time.monotonic()
            try:
                version = self._resolver.refresh()
            except BaseException as error:  # noqa: BLE001  # its previous data stays, and this is its own thread
                self._failures.add("unresolved", self._name, "refresh", short_error(error))
            else:
                if version != self.version:
                    self.version = version
                    log.info("identity.refreshed", resolver=self._name)
            finally:
                self._busy_since = None
