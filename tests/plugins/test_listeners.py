"""The actions and failures of a subscriber affect nothing else in a worker: no requests, no other plugins."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from tests.plugins.conftest import CENT, not_told
from tests.support.waiting import eventually
from usage_plugin.tracking.notifications import publishers

if TYPE_CHECKING:
    from tests.plugins.conftest import Workplace

RAISES = """
import asyncio
@hookimpl
def usage_event_recorded(event): raise asyncio.CancelledError("oops")
"""


async def test_one_that_raises_or_hangs_is_named_and_harms_nobody(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of three plugins one raises, one hangs, one receives everything; requests continue, and both failures are counted."""
    monkeypatch.setattr(publishers, "HANG_TIMEOUT", 0.2)
    workplace.write("raises.py", RAISES)
    workplace.write(
        "hangs.py",
        """
        import threading
        waking = threading.Event()
        @hookimpl
        def usage_event_recorded(event): waking.wait(30)
    """,
    )
    workplace.write("tells.py", "told = []\n@hookimpl\ndef usage_event_recorded(event): told.append(event.cost)")
    runtime = workplace.start("[{path: raises.py}, {path: hangs.py}, {path: tells.py}]")
    _, hangs, tells = (found.implements for found in runtime.plugins.brought)
    await workplace.spend(runtime, 1)
    (hanging,) = (line for line in runtime._listeners._by_plugin.values() if line.plugin == "hangs")
    await eventually(lambda: hanging.hangs)
    for cost in (2, 3):
        await workplace.spend(runtime, cost)
    await eventually(lambda: tells.told == [1, 2, 3])  # type: ignore[attr-defined]
    await eventually(lambda: not_told(runtime) == {"raises": 3, "hangs": 2})
    assert "plugin='raises'" in caplog.text
    assert "message='oops'" in caplog.text
    assert "hook='usage_event_recorded'" in caplog.text
    # The count is taken before the line is logged.
    await eventually(lambda: "problem='it hangs'" in caplog.text)
    hangs.waking.set()  # type: ignore[attr-defined]
    await eventually(lambda: not hanging.hangs)


async def test_what_waits_is_told_at_the_end(workplace: Workplace) -> None:
    """At an orderly shutdown the queues are emptied before the worker is gone."""
    workplace.write(
        "slow.py",
        """
        import time
        told = []
        @hookimpl
        def usage_event_recorded(event):
            time.sleep(0.01)
            told.append(event.cost)
        @hookimpl
        def usage_threshold_crossed(alert): told.append("alert")
    """,
    )
    runtime = workplace.start("[{path: slow.py}]")
    for _ in range(30):
        await workplace.spend(runtime, 2 * CENT)
    workplace.runtimes.clear()
    await runtime.close()
    told = runtime.plugins.brought[0].implements.told  # type: ignore[attr-defined]
    assert sorted(map(str, told)) == [*["20000000"] * 30, "alert"]


async def test_one_that_hangs_does_not_hold_up_the_end(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end a hanging plugin is abandoned, and its lost notifications are counted."""
    monkeypatch.setattr(publishers.Publishers.stop, "__defaults__", (0.1,))
    workplace.write(
        "hangs.py",
        """
        import threading
        waking = threading.Event()
        @hookimpl
        def usage_event_recorded(event): waking.wait(60)
    """,
    )
    runtime = workplace.start("[{path: hangs.py}]")
    for cost in (1, 2, 3):
        await workplace.spend(runtime, cost)
    module = runtime.plugins.brought[0].implements
    workplace.runtimes.clear()
    await runtime.close()
    module.waking.set()  # type: ignore[attr-defined]
    with sqlite3.connect(workplace.folder / "data" / "ledger.db") as connection:
        counted = connection.execute("SELECT concerns, times FROM imperfections WHERE kind = 'not_told'").fetchall()
    connection.close()
    assert counted in ([("hangs", 2)], [("hangs", 3)])
