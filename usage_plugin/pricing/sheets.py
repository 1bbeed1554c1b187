"""Price sheets: an entry of LiteLLM's price map, or of the proxy's YAML, read as the domain's `Price`.

Zero is a price, a missing one is unknown. Imports no LiteLLM, so that the command line can list models without a price
in a blink.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from usage_plugin.domain.prices import Price, Rates, UnitRates, atto_each
from usage_plugin.domain.usage import MOST_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Route = Literal["text", "embedding", "image", "speech", "transcription", "rerank", "moderation", "other"]
"""What the price of a request depends on: the same key means another thing on another route."""

_BY_CALL_TYPE: Mapping[str, Route] = {
    "aembedding": "embedding",
    "image_generation": "image", "aimage_generation": "image", "image_edit": "image", "aimage_edit": "image",
    "aspeech": "speech", "transcription": "transcription", "atranscription": "transcription",
    "rerank": "rerank", "arerank": "rerank", "moderation": "moderation", "amoderation": "moderation",
    "acompletion": "text", "atext_completion": "text", "aresponses": "text", "anthropic_messages": "text",
    "agenerate_content": "text", "agenerate_content_stream": "text",
}  # fmt: skip


def route_of(call_type: str) -> Route:
    """Say what the price of a call type depends on."""
    return _BY_CALL_TYPE.get(call_type, "other")


SERVICES = {
    "flex": "_flex", "balanced": "_balanced", "priority": "_priority", "fast": "_priority", "ultrafast": "_ultrafast",
}  # fmt: skip
"""Tiers of service, and the ends of the keys that price them."""

CHEAPER_SERVICES = frozenset({"flex"})
"""Those that cost at most the ordinary price where no price of their own is known."""

_TOKEN_PRICES = ("input_cost_per_token", "output_cost_per_token")
_OWN_PRICES = re.compile(r"(in|out)put_cost_per_|cost_per_(second|query|page|request)$|tiered_pricing$")
_TIER = re.compile(r"_above_(\d+)(k?)_tokens(?=$|_)")
# Those that we count ourselves; a price by the second, the pixel or the page is LiteLLM's to work out.
_IMAGE_PRICES = ("output_cost_per_image", "input_cost_per_image")
_NOT_COUNTED = re.compile(r"cost_per_(\w*_)?(second|pixel|page|credit|session|text_message)|cost_per_image_")
_MAP_FILE = "model_prices_and_context_window_backup.json"


def own_or_mapped(own: Mapping[str, Any], mapped: Mapping[str, Any]) -> Mapping[str, Any]:
    """Choose the sheet that a deployment's prices come from: its own if it has one, else LiteLLM's map.

    Never both: LiteLLM completes a custom price with zeros, and prices in another currency must not mix with USD.
    """
    return own if any(value is not None and _OWN_PRICES.search(key) for key, value in own.items()) else mapped


def read_price(sheet: Mapping[str, Any], route: Route = "text") -> Price | None:
    """Turn an entry of a price map into the price of a route; None if it lacks what the route is billed by.

    Args:
        sheet: keys such as `input_cost_per_token` and `output_cost_per_token_above_200k_tokens_priority`.
        route: an embedding has no output, so its price may be missing; images, speech and reranking may be billed
            by the piece.
    """
    units = _unit_rates(sheet, route)
    if units is None:
        return None
    steps = _steps(sheet)
    price = _token_price(sheet, steps, "", route)
    if price is None or (price.is_free and any(units)):
        if route == "moderation" and not any(units) and not _costs_otherwise(sheet):
            return Price(None)  # Nobody takes money for it, so no map has a price.
        return Price(None, units=units) if any(units) else None
    if price.is_free and _costs_otherwise(sheet):
        return None
    services = [
        (name, found)
        for name, end in SERVICES.items()
        if sheet.get(f"input_cost_per_token{end}") is not None
        and (found := _token_price(sheet, steps, end, route)) is not None
    ]
    return replace(price, services=tuple(services), units=units)


def is_priced_by_litellm(sheet: Mapping[str, Any], route: Route) -> bool:
    """Say whether the route is billed by what LiteLLM counts and we do not: seconds, pixels, pages."""
    return route not in ("text", "embedding") and any(
        _NOT_COUNTED.search(key) and (atto_each(value) or 0) > 0 for key, value in sheet.items()
    )


def _token_price(
    sheet: Mapping[str, Any], steps: Sequence[tuple[int, str]], service: str, route: Route
) -> Price | None:
    ranges = sheet.get("tiered_pricing")
    if isinstance(ranges, list) and ranges:
        return _ranged_price(sheet, ranges, route)
    base = _rates(sheet, ("",), service, route)
    if base is None:
        return None
    tiers = [(threshold, _rates(sheet, (step, ""), service, route)) for threshold, step in steps]
    return Price(base, tuple((threshold, rates) for threshold, rates in tiers if rates is not None))


def _ranged_price(sheet: Mapping[str, Any], ranges: Sequence[Any], route: Route) -> Price | None:
    """Read a table of rates by ranges of input tokens, as Alibaba's models have: the first one is the base."""
    tiers = []
    for entry in ranges:
        limits = entry.get("range") if isinstance(entry, dict) else None
        start = limits[0] if isinstance(limits, list) and len(limits) == 2 else None
        if not isinstance(start, int | float) or isinstance(start, bool) or not 0 <= start < MOST_TOKENS:
            return None
        output = {key: sheet[key] for key in ("output_cost_per_token",) if key in sheet}
        rates = _rates({**output, **entry}, ("",), "", route)
        if rates is None:
            return None
        tiers.append((int(start), rates))
    tiers.sort(key=lambda tier: tier[0])
    return Price(tiers[0][1], tuple(tiers[1:]))


