"""The rules for which the plugin's cost differs from LiteLLM's; all other costs must be equal to the nano-dollar.

Each rule gets the name of the entry, the provider and the usage that were compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class Compared(NamedTuple):
    """One request that was priced twice."""

    entry: str
    sheet: dict[str, Any]
    provider: str
    service: str | None
    usage: dict[str, Any]


REASONED: dict[str, Callable[[Compared], bool]] = {
    # Perplexity counts reasoning in addition to the completion and bills a fee for each request, see
    # https://docs.perplexity.ai/getting-started/pricing for its prices. LiteLLM counts reasoning as part of the
    # completion, bills cached tokens at the full price and ignores `input_cost_per_request`.
    "perplexity bills reasoning and requests apart": lambda it: it.provider == "perplexity",
    # Google's price list has a priority price for audio (https://ai.google.dev/gemini-api/docs/pricing), and so has the
    # map, as `input_cost_per_audio_token_priority`; LiteLLM's look-up of a model drops the key.
    "Gemini's sound has a priority price": lambda it: (
        it.service == "priority" and "input_cost_per_audio_token_priority" in it.sheet
    ),
    # Fireworks has a priority tier (https://fireworks.ai/pricing) and the map has its prices; LiteLLM's calculation for
    # Fireworks ignores the tier.
    "Fireworks has a priority tier": lambda it: it.provider == "fireworks_ai" and it.service == "priority",
    # The name of a partner's model contains its publisher, as in `vertex_ai/xai/grok-4.20`; LiteLLM mistakes the
    # publisher for the provider and finds no price.
    "a publisher is not a provider": lambda it: it.provider == "vertex_ai" and it.entry.count("/") > 1,
}


def reason_of(compared: Compared) -> str | None:
    """Return the name of the rule that explains this difference, or None without one."""
    return next((name for name, applies in REASONED.items() if applies(compared)), None)
