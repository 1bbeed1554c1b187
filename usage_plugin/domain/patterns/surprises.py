"""Surprises: values that differ from what is usual at their time, measured robustly.

A value is compared with earlier values of its slot (the same weekday, or the same hour of that weekday) on a
logarithmic scale, because spend varies by factors, not by sums. Usual is the median of the slot; the spread is the
median absolute deviation over all slots, since one slot alone has too few values. One earlier surprise moves neither.
"""

from __future__ import annotations

import math
from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from usage_plugin.domain.money import Nano

DEVIATIONS = 5.0
"""So many deviations are a surprise. Of values drawn from a log-normal distribution, fewer than one in a million is so
far out; what people really spend has heavier tails, and a thousand users have seven thousand compared days a week."""

HOUR_DEVIATIONS = 7.0
"""The same for hours: a week has 24 times as many of them."""

FACTOR = 3.0
"""Below three times the usual, and above a third of it, nothing is a surprise, however regular it was before."""

LEAST_ACTIVE = 14
"""With fewer earlier values nothing is usual yet."""

LEAST_IN_SLOT = 4
"""A slot with fewer values is measured by those of all slots: whoever never worked on a Sunday has no usual one."""

IDLE_SHARE = 0.02
"""Whoever spent nothing on more of the days in use is away now and then: that they are again is no surprise."""

_LEAST_SPREAD = 0.1
"""Nobody is more regular than to ten per cent; without this, the first different cent would be a surprise."""

_TO_DEVIATION = 1.4826
"""Makes the median absolute deviation of a normal distribution its standard deviation."""


class Observed(NamedTuple):
    """What was spent in one span of time: `slot` says with which others it is compared, `label` which it is."""

    slot: int
    label: str
    spent: Nano


class Surprise(NamedTuple):
    """A value that is not usual; `deviations` is negative where it is too low."""

    label: str
    spent: Nano
    usual: Nano
    deviations: float

    @property
    def more(self) -> Nano:
        """How much more was spent than usual; negative if less."""
        return self.spent - self.usual


class _Usual(NamedTuple):
    """The median of logarithms, and how much wider than their spread a next value may lie."""

    middle: float
    width: float


def _usual(values: Sequence[float]) -> _Usual:
    # The median of few values lies near them, so their spread seems smaller than it is; and it is uncertain itself.
    count = len(values)
    return _Usual(median(values), math.sqrt((count + math.pi / 2) / (count - 1)))


def surprises(before: Sequence[Observed], now: Iterable[Observed], deviations: float = DEVIATIONS) -> list[Surprise]:
    """Compare values with those before them; so many deviations are a surprise.

    Nothing spent is a surprise only of those who hardly ever spent nothing. Earlier values of nothing count for that
    alone: a day off says nothing about what is spent on the others.
    """
    by_slot: defaultdict[int, list[float]] = defaultdict(list)
    for one in before:
        if one.spent > 0:
            by_slot[one.slot].append(math.log(one.spent))
    everything = [value for values in by_slot.values() for value in values]
    if len(everything) < LEAST_ACTIVE:
        return []
    overall = _usual(everything)
    slots = {slot: _usual(values) for slot, values in by_slot.items() if len(values) >= LEAST_IN_SLOT}
    away = [abs(value - slots.get(slot, overall).middle) for slot, values in by_slot.items() for value in values]
    spread = max(_TO_DEVIATION * median(away), _LEAST_SPREAD)
    idle = [one.spent <= 0 for one in before if one.slot in slots]
    is_always_there = sum(idle) <= IDLE_SHARE * len(idle)
    found = []
    for one in now:
        if one.spent <= 0 and not (is_always_there and one.slot in slots):
            continue
        middle, width = slots.get(one.slot, overall)
        distance = math.log(max(one.spent, 1)) - middle
        away_by = distance / (spread * width)
        is_far = abs(away_by) >= deviations and abs(distance) >= math.log(FACTOR)
        # However irregular somebody is: what is far above all that ever was is new.
        if is_far or one.spent >= FACTOR * math.exp(max(everything)):
            found.append(Surprise(one.label, one.spent, round(math.exp(middle)), away_by))
    return found


def loud_hours(day: Sequence[Nano], before: Sequence[Sequence[Nano]]) -> list[int]:
    """Find the hours that made a day dear: a tenth of it or more, and more than usual at that hour of earlier days."""
    most = sum(day)
    return [
        hour
        for hour, spent in enumerate(day)
        if spent * 10 >= most > 0 and spent >= FACTOR * median([one[hour] for one in before] or [0])
    ]
