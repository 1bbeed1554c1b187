"""LiteLLM's catalog of model names, discounts and regions; the only module of this package that imports LiteLLM.

A model name is mapped to an entry of the price map in the same way as by LiteLLM. LiteLLM lists the candidates for
each provider, and decides whether an entry belongs to that provider. They are looked up in the map as it was at the
start, since the router later registers deployments in the shared one, under names of their own. LiteLLM's complete
look-up is not used: it queries some providers (Ollama, Hugging Face) over the network.
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

from usage_plugin.domain.prices import NO_ADJUSTMENT, PriceAdjustment, atto_each

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_ORDER = (
    "combined_model_name", "region_free_combined_model_name", "split_model", "combined_stripped_model_name",
    "stripped_model_name", "provider_prefixed_model_name",
)  # fmt: skip
"""The kinds of candidates in LiteLLM's order (`litellm.utils.get_model_info_helper`); older versions lack some."""

_SIGNING_IN = frozenset({"github_copilot", "chatgpt"})
"""Providers for which LiteLLM signs in over the network as soon as it resolves a model's provider."""


@contextmanager
def unprinted() -> Iterator[None]:
    """Stop LiteLLM from printing its list of providers when it does not know a model's."""
    shown, litellm.suppress_debug_info = litellm.suppress_debug_info, True
    try:
        yield
    finally:
        litellm.suppress_debug_info = shown


def provider_of(model: str, provider: object = None, api_base: object = None) -> tuple[str, str | None]:
    """Return a model's name without its provider, and the provider that LiteLLM routes to; None if it is unknown.

    Args:
        model: as in `litellm_params.model`.
        provider: `litellm_params.custom_llm_provider`, if it is set.
        api_base: `litellm_params.api_base`, which identifies some providers.
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
    except Exception:  # noqa: BLE001  # LiteLLM raises an error for an unknown model
        return model, named
    # LiteLLM too uses the same prices for both names.
    return name, "vertex_ai" if found == "vertex_ai_beta" else found


def entry_name(price_map: Mapping[str, Any], model: str, provider: str | None) -> str | None:
    """Return the name of the entry that prices a model; None if there is none.

    Args:
        price_map: LiteLLM's map as it was shipped.
        model: the model's name, with or without a provider's prefix.
        provider: the result of `provider_of`.
    """
    for name in _candidates(price_map, model, provider):
        entry = price_map.get(name)
        if isinstance(entry, dict) and utils._check_provider_match(cast("dict[str, Any]", entry), provider):  # noqa: SLF001
            return name
    return None


def _candidates(price_map: Mapping[str, Any], model: str, provider: str | None) -> Iterator[str]:
    """Yield the names of a model in LiteLLM's order: those of its cost calculation, then those of its look-up."""
    aliases = {**litellm.azure_llms, **litellm.azure_embedding_models}
    # The prefix selects the provider's API; LiteLLM removes it before the call.
    model = aliases.get(model, model).removeprefix("responses/")
    if provider == "together_ai" and "input_cost_per_token" not in price_map.get(f"together_ai/{model}", ()):
        # Models without their own price are priced by their size.
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
    """Prefix a name with its provider, without segments that the map omits between the two, such as `converse/`."""
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
    """Whether the provider selects the model that answers: a model router, whose own price is only a fee."""
    return _is_azure_router(served_model) or served_model.rpartition("/")[2] == "auto"


def adjustment_of(provider: str | None) -> PriceAdjustment:
    """Return the adjustment that `cost_discount_config` and `cost_margin_config` make to a provider's prices."""
    discounts, margins = litellm.cost_discount_config, litellm.cost_margin_config
    if not discounts and not margins:
        return NO_ADJUSTMENT
    share = 1 - _decimal(discounts.get(provider or ""))
    margin = margins.get(provider or "", margins.get("global"))
    if isinstance(margin, dict):
        share *= 1 + _decimal(margin.get("percentage"))
        return PriceAdjustment.of(share, _decimal(margin.get("fixed_amount")))
    return PriceAdjustment.of(share * (1 + _decimal(margin)), Decimal(0))


def _decimal(value: object) -> Decimal:
    """Parse a share or an amount; a negative margin is a discount."""
    sign = -1 if isinstance(value, int | float) and value < 0 else 1
    atto = atto_each(sign * value if isinstance(value, int | float) else value)
    return Decimal(0) if atto is None else sign * Decimal(atto).scaleb(-18)


def residency_of(provider: str | None, api_base: object) -> str | None:
    """Return OpenAI's region for the host that a deployment calls; None for the default host."""
    region: str | None = infer_openai_data_residency(provider, api_base if isinstance(api_base, str) else None)
    return region


def location_of(provider: str | None, parameters: Mapping[str, Any], model: str) -> str | None:
    """Return the Vertex AI region that a deployment calls; None if it does not use Vertex AI."""
    try:
        # LiteLLM 1.106 and later; older versions have one price for all regions.
        from litellm.litellm_core_utils.litellm_logging import resolve_vertex_location_for_cost  # noqa: PLC0415
    except ImportError:
        return None
    location: str | None = resolve_vertex_location_for_cost(provider, parameters, parameters, model)
    return location
