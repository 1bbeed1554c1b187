"""Surprises: values that differ from the usual value of their time, by a robust measure.

A value is compared with earlier values of its slot: the same weekday, or the same hour of that weekday. The scale is
logarithmic, because spend varies by factors, not by sums. The usual value is the median of the slot. The spread is the
median absolute deviation over all slots, since one slot alone has too few values. One earlier surprise changes neither.
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
"""The minimum number of deviations of a surprise. In a log-normal distribution, fewer than one value in a million is
this far out. Real spend has heavier tails, and a thousand users have seven thousand compared days a week."""

HOUR_DEVIATIONS = 7.0
"""The same for hours: a week has 24 times as many of them."""

FACTOR = 3.0
"""The minimum factor of a surprise. A value between a third and three times the usual one is never a surprise, however
regular the earlier values were."""

LEAST_ACTIVE = 14
"""The minimum number of earlier values for a usual value."""

LEAST_IN_SLOT = 4
"""A slot with fewer values is compared with all slots: a user who never worked on a Sunday has no usual Sunday."""

IDLE_SHARE = 0.02
"""The maximum share of earlier days without spend, in slots with enough values, for which a new one is a surprise. A
user with more of them is away now and then."""

_LEAST_SPREAD = 0.1
"""The minimum spread, about ten per cent: without it, a user with constant spend has a surprise at the first cent."""

_TO_DEVIATION = 1.4826
"""The ratio of the standard deviation to the median absolute deviation, in a normal distribution."""


class Observed(NamedTuple):
    """The spend of one span of time: `slot` groups the spans that are compared, `label` names the span."""

    slot: int
    label: str
    spent: Nano


class Surprise(NamedTuple):
    """An unusual value; `deviations` is negative if it is too low."""

    label: str
    spent: Nano
    usual: Nano
    deviations: float

    @property
    def more(self) -> Nano:
        """The spend above the usual; negative if below."""
        return self.spent - self.usual


class _Usual(NamedTuple):
    """The median of logarithms, and the factor by which the next value's spread is wider than theirs."""

    middle: float
    width: float


def _usual(values: Sequence[float]) -> _Usual:
    # The median of few values is near them, so their spread seems too small; and the median itself is uncertain.
    count = len(values)
    return _Usual(median(values), math.sqrt((count + math.pi / 2) / (count - 1)))


def surprises(before: Sequence[Observed], now: Iterable[Observed], deviations: float = DEVIATIONS) -> list[Surprise]:
    """Return the values that differ from the usual by at least `deviations`, or are far above all earlier ones.

    A value of zero is a surprise only if earlier values were hardly ever zero. Earlier zeros count only for that: a day
    off says nothing about the spend on other days.
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
        # A value far above all earlier ones is a surprise, however irregular the user is.
        if is_far or one.spent >= FACTOR * math.exp(max(everything)):
            found.append(Surprise(one.label, one.spent, round(math.exp(middle)), away_by))
    return found


def loud_hours(day: Sequence[Nano], before: Sequence[Sequence[Nano]]) -> list[int]:
    """Return the hours that made a day expensive.

    Each has at least a tenth of the day's spend, and at least `FACTOR` times the median of that hour on earlier days.
    """
    most = sum(day)
    return [
        hour
        for hour, spent in enumerate(day)
        if spent * 10 >= most > 0 and spent >= FACTOR * median([one[hour] for one in before] or [0])
    ]
