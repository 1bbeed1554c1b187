"""Patterns in time: the busy hours of the day, and sudden changes of spend."""

from __future__ import annotations

from collections import defaultdict
from datetime import date, timedelta
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.patterns.pattern import LEAST_IMPACT, LEAST_REQUESTS, Pattern, percent, rounded, share, usd
from usage_plugin.domain.patterns.surprises import HOUR_DEVIATIONS, Observed, surprises

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.patterns.surprises import Surprise
    from usage_plugin.domain.usage import UsageTotals

PEAK_SHARE = 0.5
PEAK_HOURS = 6
"""Hours are a peak if at most six of them have half of all requests: evenly spread, twelve would have them."""

PEAK_DAYS = 7
"""The minimum number of days with requests for a peak: fewer do not show a rhythm."""

LEAST_FALLEN = 3
"""The minimum number of cheap days for a finding: one is a day off, three of the compared days are a change."""


WEEKS = 12
"""The number of earlier weeks for full confidence: more weeks do not make the usual value more exact."""


class HourUse(NamedTuple):
    """The usage of one hour, named by its local start with its offset."""

    hour: str
    totals: UsageTotals

    @property
    def of_day(self) -> int:
        """The hour of the day, from 0 to 23."""
        return int(self.hour[11:13])

    @property
    def observed(self) -> Observed:
        """The spend, comparable with the same hour of the same weekday."""
        weekday = date.fromisoformat(self.hour[:10]).weekday()
        return Observed(weekday * 24 + self.of_day, self.hour, self.totals.cost)


def peak_hours(hours: Sequence[HourUse]) -> Iterator[Pattern]:
    """Find the shortest run of hours of the day with half of all requests; none if it is longer than `PEAK_HOURS`."""
    requests, costs = [0] * 24, [0] * 24
    days: defaultdict[str, list[int]] = defaultdict(lambda: [0] * 24)
    for use in hours:
        requests[use.of_day] += use.totals.requests
        costs[use.of_day] += use.totals.cost
        days[use.hour[:10]][use.of_day] += use.totals.requests
    whole = sum(requests)
    if whole < LEAST_REQUESTS or len(days) < PEAK_DAYS:
        return
    run = _shortest_run(requests, whole)
    if len(run) > PEAK_HOURS:
        return
    inside = sum(requests[hour] for hour in run)
    even = len(run) / 24
    held = sum(sum(day[hour] for hour in run) > even * sum(day) for day in days.values())
    begin, end = run[0], (run[-1] + 1) % 24
    yield Pattern(
        "peak_hours",
        description=f"{percent(inside, whole)} of the requests are made from {begin:02d}:00 to {end:02d}:00,"
        f" {inside / len(run) / ((whole - inside) / (24 - len(run)) or 1):.1f} times as many an hour as otherwise.",
        advice="What can wait finds more room under limits by the minute at other hours.",
        evidence={
            "from_hour": begin,
            "to_hour": end,
            "requests": inside,
            "share_of_requests": share(inside, whole),
            "share_of_cost": share(sum(costs[hour] for hour in run), sum(costs)),
            "days": len(days),
        },
        amounts={"cost": sum(costs[hour] for hour in run)},
        cost_impact=None,
        confidence=share(held, len(days)),
        confidence_basis=f"On {held} of {len(days)} days with requests these hours had more than an even share.",
    )


def _shortest_run(requests: Sequence[int], whole: int) -> list[int]:
    """Return the shortest run of hours, over midnight too, with `PEAK_SHARE` of requests; of equals, the busiest."""
    for length in range(1, 25):
        runs = [[(begin + at) % 24 for at in range(length)] for begin in range(24)]
        run = max(runs, key=lambda run: sum(requests[hour] for hour in run))
        if sum(requests[hour] for hour in run) >= PEAK_SHARE * whole:
            return run
    return list(range(24))


