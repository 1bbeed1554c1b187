"""Price sheets: parse an entry of LiteLLM's price map, or of the proxy's YAML, into the domain's `Price`.

Zero is a price; a missing price is unknown.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from usage_plugin.domain.prices import RATES, OffPeak, Price, Rates, UnitRates, atto_each
from usage_plugin.domain.usage import MOST_TOKENS
from usage_plugin.pricing.tool_fees import tool_rates

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Route = Literal["text", "embedding", "image", "speech", "transcription", "rerank", "moderation", "other"]
"""The kind of request that selects its prices: one key has different meanings on different routes."""

_BY_CALL_TYPE: Mapping[str, Route] = {
    "aembedding": "embedding",
    "image_generation": "image", "aimage_generation": "image", "image_edit": "image", "aimage_edit": "image",
    "aspeech": "speech", "transcription": "transcription", "atranscription": "transcription",
    "rerank": "rerank", "arerank": "rerank", "moderation": "moderation", "amoderation": "moderation",
    "acompletion": "text", "atext_completion": "text", "aresponses": "text", "anthropic_messages": "text",
    "agenerate_content": "text", "agenerate_content_stream": "text",
}  # fmt: skip


def route_of(call_type: str) -> Route:
    """Return the route of a call type."""
    return _BY_CALL_TYPE.get(call_type, "other")


SERVICES = {
    "flex": "_flex", "balanced": "_balanced", "priority": "_priority", "fast": "_priority", "ultrafast": "_ultrafast",
    "batch": "_batches",
}  # fmt: skip
"""Service tiers, and the suffix of the keys that price each."""

CHEAPER_SERVICES = frozenset({"flex", "batch"})
"""Service tiers that cost at most the ordinary price where they have no price of their own."""

_TOKEN_PRICES = ("input_cost_per_token", "output_cost_per_token")
_TIER = re.compile(r"_above_(\d+)(k?)_tokens(?=$|_)")
# Counted by us; LiteLLM calculates a price for a second, a pixel or a page.
_IMAGE_PRICES = ("output_cost_per_image", "input_cost_per_image")
_NOT_COUNTED = re.compile(r"cost_per_(\w*_)?(second|pixel|page|credit|session|text_message)|cost_per_image_")
NO_UPLIFT = Decimal(1)
_HALF = Decimal("0.5")


def is_price_key(key: str) -> bool:
    """Whether a key of `litellm_params` or `model_info` has a price, or a part of one."""
    return "cost" in key or key.endswith("pricing") or "uplift_multiplier" in key or key == "provider_specific_entry"


def own_or_mapped(own: Mapping[str, Any], mapped: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the sheet of a deployment: its own prices, with those of LiteLLM's map where it has none.

    An ordinary price of its own replaces all variants of that price in the map: those above thresholds and those of
    service tiers. They belong to another list. Prices of zero for input and output make a deployment free.
    """
    stated = {key for key, value in own.items() if value is not None and is_price_key(key)}
    if not stated:
        return mapped
    if all(_is_zero(own.get(key)) for key in _TOKEN_PRICES):
        return own
    replaced = {key for key in stated if _kind_of_price(key) == key}
    if replaced & {*_TOKEN_PRICES, "tiered_pricing"}:
        replaced |= {"tiered_pricing", "off_peak_pricing"}
    if "tiered_pricing" in stated:
        replaced |= set(_TOKEN_PRICES)
    filling = {
        key: value for key, value in mapped.items() if not (is_price_key(key) and _kind_of_price(key) in replaced)
    }
    return {**filling, **own}


def _is_zero(price: object) -> bool:
    return price is not None and atto_each(price) == 0


def _kind_of_price(key: str) -> str:
    """Return a price's key without thresholds and service tier: `input_cost_per_token_above_200k_tokens_flex`."""
    key = _TIER.sub("", key)
    for end in SERVICES.values():
        key = key.removesuffix(end)
    return "cache_read_input_token_cost" if key == "input_cost_per_token_cache_hit" else key


def read_price(sheet: Mapping[str, Any], route: Route = "text", *, uplift: Decimal = NO_UPLIFT) -> Price | None:
    """Parse an entry of a price map into the price of a route; None if it lacks the prices that the route is billed by.

    Args:
        sheet: keys such as `input_cost_per_token` and `output_cost_per_token_above_200k_tokens_priority`.
        route: an embedding has no output, so its price may be missing; images, speech and reranking may be billed
            by the piece.
        uplift: the factor of the deployment's region for the prices of tokens.
    """
    units = _unit_rates(sheet, route)
    if units is None:
        return None
    steps = _steps(sheet)
    price = _token_price(sheet, steps, "", route)
    if price is None or (price.is_free and any(units)):
        if route == "moderation" and not any(units) and not _costs_otherwise(sheet):
            return Price(None)  # No provider charges for moderation, so no map has a price for it.
        return Price(None, units=units) if any(units) else None
    if price.is_free and _costs_otherwise(sheet):
        return None
    services = [
        (name, _scaled(found, uplift))
        for name, end in SERVICES.items()
        if sheet.get(f"input_cost_per_token{end}") is not None
        and (found := _token_price(sheet, steps, end, route)) is not None
    ]
    if "batch" not in dict(services):
        services.append(("batch", _scaled(price, _HALF * uplift)))
    return replace(
        _scaled(price, uplift),
        services=tuple(services),
        units=units,
        tools=tool_rates(sheet, is_free=price.is_free),
        modes=_modes(sheet),
        off_peak=_off_peak(sheet, route),
    )


