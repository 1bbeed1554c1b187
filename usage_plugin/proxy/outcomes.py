"""Outcomes: what a finished request used and cost, read out of LiteLLM's objects, any field of which may be missing.

The cost is computed from what was counted and the price of the deployment that served. LiteLLM's own figure serves
where we have no price or nothing was counted, and else as a cross-check: it is 0.0 or None for paid calls on several
routes, depending on earlier traffic, so its zero says nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pydantic import BaseModel

from usage_plugin.domain.money import format_usd, from_float
from usage_plugin.domain.prices import NO_UNITS, Units
from usage_plugin.domain.usage import MOST_TOKENS, NO_TOKENS, TokenUsage
from usage_plugin.errors import MoneyError
from usage_plugin.log import get_logger
from usage_plugin.pricing.sheets import SERVICES
from usage_plugin.tracking.recorder import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.prices import Price
    from usage_plugin.domain.usage import CostSource, Status, UsageEvent
    from usage_plugin.proxy.prices import Deployment

_MOST_USAGE_FIELDS = 40
_MOST_TOLD = 1_000
_HIDDEN = "_hidden_params"

log = get_logger()


class Served(NamedTuple):
    """What LiteLLM says about who served a request.

    Attributes:
        model: the model group that was billed.
        deployment_id: of the deployment; it decides the price.
        litellm_cost: LiteLLM's figure in USD, if it has one.
        tool_cost: the part of it that is for tools which the provider ran, as far as it says so.
        service: the tier of service, as the answer tells it; that of a stream of Anthropic's messages tells none.
        units: what was counted of what may be billed by the piece.
    """

    model: str | None
    deployment_id: str | None
    provider: str | None
    served_model: str | None
    litellm_cost: object
    cache_hit: bool
    tool_cost: object = None
    service: str | None = None
    units: Units = NO_UNITS


def served_inline(data: Mapping[str, Any], response: Any) -> Served:  # any of LiteLLM's answers
    """Read it while the answer is on its way to the client."""
    hidden = _hidden(response)
    logged = getattr(data.get("litellm_logging_obj"), "model_call_details", None) or {}
    metadata = _routing_metadata(logged.get("litellm_params") or {}, data)
    return Served(
        model=_text(metadata.get("model_group")),
        deployment_id=_text(hidden.get("model_id")) or _text((metadata.get("model_info") or {}).get("id")),
        provider=_text(logged.get("custom_llm_provider")),
        served_model=_text(metadata.get("deployment")),
        litellm_cost=hidden.get("response_cost"),
        cache_hit=hidden.get("cache_hit") is True,
        tool_cost=_tool_cost(getattr(data.get("litellm_logging_obj"), "cost_breakdown", None)),
        service=_service(response),
        units=_units(response, data),
    )


def served_logged(kwargs: Mapping[str, Any], response: Any = None) -> Served:  # any of LiteLLM's answers
    """Read it out of what a success or failure callback gets; `response` is what it gets beside them."""
    logged = kwargs.get("standard_logging_object") or {}
    metadata = _routing_metadata(kwargs.get("litellm_params") or {}, {})
    return Served(
        model=_text(logged.get("model_group")) or _text(metadata.get("model_group")),
        deployment_id=_text(logged.get("model_id")) or _text((metadata.get("model_info") or {}).get("id")),
        provider=_text(logged.get("custom_llm_provider")),
        served_model=_text(metadata.get("deployment")) or _text(logged.get("model")),
        litellm_cost=logged.get("response_cost"),
        cache_hit=logged.get("cache_hit") is True,
        tool_cost=_tool_cost(logged.get("cost_breakdown")),
        service=_service(response),
        units=_units(response, kwargs),
    )


def inline_usage(response: Any) -> Mapping[str, Any]:  # any of LiteLLM's answers
    """Find the usage in an answer, Gemini's own in OpenAI's form; empty if it has none."""
    usage = _mapping(_field(response, "usage"))
    if usage:
        return usage
    gemini = _mapping(_field(response, "usageMetadata"))
    return _of_gemini(gemini) if gemini else {}


def _of_gemini(usage: Mapping[str, Any]) -> Mapping[str, Any]:
    """Put Gemini's usage into OpenAI's form: its thoughts and the prompts of its tools come beside the rest."""

    def by_kind(name: str) -> dict[str, int]:
        parts = usage.get(name)
        kinds = [_mapping(part) for part in parts] if isinstance(parts, list) else []
        return {f"{str(kind.get('modality')).lower()}_tokens": _first(kind, "tokenCount") for kind in kinds}

    thoughts = _first(usage, "thoughtsTokenCount")
    return {
        "prompt_tokens": _first(usage, "promptTokenCount") + _first(usage, "toolUsePromptTokenCount"),
        "completion_tokens": _first(usage, "candidatesTokenCount") + thoughts,
        "prompt_tokens_details": {
            **by_kind("promptTokensDetails"),
            "cached_tokens": _first(usage, "cachedContentTokenCount"),
            "cached_tokens_details": by_kind("cacheTokensDetails"),
        },
        "completion_tokens_details": {**by_kind("candidatesTokensDetails"), "reasoning_tokens": thoughts},
        "service_tier": _GEMINI_SERVICES.get(str(usage.get("trafficType")).upper()),
    }


_GEMINI_SERVICES = {"ON_DEMAND": "default", "ON_DEMAND_PRIORITY": "priority", "ON_DEMAND_FLEX": "flex", "FLEX": "flex"}


def logged_usage(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Find the usage in what a callback gets; empty if it has none."""
    logged = kwargs.get("standard_logging_object") or {}
    usage = _mapping((logged.get("metadata") or {}).get("usage_object"))
    return usage or {key: logged.get(key) for key in ("prompt_tokens", "completion_tokens")}


