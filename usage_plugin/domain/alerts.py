"""Alerts: what is told once, when what was spent passes a share of a limit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.windows import Window

if TYPE_CHECKING:
    from usage_plugin.domain.limits import Unit


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


def encode_alert(alert: Alert) -> str:
    """Write an alert as JSON."""
    return json.dumps(alert._asdict(), ensure_ascii=False)


def decode_alert(text: str) -> Alert:
    """Read what `encode_alert` wrote."""
    facts = json.loads(text)
    return Alert(**{**facts, "window": Window(*facts["window"])})
