"""What a token costs: integer arithmetic from a price sheet to nano-dollars.

Prices are integer counts of atto-dollars (10⁻¹⁸ USD) for each token, so that a sheet's
`1.5e-07` or `7.5e-09` is exact. `cost` is what a finished request cost, `worst_case` what it can cost
at most; for the same tokens `cost <= worst_case` always holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING

from usage_plugin.domain.money import LARGEST_REQUEST

if TYPE_CHECKING:
    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.usage import TokenUsage

_ATTO_PER_NANO = 10**9
_DEAREST_USD = 1_000_000
"""What asks for more for one token is no price."""


def atto_per_token(usd_per_token: object) -> int | None:
    """Read one price of a price sheet; None if it is no price (missing, text, negative, NaN, infinite)."""
    if isinstance(usd_per_token, bool) or not isinstance(usd_per_token, int | float | Decimal | str):
        return None
    try:
        price = Decimal(str(usd_per_token))
        if not 0 <= price <= _DEAREST_USD:
            return None
        return int(price.scaleb(18).to_integral_value(rounding=ROUND_CEILING))
    except ArithmeticError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Prices of the kinds of token, in atto-dollars for each token.

    Cached and cache-write tokens are part of the input, reasoning tokens part of the output. `dearest_cache_write`
    counts for worst cases only: what a provider asks for keeping a prefix for longer.
    """

    input: int
    output: int
    cached_input: int
    cache_write: int
    reasoning: int
    dearest_cache_write: int = 0

    def atto(self, tokens: TokenUsage) -> int:
        """Price a usage vector, in atto-dollars."""
        cached = min(tokens.cached_input_tokens, tokens.input_tokens)
        written = min(tokens.cache_write_tokens, tokens.input_tokens - cached)
        reasoning = min(tokens.reasoning_tokens, tokens.output_tokens)
        return (
            (tokens.input_tokens - cached - written) * self.input
            + cached * self.cached_input
            + written * self.cache_write
            + (tokens.output_tokens - reasoning) * self.output
            + reasoning * self.reasoning
        )

    @property
    def dearest_input(self) -> int:
        """The most that one input token can cost."""
        return max(self.input, self.cached_input, self.cache_write, self.dearest_cache_write)

    @property
    def dearest_output(self) -> int:
        """The most that one output token can cost."""
        return max(self.output, self.reasoning)


@dataclass(frozen=True, slots=True)
class Price:
    """A deployment's price: base rates, and dearer or cheaper ones above a number of input tokens.

    Attributes:
        base: rates of a request of ordinary length.
        tiers: `(threshold, rates)`, ascending; they apply to a request with more input tokens than that.
    """

    base: Rates
    tiers: tuple[tuple[int, Rates], ...] = ()

    def cost(self, tokens: TokenUsage) -> Nano:
        """Price a finished request, to the nearest nano-dollar (halves up)."""
        rates = self.base
        for threshold, tier in self.tiers:
            if tokens.input_tokens > threshold:
                rates = tier
        return min(LARGEST_REQUEST, (rates.atto(tokens) + _ATTO_PER_NANO // 2) // _ATTO_PER_NANO)

    def worst_case(self, input_tokens: int, output_tokens: int) -> Nano:
        """Say what a request of at most so many tokens can cost at most, rounded up."""
        reachable = [self.base, *(rates for threshold, rates in self.tiers if input_tokens > threshold)]
        atto = max(input_tokens * rates.dearest_input + output_tokens * rates.dearest_output for rates in reachable)
        return min(LARGEST_REQUEST, -(-atto // _ATTO_PER_NANO))

    @property
    def is_free(self) -> bool:
        """Whether no token of any kind costs anything."""
        return all(
            rates.dearest_input == 0 and rates.dearest_output == 0
            for rates in (self.base, *(tier for _, tier in self.tiers))
        )