def is_batch(answer: Any) -> bool:  # any of LiteLLM's answers
    """Whether an answer describes a batch."""
    return bool(_field(answer, "object") == "batch")


def read_tokens(usage: Mapping[str, Any], *, anthropic: bool) -> TokenUsage:
    """Turn a provider's usage into ours.

    Args:
        usage: OpenAI's chat or Responses form, or Anthropic's.
        anthropic: whether `input_tokens` leaves the cached tokens out, as Anthropic's does.
    """
    prompt = _mapping(usage.get("prompt_tokens_details") or usage.get("input_tokens_details"))
    answer = _mapping(usage.get("completion_tokens_details") or usage.get("output_tokens_details"))
    cached = _first(usage, "cache_read_input_tokens") or _first(prompt, "cached_tokens")
    written = _first(usage, "cache_creation_input_tokens") or _first(
        prompt, "cache_creation_tokens", "cache_write_tokens"
    )
    total_input = _first(usage, "prompt_tokens", "input_tokens")
    if anthropic and usage.get("prompt_tokens") is None:
        total_input += cached + written
    output = _first(usage, "completion_tokens", "output_tokens")
    if not (prompt or answer or written):
        # The rest is in them.
        return TokenUsage(total_input, output, cached)
    of_cached = _mapping(prompt.get("cached_tokens_details"))
    of_written = _mapping(usage.get("cache_creation") or prompt.get("cache_creation_token_details"))
    cached_audio = _first(of_cached, "audio_tokens")
    return TokenUsage(
        input_tokens=total_input,
        output_tokens=output,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        reasoning_tokens=_first(answer, "reasoning_tokens"),
        cache_write_1h_tokens=_first(of_written, "ephemeral_1h_input_tokens"),
        cached_audio_tokens=cached_audio,
        # The cached ones are among these.
        audio_input_tokens=max(0, _first(prompt, "audio_tokens") - cached_audio),
        image_input_tokens=max(0, _first(prompt, "image_tokens") - _first(of_cached, "image_tokens")),
        audio_output_tokens=_first(answer, "audio_tokens"),
        image_output_tokens=_first(answer, "image_tokens"),
    )


class Deployments(Protocol):
    """Where the prices come from: the proxy's `PriceBook`, or what one call of the SDK says."""

    def deployments(self, model: str, team: str | None) -> Sequence[Deployment]:
        """List the deployments that can have served a model, the likeliest first."""


