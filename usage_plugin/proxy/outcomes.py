"""Outcomes: what a finished request used and cost, read out of LiteLLM's objects, any field of which may be missing.

The cost is computed from the tokens and the price of the deployment that served. LiteLLM's own figure serves only
where no token price is known: it is 0.0 or None for paid calls on several routes, depending on earlier traffic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel

from usage_plugin.domain.money import from_float
from usage_plugin.domain.usage import MOST_TOKENS, TokenUsage
from usage_plugin.errors import MoneyError
from usage_plugin.tracking.recorder import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.usage import CostSource, Status, UsageEvent
    from usage_plugin.proxy.prices import Deployment, PriceBook

_MOST_USAGE_FIELDS = 40


class Served(NamedTuple):
    """What LiteLLM says about who served a request.

    Attributes:
        model: the model group that was billed.
        deployment_id: of the deployment; it decides the price.
        litellm_cost: LiteLLM's figure in USD, if it has one.
    """

    model: str | None
    deployment_id: str | None
    provider: str | None
    served_model: str | None
    litellm_cost: object
    cache_hit: bool


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
    )


def served_logged(kwargs: Mapping[str, Any]) -> Served:
    """Read it out of what a success or failure callback gets."""
    logged = kwargs.get("standard_logging_object") or {}
    metadata = _routing_metadata(kwargs.get("litellm_params") or {}, {})
    return Served(
        model=_text(logged.get("model_group")) or _text(metadata.get("model_group")),
        deployment_id=_text(logged.get("model_id")) or _text((metadata.get("model_info") or {}).get("id")),
        provider=_text(logged.get("custom_llm_provider")),
        served_model=_text(metadata.get("deployment")) or _text(logged.get("model")),
        litellm_cost=logged.get("response_cost"),
        cache_hit=logged.get("cache_hit") is True,
    )


def inline_usage(response: Any) -> Mapping[str, Any]:  # any of LiteLLM's answers
    """Find the usage in an answer; empty if it has none."""
    return _mapping(response.get("usage") if isinstance(response, dict) else getattr(response, "usage", None))


def logged_usage(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Find the usage in what a callback gets; empty if it has none."""
    logged = kwargs.get("standard_logging_object") or {}
    usage = _mapping((logged.get("metadata") or {}).get("usage_object"))
    return usage or {key: logged.get(key) for key in ("prompt_tokens", "completion_tokens")}


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
    return TokenUsage(
        input_tokens=total_input,
        output_tokens=_first(usage, "completion_tokens", "output_tokens"),
        cached_input_tokens=cached,
        cache_write_tokens=written,
        reasoning_tokens=_first(answer, "reasoning_tokens"),
    )


def read_outcome(
    prices: PriceBook,
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
    cost, source = _cost(deployment, tokens, served, admitted.call_type)
    price = deployment.price_on(admitted.call_type) if deployment else None
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
        estimated=estimated,
        as_reserved=unknown,
        error=error,
        usage=dict(_numbers(usage)) or None,
    )


def _deployment(prices: PriceBook, model: str | None, served: Served, team: str | None) -> Deployment | None:
    """Find the deployment that served, else the first that could have."""
    if model is None:
        return None
    found = prices.deployments(model, team)
    exact = [deployment for deployment in found if deployment.deployment_id == served.deployment_id]
    return next(iter(exact or found), None)


def _cost(
    deployment: Deployment | None, tokens: TokenUsage, served: Served, call_type: str
) -> tuple[Nano | None, CostSource]:
    if served.cache_hit:
        return 0, "none"
    price = deployment.price_on(call_type) if deployment else None
    if price is not None and (any(tokens) or price.is_free):
        return price.cost(tokens), "computed"
    figure = served.litellm_cost
    if isinstance(figure, int | float) and figure > 0:
        try:
            return from_float(float(figure)), "litellm"
        except MoneyError:
            return None, "unpriced"
    if price is None and (any(tokens) or call_type not in _TOKEN_ROUTES):
        return None, "unpriced"
    return 0, "none"


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
        return _mapping(response.get("_hidden_params"))
    return _mapping(getattr(response, "_hidden_params", None))


def _mapping(value: Any) -> Mapping[str, Any]:  # pydantic models, dicts, None
    if isinstance(value, dict):
        return value
    if isinstance(value, BaseModel):
        # Shallow: dumping the model costs more than all that is read from it.
        return dict(value)
    return {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _first(usage: Mapping[str, Any], *names: str) -> int:
    """Read the first field that is there; null and nonsense count as none."""
    for name in names:
        value = usage.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return min(value, MOST_TOKENS)
    return 0


def _numbers(usage: Mapping[str, Any], prefix: str = "") -> list[tuple[str, int]]:
    """Flatten a usage to its numbers other than zero: what a later repricing needs, and no text."""
    found: list[tuple[str, int]] = []
    for key, value in usage.items():
        if not str(key).isidentifier():
            continue
        if isinstance(value, dict | BaseModel):
            found += _numbers(_mapping(value), f"{prefix}{key}.")
        elif isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST_TOKENS:
            found.append((f"{prefix}{key}"[:80], value))
    return found[:_MOST_USAGE_FIELDS]
