"""Resolvers in use: the ones that the YAML chooses, kept from doing harm.

`user_of` is asked on the request path, and only where `identity.user` gets as far as a resolver. Groups are part of the
rules in force (`domain.limits.Membership`), which remember what they matched, so hardly a request asks for them. Each
resolver looks for changes in a thread of its own.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

from usage_plugin.domain.limits import NO_MEMBERSHIP, Membership
from usage_plugin.errors import ConfigError, PluginError, UsagePluginError
from usage_plugin.log import get_logger, short_error
from usage_plugin.plugins.interface import IdentityResolver

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from usage_plugin.plugins.interface import Claim
    from usage_plugin.tracking.failures import Failures

LOOK_EVERY = 1.0
PATIENCE = 30.0
"""A look that takes so many seconds hangs."""

SLOW_NS = 5_000_000
"""An answer that takes longer holds up every request of the worker, and its resolver is named."""

_WHATEVER = (Exception, SystemExit, asyncio.CancelledError)
"""What a resolver may raise on the event loop: neither the worker nor the request's task ends because of it."""

log = get_logger()


class ResolverFailedError(UsagePluginError):
    """Who sent this request cannot be found out at the moment."""


class Resolvers:
    """What of the registered resolvers is used, by name."""

    def __init__(self, registered: Mapping[str, IdentityResolver], failures: Failures) -> None:
        """Take what plugins have registered; none is in use yet."""
        self._registered = registered
        self._failures = failures
        self._watches: dict[str, _Watch] = {}
        self._for_groups: tuple[str, ...] = ()
        self._slow: set[str] = set()
        self._is_stale = False

    def choose(self, for_users: Sequence[str], for_groups: Sequence[str]) -> None:
        """Use these from now on, after their first look at what they know.

        Raises:
            ConfigError: there is no such resolver, or it does not do what it is chosen for.
            PluginError: one of them cannot begin. In both cases nothing has changed.
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
                there_are = ", ".join(sorted(self._registered)) or "none"
                raise ConfigError(
                    f"{where}: there is no resolver {name!r} (there are: {there_are}).",
                    hint="A resolver comes with a plugin: name its file or its package under usage_plugin.plugins.",
                )
            if getattr(type(self._registered[name]), method) is getattr(IdentityResolver, method):
                raise ConfigError(f"{where}: the resolver {name!r} has no {method}, so it cannot stand here.")

    def user_of(self, name: str, claim: Claim) -> str | None:
        """Ask one who sent a request.

        Raises:
            ResolverFailedError: it does not answer.
        """
        started = time.perf_counter_ns()
        try:
            user = self._registered[name].user_of(claim)
            if user is not None and not isinstance(user, str):
                raise TypeError(f"user_of returned {type(user).__name__}, not a name")
        except _WHATEVER as error:
            self._failures.add("unresolved", name, "user_of", short_error(error))
            raise ResolverFailedError from error
        took = time.perf_counter_ns() - started
        if took > SLOW_NS and name not in self._slow:
            self._slow.add(name)
            log.warning("identity.resolver_slow", resolver=name, microseconds=took // 1000)
        return user

    def membership(self) -> Membership:
        """Give the groups as they are known now."""
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
            # Text is a list of its letters.
            groups = () if isinstance(answer, str) else tuple(answer)
            if isinstance(answer, str) or not all(isinstance(group, str) for group in groups):
                raise TypeError("groups_of returned no list of names")
        except _WHATEVER as error:  # a settlement asks too, and must not fail
            self._failures.add("unresolved", name, "groups_of", short_error(error))
            self._is_stale = True
            return ()
        return groups

    def have_changed(self, known: Membership) -> bool:
        """Say whether groups are to be asked for anew; called once a second."""
        stale, self._is_stale = self._is_stale, False
        for watch in self._watches.values():
            watch.tell_if_hanging()
        return stale or self.membership().version != known.version

    def start(self) -> None:
        """Begin to look for changes, also of those that are chosen later."""
        for watch in self._watches.values():
            watch.start()

    def stop(self) -> None:
        """Look no more; one that hangs is left behind."""
        for watch in self._watches.values():
            watch.stop()


class _Watch:
    """Looks for changes of one resolver, once a second, in a thread of its own, so that it can hold up nothing."""

    def __init__(self, name: str, resolver: IdentityResolver, failures: Failures) -> None:
        """Take the first look.

        Raises:
            PluginError: it fails.
        """
        self._name = name
        self._resolver = resolver
        self._failures = failures
        self._stopping = threading.Event()
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._work, name=f"usage-plugin-resolver-{name}", daemon=True)
        try:
            self.version = resolver.refresh()
        except _WHATEVER as error:
            raise PluginError(
                f"The identity resolver {name} cannot begin: {type(error).__name__}: {error}.",
                hint="Mend what it reads, or take it out of usage_plugin.identity.",
            ) from error

    def start(self) -> None:
        if not self._thread.is_alive() and not self._stopping.is_set():
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def tell_if_hanging(self) -> None:
        since = self._busy_since
        if since is not None and time.monotonic() - since > PATIENCE:
            self._failures.add("unresolved", self._name, "refresh", {"problem": "it hangs"})

    def _work(self) -> None:
        while not self._stopping.wait(LOOK_EVERY):
            self._busy_since = time.monotonic()
            try:
                version = self._resolver.refresh()
            except BaseException as error:  # noqa: BLE001  # what it knew stays, and this is its thread
                self._failures.add("unresolved", self._name, "refresh", short_error(error))
            else:
                if version != self.version:
                    self.version = version
                    log.info("identity.refreshed", resolver=self._name)
            finally:
                self._busy_since = None