def read_outcome(
    prices: Deployments,
    served: Served,
    usage: Mapping[str, Any],
    admitted: UsageEvent,
    *,
    status: Status = "success",
    error: str | None = None,
    estimated: bool = False,
) -> Outcome:
    """Put together how a request ended and what it cost.

    A success of which nobody says what it used is charged as reserved.
    """
    tokens = read_tokens(usage, anthropic=admitted.call_type == "anthropic_messages")
    model = served.model or admitted.model
    deployment = _deployment(prices, model, served, admitted.team)
    price = deployment.price_on(admitted.call_type) if deployment else None
    told = _text(usage.get("service_tier")) or served.service
    service = _known_service(told or admitted.service_tier or (deployment.service if deployment else None))
    counted = NO_TOKENS if served.cache_hit else tokens
    cost, source = _cost(price, counted, service, served, admitted.call_type)
    litellm_cost = _figure(served.litellm_cost)
    unknown = (
        source == "none" and not served.cache_hit and price is not None and not price.is_free and status == "success"
    )
    return Outcome(
        status=status,
        # The router's own name for what it billed: an alias is another name of it.
        model=deployment.model if deployment else model,
        served_model=served.served_model or (deployment.served_model if deployment else None),
        deployment=served.deployment_id,
        provider=(deployment.provider if deployment else None) or served.provider,
        tokens=tokens,
        cost=cost,
        cost_source=source,
        cache_hit=served.cache_hit,
        # Where nobody says how it was served, it is billed as it was asked for.
        estimated=estimated or (service is not None and not (told and _has_price(price, service))),
        as_reserved=unknown,
        error=error,
        usage=dict(_numbers(usage)) or None,
        service_tier=service,
        litellm_cost=litellm_cost,
        disagrees=source == "computed" and disagreement(cost, litellm_cost),
    )


