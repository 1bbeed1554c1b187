"""Alerts: what is told once, when what was spent passes a share of a limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from usage_plugin.domain.limits import Unit
    from usage_plugin.domain.windows import Window


class Alert(NamedTuple):
    """A threshold that was passed: once for each limit, subject, window and threshold.

    Attributes:
        limit: the limit's name.
        subject: dimension to name, for example `{"user": "ann"}`; empty for everybody.
        threshold: percent of the maximum.
        unit: what amount and maximum count; `usd` is nano-dollars.
        amount: what is spent now.
        maximum: what may be spent.
        window: the limit's window; where it rolls, the bucket that was charged.
        at: microseconds since 1970 UTC.
    """

    limit: str
    subject: dict[str, str]
    threshold: int
    unit: Unit
    amount: int
    maximum: int
    window: Window
    at: int
