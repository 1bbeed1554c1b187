"""Alerts: a line in the log and a call of the plugins, once, when a limit's threshold is passed.

`seen` is called for each settled request and touches no file: what is passed for the first time, as far as this worker
remembers, waits for the keeper's thread, which asks the ledger whether any worker ever noted it. So an alert is told
once, over all workers and restarts, and costs a request nothing.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from usage_plugin.domain.alerts import Alert, encode_alert
from usage_plugin.domain.operations import AlertKey
from usage_plugin.domain.windows import local_date, start_of_day
from usage_plugin.log import get_logger
from usage_plugin.tracking.listeners import Audience
from usage_plugin.tracking.refusals import plain_amount

if TYPE_CHECKING:
    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.operations import OperationsLog
    from usage_plugin.tracking.demands import Standing

MOST_REMEMBERED = 10_000
MOST_WAITING = 1_000

log = get_logger()


class Alerts:
    """Notices thresholds on the request path, and tells them off it."""

    def __init__(self, clock: Clock, audience: Audience[Alert] | None = None) -> None:
        """Start with nothing noticed."""
        self._clock = clock
        self._audience = audience or Audience()
        self._noted: OrderedDict[AlertKey, None] = OrderedDict()
        self._waiting: deque[tuple[AlertKey, Alert]] = deque()

    def seen(self, standing: Standing) -> None:
        """Look at an account after it was charged."""
        demand, balance = standing
        limit, maximum = demand.limit, demand.maximum
        if not maximum:
            return
        for threshold in limit.alert_at:
            if balance.spent * 100 < threshold * maximum:
                return
            at = self._clock.now()
            # A rolling window never ends, so it is armed anew each day.
            rolls = limit.since_at(at) is not None
            start = start_of_day(local_date(at, limit.zone), limit.zone) if rolls else demand.window.start
            key = AlertKey(limit.key, demand.subject, start, threshold)
            # If too many wait they are not lost: the account's next request comes by again.
            if key not in self._noted and len(self._waiting) < MOST_WAITING:
                self._noted[key] = None
                if len(self._noted) > MOST_REMEMBERED:
                    self._noted.popitem(last=False)
                names = limit.names_of(demand.subject)
                alert = Alert(limit.name, names, threshold, limit.unit, balance.spent, maximum, demand.window, at)
                self._waiting.append((key, alert))

    def hand_over(self, operations: OperationsLog) -> None:
        """Tell what waits and was never told; called in the keeper's thread.

        Raises:
            LedgerError: what is left is handed over with the next call.
        """
        while self._waiting:
            key, alert = self._waiting[0]
            if operations.alert(key, alert.at, encode_alert(alert)):
                self._tell(alert)
            self._waiting.popleft()

    def _tell(self, alert: Alert) -> None:
        log.warning(
            "limit.threshold_crossed",
            limit=alert.limit,
            subject=alert.subject,
            threshold=alert.threshold,
            unit=alert.unit,
            amount=plain_amount(alert.unit, alert.amount),
            max=plain_amount(alert.unit, alert.maximum),
        )
        self._audience.tell(alert)
