"""Asking: a request as LiteLLM hands it over, read as the `Ask` that admission decides on.

Who could serve it and at what price, how much it can use at most, and what would lay itself over it afterwards. The
body is walked once (`bounds`); nothing here waits for anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usage_plugin.domain.subjects import LONGEST_NAME
from usage_plugin.domain.usage import UsageEvent, new_event_id
from usage_plugin.pricing.sheets import CHEAPER_SERVICES, SERVICES, route_of
from usage_plugin.proxy import bounds
from usage_plugin.proxy.prices import FALLBACK_LISTS, Deployment, PriceBook, overriding_fallbacks
from usage_plugin.proxy.refusing import bad_request
from usage_plugin.proxy.tokens import encoding_for
from usage_plugin.tracking.demands import Ask, Candidate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.subjects import Subjects
    from usage_plugin.runtime import Runtime

_WITHOUT_OUTPUT = ("embedding", "moderation", "rerank")
_OF_OUTPUT = ("output_tokens", "total_tokens")

_DROPPED = "additional_drop_params"
CLIENT_TIMEOUTS = frozenset({"timeout", "request_timeout", "stream_timeout"})
"""Under which names a request says how long it waits for a provider."""

_OVERRIDING = frozenset({_DROPPED, "extra_body", *FALLBACK_LISTS})

_SEARCH = "asearch"
_ON_RESPONSES = frozenset({"aresponses", "anthropic_messages"})
_LEAST_OUTPUT = 16


class Asking:
    """Reads requests; one for each handler."""

    def __init__(self, runtime: Runtime, prices: PriceBook) -> None:
        """Take the running parts."""
        self._runtime = runtime
        self._prices = prices

    def ask(self, subjects: Subjects, data: dict[str, Any], kind: str, *, fewer_tokens: int = 0) -> Ask:
        """Read a request, and put an output limit into it where one is needed.

        Args:
            subjects: who asks.
            data: the body, with what LiteLLM added.
            kind: LiteLLM's call type.
            fewer_tokens: by how many tokens the bound by bytes is known to be too high.

        Raises:
            ProxyException: the request cannot be bounded as it is written.
        """
        model = data.get("model")
        model = model if isinstance(model, str) and model else None
        if model and (len(model) > LONGEST_NAME or not model.isprintable()):
            raise bad_request(f"The model's name cannot be taken: {model[:100]!r}.", param="model")
        primary = self._deployments(model, subjects.team)
        if model and "," in model and not self._prices.is_listed(model):
            # LiteLLM would call every model of the list, and log one of them, at no cost.
            raise bad_request(f"One model a request, please: {model[:100]!r} names several.", param="model")
        _refuse_what_overrides(data)
        fallbacks = [
            deployment
            for name in (self._prices.fallbacks(model, data) if model else ())
            for deployment in self._deployments(name, subjects.team) or (_unknown(name),)
        ]
        if kind == "atext_completion" and data.get("stream"):
            # LiteLLM asks the provider for usage on chat streams only, and counts nothing without it.
            options = data.get("stream_options")
            data["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        if gives_up_early(data):
            # Each attempt that is given up may be billed all the same, and only the last one is known of.
            data["num_retries"] = 0
        ways = primary or (_unknown(model),)
        bound = bounds.read(kind, data)
        if fewer_tokens and bound.input_tokens is not None:
            bound = bound._replace(input_tokens=max(0, bound.input_tokens - fewer_tokens))
        output, injected = self._output(data, kind, bound, subjects, [*ways, *fallbacks])
        inputs = [_input(way, bound) for way in (*ways, *fallbacks)]
        return Ask(
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
                injected_output_tokens=injected,
                service_tier=next(iter(bound.reach.services), None),
            ),
            subjects=subjects,
            primary=self._searches(data) if kind == _SEARCH else self._candidates(ways, kind, bound, output),
            fallbacks=self._candidates(fallbacks, kind, bound, output),
            input_tokens=None if None in inputs else max(filter(None, inputs), default=0),
            output_tokens=output,
        )

    def encoding(self, subjects: Subjects, data: Mapping[str, Any]) -> str | None:
        """Name the encoding by which every way counts that the request may be billed; None if there is no such one."""
        model = data.get("model")
        if not isinstance(model, str):
            return None
        names = (model, *self._prices.fallbacks(model, data))
        ways = [self._deployments(name, subjects.team) or (_unknown(name),) for name in names]
        return encoding_for([way for ways_of_one in ways for way in ways_of_one])

    def _deployments(self, model: str | None, team: str | None) -> Sequence[Deployment]:
        return self._prices.deployments(model, team) if model else ()

    def _output(
        self, data: dict[str, Any], kind: str, bound: bounds.Bounds, subjects: Subjects, ways: Sequence[Deployment]
    ) -> tuple[int | None, int | None]:
        """Bound the output, by a limit of our own where a limit depends on it and the client named none.

        Returns:
            The bound over all answers, None if there is none; and what was put into the request, if anything.
        """
        route = route_of(kind)
        if route in _WITHOUT_OUTPUT:
            return 0, None
        if route != "text" or not bound.output_is_bounded:
            return None, None
        count = bound.answers
        if bound.asked_output is not None:
            # LiteLLM raises a smaller number to what the Responses API takes.
            return max(bound.asked_output, _LEAST_OUTPUT if kind in _ON_RESPONSES else 0) * count, None
        known = [way.most_output for way in ways if way.most_output is not None]
        most = min([self._runtime.config.admission.output_tokens_of(ways[0].model or ""), *known])
        if not self._depends_on_output(subjects, ways, kind):
            return most * count, None
        return (most * count, most) if bounds.inject_output(kind, data, most) else (None, None)

    def _searches(self, data: Mapping[str, Any]) -> tuple[Candidate, ...]:
        """Price a search of the web, which names a tool and no model, by its number of queries."""
        found = self._prices.search(data.get("search_tool_name"))
        if found is None:
            return (Candidate(None, None, priced=False, worst_cost=None),)
        provider, each = found
        queries = data.get("query")
        worst = each * (len(queries) if isinstance(queries, list) else 1)
        return (Candidate(f"{provider}/search", provider, priced=True, worst_cost=worst),)

    def _candidates(
        self, ways: Sequence[Deployment], kind: str, bound: bounds.Bounds, output: int | None
    ) -> tuple[Candidate, ...]:
        """Price each way at its worst; ways that are billed alike are one, the dearest."""
        dearest: dict[tuple[str | None, str | None], Candidate] = {}
        for way in ways:
            candidate = self._candidate(way, kind, bound, output)
            worst = candidate.worst_cost
            known = dearest.get(candidate[:2])
            if known is None or (known.worst_cost is not None and (worst is None or worst > known.worst_cost)):
                dearest[candidate[:2]] = candidate
        return tuple(dearest.values())

    def _candidate(self, way: Deployment, kind: str, bound: bounds.Bounds, output: int | None) -> Candidate:
        if way.model is None:
            # LiteLLM chooses one, or the work is priced by something else; moderation is free with every provider.
            is_free = route_of(kind) == "moderation"
            return Candidate(None, None, is_free, 0 if is_free else None)
        worst = _worst(way, kind, bound, output)
        for_input = None
        if worst is None or (worst and self._runtime.config.admission.on_lost == "charge_input"):
            # Asked for rarely, and as dear to work out as the whole.
            for_input = _worst(way, kind, bound, 0)
        return Candidate(way.model, way.provider, way.is_priced_on(kind), worst, for_input or 0)

    def _depends_on_output(self, subjects: Subjects, ways: Sequence[Deployment], kind: str) -> bool:
        """Say whether a limit that can stop a request counts what the output decides."""
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
    """Say whether it is the client who says how long a provider may take."""
    return any(data[name] is not None for name in CLIENT_TIMEOUTS & data.keys())


def _unknown(model: str | None) -> Deployment:
    """Stand in for a model the router does not list, or that is not named: LiteLLM may still serve it."""
    return Deployment(model, served_model=model or "")


def _refuse_what_overrides(data: dict[str, Any]) -> None:
    """Refuse what LiteLLM would lay over the request after it was bounded.

    Raises:
        ProxyException: `extra_body` names a model or is no object, or a fallback brings more than a model's name.
    """
    if _OVERRIDING.isdisjoint(data):
        return
    extra = data.get("extra_body")
    if any(isinstance(place, dict) and place.get(_DROPPED) for place in (data, extra)):
        # LiteLLM would take out of the request what it is bounded by, whoever put it there.
        raise bad_request(f"{_DROPPED} must not be sent by clients of this proxy.", param=_DROPPED)
    if extra is not None and not isinstance(extra, dict):
        raise bad_request("extra_body must be an object.", param="extra_body")
    if extra and "model" in extra:
        # LiteLLM would send this model to the provider, and bill the other one.
        raise bad_request("extra_body must not name a model; name it in model.", param="extra_body.model")
    for name in FALLBACK_LISTS:
        if overriding_fallbacks(data.get(name)):
            raise bad_request("A fallback may only name a model, without parameters of its own.", param=name)


def _input(way: Deployment, bound: bounds.Bounds) -> int | None:
    if bound.input_tokens is None:
        return way.context
    if bound.reach.media_input and way.context is not None:
        # What an image counts is bounded but roughly, and a model takes no more than its context.
        return min(bound.input_tokens, way.context)
    return bound.input_tokens


def _worst(way: Deployment, kind: str, bound: bounds.Bounds, output: int | None) -> Nano | None:
    """Say what a way can cost at most; None if no price is known or nothing bounds it."""
    price = way.price_on(kind)
    if price is None:
        return None
    if way.picks_model and output != 0:
        # The answer decides the price; known is only the fee, which is asked for the input.
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
    """Keep a text that somebody else chose to what can be stored: short, and valid Unicode."""
    return value[:256].encode("utf-8", "replace").decode() if isinstance(value, str) else None