def _scaled(price: Price, multiplier: Decimal) -> Price:
    """Multiply the prices of tokens; round up to whole atto-dollars."""
    if multiplier == NO_UPLIFT:
        return price

    def scaled(rates: Rates | None) -> Rates | None:
        if rates is None:
            return None
        return Rates(**{name: math.ceil(getattr(rates, name) * multiplier) for name in RATES})

    tiers = tuple((threshold, scaled(rates) or rates) for threshold, rates in price.tiers)
    return replace(price, base=scaled(price.base), tiers=tiers)


def uplift_of(sheet: Mapping[str, Any], *, residency: str | None, location: str | None) -> Decimal:
    """Return the factor of a region for the prices of tokens.

    Args:
        sheet: the deployment's sheet.
        residency: OpenAI's region for the host that the deployment calls.
        location: the Vertex AI region that it calls; None if it does not use Vertex AI.
    """
    named = [sheet.get(f"regional_processing_uplift_multiplier_{residency}")] if residency else []
    if location is not None and location.lower() != "global":
        named.append(sheet.get("regional_endpoint_uplift_multiplier"))
    return math.prod([_multiplier(value) for value in named if value is not None], start=NO_UPLIFT)


def _multiplier(value: object) -> Decimal:
    return NO_UPLIFT if (atto := atto_each(value)) is None else Decimal(atto).scaleb(-18)


