"""Charges: the cost of a finished request, and its outcome.

The cost is, in this order:

1. the price that the YAML states
2. the amount that the provider says it billed
3. our own arithmetic, from the price sheet of the model that answered
4. LiteLLM's figure

If the last two differ by more than 1 %, `admission.on_disputed_cost` chooses; by default the higher one is charged.

LiteLLM's figure is 0.0 or None for paid calls on several routes, depending on earlier traffic. So a zero of LiteLLM's
is ignored.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from usage_plugin.domain.money import format_usd, from_float
from usage_plugin.errors import MoneyError
from usage_plugin.log import get_logger
from usage_plugin.pricing.usage import known_service, numbers, read_usage
from usage_plugin.proxy.usage_parsing import larger_counts
from usage_plugin.tracking.admission.recorder import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.prices import Price
    from usage_plugin.domain.usage import CostSource, Status, UsageEvent
    from usage_plugin.pricing.usage import Reported
    from usage_plugin.proxy.price_book import Deployment
    from usage_plugin.proxy.usage_parsing import Served

DisputePolicy = Literal["higher", "computed", "litellm"]
"""Which cost is charged if ours and LiteLLM's differ."""

_MOST_LOGGED = 1_000

_TOKEN_ROUTES = frozenset({"acompletion", "atext_completion", "aembedding", "aresponses", "anthropic_messages"})

log = get_logger()


class Deployments(Protocol):
    """The source of prices: the proxy's `PriceBook`, or the price of a single SDK call."""

    def deployments(self, model: str, team: str | None) -> Sequence[Deployment]:
        """Return the deployments that may have served a model, most likely first."""


def read_outcome(
    prices: Deployments,
    served: Served,
    usage: Mapping[str, Any],
    admitted: UsageEvent,
    *,
    status: Status = "success",
    error: str | None = None,
    estimated: bool = False,
    on_disputed: DisputePolicy = "higher",
) -> Outcome:
    """Return a request's outcome: its status, its usage and its cost.

    A success of a priced model without any figure is charged as reserved.
    """
    model = served.model or admitted.model
    deployment = _deployment(prices, model, served, admitted.team)
    provider = (deployment.provider if deployment else None) or served.provider
    reported = read_usage(usage, provider=provider)
    price = deployment.price_on(admitted.call_type) if deployment else None
    stated = reported.service or served.service
    service = known_service(stated or admitted.service_tier or (deployment.service if deployment else None))
    charge = (
        _Charge(0, "none")
        if served.cache_hit
        else _charge(deployment, price, reported, service, served, admitted, on_disputed)
    )
    unknown = (
        charge.source == "none"
        and not served.cache_hit
        and price is not None
        and not price.is_free
        and status == "success"
    )
    # An answer without a tier is billed at the request's tier; one without usage, by LiteLLM's count.
    is_guessed = charge.source == "computed" and service is not None and not (stated and _has_price(price, service))
    is_guessed |= charge.source == "litellm" and not any((*reported.tokens, *served.units._replace(characters=0)))
    return Outcome(
        status=status,
        # The router's own name of the billed model: aliases are mapped to it.
        model=deployment.model if deployment else model,
        served_model=served.served_model or (deployment.served_model if deployment else None),
        deployment=served.deployment_id,
        provider=provider,
        tokens=reported.tokens,
        cost=charge.cost,
        cost_source=charge.source,
        cache_hit=served.cache_hit,
        estimated=estimated or is_guessed,
        as_reserved=unknown,
        error=error,
        usage=dict(numbers(usage)) or None,
        service_tier=service,
        disputed_by=charge.disputed_by,
        disputed=charge.disputed,
    )


class _Charge(NamedTuple):
    cost: Nano | None
    source: CostSource
    disputed_by: Nano = 0
    disputed: str = ""


def _charge(  # noqa: PLR0911  # one case after the other  # all that decides
    deployment: Deployment | None,
    price: Price | None,
    reported: Reported,
    service: str | None,
    served: Served,
    admitted: UsageEvent,
    on_disputed: DisputePolicy,
) -> _Charge:
    computed = _computed(deployment, price, reported, service, served, admitted) if deployment else None
    if computed is not None and deployment is not None and deployment.states_price:
        return _Charge(computed, "computed")
    if reported.billed is not None:
        adjusted = deployment.adjustment.nano(reported.billed) if deployment else reported.billed
        return _Charge(adjusted, "provider")
    figure = _figure(served.litellm_cost)
    if reported.stated is not None and deployment is not None:
        # If LiteLLM's figure equals the amount in the usage, one is a copy of the other, and a copy confirms nothing.
        figure = None if figure in (reported.stated, deployment.adjustment.nano(reported.stated)) else figure
    if computed is not None and deployment is not None and figure == deployment.adjustment.nano(computed):
        # LiteLLM adjusts the cost of some streams twice.
        figure = None
    if computed is not None:
        if not disagreement(computed, figure) or figure is None:
            return _Charge(computed, "computed")
        if deployment is not None and _ignores_the_answer(figure, deployment, price, reported, served, admitted):
            return _Charge(computed, "computed")
        is_ours = on_disputed == "computed" or (on_disputed == "higher" and computed >= figure)
        amounts = f"computed {format_usd(computed)}, LiteLLM {format_usd(figure)}; {_quantities(reported)}"
        difference = abs(computed - figure)
        return (
            _Charge(computed, "computed", difference, amounts)
            if is_ours
            else _Charge(figure, "litellm", difference, amounts)
        )
    if figure is not None:
        return _Charge(figure, "litellm")
    if price is None and (any(reported.tokens) or admitted.call_type not in _TOKEN_ROUTES):
        return _Charge(None, "unpriced")
    return _Charge(0, "none")


