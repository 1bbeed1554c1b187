"""Patterns of requests: failures that cost money."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from usage_plugin.domain.patterns.pattern import LEAST_IMPACT, Pattern, dearest_first, rounded, share, usd
from usage_plugin.domain.windows import MICROSECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.usage import UsageEvent

LEAST_FAILED = 10
FAILED_SHARE = 0.01
"""Failures are a finding if there are ten, with one per cent of the model's cost: single ones occur everywhere."""

TRIED_AGAIN_US = 60 * MICROSECONDS
"""The next request of the same user to the same model within this time counts as a retry."""


class _Failed:
    def __init__(self) -> None:
        self.requests = self.failed = self.tried_again = 0
        self.cost = self.failed_cost = 0
        self.users: defaultdict[str, Nano] = defaultdict(int)


class CostlyFailures:
    """Add up failed requests that cost money; events arrive newest first, and are not kept."""

    def __init__(self) -> None:
        """Start without events."""
        self.read = 0
        self._models: defaultdict[str, _Failed] = defaultdict(_Failed)
        self._next: dict[tuple[str, str], int] = {}
        """The start of the next request, by user and model."""

    def add(self, event: UsageEvent) -> None:
        """Add an event that is older than those before."""
        self.read += 1
        model, cost = event.model or "(no model)", event.cost or 0
        one = self._models[model]
        one.requests += 1
        one.cost += cost
        later = self._next.get((event.user, model))
        self._next[event.user, model] = event.started_at
        if event.failed and cost > 0:
            one.failed += 1
            one.failed_cost += cost
            one.users[event.user] += cost
            one.tried_again += later is not None and later - event.started_at <= TRIED_AGAIN_US

    def patterns(self, requests: int) -> Iterator[Pattern]:
        """Find models with expensive failures; `requests` is the number of all requests in the span."""
        for model, one in self._models.items():
            if one.failed < LEAST_FAILED or one.failed_cost < max(LEAST_IMPACT, FAILED_SHARE * one.cost):
                continue
            yield Pattern(
                "costly_failures",
                description=f"{one.failed:,} failed requests to {model} were paid for, with {usd(one.failed_cost)}"
                f" USD; {one.tried_again:,} of them were tried again within a minute.",
                advice="usage-plugin events shows their errors; try fewer retries, or longer timeouts.",
                evidence={
                    "requests": one.requests,
                    "failed_and_paid": one.failed,
                    "tried_again": one.tried_again,
                    "share_of_cost": share(one.failed_cost, one.cost),
                    "requests_read": self.read,
                    "requests_in_all": requests,
                },
                amounts={"cost": one.cost, "cost_of_failures": one.failed_cost},
                cost_impact=one.failed_cost,
                confidence=rounded(1 - one.failed**-0.5),
                confidence_basis=f"1 - 1/√{one.failed}: so exact is a count of {one.failed}; {self.read:,} of"
                f" {requests:,} requests, the newest, were read.",
                models=(model,),
                affected_users=dearest_first(one.users),
            )
