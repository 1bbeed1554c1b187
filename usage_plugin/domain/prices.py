"""What a request costs: integer arithmetic from a price sheet to nano-dollars.

Prices are integer counts of atto-dollars (10⁻¹⁸ USD) for each token, image, character or query, so that a sheet's
`1.5e-07` or `7.5e-09` is exact. `cost` is what a finished request cost, `worst_case` what it can cost
at most; for the same tokens, within the same reach, `cost <= worst_case` always holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.money import LARGEST_REQUEST

if TYPE_CHECKING:
    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.usage import TokenUsage

_ATTO_PER_NANO = 10**9
_DEAREST_USD = 1_000_000
"""What asks for more for one piece is no price."""


def atto_each(usd: object) -> int | None:
    """Read one price of a price sheet; None if it is no price (missing, text, negative, NaN, infinite)."""
    if isinstance(usd, bool) or not isinstance(usd, int | float | Decimal | str):
        return None
    try:
        price = Decimal(str(usd))
        if not 0 <= price <= _DEAREST_USD:
            return None
        return int(price.scaleb(18).to_integral_value(rounding=ROUND_CEILING))
    except ArithmeticError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Prices of the kinds of token, in atto-dollars for each; `TokenUsage` says which kind is part of which."""

    input: int
    output: int
    cached_input: int
    cache_write: int
    reasoning: int
    cache_write_1h: int
    cached_audio: int
    audio_input: int
    image_input: int
    audio_output: int
    image_output: int

    def atto(self, tokens: TokenUsage) -> int:
        """Price a usage vector, in atto-dollars: no token twice, whatever the parts claim."""
        cached_audio = min(tokens.cached_audio_tokens, tokens.cached_input_tokens)
        written_1h = min(tokens.cache_write_1h_tokens, tokens.cache_write_tokens)
        return _shared_out(
            tokens.input_tokens,
            self.input,
            (
                (tokens.cached_input_tokens - cached_audio, self.cached_input),
                (cached_audio, self.cached_audio),
                (tokens.cache_write_tokens - written_1h, self.cache_write),
                (written_1h, self.cache_write_1h),
                (tokens.audio_input_tokens, self.audio_input),
                (tokens.image_input_tokens, self.image_input),
            ),
        ) + _shared_out(
            tokens.output_tokens,
            self.output,
            (
                (tokens.reasoning_tokens, self.reasoning),
                (tokens.audio_output_tokens, self.audio_output),
                (tokens.image_output_tokens, self.image_output),
            ),
        )

    def dearest_input(self, *, media: bool) -> int:
        """The most that one input token can cost; with `media`, sounds and images among it."""
        text = max(self.input, self.cached_input, self.cache_write, self.cache_write_1h)
        return max(text, self.cached_audio, self.audio_input, self.image_input) if media else text

    def dearest_output(self, *, media: bool) -> int:
        """The most that one output token can cost."""
        text = max(self.output, self.reasoning)
        return max(text, self.audio_output, self.image_output) if media else text


def _shared_out(whole: int, rate: int, parts: tuple[tuple[int, int], ...]) -> int:
    """Price a whole whose parts have prices of their own; what the parts leave costs `rate`."""
    atto = 0
    for claimed, part_rate in parts:
        if claimed:
            taken = min(claimed, whole)
            whole -= taken
            atto += taken * part_rate
    return atto + whole * rate


class Units(NamedTuple):
    """What of a request is billed by the piece, where a price is not by the token."""

    images: int = 0
    characters: int = 0
    queries: int = 0


NO_UNITS = Units()


class UnitRates(NamedTuple):
    """Prices by the piece, in atto-dollars; `request` comes on top of whatever else is billed."""

    image: int = 0
    character: int = 0
    query: int = 0
    request: int = 0

    @property
    def by_the_piece(self) -> bool:
        """Whether something other than the request itself has a price."""
        return any(self[:3])

    def are_counted_by(self, units: Units) -> bool:
        """Say whether something with a price was counted."""
        counted = any(rate and count for rate, count in zip(self, units, strict=False))
        return counted or (self.request > 0 and not self.by_the_piece)

    def atto(self, units: Units) -> int:
        """Price what was counted, in atto-dollars, without the request itself."""
        return sum(rate * count for rate, count in zip(self, units, strict=False))


