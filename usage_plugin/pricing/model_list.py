"""The prices of a proxy's `model_list`, read without a running proxy.

LiteLLM is imported only for model names that need it, so the command line lists the models of most configurations
without that delay.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from usage_plugin.pricing.price_map import shipped_price_map
from usage_plugin.pricing.sheets import is_priced_by_litellm, own_or_mapped, read_price

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from usage_plugin.domain.prices import Rates
    from usage_plugin.pricing.sheets import Route

_BY_MODE: Mapping[str, Route] = {
    "embedding": "embedding", "image_generation": "image", "image_edit": "image", "audio_speech": "speech",
    "audio_transcription": "transcription", "rerank": "rerank", "moderation": "moderation", "video_generation": "other",
}  # fmt: skip


def unpriced_models(model_list: object) -> list[str]:
    """List the `model_name`s of a proxy's `model_list` that have a deployment without a price.

    Wildcards are skipped: their models are known only when requests arrive.
    """
    return sorted(
        {
            name
            for name, sheet, route in _deployments(model_list)
            if read_price(sheet, route) is None and not is_priced_by_litellm(sheet, route)
        }
    )


def configured_rates(model_list: object) -> dict[str, Rates]:
    """Return the rates of each `model_name`, for requests of ordinary length.

    Names are omitted if their deployments differ in price, or are billed by anything other than tokens.
    """
    found: defaultdict[str, set[Rates | None]] = defaultdict(set)
    for name, sheet, route in _deployments(model_list):
        price = read_price(sheet, route)
        found[name].add(price.base if price is not None and not any(price.units) else None)
    return {name: rates for name, every in found.items() if len(every) == 1 and (rates := next(iter(every)))}


def _deployments(model_list: object) -> Iterator[tuple[str, Mapping[str, Any], Route]]:
    """Yield each deployment's `model_name`, price sheet and route; wildcards are skipped."""
    price_map = shipped_price_map()
    for entry in model_list if isinstance(model_list, list) else ():
        if not isinstance(entry, dict):
            continue
        parameters, info = (_mapping(entry.get(name)) for name in ("litellm_params", "model_info"))
        own = {**parameters, **info}
        if "*" in str(own.get("base_model") or parameters.get("model") or ""):
            continue
        mapped = _mapped(price_map, own)
        route = _BY_MODE.get(str({**mapped, **own}.get("mode")), "text")
        yield str(entry.get("model_name")), own_or_mapped(own, mapped), route


_PLAIN = frozenset({"openai", "anthropic", "gemini"})
"""Providers whose model names are the names in the map."""


def _mapped(price_map: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the entry that prices a deployment; other providers need LiteLLM, whose import takes seconds."""
    name, base_model = str(own.get("model") or ""), str(own.get("base_model") or "")
    prefix, _, bare = name.partition("/")
    if prefix in _PLAIN and not (base_model or own.get("custom_llm_provider")):
        for spelling in (name, bare):
            entry = _mapping(price_map.get(spelling))
            if entry.get("litellm_provider") == prefix:
                return entry
    if not price_map:
        return {}
    from usage_plugin.pricing.catalog import entry_name, provider_of  # noqa: PLC0415

    model, provider = provider_of(name, own.get("custom_llm_provider"), own.get("api_base"))
    found = entry_name(price_map, base_model or model, provider)
    return {} if found is None else _mapping(price_map[found])


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
