"""Alerts: one notification when spend crosses a share of a limit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.windows import Window

if TYPE_CHECKING:
    from usage_plugin.domain.limits import Unit


class Alert(NamedTuple):
    """A threshold that was crossed: once for each limit, subject, window and threshold.

    Attributes:
        limit: the limit's name.
        subject: dimension to name, for example `{"user": "ann"}`; empty for everybody.
        threshold: percent of the maximum.
        unit: the unit of amount and maximum; `usd` is nano-dollars.
        amount: the amount spent so far.
        maximum: the amount that may be spent.
        window: the limit's window; if it rolls, the bucket that was charged.
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
    """Return an alert as JSON."""
    return json.dumps(alert._asdict(), ensure_ascii=False)


def decode_alert(text: str) -> Alert:
    """Return the alert that `encode_alert` wrote."""
    facts = json.loads(text)
    return Alert(**{**facts, "window": Window(*facts["window"])})
