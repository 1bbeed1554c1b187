"""Failures of plugins: collected from any thread, then logged and counted in the ledger.

A failure is only added to a counter here, so the caller continues at once. The keeper's thread hands the counters over
once a second, with one log line for each plugin and hook. So a plugin that fails on each request does not fill the log.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from usage_plugin.domain.operations import Anomaly
from usage_plugin.errors import LedgerError
from usage_plugin.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.operations import OperationsLog

Kind = Literal["not_told", "unresolved"]
"""The kind of anomaly: a plugin could not be notified, or a resolver did not answer."""

log = get_logger()


class _Source(NamedTuple):
    kind: Kind
    plugin: str
    hook: str


class _Failed(NamedTuple):
    times: int
    why: Mapping[str, Any]


class PluginFailures:
    """Count failures until they are handed over, by kind, plugin and hook."""

    def __init__(self, clock: Clock) -> None:
        """Start with no failures."""
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[_Source, _Failed] = {}

    def add(self, kind: Kind, plugin: str, hook: str, why: Mapping[str, Any], times: int = 1) -> None:
        """Count failures. Only the last reason is logged."""
        source = _Source(kind, plugin, hook)
        with self._lock:
            known = self._waiting.get(source)
            self._waiting[source] = _Failed(times + (known.times if known else 0), why)

    def hand_over(self, operations: OperationsLog) -> None:
        """Write the counts to the ledger and log them.

        Raises:
            LedgerError: the counts are kept for the next call.
        """
        with self._lock:
            taken, self._waiting = self._waiting, {}
        if not taken:
            return
        now = self._clock.now()
        try:
            operations.count_anomalies(
                [Anomaly(s.kind, s.plugin, failed.times, 0, now, now) for s, failed in taken.items()]
            )
        except LedgerError:
            for source, failed in taken.items():
                self.add(*source, failed.why, failed.times)
            raise
        for source, failed in taken.items():
            event = "plugin.not_told" if source.kind == "not_told" else "plugin.unresolved"
            log.error(event, plugin=source.plugin, hook=source.hook, times=failed.times, **failed.why)
