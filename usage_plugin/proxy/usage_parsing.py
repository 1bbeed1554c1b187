"""Outcomes: read a finished request's usage and cost from LiteLLM's objects, any field of which may be missing.

`usage_plugin.pricing` reads the usage and does the arithmetic. This module takes LiteLLM's objects apart and decides
which cost is charged, in this order:

1. the price that the YAML states
2. the amount that the provider says it billed
3. our own arithmetic, from the price sheet of the model that answered
4. LiteLLM's figure

LiteLLM's figure is 0.0 or None for paid calls on several routes, depending on earlier traffic. So a zero of LiteLLM's
is ignored.
"""

from __future__ import annotations

from datetime import datetime, timezone
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import orjson

from usage_plugin.domain.money import format_usd, from_float
from usage_plugin.domain.prices import NO_TOOL_CALLS, NO_UNITS, ToolCalls, Units
from usage_plugin.errors import MoneyError
from usage_plugin.log import get_logger
from usage_plugin.pricing.usage import (
    count,
    field,
    fields_of,
    grounding_calls,
    is_counted,
    known_service,
    mapping,
    milliseconds,
    numbers,
    read_usage,
    tier_of,
    tier_of_traffic,
)
from usage_plugin.tracking.admission.settlement import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.prices import Price
    from usage_plugin.domain.usage import CostSource, Status, UsageEvent
    from usage_plugin.pricing.usage import Reported
    from usage_plugin.proxy.prices import Deployment
    from usage_plugin.proxy.streams import Report

DisputePolicy = Literal["higher", "computed", "litellm"]
"""Which cost is charged if ours and LiteLLM's differ."""

NO_ANSWER: Mapping[str, Any] = MappingProxyType({})
_MOST_TOLD = 1_000
_HIDDEN = "_hidden_params"

log = get_logger()


class Served(NamedTuple):
    """LiteLLM's report on the deployment that served a request, and the answer's own report.

    Attributes:
        model: The model group that was billed.
        deployment_id: The id of the deployment, which decides the price.
        litellm_cost: LiteLLM's figure in USD, if it has one.
        answered: The provider's model, as named in the answer.
        service: The service tier, as named in the answer; None in a stream of Anthropic's messages.
        units: Counts of units that may be billed by the piece.
        tools: The tools that the provider ran, as far as the answer shows them.
    """

    model: str | None
    deployment_id: str | None
    provider: str | None
    served_model: str | None
    litellm_cost: object
    cache_hit: bool
    answered: str | None = None
    service: str | None = None
    units: Units = NO_UNITS
    tools: ToolCalls = NO_TOOL_CALLS


NOTHING_SERVED = Served(None, None, None, None, None, cache_hit=False)
"""Stands for LiteLLM's report on an answer that it never logs."""


