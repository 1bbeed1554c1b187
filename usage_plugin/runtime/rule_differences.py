"""Tell operators of a fleet whose hosts use different limits for longer than a rollout of a changed YAML takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usage_plugin.runtime.worker_description import decode_description
from usage_plugin.tracking.notifications.health import HealthNotes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.fleet import Member
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.ledgers.workers.fleet_workers import FleetWorkers

TOLERATED = 60_000_000
"""Microseconds for which hosts may use different limits without a problem."""


class RuleDifferences:
    """Compares the digests of the limits that the workers of a fleet use."""

    def __init__(self, workers: FleetWorkers, clock: Clock) -> None:
        """Start without a difference."""
        self._workers = workers
        self._clock = clock
        self._problems = HealthNotes(clock)
        self._since: int | None = None

    def compare(self, opened: OpenLedger) -> None:
        """Note a problem while there is a difference for longer than `TOLERATED`. Only the keeper writes the note."""
        if not self._workers.keeps:
            self._since = None
            return
        text = differences(self._workers.members)
        now = self._clock.monotonic()
        if text is None:
            self._since = None
        elif self._since is None:
            self._since = now
        is_old = self._since is not None and now - self._since >= TOLERATED
        self._problems.tell(opened.operations, "limits", text if is_old else None)


def differences(members: Iterable[Member]) -> str | None:
    """Return the hosts that use different limits, in words; None if all use the same."""
    hosts: dict[str, set[str]] = {}
    for member in members:
        if (found := decode_description(member.details)) is not None:
            hosts.setdefault(found.rules, set()).add(found.hostname)
    if len(hosts) < 2:
        return None
    groups = sorted(", ".join(sorted(names)) for names in hosts.values())
    return f"hosts use different limits: {' | '.join(groups)}; give all hosts the same YAML and the same groups"