def _modes(sheet: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    """Return the price factor of each mode of the provider, such as Anthropic's `fast`, in millionths."""
    entry = sheet.get("provider_specific_entry")
    if not isinstance(entry, dict):
        return ()
    multipliers = ((str(name).lower(), atto_each(value)) for name, value in entry.items())
    return tuple((name, value // 10**12) for name, value in multipliers if value)


def _off_peak(sheet: Mapping[str, Any], route: Route) -> OffPeak | None:
    """Parse the hours with other rates, in the format of LiteLLM's map; None if there are none."""
    stated = sheet.get("off_peak_pricing")
    if not isinstance(stated, dict):
        return None
    base = _rates({**sheet, **{key: value for key, value in stated.items() if value is not None}}, ("",), "", route)
    rules = [stated, *(rule for rule in stated.get("windows") or () if isinstance(rule, dict))]
    hours = tuple(
        (_weekdays(rule.get("weekdays")), *minutes)
        for rule in rules
        for window in _listed(rule.get("hours_utc"))
        if (minutes := _minutes(window)) is not None
    )
    try:
        zone = ZoneInfo(str(stated.get("weekday_timezone") or "UTC"))
    except (ValueError, ZoneInfoNotFoundError):
        zone = ZoneInfo("UTC")
    return OffPeak(Price(base), hours, zone) if base is not None and hours else None


_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def _weekdays(stated: object) -> frozenset[int]:
    if stated is None:
        return frozenset(range(1, 8))
    days = [day for day in _listed(stated) if not isinstance(day, bool)]
    named = [_DAYS.index(day[:3].lower()) + 1 if str(day)[:3].lower() in _DAYS else day for day in days]
    return frozenset(day for day in named if isinstance(day, int) and 1 <= day <= 7)


def _listed(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else () if value is None else (value,)


def _minutes(window: object) -> tuple[int, int] | None:
    """Parse a window such as `16:30-00:30` into minutes of a day; None if it is invalid."""
    match = re.fullmatch(r"\s*(\d?\d):(\d\d)\s*-\s*(\d?\d):(\d\d)\s*", str(window))
    numbers = [int(number) for number in match.groups()] if match else []
    if not numbers or max(numbers[::2]) > 23 or max(numbers[1::2]) > 59:
        return None
    return numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]


def is_priced_by_litellm(sheet: Mapping[str, Any], route: Route) -> bool:
    """Whether the route is billed by units that only LiteLLM counts: seconds, pixels, pages."""
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
    """Parse a table of rates by range of input tokens, as Alibaba's models have; the first range is the base."""
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
    """List the numbers of input tokens above which the sheet has other prices, each with its part of the keys."""
    found = {
        (int(match[1]) * (1000 if match[2] else 1), match[0])
        for key, value in sheet.items()
        if value is not None and "_above_" in key and key.startswith(_STEPPED) and (match := _TIER.search(key))
    }
    # xAI's higher price starts at the threshold itself.
    inclusive = _is_of(sheet, "xai")
    return sorted((threshold - inclusive, step) for threshold, step in found)


_STEPPED = (
    "input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost", "cache_creation_input_token_cost",
)  # fmt: skip


def _rates(sheet: Mapping[str, Any], steps: Sequence[str], service: str, route: Route) -> Rates | None:
    """Return the rates of a service tier above a number of tokens; missing ones default to the ordinary price."""

    def own(key: str) -> int | None:
        """Return the most specific price; None if it is missing or invalid."""
        ends = [f"{step}{end}" for step in steps for end in dict.fromkeys((service, ""))]
        named = [sheet[key + end] for end in ends if sheet.get(key + end) is not None]
        return atto_each(named[0]) if named else None

    def first(*keys: str, otherwise: int) -> int:
        return next((price for key in keys if (price := own(key)) is not None), otherwise)

    input_rate = own("input_cost_per_token")
    if input_rate is None and sheet.get("input_cost_per_token") is None and _bills_input_otherwise(sheet):
        # LiteLLM too prices its input tokens at zero: video is billed by the second, and LiteLLM calculates that price.
        input_rate = 0
    output_rate = own("output_cost_per_token")
    image_output = own("output_cost_per_image_token")
    if not output_rate and image_output is not None and sheet.get("output_cost_per_token") in (None, 0):
        # As in LiteLLM: the whole output of such a model is images.
        output_rate = image_output
    if output_rate is None and route in _WITHOUT_OUTPUT and sheet.get("output_cost_per_token") is None:
        output_rate = 0
    if output_rate is None and route == "speech":
        output_rate = own("output_cost_per_audio_token")
    if input_rate is None or output_rate is None:
        return None
    # Fireworks bills cached tokens at half the price; LiteLLM does the same, but no sheet contains it.
    kept = -(-input_rate // 2) if _is_of(sheet, "fireworks_ai") else input_rate
    cached = first("cache_read_input_token_cost", "input_cost_per_token_cache_hit", otherwise=kept)
    written = first("cache_creation_input_token_cost", otherwise=input_rate)
    reasoning = first("output_cost_per_reasoning_token", otherwise=output_rate)
    if service and sheet.get(f"output_cost_per_token{service}") is not None:
        # If a service tier has its own output price, the ordinary reasoning price does not apply to it.
        reasoning = _first_known(atto_each(sheet.get(f"output_cost_per_reasoning_token{service}")), output_rate)
    elif steps != ("",):
        # Above a threshold, reasoning rarely has its own price, and never costs less than output.
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
        video_input=first("input_cost_per_video_token", otherwise=input_rate),
        video_output=first("output_cost_per_video_token", otherwise=output_rate),
        citation=first("citation_cost_per_token", otherwise=input_rate),
    )


def _bills_input_otherwise(sheet: Mapping[str, Any]) -> bool:
    return any(key.startswith("input_cost_per_video_per_second") and atto_each(value) for key, value in sheet.items())


def _first_known(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def _is_of(sheet: Mapping[str, Any], provider: str) -> bool:
    return sheet.get("litellm_provider") == provider or str(sheet.get("model")).startswith(f"{provider}/")


_WITHOUT_OUTPUT = ("embedding", "rerank", "moderation")


def _unit_rates(sheet: Mapping[str, Any], route: Route) -> UnitRates | None:
    """Return the prices by the piece on a route; None if one of them is invalid."""
    keys = {
        "image": _IMAGE_PRICES if route == "image" else (),
        "character": ("input_cost_per_character",) if route == "speech" else (),
        "query": ("input_cost_per_query",) if route == "rerank" else (),
        "request": ("input_cost_per_request",),
        "second": ("input_cost_per_second", "output_cost_per_second") if route == "transcription" else (),
    }
    rates = {}
    for unit, names in keys.items():
        named = [sheet[name] for name in names if sheet.get(name) is not None]
        prices = [atto_each(value) for value in named]
        if None in prices:
            return None
        rates[unit] = max((price for price in prices if price is not None), default=0)
    # Rounded up, so never too low: by less than a nano-dollar in a month of audio.
    return UnitRates(millisecond=-(-rates.pop("second") // 1_000), **rates)


def _costs_otherwise(sheet: Mapping[str, Any]) -> bool:
    """Whether the sheet has a price for something other than tokens and tools: a query, an image, a second."""
    return any(
        "cost" in key and key not in _TOOL_PRICES and (atto_each(value) or 0) > 0 for key, value in sheet.items()
    )


_TOOL_PRICES = frozenset({
    "search_context_cost_per_query", "google_maps_grounding_cost_per_query", "file_search_cost_per_1k_calls",
    "code_interpreter_cost_per_session",
})  # fmt: skip
