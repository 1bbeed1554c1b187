"""Listeners: bounded queues, rare notifications first, each once, and failures that are finally counted."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from usage_plugin.domain.operations import Anomaly
from usage_plugin.errors import LedgerBusyError
from usage_plugin.testing.builders import make_event
from usage_plugin.testing.clock import FakeClock
from usage_plugin.tracking.notifications import publishers
from usage_plugin.tracking.notifications.plugin_failures import PluginFailures
from usage_plugin.tracking.notifications.publishers import Hooked, Publishers

if TYPE_CHECKING:
    from collections.abc import Callable


class Counts:
    """A substitute for the ledger that receives failures."""

    def __init__(self) -> None:
        self.counted: list[Anomaly] = []
        self.is_busy = False

    def count_anomalies(self, anomalies: list[Anomaly]) -> None:
        if self.is_busy:
            raise LedgerBusyError
        self.counted += anomalies


def listen(**functions: Callable[[object], object]) -> tuple[Publishers, PluginFailures]:
    failures = PluginFailures(FakeClock())
    return Publishers(failures, events=[Hooked(name, told) for name, told in functions.items()]), failures


def handed_over(failures: PluginFailures) -> dict[str, int]:
    counts = Counts()
    failures.hand_over(counts)  # type: ignore[arg-type]
    return {found.concerns: found.times for found in counts.counted}


def test_queues_are_bounded_by_number_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notifications beyond a full queue are counted and dropped, for this plugin only."""
    monkeypatch.setattr(publishers, "MOST_WAITING", 5)
    monkeypatch.setattr(publishers, "MOST_BYTES", 1_000)
    waking, told = threading.Event(), []
    listeners, failures = listen(slow=lambda _: waking.wait(30), quick=told.append)
    for _ in range(8):
        listeners.events.publish(make_event(), 10)
    assert handed_over(failures) == {"slow": 3, "quick": 3}
    listeners.start()
    listeners.stop(0.0)
    waking.set()

    listeners, failures = listen(quick=told.append)
    for _ in range(4):
        listeners.events.publish(make_event(), 400)
    assert handed_over(failures) == {"quick": 2}
    told.clear()
    listeners.start()
    listeners.stop(10)
    assert len(told) == 2
    assert handed_over(failures) == {}


def test_rarer_things_go_first() -> None:
    """An alert is sent before queued events."""
    told: list[object] = []
    failures = PluginFailures(FakeClock())
    hooked = [Hooked("mine", told.append)]
    listeners = Publishers(failures, alerts=hooked, refusals=hooked, events=hooked)
    for _ in range(3):
        listeners.events.publish("event")  # type: ignore[arg-type]
    listeners.refusals.publish("refusal")  # type: ignore[arg-type]
    listeners.alerts.publish("alert")  # type: ignore[arg-type]
    listeners.start()
    listeners.stop(10)
    assert told == ["alert", "refusal", "event", "event", "event"]


def test_many_threads_may_tell() -> None:
    """With concurrent senders, each notification arrives exactly once."""
    told: list[object] = []
    listeners, failures = listen(mine=told.append)
    listeners.start()

    def tell(first: int) -> None:
        for number in range(first, first + 200):
            listeners.events.publish(number)  # type: ignore[arg-type]

    threads = [threading.Thread(target=tell, args=(first,)) for first in (0, 200, 400, 600)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    listeners.stop(10)
    assert sorted(told) == list(range(800))  # type: ignore[type-var]
    assert handed_over(failures) == {}


def test_failures_wait_for_the_ledger(caplog: pytest.LogCaptureFixture) -> None:
    """Failures add up while the ledger is busy; then they are counted once, with one log line per plugin and hook."""
    failures = PluginFailures(FakeClock())
    counts = Counts()
    counts.is_busy = True
    for _ in range(3):
        failures.add("not_told", "mine", "usage_event_recorded", {"error": "ValueError"})
        with pytest.raises(LedgerBusyError):
            failures.hand_over(counts)  # type: ignore[arg-type]
    assert not caplog.records
    counts.is_busy = False
    for _ in range(2):
        failures.hand_over(counts)  # type: ignore[arg-type]
    assert [(found.kind, found.concerns, found.times) for found in counts.counted] == [("not_told", "mine", 3)]
    assert len(caplog.records) == 1
    assert "times=3" in caplog.text
