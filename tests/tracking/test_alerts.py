"""Each threshold is alerted once, across workers and restarts, and a failing plugin affects no other."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.waiting import eventually
from tests.tracking.test_tracking import CENT, admitted, configure, success
from usage_plugin.domain.alerts import Alert
from usage_plugin.plugins import hookimpl
from usage_plugin.plugins.manager import Plugins
from usage_plugin.runtime import BUILTIN_PLUGINS, Runtime
from usage_plugin.testing.clock import FakeClock
from usage_plugin.tracking.admission import alerts as alerts_module
from usage_plugin.tracking.maintenance import keeper as keeper_module
from usage_plugin.tracking.notifications import publishers

if TYPE_CHECKING:
    from collections.abc import Callable

LIMITS = """
    - {name: daily, per: user, window: day, max_cost: 1, alert_at: [50, 80, 100]}
    - {name: rolls, per: user, match: {user: "r*"}, window: {rolling: 2h}, max_requests: 10, alert_at: [50]}
    - {name: free, per: user, window: month, max_cost: unlimited, alert_at: [1]}
"""


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "ROUND_EVERY", 0.05)
    monkeypatch.setattr(keeper_module, "SHORTEN_EVERY", 0.05)


def plugin(monkeypatch: pytest.MonkeyPatch, name: str, told: Callable[[Alert], None]) -> str:
    """Create an importable plugin that is notified of alerts."""

    def usage_threshold_crossed(alert: Alert) -> None:
        told(alert)

    module = ModuleType(name)
    module.usage_threshold_crossed = hookimpl(usage_threshold_crossed)  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, name, module)
    return name


def start(folder: Path, clock: FakeClock, *plugins: str) -> Runtime:
    return Runtime(configure(folder, LIMITS), clock=clock, plugins=Plugins((*BUILTIN_PLUGINS, *plugins)))


async def spend(runtime: Runtime, clock: FakeClock, cost: int, **who: Any) -> None:
    request = await admitted(runtime, clock, cost=cost, **who)
    runtime.recorder.record(request, success(cost))


def short(told: list[Alert]) -> list[tuple[str, int, int]]:
    return [(alert.limit, alert.threshold, alert.amount) for alert in told]


async def test_each_threshold_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each threshold is alerted once, across workers and restarts, for each subject and window."""
    told: list[Alert] = []
    name = plugin(monkeypatch, "tells", told.append)
    clock = FakeClock()
    first, second = start(tmp_path, clock, name), start(tmp_path, clock, name)
    await spend(first, clock, 49 * CENT)
    await spend(first, clock, 1 * CENT)
    await eventually(lambda: short(told) == [("daily", 50, 50 * CENT)])
    alert = told[0]
    assert (alert.subject, alert.unit, alert.maximum) == ({"user": "ann"}, "usd", 100 * CENT)
    assert alert.window.start <= alert.at < alert.window.end
    await spend(first, clock, 1 * CENT)
    await spend(second, clock, 1 * CENT)
    await spend(second, clock, 40 * CENT)
    await eventually(lambda: len(told) == 2)
    await spend(first, clock, 8 * CENT)
    await eventually(lambda: len(told) == 3)
    assert short(told)[1:] == [("daily", 80, 92 * CENT), ("daily", 100, 100 * CENT)]
    await spend(first, clock, 60 * CENT, user="bo")
    await eventually(lambda: len(told) == 4)
    assert told[3].subject == {"user": "bo"}
    for runtime in (first, second):
        await runtime.close()

    restarted = start(tmp_path, clock, name)
    await spend(restarted, clock, 1 * CENT, user="bo")
    clock.advance(timedelta(days=1))
    await spend(restarted, clock, 55 * CENT, user="bo")
    await eventually(lambda: len(told) == 5)
    assert short(told)[4] == ("daily", 50, 55 * CENT)
    await restarted.close()
    assert caplog.text.count("limit.threshold_crossed") == 5
    assert "max='1.00'" in caplog.text


async def test_a_settlement_that_had_to_wait_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A settlement that waits for another process is alerted as soon as it is written, without a further request."""
    told: list[Alert] = []
    clock = FakeClock()
    runtime = start(tmp_path, clock, plugin(monkeypatch, "tells", told.append))
    request = await admitted(runtime, clock, cost=50 * CENT)
    other = sqlite3.connect(runtime.config.data_dir / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    runtime.recorder.record(request, success(50 * CENT))
    assert runtime.request_ledger.pending == 1
    other.execute("COMMIT")
    other.close()
    await eventually(lambda: short(told) == [("daily", 50, 50 * CENT)])
    await runtime.close()


async def test_a_rolling_limit_is_armed_anew_each_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rolling window never ends, so its thresholds are alerted once a day."""
    told: list[Alert] = []
    clock = FakeClock()
    runtime = start(tmp_path, clock, plugin(monkeypatch, "tells", told.append))
    for _ in range(7):
        await spend(runtime, clock, 0, user="rita")
        clock.advance(timedelta(minutes=5))
    await eventually(lambda: short(told) == [("rolls", 50, 5)])
    clock.advance(timedelta(hours=3))
    for _ in range(6):
        await spend(runtime, clock, 0, user="rita")
    clock.advance(timedelta(hours=20))
    for _ in range(6):
        await spend(runtime, clock, 0, user="rita")
    await eventually(lambda: len(told) == 2)
    assert short(told)[1] == ("rolls", 50, 5)
    await runtime.close()


async def test_plugins_that_misbehave_are_isolated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One plugin raises, one hangs: both are named and counted, the third is notified, and requests are not delayed."""
    monkeypatch.setattr(publishers, "HANG_TIMEOUT", 0.2)
    told: list[Alert] = []
    hanging, waking = threading.Event(), threading.Event()

    def fail(alert: Alert) -> None:
        raise ZeroDivisionError("oops")

    def hang(alert: Alert) -> None:
        hanging.set()
        waking.wait(60)

    names = [
        plugin(monkeypatch, name, told_to)
        for name, told_to in (("fails", fail), ("hangs", hang), ("tells", told.append))
    ]
    clock = FakeClock()
    runtime = start(tmp_path, clock, *names)
    started = time.monotonic()
    await spend(runtime, clock, 60 * CENT)
    assert time.monotonic() - started < 30
    await eventually(lambda: len(told) == 1)
    await eventually(hanging.is_set)
    await asyncio.sleep(0.5)
    await spend(runtime, clock, 25 * CENT)
    await eventually(lambda: len(told) == 2)

    def counted() -> dict[str, int]:
        return {found.concerns: found.times for found in runtime.operations.anomalies() if found.kind == "not_told"}

    await eventually(lambda: counted() == {"fails": 2, "hangs": 1})
    assert "plugin='fails'" in caplog.text
    assert "plugin='hangs'" in caplog.text
    waking.set()
    await runtime.close()


async def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more accounts than fit into memory, each is still alerted once, since the ledger has a record."""
    monkeypatch.setattr(alerts_module, "MOST_REMEMBERED", 3)
    told: list[Alert] = []
    clock = FakeClock()
    runtime = start(tmp_path, clock, plugin(monkeypatch, "tells", told.append))
    for _ in range(3):
        for number in range(10):
            await spend(runtime, clock, 55 * CENT if len(told) < 10 else 1, user=f"u{number}")
        await eventually(lambda: len(told) == 10)
    assert len(runtime.alerts._noted) == 3
    assert len({alert.subject["user"] for alert in told}) == 10
    await runtime.close()
