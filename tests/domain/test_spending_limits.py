"""Whether a limit may refuse a request because of its cost or tokens, before the model is known."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

import pytest

from usage_plugin.domain.limit_set import LimitSet
from usage_plugin.domain.limits import Limit, Match, WindowRule
from usage_plugin.domain.subjects import Subjects

ANN = Subjects(user="ann", team="red")


def limit(**fields: Any) -> Limit:
    defaults: dict[str, Any] = {"name": "l", "per": ("user",), "unit": "usd", "amount": 5, "window": WindowRule("day")}
    return Limit(**{**defaults, "zone": ZoneInfo("UTC"), **fields})


@pytest.mark.parametrize(
    ("fields", "may"),
    [
        ({}, True),
        ({"per": ("global",)}, True),
        ({"per": ("model",)}, True),
        ({"per": ("team", "provider")}, True),
        ({"per": ("organization",)}, False),
        ({"unit": "output_tokens"}, True),
        ({"unit": "requests"}, False),
        ({"unit": "parallel_requests"}, False),
        ({"action": "warn"}, False),
        ({"action": "downgrade", "downgrade_to": "m"}, True),
        ({"dry_run": True}, False),
        ({"match": Match((("user", ("a*",)),))}, True),
        ({"match": Match((("user", ("b*",)),))}, False),
        ({"match": Match((("model", ("other",)),))}, True),
        ({"match": Match((("model", ("other",)), ("user", ("b*",))))}, False),
        ({"match": Match((("team", ("red",)),))}, True),
    ],
    ids=str,
)
def test_limits_that_can_stop_spending(fields: dict[str, Any], may: bool) -> None:
    """Limits on any model count, since the model may change; those on absent dimensions do not."""
    limits = LimitSet([limit(**fields)])
    assert limits.may_stop_spending(ANN) is may
    assert limits.may_stop_spending(ANN) is may


def test_without_limits_nothing_stops() -> None:
    """Without limits nothing is refused."""
    assert not LimitSet([]).may_stop_spending(ANN)
