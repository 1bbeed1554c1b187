"""Failures of plugins: named in the log and counted in the ledger, in whichever thread they were noticed.

Whoever notices one adds it up here and goes on. The keeper's thread hands them over once a second, with one line for
each plugin and hook: so a plugin that fails for each request fills no log.
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
"""Which imperfection it is: a plugin could not be told of something, or a resolver did not answer."""

log = get_logger()


class _Source(NamedTuple):
    kind: Kind
    plugin: str
    hook: str


class _Failed(NamedTuple):
    times: int
    why: Mapping[str, Any]


class Failures:
    """Adds them up until they are handed over: a row for each plugin and hook."""

    def __init__(self, clock: Clock) -> None:
        """Start with none."""
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[_Source, _Failed] = {}

    def add(self, kind: Kind, plugin: str, hook: str, why: Mapping[str, Any], times: int = 1) -> None:
        """Count some; of the reasons the last one is shown."""
        source = _Source(kind, plugin, hook)
        with self._lock:
            known = self._waiting.get(source)
            self._waiting[source] = _Failed(times + (known.times if known else 0), why)

    def hand_over(self, operations: OperationsLog) -> None:
        """Write them down and tell of them.

        Raises:
            LedgerError: they are handed over with the next call.
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
