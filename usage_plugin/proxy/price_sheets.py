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
    if base is None:
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
    def rate(key: str, otherwise: int | None) -> int | None:
        value = info.get(key + suffix)
        return otherwise if value is None else atto_per_token(value)

    input_rate = rate("input_cost_per_token", base.input if base else None)
    output_rate = rate("output_cost_per_token", base.output if base else (0 if embedding else None))
    if input_rate is None or output_rate is None:
        return None
    return Rates(
        input=input_rate,
        output=output_rate,
        cached_input=_known(rate("cache_read_input_token_cost", base.cached_input if base else None), input_rate),
        cache_write=_known(rate("cache_creation_input_token_cost", base.cache_write if base else None), input_rate),
        reasoning=_known(rate("output_cost_per_reasoning_token", None), output_rate),
    )


def _known(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def unpriced_models(model_list: object) -> list[str]:
    """List the `model_name`s of a proxy's `model_list` that have a deployment without a price.

    Wildcards are passed over: what they stand for is known only when somebody asks.
    """
    price_map = _price_map()
    unpriced = []
    for entry in model_list if isinstance(model_list, list) else ():
        parameters, info = (entry.get(name) or {} for name in ("litellm_params", "model_info"))
        own = {**parameters, **info}
        name = str(own.get("base_model") or parameters.get("model") or "")
        if "*" in name:
            continue
        mapped = price_map.get(name) or price_map.get(name.split("/", 1)[-1]) or {}
        embedding = {**mapped, **own}.get("mode") == "embedding"
        if read_price(own_or_mapped(own, mapped), embedding=embedding) is None:
            unpriced.append(str(entry.get("model_name")))
    return sorted(set(unpriced))


def _price_map() -> dict[str, Any]:
    """Read the map that LiteLLM ships; empty without LiteLLM."""
    found = find_spec("litellm")
    if found is None or found.origin is None:
        return {}
    path = Path(found.origin).parent / _MAP_FILE
    entries: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return entries
