"""Patterns of models and providers: expensive models, cheaper alternatives, dependence on one provider."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.patterns.pattern import LEAST_IMPACT, LEAST_REQUESTS, Pattern, percent, rounded, share, usd
from usage_plugin.domain.usage import TokenUsage, UsageTotals

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.prices import Rates

HEAVY_SHARE = 0.3
"""The minimum share of all spend of a model in heavy use: three models with equal shares have slightly more each."""

DEAR_FACTOR = 3.0
"""A model is expensive if a token costs this many times the average of all others. A different mix of questions and
answers alone makes a factor of two at the same prices."""

CHEAPER_SHARE = 0.05
"""The minimum share of the spend of a model for which a cheaper one is sought."""

LEAST_SAVING = 0.2
"""The minimum saving, as a share, of a proposed model: the change itself costs more than a smaller saving."""

SAME_SHAPE = 0.5
"""Models do the same work if input and output of their average requests differ at most by a factor of two."""

RELIANCE_SHARE = 0.9
"""The share of requests with one provider from which no other provider in use could take them over."""


class Use(NamedTuple):
    """The usage of one model of one provider in one bucket of time: a day, or a week."""

    bucket: str
    model: str | None
    provider: str | None
    totals: UsageTotals


def dear_models(uses: Sequence[Use]) -> Iterator[Pattern]:
    """Find models with a large share of the spend, and a price per token far above that of all others."""
    models = _by_model(uses)
    everything = summed(models.values())
    buckets = _buckets(uses)
    for model, totals in models.items():
        others = _minus(everything, totals)
        factor = _dearness(totals, others)
        if factor < DEAR_FACTOR or not _is_heavy(totals, everything) or totals.requests < LEAST_REQUESTS:
            continue
        at_others = others.cost * _tokens(totals) // _tokens(others)
        if totals.cost - at_others < LEAST_IMPACT:
            continue
        held = [
            _is_heavy(one := _of_model(bucket, model), whole := summed(use.totals for use in bucket))
            and _dearness(one, _minus(whole, one)) >= DEAR_FACTOR
            for bucket in buckets
        ]
        yield Pattern(
            "dear_model",
            description=f"{model} has {percent(totals.cost, everything.cost)} of the spend, and a token of it costs"
            f" {factor:.1f} times what one of the other models does.",
            advice="See whether all of its requests need it; a limit with match: {model: …} holds it, action: downgrade"
            " sends what does not fit elsewhere.",
            evidence={
                **average(totals),
                "share_of_cost": share(totals.cost, everything.cost),
                "times_dearer": rounded(factor),
            },
            amounts={
                "cost": totals.cost,
                "cost_at_price_of_others": at_others,
                "cost_per_request": totals.cost // totals.requests,
                "cost_per_million_tokens": totals.cost * 10**6 // _tokens(totals),
                "cost_per_million_tokens_of_others": others.cost * 10**6 // _tokens(others),
            },
            cost_impact=totals.cost - at_others,
            confidence=share(sum(held), len(held)),
            confidence_basis=f"It was so in {sum(held)} of the {len(held)} days or weeks with spend.",
            models=(model,),
        )


def cheaper_models(uses: Sequence[Use], rates: Mapping[str, Rates]) -> Iterator[Pattern]:
    """Find for each model the cheapest other one in use for requests of the same shape."""
    models = {model: totals for model, totals in _by_model(uses).items() if totals.requests >= LEAST_REQUESTS}
    whole = sum(use.totals.cost for use in uses)
    priced = {model: totals for model, totals in models.items() if model in rates}
    for model, totals in priced.items():
        if totals.cost < CHEAPER_SHARE * whole:
            continue
        own = _priced(rates[model], totals)
        ways = [
            (_priced(rates[other], totals), other)
            for other, others in priced.items()
            if other != model and min(_likeness(totals, others)) >= SAME_SHAPE
        ]
        if not ways or own - min(ways)[0] < max(LEAST_IMPACT, LEAST_SAVING * own):
            continue
        cost, other = min(ways)
        likeness = _likeness(totals, priced[other])
        yield Pattern(
            "cheaper_model",
            description=f"At today's prices, what {model} was used for costs {usd(own)} USD, with {other}"
            f" {usd(cost)} USD: {percent(own - cost, own)} less for requests of the same size.",
            advice=f"Try some of {model}'s requests with {other}: whether its answers will do, no number here says.",
            evidence={
                **average(totals),
                "input_tokens_per_request_of_other": priced[other].input_tokens // priced[other].requests,
                "output_tokens_per_request_of_other": priced[other].output_tokens // priced[other].requests,
                "saving_share": share(own - cost, own),
            },
            amounts={
                "cost": totals.cost,
                "cost_today": own,
                "cost_with_other": cost,
                "cost_per_request": totals.cost // totals.requests,
            },
            cost_impact=own - cost,
            confidence=rounded(likeness[0] * likeness[1]),
            confidence_basis="How alike the average requests of both are: the smaller through the larger, of input"
            " times of output.",
            models=(model, other),
        )


def one_provider(uses: Sequence[Use]) -> Iterator[Pattern]:
    """Find a provider on which nearly all requests depend."""
    providers: defaultdict[str | None, UsageTotals] = defaultdict(UsageTotals)
    for use in uses:
        providers[use.provider] = providers[use.provider].plus(use.totals)
    everything = summed(providers.values())
    for provider, totals in providers.items():
        is_all = totals.requests >= RELIANCE_SHARE * everything.requests
        if provider is None or not is_all or everything.requests < LEAST_REQUESTS:
            continue
        held = [
            sum(use.totals.requests for use in bucket if use.provider == provider)
            >= RELIANCE_SHARE * sum(use.totals.requests for use in bucket)
            for bucket in _buckets(uses)
        ]
        yield Pattern(
            "one_provider",
            description=f"{percent(totals.requests, everything.requests)} of the requests go to {provider}: if it"
            " fails, or raises its prices, hardly anything else is in use.",
            advice="A second provider's deployment as a fallback of the models that matter most.",
            evidence={
                "requests": totals.requests,
                "share_of_requests": share(totals.requests, everything.requests),
                "share_of_cost": share(totals.cost, everything.cost),
                "providers_in_use": len(providers.keys() - {None}),
            },
            amounts={"cost": totals.cost},
            cost_impact=None,
            confidence=share(sum(held), len(held)),
            confidence_basis=f"It was so in {sum(held)} of the {len(held)} days or weeks with requests.",
            providers=(provider,),
        )


def _by_model(uses: Iterable[Use]) -> dict[str, UsageTotals]:
    models: defaultdict[str, UsageTotals] = defaultdict(UsageTotals)
    for use in uses:
        if use.model is not None:
            models[use.model] = models[use.model].plus(use.totals)
    return dict(models)


def _buckets(uses: Iterable[Use]) -> list[list[Use]]:
    buckets: defaultdict[str, list[Use]] = defaultdict(list)
    for use in uses:
        if use.totals.requests:
            buckets[use.bucket].append(use)
    return list(buckets.values())


def _of_model(uses: Iterable[Use], model: str) -> UsageTotals:
    return summed(use.totals for use in uses if use.model == model)


def summed(totals: Iterable[UsageTotals]) -> UsageTotals:
    """Return the sum of many sums."""
    whole = UsageTotals()
    for one in totals:
        whole = whole.plus(one)
    return whole


def _minus(whole: UsageTotals, part: UsageTotals) -> UsageTotals:
    return UsageTotals(*(a - b for a, b in zip(whole, part, strict=True)))


def _tokens(totals: UsageTotals) -> int:
    return totals.input_tokens + totals.output_tokens


def _is_heavy(totals: UsageTotals, everything: UsageTotals) -> bool:
    return totals.cost > 0 and totals.cost >= HEAVY_SHARE * everything.cost


def _dearness(totals: UsageTotals, others: UsageTotals) -> float:
    """Return the price per token as a multiple of that of the others; 0 if either is unknown."""
    if not (others.cost > 0 and _tokens(others) > 0 and _tokens(totals) > 0):
        return 0.0
    return totals.cost * _tokens(others) / (others.cost * _tokens(totals))


def _priced(rates: Rates, totals: UsageTotals) -> Nano:
    """Return the price of sums as if all their requests were of ordinary length."""
    tokens = TokenUsage(
        totals.input_tokens,
        totals.output_tokens,
        totals.cached_input_tokens,
        totals.cache_write_tokens,
        totals.reasoning_tokens,
    )
    return rates.atto(tokens) // 10**9


def _likeness(one: UsageTotals, other: UsageTotals) -> tuple[float, float]:
    """Return the ratio of the smaller to the larger, for the input and the output of average requests."""
    return _through(one.input_tokens / one.requests, other.input_tokens / other.requests), _through(
        one.output_tokens / one.requests, other.output_tokens / other.requests
    )


def _through(one: float, other: float) -> float:
    return 1.0 if one == other else min(one, other) / max(one, other)


def average(totals: UsageTotals) -> dict[str, float | str]:
    """Return the number of requests, and the tokens of an average one."""
    return {
        "requests": totals.requests,
        "input_tokens_per_request": totals.input_tokens // totals.requests,
        "output_tokens_per_request": totals.output_tokens // totals.requests,
    }