def sudden_changes_by_hour(hours: Sequence[HourUse], since: date, user: str | None = None) -> Iterator[Pattern]:
    """Find rises of the spend in the hours from a day on, against the same hours of the same weekday before.

    Args:
        hours: the hours with requests: of one user, or of all users together.
        since: the first day that is compared.
        user: the user of these hours, if they are one user's.
    """
    before = [use.observed for use in hours if use.hour[:10] < since.isoformat()]
    now = [use.observed for use in hours if use.hour[:10] >= since.isoformat()]
    found = [one for one in surprises(before, now, HOUR_DEVIATIONS) if one.more >= LEAST_IMPACT]
    weeks = len({one.label[:10] for one in before}) / 7
    for pattern in _change(user or "All users together", "hours", found, weeks):
        yield pattern if user is None else pattern._replace(affected_users=(user,))


def sudden_changes(
    user: str, days: Mapping[date, Nano], since: date, last: date, *, is_over: bool
) -> Iterator[Pattern]:
    """Find changes of a user's spend from a day on, against the same weekdays before.

    Args:
        user: the user's name.
        days: the user's spend by day; absent days are days without usage.
        since: the first day that is compared.
        last: the last day.
        is_over: whether the last day has ended. A day that has not can already be above the usual, but not below.
    """
    earlier = [day for day in days if day < since]
    if not earlier:
        return
    span = [min(earlier) + timedelta(days=at) for at in range((last - min(earlier)).days + 1)]
    observed = [Observed(day.weekday(), day.isoformat(), days.get(day, 0)) for day in span]
    before, now = (
        [one for one in observed if (one.label >= since.isoformat()) is compared] for compared in (False, True)
    )
    found = [
        one
        for one in surprises(before, now)
        if abs(one.more) >= LEAST_IMPACT and (one.deviations > 0 or is_over or one.label != last.isoformat())
    ]
    weeks = len(before) / 7
    for is_rise in (True, False):
        some = [one for one in found if (one.deviations > 0) is is_rise]
        if is_rise or len(some) >= LEAST_FALLEN:
            for pattern in _change(user, "days", some, weeks):
                yield pattern._replace(affected_users=(user,))


def _change(who: str, unit: str, found: Sequence[Surprise], weeks: float) -> Iterator[Pattern]:
    if not found:
        return
    spent, usual = sum(one.spent for one in found), sum(one.usual for one in found)
    farthest = max(found, key=lambda one: abs(one.deviations))
    distance = abs(farthest.deviations)
    when = found[0].label if len(found) == 1 else f"{len(found)} {unit} from {found[0].label} to {found[-1].label}"
    yield Pattern(
        "sudden_change",
        description=f"{who} spent {usd(spent)} USD on {when}, where {usd(usual)} USD is usual on"
        f" {'such a weekday' if unit == 'days' else 'that weekday at that hour'}.",
        advice="usage-plugin events --user … shows the requests; a limit per user and day would have held a rise."
        if spent > usual
        else "Ask whether something has stopped working.",
        evidence={
            unit: len(found),
            "first": found[0].label,
            "last": found[-1].label,
            "deviations": rounded(farthest.deviations),
            "weeks_before": rounded(weeks),
            **({"times_usual": rounded(spent / usual)} if usual else {}),
        },
        amounts={"spent": spent, "usual": usual},
        cost_impact=spent - usual,
        confidence=rounded(min(1.0, weeks / WEEKS) * max(0.0, 1 - 1 / distance**2)),
        confidence_basis=f"1 - 1/{distance:.1f}², after Chebyshev, for {distance:.1f} deviations, times the share of"
        f" {WEEKS} weeks that there were to compare with: {weeks:.1f}.",
    )


def at_hours(pattern: Pattern, hours: Sequence[int]) -> Pattern:
    """Return the pattern of a user's sudden change with the hours of its last day that caused it."""
    if not hours:
        return pattern
    words = ", ".join(f"{hour:02d}" for hour in hours)
    return pattern._replace(
        description=f"{pattern.description} Of {pattern.evidence['last']} it was mostly the hours {words}.",
        evidence={**pattern.evidence, "in_hours": words},
    )