def raw_answer(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a provider's original answer, where LiteLLM keeps it: LiteLLM's own form of it loses fields.

    Empty for providers whose answers LiteLLM forwards with all fields, and where there is no JSON.
    """
    logged = getattr(data.get("litellm_logging_obj"), "model_call_details", None) or {}
    text = logged.get("original_response")
    if logged.get("custom_llm_provider") in _HANDED_ON or not isinstance(text, str) or not text.startswith("{"):
        return {}
    try:
        found: Mapping[str, Any] = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return found


_HANDED_ON = frozenset({"openai", "azure", "text-completion-openai"})


def served_inline(
    data: Mapping[str, Any],
    response: Any,  # any of LiteLLM's answers
    raw: Mapping[str, Any] = NO_ANSWER,
) -> Served:
    """Read the report while the answer is being sent to the client; `raw` is the original answer."""
    fields, hidden = fields_of(response), _hidden(response)
    logged = getattr(data.get("litellm_logging_obj"), "model_call_details", None) or {}
    metadata = _routing_metadata(logged.get("litellm_params") or {}, data)
    tools = tools_in(fields)
    return Served(
        model=_text(metadata.get("model_group")),
        deployment_id=_text(hidden.get("model_id")) or _text((metadata.get("model_info") or {}).get("id")),
        provider=_text(logged.get("custom_llm_provider")),
        served_model=_text(metadata.get("deployment")),
        litellm_cost=hidden.get("response_cost"),
        cache_hit=hidden.get("cache_hit") is True,
        answered=_text(raw.get("model")) or _answered(fields, hidden),
        service=(tier_of(raw) if raw else None) or _service(fields, hidden),
        units=_units(fields, hidden, data),
        tools=_more(tools, tools_in(raw)) if raw else tools,
    )


def served_logged(kwargs: Mapping[str, Any], response: Any = None) -> Served:  # any of LiteLLM's answers
    """Read the report from the arguments of a success or failure callback, `response` included."""
    logged = kwargs.get("standard_logging_object") or {}
    metadata = _routing_metadata(kwargs.get("litellm_params") or {}, {})
    fields, hidden = fields_of(response), _hidden(response)
    return Served(
        model=_text(logged.get("model_group")) or _text(metadata.get("model_group")),
        deployment_id=_text(logged.get("model_id")) or _text((metadata.get("model_info") or {}).get("id")),
        provider=_text(logged.get("custom_llm_provider")),
        served_model=_text(metadata.get("deployment")) or _text(logged.get("model")),
        litellm_cost=logged.get("response_cost"),
        cache_hit=logged.get("cache_hit") is True,
        answered=_answered(fields, hidden),
        service=_service(fields, hidden),
        units=_units(fields, hidden, kwargs),
        tools=tools_in(fields),
    )


def served_streamed(served: Served, report: Report) -> Served:
    """Add the report of a stream's frames."""
    return served._replace(
        answered=report.model or served.answered,
        service=report.service or served.service,
        tools=_more(served.tools, report.tools),
    )


def reported_usage(raw: Mapping[str, Any], answer: Any) -> Mapping[str, Any]:  # any of LiteLLM's answers
    """Return the usage of the original answer, else of LiteLLM's form of it; empty if neither has any."""
    return (inline_usage(raw) if raw else {}) or inline_usage(answer)


def inline_usage(response: Any) -> Mapping[str, Any]:  # any of LiteLLM's answers, or a provider's
    """Return the usage of an answer in any form; empty if it has none."""
    found = mapping(field(response, "usage")) or mapping(field(response, "usageMetadata"))
    if is_counted(found):
        return found
    # Reranking reports its usage in `meta`.
    meta = mapping(field(response, "meta"))
    return meta if any(map(mapping, meta.values())) else {}


def logged_usage(kwargs: Mapping[str, Any], response: Any = None) -> Mapping[str, Any]:  # any of LiteLLM's answers
    """Return the usage from a callback's arguments, the answer's own first; empty if there is none."""
    own = inline_usage(field(response, "response") or response) if response is not None else {}
    if own:
        return own
    logged = kwargs.get("standard_logging_object") or {}
    usage = mapping((logged.get("metadata") or {}).get("usage_object"))
    return usage or {key: logged.get(key) for key in ("prompt_tokens", "completion_tokens")}


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

    A success without reported usage is charged as reserved.
    """
    model = served.model or admitted.model
    deployment = _deployment(prices, model, served, admitted.team)
    provider = (deployment.provider if deployment else None) or served.provider
    reported = read_usage(usage, provider=provider)
    price = deployment.price_on(admitted.call_type) if deployment else None
    told = reported.service or served.service
    service = known_service(told or admitted.service_tier or (deployment.service if deployment else None))
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
    is_guessed = charge.source == "computed" and service is not None and not (told and _has_price(price, service))
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
        # LiteLLM copies any provider's stated amount as its own figure, or writes its own figure in its place. Neither
        # confirms more than our arithmetic.
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
        told = f"computed {format_usd(computed)}, LiteLLM {format_usd(figure)}; {_quantities(reported)}"
        difference = abs(computed - figure)
        return (
            _Charge(computed, "computed", difference, told) if is_ours else _Charge(figure, "litellm", difference, told)
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
    tools = _more(reported.tools, served.tools)
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


def _more(one: ToolCalls, other: ToolCalls) -> ToolCalls:
    """Return the larger count of each tool: usage and answer report the same calls."""
    if other is NO_TOOL_CALLS:
        return one
    if one is NO_TOOL_CALLS:
        return other
    return ToolCalls._make(map(max, one, other))


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
        self._told: set[str | None] = set()

    def look(self, outcome: Outcome) -> None:
        """Log a model's first disputed cost."""
        if outcome.disputed_by and outcome.model not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(outcome.model)
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


def _answered(fields: Mapping[str, Any], hidden: Mapping[str, Any]) -> str | None:
    """Return the provider's model from an answer: only later does LiteLLM replace it with the name the client used."""
    return (
        _text(hidden.get("provider_response_model")) or _text(fields.get("model")) or _text(fields.get("modelVersion"))
    )


def _service(fields: Mapping[str, Any], hidden: Mapping[str, Any]) -> str | None:
    """Return the service tier that an answer reports."""
    told = tier_of(fields)
    if told is not None or not hidden:
        return told
    return tier_of_traffic(mapping(hidden.get("provider_specific_fields")).get("traffic_type"))


def _units(fields: Mapping[str, Any], hidden: Mapping[str, Any], request: Mapping[str, Any]) -> Units:
    """Count units that may be billed by the piece: images and queries answered, characters to speak, audio time."""
    images, spoken, meta = fields.get("data"), request.get("input"), fields.get("meta")
    # LiteLLM measures the audio file where the answer does not report its duration.
    heard = hidden.get("audio_transcription_duration")
    if images is spoken is meta is heard is None:
        return NO_UNITS
    billed = mapping(mapping(meta).get("billed_units"))
    return Units(
        images=len(images) if isinstance(images, list) else 0,
        characters=len(spoken) if isinstance(spoken, str) else 0,
        queries=count(billed, "search_units"),
        milliseconds=milliseconds(heard),
    )


def tools_in(fields: Mapping[str, Any]) -> ToolCalls:
    """Count the tools that a provider ran, where its answer shows them and its usage does not."""
    output = fields.get("output")
    if isinstance(output, list):
        return _in_items(fields, output)
    choices = fields.get("choices")
    if isinstance(choices, list):
        return _CITED if any(map(_cites_the_web, choices)) else NO_TOOL_CALLS
    candidates = fields.get("candidates")
    return grounding_calls(candidates) if isinstance(candidates, list) else NO_TOOL_CALLS


_CITED = ToolCalls(searches=1)
"""A chat answer with citations has searched at least once; the number of searches is not reported."""


def _in_items(fields: Mapping[str, Any], output: list[Any]) -> ToolCalls:
    kinds = [field(item, "type") for item in output]
    if _SERVER_RUN.isdisjoint(kinds):
        return NO_TOOL_CALLS
    told = mapping(mapping(fields.get("tool_usage")).get("web_search"))
    containers = {field(item, "container_id") for item in output if field(item, "type") == "code_interpreter_call"}
    return ToolCalls(
        searches=count(told, "num_requests") if "num_requests" in told else kinds.count("web_search_call"),
        file_searches=kinds.count("file_search_call"),
        code_sessions=len(containers),
    )


_SERVER_RUN = frozenset({"web_search_call", "file_search_call", "code_interpreter_call"})


def _cites_the_web(choice: Any) -> bool:  # any of LiteLLM's answers
    notes = field(field(choice, "message") or field(choice, "delta"), "annotations")
    return isinstance(notes, list) and any(field(note, "type") == "url_citation" for note in notes)


_TOKEN_ROUTES = frozenset({"acompletion", "atext_completion", "aembedding", "aresponses", "anthropic_messages"})


def _routing_metadata(parameters: Mapping[str, Any], data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the metadata with the router's model group; its place differs by route."""
    for holder in (parameters, data):
        for name in ("metadata", "litellm_metadata"):
            metadata = holder.get(name)
            if isinstance(metadata, dict) and metadata.get("model_group"):
                return metadata
    return {}


def _hidden(response: Any) -> Mapping[str, Any]:  # any of LiteLLM's answers
    if isinstance(response, dict):
        return mapping(response.get(_HIDDEN))
    # Read pydantic's storage directly: access to a private attribute takes as long as everything else here.
    private = getattr(response, "__pydantic_private__", None)
    if private and _HIDDEN in private:
        return mapping(private[_HIDDEN])
    return mapping(getattr(response, _HIDDEN, None))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
