"""Alerts: a log line and a notification of plugins, once, when a limit's threshold is crossed.

`seen` is called for each settled request and does not access any file. A crossing that is new to this worker is queued
for the keeper's thread. That thread checks in the ledger whether any worker has noted it already. So an alert is sent
once, across all workers and restarts, and costs a request nothing.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from usage_plugin.domain.alerts import Alert, encode_alert
from usage_plugin.domain.amounts import plain_amount
from usage_plugin.domain.operations import AlertKey
from usage_plugin.domain.windows import local_date, start_of_day
from usage_plugin.log import get_logger
from usage_plugin.tracking.notifications.publishers import Publisher

if TYPE_CHECKING:
    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.operations import OperationsLog
    from usage_plugin.tracking.admission.demands import AccountStatus

MOST_REMEMBERED = 10_000
MOST_WAITING = 1_000

log = get_logger()


class Alerts:
    """Detect crossed thresholds on the request path, and send alerts off it."""

    def __init__(self, clock: Clock, publisher: Publisher[Alert] | None = None) -> None:
        """Start with no alerts."""
        self._clock = clock
        self._publisher = publisher or Publisher()
        self._noted: OrderedDict[AlertKey, None] = OrderedDict()
        self._waiting: deque[tuple[AlertKey, Alert]] = deque()

    def seen(self, account_status: AccountStatus) -> None:
        """Queue alerts for the thresholds that an account has crossed, after it was charged."""
        demand, balance = account_status
        limit, maximum = demand.limit, demand.maximum
        if not maximum:
            return
        for threshold in limit.alert_at:
            if balance.spent * 100 < threshold * maximum:
                return
            at = self._clock.now()
            # A rolling window never ends, so its alerts can be sent again each day.
            rolls = limit.since_at(at) is not None
            start = start_of_day(local_date(at, limit.zone), limit.zone) if rolls else demand.window.start
            key = AlertKey(limit.key, demand.subject, start, threshold)
            # If the queue is full the alert is not lost: the account's next request detects it again.
            if key not in self._noted and len(self._waiting) < MOST_WAITING:
                self._noted[key] = None
                if len(self._noted) > MOST_REMEMBERED:
                    self._noted.popitem(last=False)
                names = limit.names_of(demand.subject)
                alert = Alert(limit.name, names, threshold, limit.unit, balance.spent, maximum, demand.window, at)
                self._waiting.append((key, alert))

    def hand_over(self, operations: OperationsLog) -> None:
        """Send queued alerts that were never sent before. Called in the keeper's thread.

        Raises:
            LedgerError: the remaining alerts are sent with the next call.
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
        self._publisher.publish(alert)
