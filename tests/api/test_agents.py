"""Programs record the agent of a request, and query sums, percentiles and events by session and agent."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from usage_plugin.errors import SubjectNameError
from usage_plugin.testing.builders import TODAY

if TYPE_CHECKING:
    from usage_plugin.api import UsageTracker
    from usage_plugin.testing.clock import FakeClock

SPAN: dict[str, Any] = {"start": TODAY, "end": TODAY.replace(day=TODAY.day + 1)}


async def test_sessions_and_agents_can_be_asked_for(tracker: UsageTracker, clock: FakeClock) -> None:
    """`aggregate`, `top`, `percentiles` and `events` accept sessions and agents."""
    for cost, session, agent in ((1, "s-1", None), (2, "s-1", "explorer"), (4, "s-1", "explorer"), (3, "s-2", None)):
        await tracker.record_usage("ann", cost=cost, session_id=session, **({"agent": agent} if agent else {}))
        # Events of one instant are ordered by their ids, which are random within a millisecond.
        clock.advance(timedelta(seconds=1))
    rows = await tracker.aggregate(("session", "agent"), user="ann", **SPAN)
    assert [(row.group, row.usage.cost) for row in rows] == [
        (("s-1", "explorer"), 6), (("s-2", None), 3), (("s-1", None), 1),
    ]  # fmt: skip
    top = await tracker.top(("agent",), most=1, **SPAN)
    assert (top.in_all, [row.group for row in top.rows], top.total.cost) == (2, [("explorer",)], 10)
    found = await tracker.percentiles("cost", by=("agent",), **SPAN)
    assert {row.group: row.events for row in found} == {(None,): 2, ("explorer",): 2}
    # The order of events of one instant is undefined.
    costs = sorted([event.cost async for event in tracker.events(session="s-1", agent="explorer")])
    assert costs == [2 * 10**9, 4 * 10**9]
    assert [event.agent async for event in tracker.events(agent="unknown")] == []


async def test_an_invalid_agent_is_not_recorded(tracker: UsageTracker) -> None:
    """An invalid agent's name is rejected like every other name."""
    with pytest.raises(SubjectNameError):
        await tracker.record_usage("ann", cost=1, agent="a\nb")
