"""Patterns of providers' caches: where far less comes from one than could."""

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
"""Tokens of an average prompt: providers cache nothing shorter."""

CACHE_WORKS = 0.3
"""A model is cached here if its typical share of input tokens that come from a cache is at least this."""

CACHE_GAP = 0.25
"""A share that is at most half the typical one, and lower by at least this, could be higher."""

LEAST_PEERS = 5
"""So many days, or users, say what is typical of a model."""


def poor_caches(
    model: str, peers: Mapping[str, UsageTotals], kind: Literal["days", "users"], rates: Rates | None
) -> Iterator[Pattern]:
    """Find days, or users, on which far less of a model's input came from a cache than of most others.

    Args:
        model: which.
        peers: what each day, week or user used of it.
        kind: what the peers are.
        rates: the model's, if they are known.
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
    """Find days, or weeks, on which a model's cache served far less than on most."""
    models: defaultdict[str, defaultdict[str, UsageTotals]] = defaultdict(lambda: defaultdict(UsageTotals))
    for use in uses:
        if use.model is not None:
            models[use.model][use.bucket] = models[use.model][use.bucket].plus(use.totals)
    for model, buckets in models.items():
        yield from poor_caches(model, buckets, "days", rates.get(model))
