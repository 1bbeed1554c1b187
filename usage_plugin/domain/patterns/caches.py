"""Patterns of providers' caches: input that could come from a cache, but does not."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING, Literal

from usage_plugin.domain.patterns.models import average, summed
from usage_plugin.domain.patterns.pattern import LEAST_IMPACT, LEAST_REQUESTS, Pattern, percent, rounded, share
from usage_plugin.domain.usage import UsageTotals

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from usage_plugin.domain.patterns.models import Use
    from usage_plugin.domain.prices import Rates

LEAST_CACHED_PROMPT = 1024
"""The minimum tokens of an average prompt: providers do not cache shorter ones."""

CACHE_WORKS = 0.3
"""The minimum typical share of input tokens from a cache for a model that counts as cached."""

CACHE_GAP = 0.25
"""A share is low if it is at most half the typical one, and lower than it by at least this."""

LEAST_PEERS = 5
"""The minimum number of days, or users, from which a typical share of a model is derived."""


def poor_caches(
    model: str, peers: Mapping[str, UsageTotals], kind: Literal["days", "users"], rates: Rates | None
) -> Iterator[Pattern]:
    """Find days, or users, with a far smaller share of a model's input from a cache than most others.

    Args:
        model: the model's name.
        peers: the totals of each day, week or user with this model.
        kind: the kind of the peers.
        rates: the model's rates, if they are known.
    """
    fit = {
        name: totals
        for name, totals in peers.items()
        if totals.requests >= LEAST_REQUESTS and totals.input_tokens >= LEAST_CACHED_PROMPT * totals.requests
    }
    shares = {name: totals.cached_input_tokens / totals.input_tokens for name, totals in fit.items()}
    if len(shares) < LEAST_PEERS:
        return
    typical = median(shares.values())
    low = [name for name, share in shares.items() if share <= min(typical / 2, typical - CACHE_GAP)]
    if typical < CACHE_WORKS or not low:
        return
    used = summed(fit[name] for name in low)
    missed = sum(int((typical - shares[name]) * fit[name].input_tokens) for name in low)
    impact = None if rates is None else missed * (rates.input - rates.cached_input) // 10**9
    if impact is not None and impact < LEAST_IMPACT:
        return
    near = sum(share >= typical - CACHE_GAP for share in shares.values())
    where = f"on {len(low)} days or weeks from {min(low)} to {max(low)}" if kind == "days" else f"for {len(low)} users"
    yield Pattern(
        "low_cache_use",
        description=f"{percent(used.cached_input_tokens, used.input_tokens)} of {model}'s input came from a cache"
        f" {where}; {typical:.0%} is typical of its {kind}.",
        advice="See what was changed at the beginning of the prompts: from there on they must be the same.",
        evidence={
            **average(used),
            "cached_share": share(used.cached_input_tokens, used.input_tokens),
            "typical_cached_share": rounded(typical),
            f"{kind}_below": len(low),
            f"{kind}_compared": len(shares),
            "tokens_that_could_be_cached": missed,
        },
        amounts={"cost": used.cost},
        cost_impact=impact,
        confidence=share(near, len(shares)),
        confidence_basis=f"{near} of the {len(shares)} {kind} that were compared reach the typical share, or nearly.",
        models=(model,),
        affected_users=tuple(sorted(low, key=lambda name: -fit[name].cost)) if kind == "users" else (),
    )


def poor_cache_days(uses: Sequence[Use], rates: Mapping[str, Rates]) -> Iterator[Pattern]:
    """Find days, or weeks, on which a model's cache served far less than on most others."""
    models: defaultdict[str, defaultdict[str, UsageTotals]] = defaultdict(lambda: defaultdict(UsageTotals))
    for use in uses:
        if use.model is not None:
            models[use.model][use.bucket] = models[use.model][use.bucket].plus(use.totals)
    for model, buckets in models.items():
        yield from poor_caches(model, buckets, "days", rates.get(model))