NO_UNIT_RATES = UnitRates()


class Reach(NamedTuple):
    """What a request may come to, beyond ordinary text: it decides which rates its worst case has to count with.

    Attributes:
        media_input: it may hold sounds or images.
        media_output: its answer may.
        services: tiers of service that it may be served in, beside the ordinary one.
        units: what it has at most of what is billed by the piece; None if nothing bounds that.
    """

    media_input: bool = False
    media_output: bool = False
    services: tuple[str, ...] = ()
    units: Units | None = NO_UNITS


ONLY_TEXT = Reach()


@dataclass(frozen=True, slots=True)
class Price:
    """A deployment's price on one route.

    Attributes:
        base: rates of a request of ordinary length; None if it is billed by the piece only.
        tiers: `(threshold, rates)`, ascending; they apply to a request with more input tokens than that.
        services: the prices of other tiers of service, such as `priority`.
        units: prices by the piece; they count where there are no tokens to bill.
        is_free: whether nothing of any kind costs anything.
    """

    base: Rates | None
    tiers: tuple[tuple[int, Rates], ...] = ()
    services: tuple[tuple[str, Price], ...] = ()
    units: UnitRates = NO_UNIT_RATES
    is_free: bool = field(init=False)

    def __post_init__(self) -> None:
        """Derive what is asked for with each request."""
        is_free = (
            not any(self.units)
            and all(map(_is_free, (self.base, *(tier for _, tier in self.tiers))))
            and all(price.is_free for _, price in self.services)
        )
        object.__setattr__(self, "is_free", is_free)

    def served_as(self, service: str | None) -> Price | None:
        """Find the price of a tier of service; None if it has none of its own."""
        return next((price for name, price in self.services if name == service), None)

    def cost(self, tokens: TokenUsage, *, service: str | None = None, units: Units = NO_UNITS) -> Nano | None:
        """Price a finished request, to the nearest nano-dollar (halves up).

        Returns:
            None if nothing that has a price was counted.
        """
        own = self.served_as(service) or self
        rates = _rates_for(own, tokens.input_tokens)
        if rates is not None and (tokens.input_tokens or tokens.output_tokens):
            atto = rates.atto(tokens)
        elif self.units.are_counted_by(units):
            atto = self.units.atto(units)
        else:
            return 0 if self.is_free else None
        return min(LARGEST_REQUEST, (atto + self.units.request + _ATTO_PER_NANO // 2) // _ATTO_PER_NANO)

    def worst_case(self, input_tokens: int | None, output_tokens: int | None, reach: Reach = ONLY_TEXT) -> Nano | None:
        """Say what a request of at most so many tokens can cost at most, rounded up; None if nothing bounds it."""
        ways = [self, *[price for name, price in self.services if name in reach.services]]
        atto = self.units.atto(reach.units) if reach.units else 0
        if self.base is not None:
            if input_tokens is None or output_tokens is None:
                return None
            atto = max([atto, *[_dearest(way, input_tokens, output_tokens, reach) for way in ways]])
        if reach.units is None and self.units.by_the_piece:
            return None
        return min(LARGEST_REQUEST, -(-(atto + self.units.request) // _ATTO_PER_NANO))


def _rates_for(price: Price, input_tokens: int) -> Rates | None:
    rates = price.base
    for threshold, tier in price.tiers:
        if input_tokens > threshold:
            rates = tier
    return rates


def _dearest(price: Price, input_tokens: int, output_tokens: int, reach: Reach) -> int:
    reachable = [price.base, *[rates for threshold, rates in price.tiers if input_tokens > threshold]]
    return max(
        [
            input_tokens * rates.dearest_input(media=reach.media_input)
            + output_tokens * rates.dearest_output(media=reach.media_output)
            for rates in reachable
            if rates is not None
        ]
    )


def _is_free(rates: Rates | None) -> bool:
    return rates is None or (rates.dearest_input(media=True) == 0 and rates.dearest_output(media=True) == 0)
