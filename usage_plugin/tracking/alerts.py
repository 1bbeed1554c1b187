"""Alerts: a line in the log and a call of the plugins, once, when a limit's threshold is passed.

`seen` is called for each settled request and touches no file: what is passed for the first time, as far as this worker
remembers, waits for the keeper's thread, which asks the ledger whether any worker ever noted it. So an alert is told
once, over all workers and restarts, and costs a request nothing. A plugin is called in a thread of its own.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from usage_plugin.domain.alerts import Alert, encode_alert
from usage_plugin.domain.ledger import AlertKey, Imperfection
from usage_plugin.domain.windows import local_date, start_of_day
from usage_plugin.log import get_logger, short_error
from usage_plugin.tracking.refusals import plain_amount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.ledger import Ledger
    from usage_plugin.tracking.demands import Standing

MOST_REMEMBERED = 10_000
MOST_WAITING = 1_000
PATIENCE = 30.0

log = get_logger()


class Alerts:
    """Notices thresholds on the request path, and tells them off it."""

    def __init__(self, clock: Clock, plugins: Iterable[tuple[str, Callable[[Alert], None]]] = ()) -> None:
        """Start with nothing noticed; plugins are names, and what to call."""
        self._clock = clock
        self._listeners = [_Listener(name, function) for name, function in plugins]
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

    def hand_over(self, ledger: Ledger) -> None:
        """Tell what waits and was never told; called in the keeper's thread.

        Raises:
            LedgerError: what is left is handed over with the next call.
        """
        while self._waiting:
            key, alert = self._waiting[0]
            if ledger.alert(key, alert.at, encode_alert(alert)):
                self._tell(alert)
            self._waiting.popleft()
        for listener in self._listeners:
            listener.count_failures(ledger, self._clock.now())

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
        for listener in self._listeners:
            listener.tell(alert)


class _Listener:
    """A plugin that wants to be told, in a thread of its own, so that it can hold up nothing."""

    def __init__(self, name: str, function: Callable[[Alert], None]) -> None:
        self._name = name
        self._function = function
        self._queue: queue.Queue[Alert] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._busy_since: float | None = None
        self._failures: deque[str] = deque()

    def tell(self, alert: Alert) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"usage-plugin-tells-{self._name}", daemon=True)
            self._thread.start()
        since = self._busy_since
        if since is not None and time.monotonic() - since > PATIENCE:
            self._failed(alert, problem="it hangs")
            return
        try:
            self._queue.put_nowait(alert)
        except queue.Full:
            self._failed(alert, problem="too many alerts wait for it")

    def _work(self) -> None:
        while True:
            alert = self._queue.get()
            self._busy_since = time.monotonic()
            try:
                self._function(alert)
            except Exception as error:  # noqa: BLE001  # a plugin may raise anything
                self._failed(alert, **short_error(error))
            self._busy_since = None

    def _failed(self, alert: Alert, **why: str) -> None:
        log.error("plugin.not_told", plugin=self._name, limit=alert.limit, subject=alert.subject, **why)
        self._failures.append(alert.limit)

    def count_failures(self, ledger: Ledger, now: int) -> None:
        count = len(self._failures)
        if count:
            ledger.count([Imperfection("not_told", self._name, count, 0, now, now)])
            for _ in range(count):
                self._failures.popleft()
