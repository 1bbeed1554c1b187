"""Patterns of accounts: limits that will be exceeded before their window ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.patterns.pattern import Pattern, rounded, usd
from usage_plugin.domain.windows import MICROSECONDS, to_datetime

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.limits import Unit
    from usage_plugin.domain.windows import Window

LEAST_ELAPSED = 0.2
"""The minimum elapsed share of a window, from which its spend can be projected to its end."""

PASS_MARGIN = 1.1
"""The minimum ratio of projection to limit for a finding: a straight line is not more exact than that."""

_LEAST_WINDOW = 20 * 3_600 * MICROSECONDS
"""The minimum length of a window: windows shorter than a day end before an operator has read the finding."""


class LimitState(NamedTuple):
    """The balance of a user's account of a limit at an instant; amounts of `usd` are nano-dollars."""

    limit: str
    user: str
    unit: Unit
    amount: int
    spent: int
    window: Window
    at: int
    zone: ZoneInfo


def limits_ahead(states: Iterable[LimitState]) -> Iterator[Pattern]:
    """Find users who will exceed a limit before its window ends, if they continue at the same rate."""
    for state in states:
        (start, end), spent, amount = state.window, state.spent, state.amount
        elapsed = (state.at - start) / (end - start)
        if end - start < _LEAST_WINDOW or elapsed < LEAST_ELAPSED or not 0 < spent < amount:
            continue
        projected = spent * (end - start) // (state.at - start)
        if projected <= PASS_MARGIN * amount:
            continue
        passes_at = to_datetime(start + (state.at - start) * amount // spent, state.zone)
        is_money = state.unit == "usd"
        amounts = {"spent": spent, "limit": amount, "projected": projected}
        unit = "USD" if is_money else state.unit.replace("_", " ")
        words = {name: usd(value) if is_money else f"{value:,}" for name, value in amounts.items()}
        yield Pattern(
            "limit_ahead",
            description=f"{state.user} has used {words['spent']} of {words['limit']} {unit} of the limit {state.limit},"
            f" and will have used it up on {passes_at:%Y-%m-%d at %H:%M}; {words['projected']} by the end of the"
            " window.",
            advice="Talk to them before they are refused, or usage-plugin raise for a while.",
            evidence={
                "elapsed": rounded(elapsed),
                "times_the_limit": rounded(projected / amount),
                "passes_at": passes_at.isoformat(timespec="minutes"),
                "limit_name": state.limit,
                **({} if is_money else amounts),
            },
            amounts=amounts if is_money else {},
            cost_impact=projected - amount if is_money else None,
            confidence=rounded(elapsed),
            confidence_basis=f"{elapsed:.0%} of the window is over; the rest is taken to go on in the same way.",
            affected_users=(state.user,),
        )
