"""A batch job that keeps to a budget, without the proxy: each step's maximum cost is held before it starts.

    python examples/batch_job.py --data-dir ./data/batch --user ann --steps 5

Each user may spend five cents a day. A step reserves its maximum cost, works, and settles its actual cost. When the
rest of the day's budget is too small for another step, the job stops and prints the time of the next reset.
"""

from __future__ import annotations

import argparse
import asyncio
from decimal import Decimal

from usage_plugin.api import BudgetExceededError, UsageTracker, open_tracker

LIMITS = [{"name": "daily", "per": "user", "window": "day", "max_cost": "0.05"}]
MOST = Decimal("0.02")
"""The maximum cost of a step."""


async def work(step: int) -> tuple[Decimal, int]:
    """Simulate a call of a model; return its cost and its tokens."""
    await asyncio.sleep(0)
    return Decimal("0.012"), 800 + step


async def run(tracker: UsageTracker, user: str, steps: int) -> int:
    """Run the steps, or as many as the budget allows; return their number."""
    for step in range(steps):
        try:
            async with tracker.reserve_budget(user, MOST, model="gpt-4o-mini", session_id="batch") as held:
                cost, tokens = await work(step)
                held.settle(cost, input_tokens=tokens)
        except BudgetExceededError as refused:
            print(f"Stopped after {step} steps: {refused}")
            return step
        print(f"Step {step + 1}: {cost} USD, {await tracker.get_user_daily_usage(user)} USD today")
    return steps


async def main() -> None:
    """Parse the command line, and run the job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="./data/batch")
    parser.add_argument("--user", default="ann")
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    section = {"data_dir": given.data_dir, "limits": LIMITS, "admission": {"max_wait": "0s"}}
    async with open_tracker(section) as tracker:
        await run(tracker, given.user, given.steps)
        (limit,) = (await tracker.get_user_usage_summary(given.user)).limits
        print(f"{limit.name}: {limit.spent} of {limit.amount} USD spent, {limit.remaining} left")


if __name__ == "__main__":
    asyncio.run(main())
