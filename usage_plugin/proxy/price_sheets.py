"""Price sheets: an entry of LiteLLM's price map, or of the proxy's YAML, read as the domain's `Price`.

Zero is a price, a missing one is unknown. Imports no LiteLLM, so that the command line can list models without a price
in a blink.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usage_plugin.domain.prices import Price, Rates, atto_per_token

if TYPE_CHECKING:
    from collections.abc import Mapping

_ABOVE = "_above_"
_TOKEN_PRICES = ("input_cost_per_token", "output_cost_per_token")
_MAP_FILE = "model_prices_and_context_window_backup.json"


def own_or_mapped(own: Mapping[str, Any], mapped: Mapping[str, Any]) -> Mapping[str, Any]:
    """Choose the sheet that a deployment's prices come from: its own if it has one, else LiteLLM's map.

    Never both: LiteLLM completes a custom price with zeros, and prices in another currency must not mix with USD.
    """
    return own if any(own.get(key) is not None for key in _TOKEN_PRICES) else mapped


def read_price(info: Mapping[str, Any], *, embedding: bool = False) -> Price | None:
    """Turn an entry of a price map into a price; None if it lacks the price of a token.

    Args:
        info: keys such as `input_cost_per_token` and `output_cost_per_token_above_200k_tokens`.
        embedding: whether there is no output, so that its price may be missing.
    """
    base = _rates(info, "", None, embedding=embedding)
    if base is None or (Price(base).is_free and _costs_otherwise(info)):
        return None
    suffixes = {key[key.index(_ABOVE) :] for key in info if _ABOVE in key and key.endswith("k_tokens")}
    tiers = []
    for suffix in suffixes:
        digits = suffix.removeprefix(_ABOVE).removesuffix("k_tokens")
        rates = _rates(info, suffix, base, embedding=True)
        if digits.isdecimal() and rates is not None:
            tiers.append((int(digits) * 1000, rates))
    return Price(base, tuple(sorted(tiers, key=lambda tier: tier[0])))


def _rates(info: Mapping[str, Any], suffix: str, base: Rates | None, *, embedding: bool) -> Rates | None:
    """Read the rates under one suffix; what a tier does not name is the base's, or follows its own input and output."""

    def rate(key: str) -> int | None:
        return atto_per_token(info.get(key + suffix))

    def given(key: str) -> bool:
        return info.get(key + suffix) is not None

    def own(key: str) -> int | None:
        return rate(key) if given(key) else atto_per_token(info.get(key))

    input_rate = rate("input_cost_per_token") if given("input_cost_per_token") else (base.input if base else None)
    output_rate = rate("output_cost_per_token") if given("output_cost_per_token") else (base.output if base else None)
    if output_rate is None and embedding and not given("output_cost_per_token"):
        output_rate = 0
    if input_rate is None or output_rate is None:
        return None
    cache_write = _first_known(own("cache_creation_input_token_cost"), input_rate)
    own_reasoning = own("output_cost_per_reasoning_token")
    return Rates(
        input=input_rate,
        output=output_rate,
        cached_input=_first_known(own("cache_read_input_token_cost"), input_rate),
        cache_write=cache_write,
        reasoning=max(output_rate, own_reasoning or 0) if base else _first_known(own_reasoning, output_rate),
        dearest_cache_write=max(cache_write, own("cache_creation_input_token_cost_above_1hr") or 0),
    )


def _costs_otherwise(info: Mapping[str, Any]) -> bool:
    """Say whether something else than tokens costs: a query, an image, a second."""
    return any("cost" in key and (atto_per_token(value) or 0) > 0 for key, value in info.items())


def _first_known(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def map_entry(price_map: Mapping[str, Any], name: str, provider: object = None) -> Mapping[str, Any]:
    """Find the entry of a map for a provider's model; empty if there is none.

    An entry without the provider in its name counts only if it says that it is that provider's: `groq/gpt-4o` is
    not OpenAI's `gpt-4o`.
    """
    prefix, _, bare = name.partition("/")
    if name in price_map:
        found = price_map[name]
    elif provider and f"{provider}/{name}" in price_map:
        found = price_map[f"{provider}/{name}"]
    elif bare and bare in price_map and str(price_map[bare].get("litellm_provider") or "").endswith(prefix):
        found = price_map[bare]
    else:
        return {}
    return found if isinstance(found, dict) else {}


def unpriced_models(model_list: object) -> list[str]:
    """List the `model_name`s of a proxy's `model_list` that have a deployment without a price.

    Wildcards are passed over: what they stand for is known only when somebody asks.
    """
    price_map = shipped_price_map()
    unpriced = set()
    for entry in model_list if isinstance(model_list, list) else ():
        if not isinstance(entry, dict):
            continue
        parameters, info = (_mapping(entry.get(name)) for name in ("litellm_params", "model_info"))
        own = {**parameters, **info}
        name = str(own.get("base_model") or parameters.get("model") or "")
        if "*" in name:
            continue
        mapped = map_entry(price_map, name, own.get("custom_llm_provider"))
        embedding = {**mapped, **own}.get("mode") == "embedding"
        if read_price(own_or_mapped(own, mapped), embedding=embedding) is None:
            unpriced.add(str(entry.get("model_name")))
    return sorted(unpriced)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def shipped_price_map() -> dict[str, Any]:
    """Read the map that LiteLLM ships; empty without LiteLLM."""
    found = find_spec("litellm")
    if found is None or found.origin is None:
        return {}
    path = Path(found.origin).parent / _MAP_FILE
    entries: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return entries