def _computed(  # all the facts that decide
    deployment: Deployment,
    price: Price | None,
    reported: Reported,
    service: str | None,
    served: Served,
    admitted: UsageEvent,
) -> Nano | None:
    """Return the cost by our own arithmetic; None if a price is missing or nothing was counted."""
    answering = deployment.price_of_answer(served.answered, admitted.call_type)
    parts = [price] if answering is None else [price, answering] if deployment.picks_model else [answering]
    if None in parts or (deployment.picks_model and answering is None):
        # A routing model's own price is only its fee.
        return None
    tools = larger_counts(reported.tools, served.tools)
    at = None
    if any(part is not None and part.off_peak is not None for part in parts):
        at = datetime.fromtimestamp(admitted.started_at / 1e6, timezone.utc)
    costs = [
        part.cost(
            reported.tokens,
            service=service,
            units=served.units._replace(milliseconds=reported.milliseconds) if reported.milliseconds else served.units,
            tools=tools,
            search_size=reported.search_size,
            modes=reported.modes,
            at=at,
            adjustment=deployment.adjustment,
        )
        for part in parts
        if part is not None
    ]
    return None if None in costs else sum(cost for cost in costs if cost is not None)


def _ignores_the_answer(
    figure: Nano,
    deployment: Deployment,
    price: Price | None,
    reported: Reported,
    served: Served,
    admitted: UsageEvent,
) -> bool:
    """Whether LiteLLM's figure is the cost of the request as it was sent, not of the answer as it was served.

    The tier and mode in the provider's answer decide the cost; LiteLLM does not read them on every route.
    """
    modes = () if price is None else tuple(name for name, _ in price.modes)
    services = {None, admitted.service_tier}
    asked = [*((service, reported.modes) for service in services), *((None, (mode,)) for mode in modes)]
    costs = [
        _computed(deployment, price, reported._replace(modes=mode), service, served, admitted)
        for service, mode in asked
    ]
    return any(cost is not None and not disagreement(cost, figure) for cost in costs)


def _quantities(reported: Reported) -> str:
    """Return the quantities as text, to investigate a disputed cost."""
    counted = {**reported.tokens._asdict(), **reported.tools._asdict()}
    return ", ".join(f"{name} {number}" for name, number in counted.items() if number) or "nothing counted"


def disagreement(computed: Nano | None, litellm: Nano | None) -> bool:
    """Whether two costs differ by more than 1 % and a micro-dollar; an unknown cost agrees with any other."""
    if computed is None or litellm is None:
        return False
    return abs(computed - litellm) > max(1_000, max(computed, litellm) // 100)


class CrossCheck:
    """Logs the models that LiteLLM prices differently: each one once, up to a maximum number of models."""

    def __init__(self) -> None:
        """Start without any logged model."""
        self._logged: set[str | None] = set()

    def log_once(self, outcome: Outcome) -> None:
        """Log a model's first disputed cost."""
        if outcome.disputed_by and outcome.model not in self._logged and len(self._logged) < _MOST_LOGGED:
            self._logged.add(outcome.model)
            log.warning("cost.disputed", model=outcome.model, charged=outcome.cost_source, why=outcome.disputed)


def _has_price(price: Price | None, service: str) -> bool:
    return price is not None and (price.is_free or price.served_as(service) is not None)


def _deployment(prices: Deployments, model: str | None, served: Served, team: str | None) -> Deployment | None:
    """Return the deployment that served the request, else the first that may have."""
    if model is None:
        return None
    found = prices.deployments(model, team)
    for deployment in found:
        if deployment.deployment_id == served.deployment_id:
            return deployment
    return found[0] if found else None


def _figure(usd: object) -> Nano | None:
    """Return LiteLLM's figure; None for a zero, since LiteLLM reports any unknown cost as zero."""
    if not isinstance(usd, int | float) or usd <= 0:
        return None
    try:
        return from_float(float(usd))
    except (MoneyError, OverflowError):
        return None