def _steps(sheet: Mapping[str, Any]) -> list[tuple[int, str]]:
    """List the numbers of input tokens above which the sheet has other prices, and how its keys say so."""
    found = {
        (int(match[1]) * (1000 if match[2] else 1), match[0])
        for key, value in sheet.items()
        if value is not None and "_above_" in key and key.startswith(_STEPPED) and (match := _TIER.search(key))
    }
    # xAI asks for more as soon as the threshold is reached.
    inclusive = _is_of(sheet, "xai")
    return sorted((threshold - inclusive, step) for threshold, step in found)


_STEPPED = (
    "input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost", "cache_creation_input_token_cost",
)  # fmt: skip


def _rates(sheet: Mapping[str, Any], steps: Sequence[str], service: str, route: Route) -> Rates | None:
    """Read the rates of a tier of service, above a number of tokens; what is not named there is the ordinary price."""

    def own(key: str) -> int | None:
        """Read the nearest price that is named; None if that is no price."""
        ends = [f"{step}{end}" for step in steps for end in dict.fromkeys((service, ""))]
        named = [sheet[key + end] for end in ends if sheet.get(key + end) is not None]
        return atto_each(named[0]) if named else None

    def first(*keys: str, otherwise: int) -> int:
        return next((price for key in keys if (price := own(key)) is not None), otherwise)

    input_rate = own("input_cost_per_token")
    output_rate = own("output_cost_per_token")
    image_output = own("output_cost_per_image_token")
    if not output_rate and image_output is not None and sheet.get("output_cost_per_token") in (None, 0):
        # LiteLLM does the same: all that such a model puts out is images.
        output_rate = image_output
    if output_rate is None and route in _WITHOUT_OUTPUT and sheet.get("output_cost_per_token") is None:
        output_rate = 0
    if output_rate is None and route == "speech":
        output_rate = own("output_cost_per_audio_token")
    if input_rate is None or output_rate is None:
        return None
    # Fireworks bills cached tokens at half the price, as LiteLLM knows; no sheet says so.
    kept = -(-input_rate // 2) if _is_of(sheet, "fireworks_ai") else input_rate
    cached = first("cache_read_input_token_cost", "input_cost_per_token_cache_hit", otherwise=kept)
    written = first("cache_creation_input_token_cost", otherwise=input_rate)
    reasoning = first("output_cost_per_reasoning_token", otherwise=output_rate)
    if service and sheet.get(f"output_cost_per_token{service}") is not None:
        # The ordinary price of reasoning is not that of a service with an output price of its own.
        reasoning = _first_known(atto_each(sheet.get(f"output_cost_per_reasoning_token{service}")), output_rate)
    elif steps != ("",):
        # Above a threshold it has rarely a price of its own, and is never the cheaper.
        reasoning = max(reasoning, output_rate)
    return Rates(
        input=input_rate,
        output=output_rate,
        cached_input=cached,
        cached_audio=first("cache_read_input_audio_token_cost", otherwise=cached),
        cache_write=written,
        cache_write_1h=first("cache_creation_input_token_cost_above_1hr", otherwise=written),
        reasoning=reasoning,
        audio_input=first("input_cost_per_audio_token", otherwise=input_rate),
        image_input=first("input_cost_per_image_token", otherwise=input_rate),
        audio_output=first("output_cost_per_audio_token", otherwise=output_rate),
        image_output=first("output_cost_per_image_token", otherwise=output_rate),
    )


def _first_known(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def _is_of(sheet: Mapping[str, Any], provider: str) -> bool:
    return sheet.get("litellm_provider") == provider or str(sheet.get("model")).startswith(f"{provider}/")


_WITHOUT_OUTPUT = ("embedding", "rerank", "moderation")


def _unit_rates(sheet: Mapping[str, Any], route: Route) -> UnitRates | None:
    """Read what is billed by the piece on a route; None if the sheet has such a price that is no number."""
    keys = {
        "image": _IMAGE_PRICES if route == "image" else (),
        "character": ("input_cost_per_character",) if route == "speech" else (),
        "query": ("input_cost_per_query",) if route == "rerank" else (),
        "request": ("input_cost_per_request",),
    }
    rates = {}
    for unit, names in keys.items():
        named = [sheet[name] for name in names if sheet.get(name) is not None]
        prices = [atto_each(value) for value in named]
        if None in prices:
            return None
        rates[unit] = max((price for price in prices if price is not None), default=0)
    return UnitRates(**rates)


def _costs_otherwise(sheet: Mapping[str, Any]) -> bool:
    """Say whether something else than tokens costs: a query, an image, a second."""
    return any("cost" in key and (atto_each(value) or 0) > 0 for key, value in sheet.items())


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


_BY_MODE: Mapping[str, Route] = {
    "embedding": "embedding", "image_generation": "image", "image_edit": "image", "audio_speech": "speech",
    "audio_transcription": "transcription", "rerank": "rerank", "moderation": "moderation", "video_generation": "other",
}  # fmt: skip


def unpriced_models(model_list: object) -> list[str]:
    """List the `model_name`s of a proxy's `model_list` that have a deployment without a price.

    Wildcards are passed over: what they stand for is known only when somebody asks.
    """
    return sorted(
        {
            name
            for name, sheet, route in _deployments(model_list)
            if read_price(sheet, route) is None and not is_priced_by_litellm(sheet, route)
        }
    )


def configured_rates(model_list: object) -> dict[str, Rates]:
    """Find what the tokens of each `model_name` cost, in requests of ordinary length.

    Left out are names whose deployments differ in price, and those that are billed by anything else than tokens.
    """
    found: defaultdict[str, set[Rates | None]] = defaultdict(set)
    for name, sheet, route in _deployments(model_list):
        price = read_price(sheet, route)
        found[name].add(price.base if price is not None and not any(price.units) else None)
    return {name: rates for name, every in found.items() if len(every) == 1 and (rates := next(iter(every)))}


def _deployments(model_list: object) -> Iterator[tuple[str, Mapping[str, Any], Route]]:
    """Name the model of each deployment, with its price sheet and the route that it serves; no wildcards."""
    price_map = shipped_price_map()
    for entry in model_list if isinstance(model_list, list) else ():
        if not isinstance(entry, dict):
            continue
        parameters, info = (_mapping(entry.get(name)) for name in ("litellm_params", "model_info"))
        own = {**parameters, **info}
        name = str(own.get("base_model") or parameters.get("model") or "")
        if "*" in name:
            continue
        mapped = map_entry(price_map, name, own.get("custom_llm_provider"))
        route = _BY_MODE.get(str({**mapped, **own}.get("mode")), "text")
        yield str(entry.get("model_name")), own_or_mapped(own, mapped), route


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
