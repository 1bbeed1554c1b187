"""Read a request from LiteLLM as the `Ask` that admission decides on.

An `Ask` has the deployments that could serve the request with their prices, its maximum usage, and the worst case of
its cost. Fields that would override the request afterwards are rejected. The body is walked once (`bounds`); nothing
here blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.domain.subjects import LONGEST_NAME
from usage_plugin.domain.usage import UsageEvent, new_event_id
from usage_plugin.pricing.sheets import CHEAPER_SERVICES, SERVICES, route_of
from usage_plugin.proxy import bounds, client_fields
from usage_plugin.proxy.output_limits import OutputLimit, output_limit
from usage_plugin.proxy.prices import FALLBACK_LISTS, Deployment, PriceBook, overriding_fallbacks
from usage_plugin.proxy.refusal_response import bad_request
from usage_plugin.proxy.tokens import encoding_for
from usage_plugin.tracking.admission.requirements import Ask, Candidate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.subjects import Subjects
    from usage_plugin.runtime import Runtime

_WITHOUT_OUTPUT = ("embedding", "moderation", "rerank")
_OF_OUTPUT = ("output_tokens", "total_tokens")

CLIENT_TIMEOUTS = frozenset({"timeout", "request_timeout", "stream_timeout"})
"""The fields with which a client sets its own timeout for a provider."""

_MOST_RETRIES = 3
"""The maximum retries: a provider may bill a failed attempt unnoticed. SDKs retry twice by default."""

_METADATA = ("metadata", "litellm_metadata")
_OF_THE_ROUTER = ("model_group", "model_info", "deployment")

_SEARCH = "asearch"
_ON_RESPONSES = frozenset({"aresponses", "anthropic_messages"})
_LEAST_OUTPUT = 16
_STREAMS_WITH_OPTIONS = frozenset({"acompletion", "atext_completion"})


class Sending(NamedTuple):
    """The bounds of an admitted request, compared with the outgoing one.

    Attributes:
        kind: LiteLLM's call type.
        bound: The bounds of the body, as it was read.
        output_tokens: The maximum output over all answers; None if it is unbounded.
        ways: The deployments that may serve the request.
        injected: The field and the value of the output limit that we set in the body, if any.
        limits: The field and the value of the output limit for each deployment that needs a different one.
        field: The output limit's field that the first deployment obeys; None if it obeys none.
        counts_output: Whether any limit depends on the output.
    """

    kind: str
    bound: bounds.Bounds
    output_tokens: int | None
    ways: Sequence[Deployment]
    injected: tuple[str, int] | None
    limits: Mapping[str, tuple[str, int]]
    field: str | None
    counts_output: bool


class Asked(NamedTuple):
    """A request as read; `sending` is None if no limit depends on its cost or tokens."""

    ask: Ask
    sending: Sending | None


class _Output(NamedTuple):
    """The maximum output of each deployment over all answers, None if unbounded, and the output limits that we set."""

    each: Sequence[int | None]
    injected: tuple[str, int] | None = None
    limits: Mapping[str, tuple[str, int]] = {}
    field: str | None = None
    counts: bool = True


class RequestPlanner:
    """Reads requests; each handler has one."""

    def __init__(self, runtime: Runtime, prices: PriceBook) -> None:
        """Create the reader from the worker's runtime and the price book."""
        self._runtime = runtime
        self._prices = prices

    def read(
        self,
        subjects: Subjects,
        data: dict[str, Any],
        kind: str,
        *,
        fewer_tokens: int = 0,
        only: Deployment | None = None,
        thinks: bool = True,
    ) -> Asked:
        """Read a request, and set an output limit in it where one is needed.

        Args:
            subjects: The parties of the request.
            data: The body, with LiteLLM's additions.
            kind: LiteLLM's call type.
            fewer_tokens: The number of tokens by which the bound by bytes is known to be too high.
            only: The deployment that LiteLLM has chosen, if it has.
            thinks: Whether our output limit leaves room for thinking on models that think before they answer.

        Raises:
            ProxyException: The request cannot be bounded as it is written.
        """
        model = data.get("model")
        model = model if isinstance(model, str) and model else None
        if model and (len(model) > LONGEST_NAME or not model.isprintable()):
            raise bad_request(f"The model's name cannot be taken: {model[:100]!r}.", param="model")
        primary = (only,) if only else self._deployments(model, subjects.team)
        if model and "," in model and not self._prices.is_listed(model):
            # LiteLLM would call every model of the list, and log only one of them, without a cost.
            raise bad_request(f"One model a request, please: {model[:100]!r} names several.", param="model")
        if only is None:
            _take_out_the_routers_names(data)
        is_limited = self._runtime.enforce and self._runtime.limits.may_stop_spending(subjects)
        if is_limited and not only:
            _refuse_controls(data, kind)
            _ask_for_usage(data, kind)
        fallbacks = [
            deployment
            for name in (self._prices.fallbacks(model, data) if model and not only else ())
            for deployment in self._deployments(name, subjects.team) or (_unknown(name),)
        ]
        if kind == "atext_completion" and data.get("stream") and not only:
            # LiteLLM asks the provider for usage on chat streams only, and counts nothing without it.
            options = data.get("stream_options")
            data["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        if gives_up_early(data):
            # Each abandoned attempt may still be billed, and only the last one is reported.
            data["num_retries"] = 0
        ways = primary or (_unknown(model),)
        every = (*ways, *fallbacks)
        read = bounds.read(kind, data, trusted=only is not None)
        bound = read
        if fewer_tokens and bound.input_tokens is not None:
            bound = bound._replace(input_tokens=max(0, bound.input_tokens - fewer_tokens))
        each = [bound if (own := _own_of(way, kind)) is None else _both(bound, own) for way in every]
        output = self._output(data, kind, each, subjects, every, thinks=thinks)
        inputs = list(map(_input, every, each))
        most = _largest(output.each)
        candidates = [self._candidate(way, kind, each[at], output.each[at]) for at, way in enumerate(every)]
        ask = Ask(
            draft=UsageEvent(
                event_id=new_event_id(),
                started_at=self._runtime.clock.now(),
                status="recovered",
                call_type=kind,
                **subjects.kept(),
                call_id=_short(data.get("litellm_call_id")),
                requested_model=model,
                model=ways[0].model,
                provider=ways[0].provider,
                injected_output_tokens=output.injected[1] if output.injected else None,
                service_tier=next(iter(bound.reach.services), None),
            ),
            subjects=subjects,
            primary=self._searches(data) if kind == _SEARCH else _most_expensive(candidates[: len(ways)]),
            fallbacks=_most_expensive(candidates[len(ways) :]),
            input_tokens=_largest(inputs),
            output_tokens=most,
        )
        if not is_limited:
            return Asked(ask, None)
        sending = Sending(kind, read, most, every, output.injected, output.limits, output.field, output.counts)
        return Asked(ask, sending)

    def encoding(self, subjects: Subjects, data: Mapping[str, Any]) -> str | None:
        """Return the tokenizer's encoding if all deployments that may bill the request share one, else None."""
        model = data.get("model")
        if not isinstance(model, str):
            return None
        names = (model, *self._prices.fallbacks(model, data))
        ways = [self._deployments(name, subjects.team) or (_unknown(name),) for name in names]
        return encoding_for([way for ways_of_one in ways for way in ways_of_one])

    def deployment(self, subjects: Subjects, group: str | None, deployment_id: str) -> Deployment:
        """Return the deployment with this id, from the model group named by LiteLLM, else from any group."""
        named = self._deployments(group, subjects.team)
        known = [way for way in named if way.deployment_id == deployment_id]
        return next(iter([*known, *self._deployments(deployment_id, subjects.team)]), _unknown(group))

    def _deployments(self, model: str | None, team: str | None) -> Sequence[Deployment]:
        return self._prices.deployments(model, team) if model else ()

    def _output(
        self,
        data: dict[str, Any],
        kind: str,
        each: Sequence[bounds.Bounds],
        subjects: Subjects,
        ways: Sequence[Deployment],
        *,
        thinks: bool,
    ) -> _Output:
        """Bound the output, by our limit or the operator's where the client sets none that is obeyed."""
        route = route_of(kind)
        if route in _WITHOUT_OUTPUT:
            return _Output([0] * len(ways))
        if route != "text" or not each[0].output_is_bounded:
            return _Output([None] * len(ways))
        admission = self._runtime.config.admission
        limits = [output_limit(way, kind, admission, thinks=thinks) for way in ways]
        least = _LEAST_OUTPUT if kind in _ON_RESPONSES else 0
        tokens: list[int | None] = []
        ours: dict[int, tuple[str, int]] = {}
        for at, (way, bound, limit) in enumerate(zip(ways, each, limits, strict=True)):
            if not bound.output_is_bounded:
                most = None
            elif bound.asked_output is not None and not bound.named.isdisjoint(limit.fields):
                # LiteLLM raises a smaller value to the minimum of the Responses API.
                most = max(bound.asked_output, bound.largest_output, least)
            elif not limit.fields:
                most = way.most_output
            else:
                put_in = limit.default if limit.is_sent else _room_for(_thinking_budget(data), limit.default, way)
                ours[at] = (limit.fields[0], put_in)
                most = max(put_in, bound.largest_output, least)
            tokens.append(None if most is None else (most + bound.predicted) * bound.answers)
        field = limits[0].fields[0] if limits[0].fields else None
        if not ours:
            return _Output(tokens, field=field)
        if not self._depends_on_output(subjects, ways, kind):
            return _Output(tokens, field=field, counts=False)
        return _put_in(data, kind, ways, limits, tokens, ours, field)

    def _searches(self, data: Mapping[str, Any]) -> tuple[Candidate, ...]:
        """Price a web search, which names a tool and no model, by its number of queries."""
        found = self._prices.search(data.get("search_tool_name"))
        if found is None:
            return (Candidate(None, None, priced=False, worst_cost=None),)
        provider, each = found
        queries = data.get("query")
        worst = each * (len(queries) if isinstance(queries, list) else 1)
        return (Candidate(f"{provider}/search", provider, priced=True, worst_cost=worst),)

    def _candidate(self, way: Deployment, kind: str, bound: bounds.Bounds, output: int | None) -> Candidate:
        if way.model is None:
            # LiteLLM chooses the model, or the work is priced by another unit. Moderation is free with every provider.
            is_free = route_of(kind) == "moderation"
            return Candidate(None, None, is_free, 0 if is_free else None)
        worst = self._worst(way, kind, bound, output)
        for_input = None
        if worst is None or (worst and self._runtime.config.admission.on_lost == "charge_input"):
            # Computed only where it is needed, since it is as expensive as the whole.
            for_input = _worst(way, kind, bound, 0)
        return Candidate(way.model, way.provider, way.is_priced_on(kind), worst, for_input or 0)

    def _worst(self, way: Deployment, kind: str, bound: bounds.Bounds, output: int | None) -> Nano | None:
        """Return the maximum cost of a deployment, over all models in the body that the provider may choose from."""
        if not bound.models:
            return _worst(way, kind, bound, output)
        costs = [_worst(way, kind, bound, output)]
        for name in bound.models:
            other = self._prices.mapped(way.provider, name)
            costs.append(_worst(other, kind, bound, output) if other is not None else None)
        known = [cost for cost in costs if cost is not None]
        return max(known) if len(known) == len(costs) else None

    def _depends_on_output(self, subjects: Subjects, ways: Sequence[Deployment], kind: str) -> bool:
        """Whether any limit that can stop this request counts its output."""
        if not self._runtime.enforce:
            return False
        for way in ways:
            price = way.price_on(kind)
            costs = price is not None and not price.is_free
            for matched in self._runtime.limits.matching(subjects, way.model, way.provider):
                if matched.can_stop and (matched.limit.unit in _OF_OUTPUT or (costs and matched.limit.unit == "usd")):
                    return True
        return False


def gives_up_early(data: Mapping[str, Any]) -> bool:
    """Whether the client sets the provider's timeout itself."""
    if data.keys().isdisjoint(CLIENT_TIMEOUTS):
        return False
    return any(data[name] is not None for name in CLIENT_TIMEOUTS & data.keys())


def _unknown(model: str | None) -> Deployment:
    """Return a placeholder for a model that is absent or not listed by the router: LiteLLM may still serve it."""
    return Deployment(model, served_model=model or "")


def _put_in(
    data: dict[str, Any],
    kind: str,
    ways: Sequence[Deployment],
    limits: Sequence[OutputLimit],
    tokens: list[int | None],
    ours: Mapping[int, tuple[str, int]],
    field: str | None,
) -> _Output:
    """Set our output limits in the body, or record them for the deployments that need a different one.

    The body can hold only one. A deployment with a limit in the YAML keeps it: LiteLLM sends that one as long as the
    body has none.
    """
    if len(ways) == 1 and not limits[0].is_sent:
        # The usual case.
        is_in = bounds.inject_output(kind, data, *ours[0])
        return _Output(tokens, ours[0], field=field) if is_in else _Output([None])
    first = next((at for at in ours if not limits[at].is_sent), None)
    if first is None:
        bounds.drop_senseless_output(kind, data)
        return _Output(tokens, field=field)
    injected = None
    if len(ours) == len(limits) or len(ours) == sum(1 for limit in limits if limit.fields):
        injected = ours[first]
        if not bounds.inject_output(kind, data, *injected):
            return _Output([None if at in ours else most for at, most in enumerate(tokens)])
        if len(ours) == 1:
            return _Output(tokens, injected, field=field)
    noted = {}
    for at, limit in ours.items():
        if limit != injected:
            if ways[at].deployment_id:
                noted[ways[at].deployment_id] = limit
            else:
                tokens[at] = None
    return _Output(tokens, injected, noted, field)


def _room_for(budget: int, default: int, way: Deployment) -> int:
    """Add the client's thinking budget to our limit, which would otherwise cut off the answer."""
    return min(default + budget, way.most_output or default + budget) if budget else default


_THINKING = frozenset({"thinking", "reasoning", "generationConfig", "config"})


def _thinking_budget(data: Mapping[str, Any]) -> int:
    """Return the client's thinking budget in tokens, from any field that a provider's API has for it."""
    if data.keys().isdisjoint(_THINKING):
        return 0
    config = data.get("generationConfig") or data.get("config")
    thinking, nested = data.get("thinking"), config.get("thinkingConfig") if isinstance(config, dict) else None
    reasoning = data.get("reasoning")
    named = (
        thinking.get("budget_tokens") if isinstance(thinking, dict) else None,
        nested.get("thinkingBudget") if isinstance(nested, dict) else None,
        reasoning.get("max_tokens") if isinstance(reasoning, dict) else None,
    )
    return max(bounds.whole(number) or 0 for number in named)


def _refuse_controls(data: dict[str, Any], kind: str) -> None:
    """Reject fields that would change the call from the one that was bounded.

    Raises:
        ProxyException: A field must not be sent; the error names it.
    """
    if data.keys().isdisjoint(client_fields.ASKS_FOR_ATTENTION):
        return
    extra = data.get("extra_body")
    controls = client_fields.controls_of(data)
    if kind == _SEARCH:
        # The route itself requires the first, and LiteLLM derives the second from it.
        controls = [name for name in controls if name not in ("search_tool_name", "custom_llm_provider")]
    if extra is not None:
        if not isinstance(extra, dict):
            raise bad_request("extra_body must be an object.", param="extra_body")
        controls += [f"extra_body.{name}" for name in client_fields.controls_in_extra_body(extra)]
    if controls:
        raise bad_request(
            f"{controls[0]} must not be sent by clients of this proxy that have a limit: it changes how the request is"
            " routed, retried, answered or billed. Leave it out, or ask the operator to set it for the model.",
            param=controls[0],
        )
    for name in FALLBACK_LISTS:
        if name in data and overriding_fallbacks(data[name]):
            raise bad_request("A fallback may only name a model, without parameters of its own.", param=name)
    # LiteLLM's client does these retries itself, so no hook sees them.
    data.pop("max_retries", None)
    if "num_retries" in data:
        data["num_retries"] = min(bounds.whole(data["num_retries"]) or 0, _MOST_RETRIES)


def _take_out_the_routers_names(data: Mapping[str, Any]) -> None:
    """Remove the metadata keys that only the router may write: on some routes a client's values would set the price."""
    for holder in _METADATA:
        metadata = data.get(holder)
        if isinstance(metadata, dict):
            for name in _OF_THE_ROUTER:
                metadata.pop(name, None)


def _ask_for_usage(data: dict[str, Any], kind: str) -> None:
    """Make a stream end with the provider's usage, even if the client opts out of it."""
    stream = data.get("stream")
    if not stream or kind not in _STREAMS_WITH_OPTIONS:
        return
    options = data.get("stream_options")
    if stream is True and (options is None or (isinstance(options, dict) and options.get("include_usage") is True)):
        # LiteLLM already asks for it, or the operator has disabled it.
        return
    data["stream"] = True
    data["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    data["_litellm_strip_stream_usage"] = True


def _own_of(way: Deployment, kind: str) -> bounds.Bounds | None:
    """Return the bounds of the operator's parameters for a deployment; None if none of them costs anything."""
    if kind not in way.bounds:
        costing = {name: way.parameters[name] for name in bounds.COSTING & way.parameters.keys()}
        way.bounds[kind] = bounds.read(kind, costing, trusted=True) if costing else None
    own: bounds.Bounds | None = way.bounds[kind]
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


def _largest(bounds_of_ways: Sequence[int | None]) -> int | None:
    """Return the largest bound of all deployments; None if any has none."""
    largest = 0
    for most in bounds_of_ways:
        if most is None:
            return None
        largest = max(largest, most)
    return largest


def _most_expensive(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return the most expensive candidate of each model and provider."""
    if len(candidates) == 1:
        return (candidates[0],)
    kept: dict[tuple[str | None, str | None], Candidate] = {}
    for candidate in candidates:
        worst = candidate.worst_cost
        known = kept.get(candidate[:2])
        if known is None or (known.worst_cost is not None and (worst is None or worst > known.worst_cost)):
            kept[candidate[:2]] = candidate
    return tuple(kept.values())


def _input(way: Deployment, bound: bounds.Bounds) -> int | None:
    if bound.input_tokens is None:
        return way.context
    if bound.reach.media_input and way.context is not None:
        # The bound of an image is only rough, and a model takes at most its context.
        return min(bound.input_tokens, way.context)
    return bound.input_tokens


def _worst(way: Deployment, kind: str, bound: bounds.Bounds, output: int | None) -> Nano | None:
    """Return the maximum cost of a deployment; None if no price is known or its usage is unbounded."""
    price = way.price_on(kind)
    if price is None:
        return None
    if way.picks_model and output != 0:
        # The answer decides the price. Only the fee, which applies to the input, is known before.
        return None
    if price.is_free:
        return way.adjustment.fixed
    reach = bound.reach
    if reach.services or way.service in SERVICES:
        services = {*reach.services, *([way.service] if way.service in SERVICES else [])}
        if any(price.served_as(service) is None for service in services - CHEAPER_SERVICES):
            return None
        reach = reach._replace(services=tuple(services))
    if reach.media_output and not way.has_own_price("output_cost_per_audio_token"):
        return None
    return price.worst_case(_input(way, bound), output, reach, way.adjustment)


def _short(value: object) -> str | None:
    """Return a client's or a provider's text in a form that can be stored: short, and valid Unicode."""
    return value[:256].encode("utf-8", "replace").decode() if isinstance(value, str) else None
