"""Builders of domain objects, with everything filled in that a test does not care for."""

from __future__ import annotations

from typing import Any

from usage_plugin.domain.prices import Rates
from usage_plugin.domain.usage import UsageEvent, new_event_id

NOON = 1_795_435_200_000_000
"""2026-11-23 12:00 UTC."""


def make_event(**fields: Any) -> UsageEvent:
    """Make an event: a success of ann's, 10 tokens in and 5 out, for $0.01."""
    event: dict[str, Any] = {
        "event_id": new_event_id(),
        "started_at": NOON,
        "status": "success",
        "call_type": "acompletion",
        "user": "ann",
        "model": "gpt",
        "provider": "openai",
        "input_tokens": 10,
        "output_tokens": 5,
        "cost": 10_000_000,
        "cost_source": "computed",
    }
    return UsageEvent(**{**event, **fields})


def make_rates(prompt: int = 0, answer: int = 0, **parts: int) -> Rates:
    """Make rates in atto-dollars; a part that is not named costs what its whole costs."""
    rates = dict.fromkeys(("cached_input", "cache_write", "audio_input", "image_input"), prompt)
    rates |= dict.fromkeys(("reasoning", "audio_output", "image_output"), answer)
    rates |= parts
    rates.setdefault("cached_audio", rates["cached_input"])
    rates.setdefault("cache_write_1h", rates["cache_write"])
    return Rates(input=prompt, output=answer, **rates)
