"""Every hook, with when it is called and what it must return; docs/plugin-hooks.md has an example of each.

Three kinds. What *registers* is called once, at the start of whatever reads the configuration, and returns objects that
act. What is a *notification* is called in a thread of the plugin's own, off the request path, and returns nothing. What
is a *duty* is called by a command, which fails if the plugin does.
"""

from __future__ import annotations

from typing import Any

import pluggy

from usage_plugin.domain.alerts import Alert
from usage_plugin.domain.refusals import RefusedRequest
from usage_plugin.domain.usage import UsageEvent
from usage_plugin.plugins import PROJECT

# Needed at run time, because pluggy reads the signatures.
from usage_plugin.plugins.interface import IdentityResolver, LedgerBackend, StorageBackend

hookspec = pluggy.HookspecMarker(PROJECT)


@hookspec
def usage_register_storage_backends() -> list[StorageBackend[Any]]:
    """Register backends that keep the history, to be chosen by name under `storage.backend`.

    Called once at start, synchronously. What it raises stops the start and names the plugin.
    """
    raise NotImplementedError


@hookspec
def usage_register_ledgers() -> list[LedgerBackend[Any]]:
    """Register backends that keep accounts and reservations, to be chosen by name under `ledger.backend`.

    Called once at start, synchronously. What it raises stops the start and names the plugin.
    """
    raise NotImplementedError


@hookspec
def usage_register_identity_resolvers() -> list[IdentityResolver]:
    """Register resolvers, to be chosen by name as `resolver:NAME` in `identity.user` or in `identity.groups_from`.

    Called once at start, synchronously. What it raises stops the start and names the plugin.
    """
    raise NotImplementedError


@hookspec
def usage_event_recorded(event: UsageEvent) -> None:
    """Be told of a usage event, after it was recorded.

    Called at most once for each event, in the worker that recorded it; of a recovered one, in the keeper. It is in the
    ledger by then, and may not be in the store yet. What waits for a plugin when its worker is killed is never told:
    whoever must have every event reads them from the store.
    """
    raise NotImplementedError


@hookspec
def usage_request_refused(refusal: RefusedRequest) -> None:
    """Be told that a request was refused by a limit, or because ledger or store do not work.

    Called for what the client felt, so not for dry runs, nor for requests that are wrong in themselves. Clients try
    again in storms: be ready for many of the same.
    """
    raise NotImplementedError


@hookspec
def usage_threshold_crossed(alert: Alert) -> None:
    """Be told that what was spent has passed a threshold of a limit's `alert_at`.

    Called once for each limit, subject, window and threshold, over all workers and restarts; for rolling windows once
    a day.
    """
    raise NotImplementedError


@hookspec
def usage_user_forgotten(user: str) -> None:
    """Forget a user: delete whatever this plugin has kept of them.

    Called by `usage-plugin forget`, in its own process, for each name that the user may be kept under, after they are
    gone from the history. It may be called again for the same name. When it raises, the command says so and fails.
    """
    raise NotImplementedError
