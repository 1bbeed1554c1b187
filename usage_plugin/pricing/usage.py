"""Parse a provider's reported usage into billable quantities.

The only parser for complete responses and streams, for all providers and routes. Providers use different names and
types, and disagree on which count is part of which. Null, text that is not a number and invalid values count as not
reported. Totals take precedence over parts. If a total exceeds prompt and completion, the rest is output, unless it is
exactly the number of cached tokens.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel

from usage_plugin.domain.money import from_float
from usage_plugin.domain.prices import NO_TOOL_CALLS, ToolCalls
from usage_plugin.domain.usage import MOST_TOKENS, NO_TOKENS, TokenUsage
from usage_plugin.errors import MoneyError
from usage_plugin.pricing.sheets import SERVICES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usage_plugin.domain.money import Nano

_MOST_FIELDS = 40
_LONGEST_NUMBER = 20
_TICKS_PER_NANO = 10
"""xAI bills in ticks of 10⁻¹⁰ USD (https://docs.x.ai/developers/cost-tracking)."""

_EVERYWHERE = ("global", "not_available")
_TRAFFIC = {"ON_DEMAND_PRIORITY": "priority", "ON_DEMAND_FLEX": "flex", "FLEX": "flex", "BATCH": "batch"}
"""Gemini's `trafficType` as a service tier; all other values are the ordinary tier."""


class Reported(NamedTuple):
    """The usage that a provider reports for one request.

    Attributes:
        tokens: counts of each kind of token that has a price of its own.
        tools: calls of tools that the provider ran itself.
        service: the provider's name of the service tier; `default` for the ordinary one, None if it is not reported.
        modes: modes that multiply the price, such as `fast`.
        billed: the billed amount that it reports, in nano-dollars; None if there is none in a known unit.
        stated: a reported cost in an unknown unit.
        search_size: the context size of its web searches.
        milliseconds: the length of the transcribed audio.
    """

    tokens: TokenUsage = NO_TOKENS
    tools: ToolCalls = NO_TOOL_CALLS
    service: str | None = None
    modes: tuple[str, ...] = ()
    billed: Nano | None = None
    stated: Nano | None = None
    search_size: str | None = None
    milliseconds: int = 0


NOTHING = Reported()


def read_usage(usage: Mapping[str, Any], *, provider: str | None = None) -> Reported:
    """Parse a usage object in any provider's format.

    Args:
        usage: the format of OpenAI's chat or Responses API, Anthropic, Gemini, Bedrock or Cohere, or LiteLLM's mixture.
        provider: LiteLLM's name of the provider that served; some give the same field names another meaning.
    """
    if "promptTokenCount" in usage or "totalTokenCount" in usage:
        usage = _of_gemini(usage)
    elif "inputTokens" in usage or "outputTokens" in usage:
        usage = _of_bedrock(usage)
    elif isinstance(usage.get("tokens"), dict) or isinstance(usage.get("billed_units"), dict):
        usage = _of_cohere(usage)
    tokens = _tokens(usage, provider)
    return Reported(
        tokens,
        _tool_calls(usage),
        tier if isinstance(tier := usage.get("service_tier"), str) and tier else None,
        _modes(usage),
        _billed(usage, provider),
        None if provider in _STATES_USD or usage.get("cost") is None else _nano(_amount(usage.get("cost"))),
        size if isinstance(size := usage.get("search_context_size"), str) else None,
        milliseconds(seconds) if (seconds := usage.get("seconds")) else 0,
    )


def milliseconds(seconds: object) -> int:
    """Return a number of seconds in milliseconds; 0 if it is invalid."""
    return math.ceil((_amount(seconds) or 0) * 1_000)


def _tokens(usage: Mapping[str, Any], provider: str | None) -> TokenUsage:
    prompt = mapping(
        usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or usage.get("input_token_details")
    )
    answer = mapping(
        usage.get("completion_tokens_details")
        or usage.get("output_tokens_details")
        or usage.get("output_token_details")
    )
    cached = count(usage, "cache_read_input_tokens", "prompt_cache_hit_tokens", "cached_tokens") or count(
        prompt, "cached_tokens"
    )
    written = count(usage, "cache_creation_input_tokens", "cache_write_tokens") or count(
        prompt, "cache_creation_tokens", "cache_write_tokens"
    )
    total_input = count(usage, "prompt_tokens", "input_tokens")
    output = count(usage, "completion_tokens", "output_tokens")
    if (cached or written) and _ANTHROPIC & usage.keys() and not prompt and not any(map(usage.get, _WHOLE)):
        # Anthropic's input tokens exclude cached and cache-write tokens.
        total_input += cached + written
    reasoning = count(answer, "reasoning_tokens")
    citations = 0
    if unlisted := max(0, count(usage, "total_tokens") - total_input - output):
        if not total_input and not output:
            total_input = unlisted
        elif unlisted == cached + written:
            total_input += unlisted
        else:
            output += unlisted
    elif reasoning > output and usage.get("total_tokens") is None:
        # Added, since the larger reasoning count cannot be part of the output.
        output += reasoning
    if provider == "perplexity":
        # Counted separately, and in no total (https://docs.perplexity.ai/getting-started/pricing).
        reasoning = count(usage, "reasoning_tokens") or reasoning
        citations = count(usage, "citation_tokens")
        output += reasoning
        total_input += citations
    if not (written or reasoning or citations or _has_parts(prompt) or _has_parts(answer)):
        return TokenUsage(total_input, output, cached)
    of_cached = mapping(prompt.get("cached_tokens_details"))
    of_written = mapping(usage.get("cache_creation") or prompt.get("cache_creation_token_details"))
    cached_audio = count(of_cached, "audio_tokens")
    return TokenUsage(
        input_tokens=total_input,
        output_tokens=output,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        reasoning_tokens=reasoning,
        cache_write_1h_tokens=count(of_written, "ephemeral_1h_input_tokens"),
        cached_audio_tokens=cached_audio,
        # The cached ones are part of these.
        audio_input_tokens=max(0, count(prompt, "audio_tokens") - cached_audio),
        image_input_tokens=max(0, count(prompt, "image_tokens") - count(of_cached, "image_tokens")),
        audio_output_tokens=count(answer, "audio_tokens"),
        image_output_tokens=count(answer, "image_tokens"),
        video_input_tokens=max(0, count(prompt, "video_tokens") - count(of_cached, "video_tokens")),
        video_output_tokens=count(answer, "video_tokens"),
        citation_tokens=citations,
    )


def _has_parts(details: Mapping[str, Any]) -> bool:
    """Whether details have parts other than text and tokens read from a cache; most report zeros for the rest."""
    for name, value in details.items():  # noqa: SIM110  # a generator takes twice as long
        if value and name not in _PLAIN_PARTS:
            return True
    return False


_PLAIN_PARTS = frozenset({"cached_tokens", "text_tokens"})
_ANTHROPIC = frozenset({"cache_read_input_tokens", "cache_creation_input_tokens"})
_WHOLE = ("prompt_tokens", "total_tokens")
"""Fields of the formats whose input includes cached tokens; Anthropic's has neither."""

_COUNTED = frozenset({
    "prompt_tokens", "input_tokens", "completion_tokens", "output_tokens", "total_tokens", "promptTokenCount",
    "totalTokenCount", "inputTokens", "outputTokens", "tokens", "billed_units", "seconds",
})  # fmt: skip


def is_counted(usage: Mapping[str, Any]) -> bool:
    """Whether a usage object has a format that `read_usage` knows, with at least one count."""
    for name, value in usage.items():  # noqa: SIM110  # a generator takes twice as long
        if value and name in _COUNTED:
            return True
    return False


def _of_gemini(usage: Mapping[str, Any]) -> Mapping[str, Any]:
    """Convert Gemini's usage to OpenAI's format; it counts thoughts and tool prompts separately from the rest."""

    def by_kind(name: str) -> dict[str, int]:
        parts = usage.get(name)
        kinds = [mapping(part) for part in parts] if isinstance(parts, list) else []
        return {f"{str(kind.get('modality')).lower()}_tokens": count(kind, "tokenCount") for kind in kinds}

    thoughts = count(usage, "thoughtsTokenCount")
    traffic = usage.get("trafficType")
    return {
        "prompt_tokens": count(usage, "promptTokenCount") + count(usage, "toolUsePromptTokenCount"),
        "completion_tokens": count(usage, "candidatesTokenCount", "responseTokenCount") + thoughts,
        "total_tokens": count(usage, "totalTokenCount"),
        "prompt_tokens_details": {
            **by_kind("promptTokensDetails"),
            "cached_tokens": count(usage, "cachedContentTokenCount"),
            "cached_tokens_details": by_kind("cacheTokensDetails"),
        },
        "completion_tokens_details": {
            **by_kind("candidatesTokensDetails"),
            **by_kind("responseTokensDetails"),
            "reasoning_tokens": thoughts,
        },
        "service_tier": tier_of_traffic(traffic) or usage.get("serviceTier") or usage.get("service_tier"),
    }


def tier_of(fields: Mapping[str, Any]) -> str | None:
    """Return the service tier that a response or a frame names in OpenAI's or Bedrock's form; None if it is missing."""
    named = fields.get("service_tier") or mapping(fields.get("serviceTier")).get("type")
    return named if isinstance(named, str) and named else None


def tier_of_traffic(traffic: object) -> str | None:
    """Return the service tier for Gemini's `trafficType`; None if it is missing."""
    return _TRAFFIC.get(traffic.upper(), "default") if isinstance(traffic, str) and traffic else None


def _of_bedrock(usage: Mapping[str, Any]) -> Mapping[str, Any]:
    """Convert the usage of Bedrock's Converse to OpenAI's format; it counts cached tokens separately from the rest."""
    cached = count(usage, "cacheReadInputTokens", "cacheReadInputTokenCount")
    written = count(usage, "cacheWriteInputTokens", "cacheWriteInputTokenCount")
    details = usage.get("cacheDetails")
    entries = [mapping(entry) for entry in details] if isinstance(details, list) else []
    return {
        "prompt_tokens": count(usage, "inputTokens") + cached + written,
        "completion_tokens": usage.get("outputTokens"),
        "total_tokens": usage.get("totalTokens"),
        "prompt_tokens_details": {"cached_tokens": cached, "cache_creation_tokens": written},
        "cache_creation": {
            "ephemeral_1h_input_tokens": sum(count(it, "inputTokens") for it in entries if it.get("ttl") == "1h")
        },
    }


def _of_cohere(usage: Mapping[str, Any]) -> Mapping[str, Any]:
    """Convert Cohere's usage to OpenAI's format: its billed units, or else its token counts."""
    billed, counted = mapping(usage.get("billed_units")), mapping(usage.get("tokens"))
    whole = billed if count(billed, "input_tokens", "output_tokens", "total_tokens") else counted
    return {
        "prompt_tokens": whole.get("input_tokens"),
        "completion_tokens": whole.get("output_tokens"),
        "total_tokens": whole.get("total_tokens"),
        "prompt_tokens_details": {"cached_tokens": usage.get("cached_tokens")},
    }


def _tool_calls(usage: Mapping[str, Any]) -> ToolCalls:
    server, run = usage.get("server_tool_use"), usage.get("server_side_tool_usage_details")
    prompt, queries = usage.get("prompt_tokens_details"), usage.get("num_search_queries")
    size = usage.get("search_context_size")
    if server is run is queries is size is None and not mapping(prompt).keys() & _SEARCHES:
        return NO_TOOL_CALLS
    by_server, details = mapping(server), mapping(prompt)
    searches = (
        count(by_server, "web_search_requests")
        or count(mapping(run), "web_search_calls")
        or count(details, "web_search_requests")
        or count(usage, "num_search_queries")
        # Perplexity charges a fee for each request, by the context size of its searches.
        or (size is not None)
    )
    return ToolCalls(
        searches=searches,
        map_searches=count(details, "google_maps_grounding_requests"),
        pages=count(by_server, "browser_open_requests"),
    )


def grounding_calls(candidates: list[Any]) -> ToolCalls:
    """Count the searches behind the candidates of Gemini's own responses, each distinct query once.

    A candidate that shows maps made at least one search there (https://ai.google.dev/gemini-api/docs/maps-grounding).
    """
    on_web: set[str] = set()
    on_maps: set[str] = set()
    has_maps = False
    for candidate in candidates:
        grounding = mapping(field(candidate, "groundingMetadata"))
        if not grounding:
            continue
        chunks = grounding.get("groundingChunks")
        kinds = {kind for chunk in (chunks if isinstance(chunks, list) else ()) for kind in mapping(chunk)}
        shows_maps = "maps" in kinds or bool(grounding.get("googleMapsWidgetContextToken"))
        has_maps |= shows_maps
        queries = grounding.get("webSearchQueries")
        found = {query for query in (queries if isinstance(queries, list) else ()) if isinstance(query, str) and query}
        (on_maps if shows_maps and "web" not in kinds else on_web).update(found)
    if not on_web and not has_maps:
        return NO_TOOL_CALLS
    return ToolCalls(searches=len(on_web), map_searches=max(1, len(on_maps)) if has_maps else 0)


_SEARCHES = frozenset({"web_search_requests", "google_maps_grounding_requests"})


def _modes(usage: Mapping[str, Any]) -> tuple[str, ...]:
    speed, place = usage.get("speed"), usage.get("inference_geo")
    if speed is None and place is None:
        return ()
    named = [mode.lower() for mode in (speed, place) if isinstance(mode, str)]
    return tuple(mode for mode in named if mode not in _EVERYWHERE)


def _billed(usage: Mapping[str, Any], provider: str | None) -> Nano | None:
    """Return the billed amount that a provider reports, for the providers that report it in US dollars."""
    if provider == "xai":
        # LiteLLM adds `cost` to the same object, including the operator's margin.
        ticks = count(usage, "cost_in_usd_ticks")
        return -(-ticks // _TICKS_PER_NANO) if ticks else None
    if provider not in _STATES_USD:
        return None
    cost = usage.get("cost")
    total = _amount(mapping(cost).get("total_cost") if provider == "perplexity" and _amount(cost) is None else cost)
    if total is None:
        return None
    if provider == "openrouter" and usage.get("is_byok") is True:
        # With the operator's own key, OpenRouter bills only its fee, and the model's provider bills the rest.
        total += _amount(mapping(usage.get("cost_details")).get("upstream_inference_cost")) or 0
    return _nano(total)


_STATES_USD = ("openrouter", "perplexity")
"""Providers whose `usage.cost` is the billed amount in USD."""


def _nano(usd: float | None) -> Nano | None:
    try:
        return None if usd is None else from_float(usd)
    except (MoneyError, OverflowError):
        return None


def _amount(value: object) -> float | None:
    if isinstance(value, str) and len(value) <= _LONGEST_NUMBER:
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < math.inf else None


def known_service(name: str | None) -> str | None:
    """Return a service tier that has its own prices; None for the ordinary tier and for unknown ones."""
    return name.lower() if name is not None and name.lower() in SERVICES else None


def numbers(usage: Mapping[str, Any], prefix: str = "") -> list[tuple[str, int]]:
    """Flatten a usage object to its nonzero numbers: enough to reprice it later, and without text."""
    found: list[tuple[str, int]] = []
    for key, value in usage.items():
        # Most fields are empty.
        if not value or not str(key).isidentifier():
            continue
        if type(value) is int:
            if 0 < value <= MOST_TOKENS:
                found.append((f"{prefix}{key}"[:80], value))
        elif nested := mapping(value):
            found += numbers(nested, f"{prefix}{key}.")
    return found[:_MOST_FIELDS]


def count(usage: Mapping[str, Any], *names: str) -> int:
    """Return the first of these fields that is a number above zero; integers in text or as floats are accepted."""
    if not usage:
        return 0
    for name in names:
        value = usage.get(name)
        if not value:
            continue
        if type(value) is not int:
            value = _number(value)
        if value > 0:
            return min(value, MOST_TOKENS)
    return 0


def _number(value: object) -> int:
    if isinstance(value, str) and len(value) <= _LONGEST_NUMBER and value.strip().isdecimal():
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else 0


class _Models(dict[type[Any], bool]):
    """Whether a type is a pydantic model, by type: pydantic's own check of each instance is slow."""

    def __missing__(self, kind: type[Any]) -> bool:
        self[kind] = issubclass(kind, BaseModel)
        return self[kind]


_is_model = _Models()


def mapping(value: Any) -> Mapping[str, Any]:  # pydantic models, dicts, None
    """Return the fields of a dict or a model; empty for other values."""
    if isinstance(value, dict):
        return value
    if value is not None and _is_model[type(value)]:
        # The model's own dictionaries: `model_dump` or iteration would cost more than reading the fields needed.
        extra = value.__pydantic_extra__
        return {**vars(value), **extra} if extra else vars(value)
    return {}


def fields_of(answer: Any) -> Mapping[str, Any]:  # any of LiteLLM's objects
    """Return the fields of any object, to read several of them."""
    if isinstance(answer, dict) or _is_model[type(answer)]:
        return mapping(answer)
    return getattr(answer, "__dict__", {})


def field(holder: Any, name: str) -> Any:  # any of LiteLLM's objects
    """Return a field that may be missing; getattr for a missing attribute of a pydantic model is slow."""
    if isinstance(holder, dict):
        return holder.get(name)
    if _is_model[type(holder)]:
        extra = holder.__pydantic_extra__
        return extra[name] if extra and name in extra else vars(holder).get(name)
    return getattr(holder, name, None)