def disagreement(computed: Nano | None, litellm: Nano | None) -> bool:
    """Say whether two costs differ by more than a hundredth and a micro-dollar; an unknown one agrees with all."""
    if computed is None or litellm is None:
        return False
    return abs(computed - litellm) > max(1_000, max(computed, litellm) // 100)


class CrossCheck:
    """Tells of models that LiteLLM prices otherwise than we do: once each, for as many as are worth remembering."""

    def __init__(self) -> None:
        """Start with nothing told."""
        self._told: set[str | None] = set()

    def look(self, outcome: Outcome) -> None:
        """Log a disagreement, the first time a model has one."""
        if outcome.disagrees and outcome.model not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(outcome.model)
            log.warning(
                "cost.disagrees",
                model=outcome.model,
                computed=format_usd(outcome.cost or 0),
                litellm=format_usd(outcome.litellm_cost or 0),
            )


def _known_service(name: str | None) -> str | None:
    return name.lower() if name is not None and name.lower() in SERVICES else None


def _has_price(price: Price | None, service: str) -> bool:
    return price is not None and (price.is_free or price.served_as(service) is not None)


def _deployment(prices: Deployments, model: str | None, served: Served, team: str | None) -> Deployment | None:
    """Find the deployment that served, else the first that could have."""
    if model is None:
        return None
    found = prices.deployments(model, team)
    exact = [deployment for deployment in found if deployment.deployment_id == served.deployment_id]
    return next(iter(exact or found), None)


def _cost(
    price: Price | None, tokens: TokenUsage, service: str | None, served: Served, call_type: str
) -> tuple[Nano | None, CostSource]:
    if served.cache_hit:
        return 0, "none"
    computed = price.cost(tokens, service=service, units=served.units) if price is not None else None
    if computed is not None:
        return computed + (_figure(served.tool_cost) or 0), "computed"
    figure = _figure(served.litellm_cost)
    if figure is not None:
        return figure, "litellm"
    if price is None and (any(tokens) or call_type not in _TOKEN_ROUTES):
        return None, "unpriced"
    return 0, "none"


def _figure(usd: object) -> Nano | None:
    """Read LiteLLM's figure; its zero is no figure, since it stands for whatever LiteLLM does not know."""
    if not isinstance(usd, int | float) or usd <= 0:
        return None
    try:
        return from_float(float(usd))
    except (MoneyError, OverflowError):
        return None


def _tool_cost(breakdown: Any) -> object:  # LiteLLM's, a mapping
    return _mapping(breakdown).get("tool_usage_cost")


def _service(response: Any) -> str | None:  # any of LiteLLM's answers
    """Find the tier of service that an answer says it was served in."""
    return _text(_field(response, "service_tier"))


def _units(response: Any, request: Mapping[str, Any]) -> Units:  # any of LiteLLM's answers
    """Count what may be billed by the piece: images and queries in the answer, characters in what was to be spoken."""
    images, spoken, meta = _field(response, "data"), request.get("input"), _field(response, "meta")
    if images is spoken is meta is None:
        return NO_UNITS
    billed = _mapping(_mapping(meta).get("billed_units"))
    return Units(
        images=len(images) if isinstance(images, list) else 0,
        characters=len(spoken) if isinstance(spoken, str) else 0,
        queries=_first(billed, "search_units"),
    )


_TOKEN_ROUTES = frozenset({"acompletion", "atext_completion", "aembedding", "aresponses", "anthropic_messages"})


def _routing_metadata(parameters: Mapping[str, Any], data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Find the metadata the router wrote the model group into: it differs by route."""
    for holder in (parameters, data):
        for name in ("metadata", "litellm_metadata"):
            metadata = holder.get(name)
            if isinstance(metadata, dict) and metadata.get("model_group"):
                return metadata
    return {}


def _hidden(response: Any) -> Mapping[str, Any]:  # any of LiteLLM's answers
    if isinstance(response, dict):
        return _mapping(response.get(_HIDDEN))
    # Where pydantic keeps it: its way to a private attribute takes as long as all the rest that is read here.
    private = getattr(response, "__pydantic_private__", None)
    if private and _HIDDEN in private:
        return _mapping(private[_HIDDEN])
    return _mapping(getattr(response, _HIDDEN, None))


class _Models(dict[type[Any], bool]):
    """Which types are pydantic's models: each look at an instance would go through pydantic's own, slow check."""

    def __missing__(self, kind: type[Any]) -> bool:
        self[kind] = issubclass(kind, BaseModel)
        return self[kind]


_is_model = _Models()


def _mapping(value: Any) -> Mapping[str, Any]:  # pydantic models, dicts, None
    if isinstance(value, dict):
        return value
    if value is not None and _is_model[type(value)]:
        # What stands in it already: dumping the model, or walking through it, costs more than all that is read from it.
        extra = value.__pydantic_extra__
        return {**vars(value), **extra} if extra else vars(value)
    return {}


def _field(holder: Any, name: str) -> Any:  # any of LiteLLM's objects
    """Read a field that may be missing; to ask a pydantic model for an attribute that it lacks is slow."""
    if isinstance(holder, dict):
        return holder.get(name)
    if _is_model[type(holder)]:
        extra = holder.__pydantic_extra__
        return extra[name] if extra and name in extra else vars(holder).get(name)
    return getattr(holder, name, None)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _first(usage: Mapping[str, Any], *names: str) -> int:
    """Read the first field that is there; null and nonsense count as none."""
    if not usage:
        return 0
    for name in names:
        value = usage.get(name)
        if type(value) is int and value > 0:
            return min(value, MOST_TOKENS)
    return 0


def _numbers(usage: Mapping[str, Any], prefix: str = "") -> list[tuple[str, int]]:
    """Flatten a usage to its numbers other than zero: what a later repricing needs, and no text."""
    found: list[tuple[str, int]] = []
    for key, value in usage.items():
        # Most fields are empty.
        if not value or not str(key).isidentifier():
            continue
        if type(value) is int:
            if 0 < value <= MOST_TOKENS:
                found.append((f"{prefix}{key}"[:80], value))
        elif nested := _mapping(value):
            found += _numbers(nested, f"{prefix}{key}.")
    return found[:_MOST_USAGE_FIELDS]
