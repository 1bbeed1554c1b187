"""Budgets that a program reserves are settled or released exactly, for any outcome of the work."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from usage_plugin.api import BudgetExceededError, NotAdmittedError, UsagePluginError, open_tracker
from usage_plugin.domain.money import to_decimal
from usage_plugin.errors import MoneyError, SubjectNameError
from usage_plugin.tracking.ledger_retry import wait_while_busy

if TYPE_CHECKING:
    from usage_plugin.api import UsageTracker, UserLimit

ROOT = Path(__file__).parents[2]


async def limit_of(tracker: UsageTracker, name: str, user: str = "ann") -> UserLimit:
    summary = await tracker.get_user_usage_summary(user)
    return next(limit for limit in summary.limits if limit.name == name)


async def test_a_budget_is_settled_to_the_actual_cost(tracker: UsageTracker) -> None:
    """A held amount is not available to others; settling frees the rest and records one event."""
    async with tracker.reserve_budget(
        "ann", "0.80", model="gpt", provider="openai", session_id="s1", max_input_tokens=500, max_output_tokens=400
    ) as held:
        assert held.amount == Decimal("0.80")
        assert (await limit_of(tracker, "daily")).reserved == Decimal("0.80")
        with pytest.raises(BudgetExceededError) as refused:
            async with tracker.reserve_budget("ann", "0.21"):
                pass
        event = held.settle("0.30", input_tokens=300, output_tokens=40)
    daily = await limit_of(tracker, "daily")
    assert (daily.spent, daily.reserved, daily.remaining) == (Decimal("0.30"), 0, Decimal("0.70"))
    assert (refused.value.reason, refused.value.facts["limit"], refused.value.facts["needed"]) == (
        "busy",
        "daily",
        "0.21",
    )
    assert refused.value.retry_after == 1.0
    assert "ann has used 0.00 of 1.00 USD today (limit daily), and requests in flight hold 0.80" in str(refused.value)
    assert [found async for found in tracker.events(user="ann")] == [event]
    assert (event.event_id, event.status, to_decimal(event.cost or 0), event.cost_source) == (
        held.event_id,
        "success",
        Decimal("0.30"),
        "given",
    )
    assert (event.model, event.provider, event.session, event.input_tokens) == ("gpt", "openai", "s1", 300)


@pytest.mark.parametrize("error", [None, ValueError, asyncio.CancelledError])
async def test_an_unsettled_budget_is_released(tracker: UsageTracker, error: type[BaseException] | None) -> None:
    """After its block, an exception or a cancellation, an unsettled budget costs nothing and has no event."""
    try:
        async with tracker.reserve_budget("ann", 1) as held:
            if error:
                raise error
    except (ValueError, asyncio.CancelledError):
        pass
    daily = await limit_of(tracker, "daily")
    assert (daily.spent, daily.reserved) == (0, 0)
    assert not [event async for event in tracker.events()]
    with pytest.raises(UsagePluginError, match="was already settled or released"):
        held.settle("0.10")


async def test_a_settled_budget_stays_settled_when_the_work_fails_afterwards(tracker: UsageTracker) -> None:
    """If work fails after its settlement, the charge stays and is not repeated."""
    with suppress(ValueError):
        async with tracker.reserve_budget("ann", 1) as held:
            held.settle("0.25", status="failure", error="Timeout")
            raise ValueError
    assert await tracker.get_user_daily_usage("ann") == Decimal("0.25")
    (event,) = [event async for event in tracker.events()]
    assert (event.status, event.error) == ("failure", "Timeout")
    with pytest.raises(UsagePluginError, match="was already settled or released"):
        held.settle("0.25")


async def test_a_hundred_at_once_get_as_many_as_fit(tracker: UsageTracker) -> None:
    """Of a hundred concurrent tasks that want 0.20 of 1.00 each, exactly five get it."""
    gate = asyncio.Event()

    async def work() -> bool:
        try:
            async with tracker.reserve_budget("ann", "0.20") as held:
                await gate.wait()
                held.settle("0.20")
        except BudgetExceededError:
            return False
        return True

    tasks = [asyncio.ensure_future(work()) for _ in range(100)]
    await asyncio.sleep(0)
    gate.set()
    assert sum(await asyncio.gather(*tasks)) == 5
    assert (await limit_of(tracker, "daily")).spent == 1


async def test_a_budget_is_waited_for(section: dict[str, Any]) -> None:
    """A budget that does not fit yet is admitted after another one has settled."""
    section["admission"] = {"max_wait": "60s"}
    async with open_tracker(section) as tracker:

        async def second() -> None:
            async with tracker.reserve_budget("ann", "0.90") as held:
                held.settle("0.10")

        async with tracker.reserve_budget("ann", "0.90") as first:
            waiting = asyncio.ensure_future(second())
            await asyncio.sleep(0.05)
            assert not waiting.done()
            first.settle("0.05")
        await asyncio.wait_for(waiting, 30)
        assert await tracker.get_user_daily_usage("ann") == Decimal("0.15")


async def test_more_than_was_reserved_is_charged_and_marked(tracker: UsageTracker) -> None:
    async with tracker.reserve_budget("ann", "0.10") as held:
        event = held.settle("0.15")
    assert to_decimal(event.excess) == Decimal("0.05")
    assert (await limit_of(tracker, "daily")).spent == Decimal("0.15")


async def test_an_unknown_cost_is_charged_as_reserved(tracker: UsageTracker) -> None:
    async with tracker.reserve_budget("ann", "0.10", model="gpt") as held:
        event = held.settle(None, status="cancelled")
    assert (to_decimal(event.cost or 0), event.cost_source, event.estimated, event.status) == (
        Decimal("0.10"),
        "reserved",
        True,
        "cancelled",
    )


async def test_limits_match_on_the_model_and_count_the_tokens(tracker: UsageTracker) -> None:
    """A limit on a model counts only that model; a limit on tokens needs a maximum."""
    with pytest.raises(BudgetExceededError) as refused:
        async with tracker.reserve_budget("ann", "0.60", model="opus-5"):
            pass
    assert (refused.value.reason, refused.value.facts["limit"], refused.value.retry_after) == (
        "too_large",
        "opus",
        None,
    )
    with pytest.raises(NotAdmittedError, match="tokens") as unbounded:
        async with tracker.reserve_budget("ann", "0.60", session_id="s"):
            pass
    assert (unbounded.value.reason, isinstance(unbounded.value, BudgetExceededError)) == ("unbounded", False)
    with pytest.raises(BudgetExceededError, match="tokens"):
        async with tracker.reserve_budget("ann", "0.60", session_id="s", max_input_tokens=900, max_output_tokens=101):
            pass


async def test_a_refusal_can_be_looked_up(tracker: UsageTracker, section: dict[str, Any]) -> None:
    """`usage-plugin explain` knows the ref of the error."""
    with pytest.raises(BudgetExceededError) as refused:
        async with tracker.reserve_budget("ann", 2):
            pass
    wait_while_busy(lambda: tracker._runtime.refusals.hand_over(tracker._runtime.operations))
    assert tracker._runtime.operations.refusal(refused.value.facts["ref"])


@pytest.mark.parametrize(
    ("user", "amount", "error"), [("ann", "-1", MoneyError), ("ann", "much", MoneyError), ("a\nb", 1, SubjectNameError)]
)
def test_nonsense_is_refused_at_the_call(tracker: UsageTracker, user: str, amount: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        tracker.reserve_budget(user, amount)


async def test_a_release_waits_for_a_busy_ledger(tracker: UsageTracker, section: dict[str, Any]) -> None:
    """A release succeeds even while another process is writing."""
    other = sqlite3.connect(Path(section["data_dir"]) / "ledger.db", isolation_level=None)
    async with tracker.reserve_budget("ann", 1):
        other.execute("BEGIN IMMEDIATE")
        asyncio.get_running_loop().call_later(0.05, other.execute, "COMMIT")
    assert (await limit_of(tracker, "daily")).reserved == 0
    other.close()


async def test_the_hold_of_a_killed_program_is_charged(section: dict[str, Any]) -> None:
    """If a program dies inside a reservation, one event is charged as reserved and marked `recovered`."""
    code = (
        "import asyncio, json, os, sys\n"
        "from usage_plugin.api import open_tracker\n"
        "async def main():\n"
        "    async with open_tracker(json.loads(sys.argv[1])) as tracker, tracker.reserve_budget('ann', '0.40'):\n"
        "        os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(section)], cwd=ROOT, check=False)
    assert done.returncode == -9
    async with open_tracker(section) as tracker:
        for _ in range(600):
            if await tracker.get_user_daily_usage("ann"):
                break
            await asyncio.sleep(0.1)
        (event,) = [event async for event in tracker.events()]
        assert (event.status, to_decimal(event.cost or 0)) == ("recovered", Decimal("0.40"))
