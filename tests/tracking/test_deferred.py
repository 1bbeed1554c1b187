"""Deferred work: its reservation outlives its worker, and its result is charged once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.support.waiting import eventually
from tests.tracking.test_tracking import admitted, configure, success
from usage_plugin.encoding import encode_event
from usage_plugin.runtime import Parts, Runtime
from usage_plugin.testing.builders import make_event
from usage_plugin.testing.clock import FakeClock
from usage_plugin.tracking.admission import deferred_reservations
from usage_plugin.tracking.admission.recorder import OpenRequest
from usage_plugin.tracking.maintenance import keeper as keeper_module

if TYPE_CHECKING:
    from pathlib import Path

    from usage_plugin.domain.open_ledger import OpenLedger

DEAD = "999999-dead"


def leave_behind(opened: OpenLedger, provider_id: str | None, *, started_at: int) -> str:
    """Reserve for a worker that is dead by now; with a provider's id, for deferred work."""
    event = make_event(status="recovered", started_at=started_at)
    opened.ledger.reserve(event.event_id, DEAD, event.started_at, [], encode_event(event))
    if provider_id is not None:
        deferred_reservations.defer(opened.operations, provider_id, event.event_id)
    return event.event_id


async def test_any_worker_settles_a_result_and_only_once(tmp_path: Path) -> None:
    """The first worker that finds the reservation by the provider's id settles it; a second one changes nothing."""
    clock = FakeClock()
    runtime = Runtime(configure(tmp_path), clock=clock)
    request = await admitted(runtime, clock)
    assert deferred_reservations.find(runtime.ledger, runtime.operations, "resp_1") is None
    deferred_reservations.defer(runtime.operations, "resp_1", request.event_id)
    found = [deferred_reservations.find(runtime.ledger, runtime.operations, "resp_1") for _ in range(2)]
    for one in found:
        assert one is not None
        assert one.event.event_id == request.event_id
        assert one.subjects == request.admitted.subjects
        runtime.recorder.record(OpenRequest(one, clock.monotonic()), success(7))
    assert deferred_reservations.find(runtime.ledger, runtime.operations, "resp_1") is None, "it is not open any more"
    deferred_reservations.forget(runtime.operations, "resp_1")
    assert runtime.operations.notes(deferred_reservations.NOTE) == {}
    account = request.admitted.demands[0].account
    assert runtime.ledger.balances([account])[account] == (7, 0)
    await runtime.close()


async def test_the_keeper_spares_what_waits_for_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead worker's reservation with a pending result is kept for two days."""
    monkeypatch.setattr(keeper_module, "ROUND_EVERY", 0.1)
    parts = Parts(configure(tmp_path))
    opened = parts.open_ledger()
    ledger = opened.ledger
    now = time.time_ns() // 1000
    waiting = leave_behind(opened, "batch_1", started_at=now)
    leave_behind(opened, None, started_at=now)
    leave_behind(opened, "batch_2", started_at=now - deferred_reservations.LONGEST_DEFERRED - 1)
    runtime = Runtime(parts.config)
    await eventually(lambda: [found.event_id for found in ledger.open_reservations()] == [waiting])
    await eventually(lambda: list(opened.operations.notes(deferred_reservations.NOTE).values()) == [waiting])
    await runtime.close()
    assert [found.event_id for found in ledger.open_reservations()] == [waiting]
    opened.close()
