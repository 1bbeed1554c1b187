"""LiteLLM's catalog: its names of models, its discounts, its regions; the only module here that imports LiteLLM.

A model's name leads to an entry of the price map as LiteLLM would find it: LiteLLM names the candidates,
provider by provider, and says whether an entry is that provider's. They are looked up in the map as it was at the
start: later the router registers deployments under names of their own in the shared one, and LiteLLM's complete look-up
asks some providers (Ollama, Hugging Face) over the network.
"""

from __future__ import annotations

from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

import litellm
from litellm import utils
from litellm.llms.azure_ai import cost_calculator as azure_ai
from litellm.llms.fireworks_ai.cost_calculator import get_base_model_for_pricing
from litellm.llms.openai.data_residency import infer_openai_data_residency
from litellm.llms.together_ai.cost_calculator import get_model_params_and_category
from litellm.types.utils import CallTypes

from usage_plugin.domain.prices import NO_ADJUSTMENT, Adjustment, atto_each

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_ORDER = (
    "combined_model_name", "region_free_combined_model_name", "split_model", "combined_stripped_model_name",
    "stripped_model_name", "provider_prefixed_model_name",
)  # fmt: skip
"""The candidates in LiteLLM's order (`litellm.utils.get_model_info_helper`); older versions lack some."""

_SIGNING_IN = frozenset({"github_copilot", "chatgpt"})
"""Providers for which LiteLLM signs in over the network as soon as it is asked who serves a model."""


@contextmanager
def unprinted() -> Iterator[None]:
    """Keep LiteLLM from printing its list of providers where it knows none."""
    shown, litellm.suppress_debug_info = litellm.suppress_debug_info, True
    try:
        yield
    finally:
        litellm.suppress_debug_info = shown


def provider_of(model: str, provider: object = None, api_base: object = None) -> tuple[str, str | None]:
    """Return a model's name without its provider, and the provider as LiteLLM routes to it; None if it knows none.

    Args:
        model: as in `litellm_params.model`.
        provider: `litellm_params.custom_llm_provider`, if there is one.
        api_base: `litellm_params.api_base`, which names some providers.
    """
    named = str(provider) if provider else None
    prefix, _, bare = model.partition("/")
    if (named or prefix) in _SIGNING_IN:
        return (bare if prefix in _SIGNING_IN else model), named or prefix
    try:
        with unprinted():
            name, found, _, _ = litellm.get_llm_provider(
                model, custom_llm_provider=named, api_base=api_base if isinstance(api_base, str) else None
            )
    except Exception:  # noqa: BLE001  # LiteLLM raises for models it does not know
        return model, named
    # The same prices under either name, as LiteLLM takes them.
    return name, "vertex_ai" if found == "vertex_ai_beta" else found


def entry_name(price_map: Mapping[str, Any], model: str, provider: str | None) -> str | None:
    """Return the name of the entry that prices a model; None if there is none.

    Args:
        price_map: LiteLLM's, as it was shipped.
        model: with or without its provider in front.
        provider: as `provider_of` finds it.
    """
    for name in _candidates(price_map, model, provider):
        entry = price_map.get(name)
        if isinstance(entry, dict) and utils._check_provider_match(cast("dict[str, Any]", entry), provider):  # noqa: SLF001
            return name
    return None


def _candidates(price_map: Mapping[str, Any], model: str, provider: str | None) -> Iterator[str]:
    """Yield the names of a model in LiteLLM's order: those of its cost calculation, then those of its look-up."""
    aliases = {**litellm.azure_llms, **litellm.azure_embedding_models}
    # The prefix chooses the provider's API; LiteLLM takes it off before it calls.
    model = aliases.get(model, model).removeprefix("responses/")
    if provider == "together_ai" and "input_cost_per_token" not in price_map.get(f"together_ai/{model}", ()):
        # Models without a price of their own cost what their size says.
        for call_type in (CallTypes.completion, CallTypes.embedding):
            yield get_model_params_and_category(model, call_type=call_type)
    qualified = _qualified(price_map, model, provider)
    prefixed = qualified if provider is None or qualified.startswith(f"{provider}/") else f"{provider}/{qualified}"
    spellings = (prefixed, qualified, qualified.partition("/")[2])
    spelled = next((name for name in spellings if name in price_map), qualified)
    yield spelled
    for name in dict.fromkeys((spelled, model)):
        with unprinted():
            potential = cast("dict[str, str]", utils._get_potential_model_names(name, provider))  # noqa: SLF001
        yield from (potential[kind] for kind in _ORDER if potential.get(kind))
    if provider == "fireworks_ai":
        yield get_base_model_for_pricing(model)


def _qualified(price_map: Mapping[str, Any], model: str, provider: str | None) -> str:
    """Put the provider in front, and leave out what stands between it and a name of the map, such as `converse/`."""
    segments = model.split("/")
    if provider is None or segments[0] in litellm.provider_list:
        return model
    if model not in price_map:
        for start in range(len(segments)):
            if (name := "/".join([provider, *segments[start:]])) in price_map:
                return name
    return f"{provider}/{model}"


_is_azure_router = getattr(azure_ai, "is_azure_model_router", None) or azure_ai._is_azure_model_router  # noqa: SLF001


def picks_the_model(served_model: str) -> bool:
    """Whether the provider chooses the model that answers: a model router, whose own price is only a fee."""
    return _is_azure_router(served_model) or served_model.rpartition("/")[2] == "auto"


def adjustment_of(provider: str | None) -> Adjustment:
    """Return what `cost_discount_config` and `cost_margin_config` make of a provider's prices."""
    discounts, margins = litellm.cost_discount_config, litellm.cost_margin_config
    if not discounts and not margins:
        return NO_ADJUSTMENT
    share = 1 - _decimal(discounts.get(provider or ""))
    margin = margins.get(provider or "", margins.get("global"))
    if isinstance(margin, dict):
        share *= 1 + _decimal(margin.get("percentage"))
        return Adjustment.of(share, _decimal(margin.get("fixed_amount")))
    return Adjustment.of(share * (1 + _decimal(margin)), Decimal(0))


def _decimal(value: object) -> Decimal:
    """Read a share or an amount; a margin may be negative, which is a discount."""
    sign = -1 if isinstance(value, int | float) and value < 0 else 1
    atto = atto_each(sign * value if isinstance(value, int | float) else value)
    return Decimal(0) if atto is None else sign * Decimal(atto).scaleb(-18)


def residency_of(provider: str | None, api_base: object) -> str | None:
    """Return the region of OpenAI's whose host a deployment calls; None for its ordinary host."""
    region: str | None = infer_openai_data_residency(provider, api_base if isinstance(api_base, str) else None)
    return region


def location_of(provider: str | None, parameters: Mapping[str, Any], model: str) -> str | None:
    """Return the region of Vertex AI that a deployment calls; None where it is not on Vertex AI."""
    try:
        # From 1.106 on; older versions bill every region alike.
        from litellm.litellm_core_utils.litellm_logging import resolve_vertex_location_for_cost  # noqa: PLC0415
    except ImportError:
        return None
    location: str | None = resolve_vertex_location_for_cost(provider, parameters, parameters, model)
    return location
