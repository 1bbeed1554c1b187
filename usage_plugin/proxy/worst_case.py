"""The worst case of a request: the maximum cost on each deployment that may serve it, by its bounds and prices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usage_plugin.pricing.sheets import CHEAPER_SERVICES, SERVICES, route_of
from usage_plugin.proxy import bounds
from usage_plugin.proxy.body_fields import COSTING
from usage_plugin.tracking.admission.demands import Candidate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from usage_plugin.domain.money import Nano
    from usage_plugin.proxy.price_book import Deployment, PriceBook


def bounds_of_each(
    deployments: Sequence[Deployment], call_type: str, bound: bounds.Bounds, counted_tokens: int
) -> list[bounds.Bounds]:
    """Return the bounds on each deployment, with the operator's parameters and without the tokens counted."""
    if counted_tokens and bound.input_tokens is not None:
        bound = bound._replace(input_tokens=max(0, bound.input_tokens - counted_tokens))
    of_operator = [_bounds_of_operator(deployment, call_type) for deployment in deployments]
    return [bound if own is None else _both(bound, own) for own in of_operator]


def candidate(
    deployment: Deployment,
    call_type: str,
    bound: bounds.Bounds,
    output: int | None,
    prices: PriceBook,
    *,
    splits_input: bool,
) -> Candidate:
    """Return one way to bill a request, at its maximum cost.

    Args:
        deployment: The deployment that would serve it.
        call_type: LiteLLM's call type.
        bound: The bounds on this deployment.
        output: The maximum output tokens; None if unbounded.
        prices: The price book.
        splits_input: Whether the cost of the input alone is needed for a bounded request, too.
    """
    if deployment.model is None:
        # LiteLLM chooses the model, or the work is priced by another unit. Moderation is free with every provider.
        is_free = route_of(call_type) == "moderation"
        return Candidate(None, None, is_free, 0 if is_free else None)
    worst = _worst_of_models(deployment, call_type, bound, output, prices)
    for_input = None
    if worst is None or (worst and splits_input):
        for_input = _worst(deployment, call_type, bound, 0)
    is_priced = deployment.is_priced_on(call_type)
    return Candidate(deployment.model, deployment.provider, is_priced, worst, for_input or 0)


def web_search(data: Mapping[str, Any], prices: PriceBook) -> Candidate:
    """Price a web search, which names a tool and no model, by its number of queries."""
    found = prices.search(data.get("search_tool_name"))
    if found is None:
        return Candidate(None, None, priced=False, worst_cost=None)
    provider, each = found
    queries = data.get("query")
    worst = each * (len(queries) if isinstance(queries, list) else 1)
    return Candidate(f"{provider}/search", provider, priced=True, worst_cost=worst)


def most_expensive(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return the most expensive candidate of each model and provider."""
    if len(candidates) == 1:
        return (candidates[0],)
    kept: dict[tuple[str | None, str | None], Candidate] = {}
    for one in candidates:
        worst = one.worst_cost
        known = kept.get(one[:2])
        if known is None or (known.worst_cost is not None and (worst is None or worst > known.worst_cost)):
            kept[one[:2]] = one
    return tuple(kept.values())


def largest(bounds_of_deployments: Sequence[int | None]) -> int | None:
    """Return the largest bound of all deployments; None if any has none."""
    most = 0
    for one in bounds_of_deployments:
        if one is None:
            return None
        most = max(most, one)
    return most


def input_of(deployment: Deployment, bound: bounds.Bounds) -> int | None:
    """Return the maximum input tokens on a deployment; None if unknown."""
    if bound.input_tokens is None:
        return deployment.context
    if bound.reach.media_input and deployment.context is not None:
        # The bound of an image is only rough, and a model takes at most its context.
        return min(bound.input_tokens, deployment.context)
    return bound.input_tokens


def _bounds_of_operator(deployment: Deployment, call_type: str) -> bounds.Bounds | None:
    """Return the bounds of the operator's parameters for a deployment; None if none of them costs anything."""
    if call_type not in deployment.bounds:
        parameters = deployment.parameters
        costing = {name: parameters[name] for name in COSTING & parameters.keys()}
        deployment.bounds[call_type] = bounds.read(call_type, costing, trusted=True) if costing else None
    own: bounds.Bounds | None = deployment.bounds[call_type]
    return own


def _both(bound: bounds.Bounds, own: bounds.Bounds) -> bounds.Bounds:
    """Add the operator's parameters to the bounds of the client's request."""
    inputs = (bound.input_tokens, own.input_tokens)
    return bound._replace(
        input_tokens=None if None in inputs else sum(filter(None, inputs)),
        output_is_bounded=bound.output_is_bounded and own.output_is_bounded,
        answers=max(bound.answers, own.answers),
        largest_output=max(bound.largest_output, own.largest_output),
        predicted=bound.predicted + own.predicted,
        reach=bound.reach._replace(
            media_input=bound.reach.media_input or own.reach.media_input,
            media_output=bound.reach.media_output or own.reach.media_output,
        ),
    )


def _worst_of_models(
    deployment: Deployment, call_type: str, bound: bounds.Bounds, output: int | None, prices: PriceBook
) -> Nano | None:
    """Return the maximum cost of a deployment, over all models in the body that the provider may choose from."""
    if not bound.models:
        return _worst(deployment, call_type, bound, output)
    costs = [_worst(deployment, call_type, bound, output)]
    for name in bound.models:
        other = prices.mapped(deployment.provider, name)
        costs.append(_worst(other, call_type, bound, output) if other is not None else None)
    known = [cost for cost in costs if cost is not None]
    return max(known) if len(known) == len(costs) else None


def _worst(deployment: Deployment, call_type: str, bound: bounds.Bounds, output: int | None) -> Nano | None:
    """Return the maximum cost of a deployment; None if no price is known or its usage is unbounded."""
    price = deployment.price_on(call_type)
    if price is None:
        return None
    if deployment.picks_model and output != 0:
        # The answer decides the price. Only the fee, which applies to the input, is known before.
        return None
    if price.is_free:
        return deployment.adjustment.fixed
    reach = bound.reach
    if reach.services or deployment.service in SERVICES:
        services = {*reach.services, *([deployment.service] if deployment.service in SERVICES else [])}
        if any(price.served_as(service) is None for service in services - CHEAPER_SERVICES):
            return None
        reach = reach._replace(services=tuple(services))
    if reach.media_output and not deployment.has_own_price("output_cost_per_audio_token"):
        return None
    return price.worst_case(input_of(deployment, bound), output, reach, deployment.adjustment)
