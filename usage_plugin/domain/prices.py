"""Prices: integer arithmetic from a price sheet and billable quantities to nano-dollars.

Prices are integer counts of atto-dollars (10⁻¹⁸ USD) for each token, image, character, query or tool call, so that a
sheet's `1.5e-07` or `7.5e-09` is exact. `cost` prices a finished request, `worst_case` bounds one that has not begun.
For the same quantities and the same reach, `cost <= worst_case` always holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.money import LARGEST_REQUEST

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.usage import TokenUsage

_ATTO_PER_NANO = 10**9
_HIGHEST_USD = 1_000_000
"""The maximum valid price of one piece."""


def atto_each(usd: object) -> int | None:
    """Return one price of a price sheet in atto-dollars; None if invalid (missing, text, negative, NaN, infinite)."""
    if isinstance(usd, bool) or not isinstance(usd, int | float | Decimal | str):
        return None
    try:
        price = Decimal(str(usd))
        if not 0 <= price <= _HIGHEST_USD:
            return None
        return int(price.scaleb(18).to_integral_value(rounding=ROUND_CEILING))
    except ArithmeticError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Prices of each kind of token, in atto-dollars per token; `TokenUsage` defines which kinds include others."""

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
    video_input: int
    video_output: int
    citation: int
    highest_text: tuple[int, int] = field(init=False, repr=False)
    """The highest price of an input token and of an output token in a request of text."""
    highest: tuple[int, int] = field(init=False, repr=False)
    """The same for requests that also contain audio, images and video."""

    def __post_init__(self) -> None:
        """Derive the highest prices, which bound each request."""
        text = max(self.input, self.cached_input, self.cache_write, self.cache_write_1h, self.citation)
        answer = max(self.output, self.reasoning)
        media = max(text, self.cached_audio, self.audio_input, self.image_input, self.video_input)
        shown = max(answer, self.audio_output, self.image_output, self.video_output)
        object.__setattr__(self, "highest_text", (text, answer))
        object.__setattr__(self, "highest", (media, shown))

    def atto(self, tokens: TokenUsage) -> int:
        """Return the price of tokens in atto-dollars; no token counts twice, even if the parts exceed the whole."""
        if not any(tokens[3:]):
            # Most requests have no other kinds of token.
            cached = min(tokens.cached_input_tokens, tokens.input_tokens)
            text = (tokens.input_tokens - cached) * self.input + tokens.output_tokens * self.output
            return text + cached * self.cached_input
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
                (tokens.citation_tokens, self.citation),
                (tokens.audio_input_tokens, self.audio_input),
                (tokens.image_input_tokens, self.image_input),
                (tokens.video_input_tokens, self.video_input),
            ),
        ) + _shared_out(
            tokens.output_tokens,
            self.output,
            (
                (tokens.reasoning_tokens, self.reasoning),
                (tokens.audio_output_tokens, self.audio_output),
                (tokens.image_output_tokens, self.image_output),
                (tokens.video_output_tokens, self.video_output),
            ),
        )


RATES = tuple(rate.name for rate in fields(Rates) if rate.init)
"""The names of the rates."""


def _shared_out(whole: int, rate: int, parts: tuple[tuple[int, int], ...]) -> int:
    """Return the price of a whole whose parts have prices of their own; the remainder costs `rate`."""
    atto = 0
    for claimed, part_rate in parts:
        if claimed:
            taken = min(claimed, whole)
            whole -= taken
            atto += taken * part_rate
    return atto + whole * rate


class Units(NamedTuple):
    """The quantities of a request that are billed by the piece, not by the token."""

    images: int = 0
    characters: int = 0
    queries: int = 0
    milliseconds: int = 0


NO_UNITS = Units()


class UnitRates(NamedTuple):
    """Prices by the piece, in atto-dollars; `request` is added to everything else that is billed."""

    image: int = 0
    character: int = 0
    query: int = 0
    millisecond: int = 0
    request: int = 0

    @property
    def by_the_piece(self) -> bool:
        """Whether anything except the request itself has a price."""
        return any(self[:4])

    def are_counted_by(self, units: Units) -> bool:
        """Whether any counted quantity has a price."""
        counted = any(rate and count for rate, count in zip(self, units, strict=False))
        return counted or (self.request > 0 and not self.by_the_piece)

    def atto(self, units: Units) -> int:
        """Return the price of counted quantities in atto-dollars, without the request itself."""
        return sum(rate * count for rate, count in zip(self, units, strict=False))


NO_UNIT_RATES = UnitRates()


class ToolCalls(NamedTuple):
    """Calls of tools that the provider ran itself, as reported in its usage.

    Attributes:
        searches: web searches.
        map_searches: map look-ups.
        pages: opened web pages.
        file_searches: searches in files that the provider stores.
        code_sessions: sandboxes in which the provider ran code.
    """

    searches: int = 0
    map_searches: int = 0
    pages: int = 0
    file_searches: int = 0
    code_sessions: int = 0


NO_TOOL_CALLS = ToolCalls()


class ToolRates(NamedTuple):
    """Fees for tool calls, in atto-dollars, in addition to tokens.

    Attributes:
        by_prompt: whether all web searches of one request are billed as one, and all map look-ups as one.
        search_by_size: the price of a search by the size of its context, if the price depends on it.
    """

    search: int = 0
    map_search: int = 0
    page: int = 0
    file_search: int = 0
    code_session: int = 0
    by_prompt: bool = False
    search_by_size: tuple[tuple[str, int], ...] = ()

    def atto(self, calls: ToolCalls, search_size: str | None = None) -> int:
        """Return the price of tool calls; `search_size` is the size of the context that the searches filled."""
        if self.by_prompt:
            calls = calls._replace(searches=min(1, calls.searches), map_searches=min(1, calls.map_searches))
        atto = sum(rate * count for rate, count in zip(self[:5], calls, strict=True))
        if self.search_by_size and search_size is not None:
            atto += calls.searches * (dict(self.search_by_size).get(search_size, self.search) - self.search)
        return atto

    def highest(self, calls: ToolCalls) -> int:
        """Return the highest price of tool calls whose search context has an unknown size."""
        sizes = [size for size, _ in self.search_by_size]
        return max(self.atto(calls), *[self.atto(calls, size) for size in sizes]) if sizes else self.atto(calls)


NO_TOOL_RATES = ToolRates()


class OffPeak(NamedTuple):
    """Hours of a week in which other rates apply.

    Attributes:
        price: the price in these hours, without tiers and services.
        hours: `(weekdays, first minute, last minute)`, minutes of a day in UTC, the last one excluded. A span with
            equal ends is the whole day. A span that ends before it begins runs over midnight.
        zone: the zone of the weekdays, 1 for Monday to 7.
    """

    price: Price
    hours: tuple[tuple[frozenset[int], int, int], ...]
    zone: ZoneInfo

    def applies(self, at: datetime) -> bool:
        """Whether an instant, in UTC, is off-peak."""
        weekday, minute = at.astimezone(self.zone).isoweekday(), at.hour * 60 + at.minute
        return any(
            weekday in weekdays and (first <= minute < last if first < last else minute >= first or minute < last)
            for weekdays, first, last in self.hours
        )


_ONE = 1_000_000
"""Multipliers are counted in millionths."""

_WHOLE = 10**12


class PriceAdjustment(NamedTuple):
    """An operator's discount or surcharge on a provider's prices.

    Attributes:
        share: the factor on the cost, in units of 10⁻¹²: 10¹² leaves the cost unchanged.
        fixed: nano-dollars added to each request.
    """

    share: int = _WHOLE
    fixed: Nano = 0

    @classmethod
    def of(cls, share: Decimal, fixed: Decimal) -> PriceAdjustment:
        """Return the adjustment of a factor and an amount in USD; negative ones count as 0, so no cost is negative."""
        return cls(max(0, int(share * _WHOLE)), max(0, int(fixed.scaleb(9).to_integral_value(ROUND_CEILING))))

    def atto(self, atto: int) -> int:
        """Return adjusted atto-dollars, rounded up."""
        return -(-atto * self.share // _WHOLE) + self.fixed * _ATTO_PER_NANO

    def nano(self, nano: Nano) -> Nano:
        """Return adjusted nano-dollars, rounded up."""
        return min(LARGEST_REQUEST, -(-self.atto(nano * _ATTO_PER_NANO) // _ATTO_PER_NANO))


NO_ADJUSTMENT = PriceAdjustment()


class PriceExposure(NamedTuple):
    """The features that a request may use beyond ordinary text. They decide the rates of its worst case.

    Attributes:
        media_input: whether the request may contain audio, images or video.
        media_output: whether its answer may contain them.
        services: the tiers of service that may serve it, apart from the ordinary one.
        units: the maximum quantities that are billed by the piece; None if nothing bounds them.
        tools: the maximum number of tool calls; None if nothing bounds it.
        modes: modes of the provider, such as `fast`, that multiply the whole price.
    """

    media_input: bool = False
    media_output: bool = False
    services: tuple[str, ...] = ()
    units: Units | None = NO_UNITS
    tools: ToolCalls | None = NO_TOOL_CALLS
    modes: tuple[str, ...] = ()


ONLY_TEXT = PriceExposure()


@dataclass(frozen=True, slots=True)
class Price:
    """A deployment's price on one route.

    Attributes:
        base: rates of a request of ordinary length; None if it is billed by the piece only.
        tiers: `(threshold, rates)`, ascending; they apply to a request with more input tokens than the threshold.
        services: the prices of other tiers of service, such as `priority`.
        units: prices by the piece; they apply if there are no tokens to bill.
        tools: fees for tool calls.
        modes: the multipliers of a provider's modes on the price of tokens, in millionths.
        off_peak: hours with other rates.
        is_free: whether all prices are zero.
    """

    base: Rates | None
    tiers: tuple[tuple[int, Rates], ...] = ()
    services: tuple[tuple[str, Price], ...] = ()
    units: UnitRates = NO_UNIT_RATES
    tools: ToolRates = NO_TOOL_RATES
    modes: tuple[tuple[str, int], ...] = ()
    off_peak: OffPeak | None = None
    is_free: bool = field(init=False)

    def __post_init__(self) -> None:
        """Derive `is_free`, which each request needs."""
        is_free = (
            not any(self.units)
            and not any(self.tools[:5])
            and all(map(_is_free, (self.base, *(tier for _, tier in self.tiers))))
            and all(price.is_free for _, price in self.services)
        )
        object.__setattr__(self, "is_free", is_free)

    def served_as(self, service: str | None) -> Price | None:
        """Return the price of a tier of service; None if it has no price of its own."""
        return next((price for name, price in self.services if name == service), None)

    def cost(
        self,
        tokens: TokenUsage,
        *,
        service: str | None = None,
        units: Units = NO_UNITS,
        tools: ToolCalls = NO_TOOL_CALLS,
        search_size: str | None = None,
        modes: Iterable[str] = (),
        at: datetime | None = None,
        adjustment: PriceAdjustment = NO_ADJUSTMENT,
    ) -> Nano | None:
        """Return the cost of a finished request, to the nearest nano-dollar (halves up).

        Args:
            tokens: the tokens used.
            service: the tier of service that served it.
            units: the quantities that are billed by the piece.
            tools: the tools that the provider called itself.
            search_size: the size of the context that its searches filled.
            modes: the modes in which the provider served it, as reported.
            at: the time of service, in UTC; needed only if `off_peak` is set.
            adjustment: the operator's.

        Returns:
            None if nothing with a price was counted.
        """
        own = self if service is None else self.served_as(service) or self
        if self.off_peak is not None and at is not None and self.off_peak.applies(at):
            own = self.off_peak.price
        rates = _rates_for(own, tokens.input_tokens)
        fees = self.tools.atto(tools, search_size) if tools is not NO_TOOL_CALLS else 0
        if rates is not None and (tokens.input_tokens or tokens.output_tokens):
            atto = rates.atto(tokens)
            if self.modes and modes:
                atto = _multiplied(atto, [multiplier for name, multiplier in self.modes if name in modes])
        elif self.units.are_counted_by(units):
            atto = self.units.atto(units)
        elif fees:
            atto = 0
        else:
            return adjustment.fixed if self.is_free else None
        atto += fees + self.units.request
        if adjustment is not NO_ADJUSTMENT:
            atto = adjustment.atto(atto)
        return min(LARGEST_REQUEST, (atto + _ATTO_PER_NANO // 2) // _ATTO_PER_NANO)

    def worst_case(
        self,
        input_tokens: int | None,
        output_tokens: int | None,
        reach: PriceExposure = ONLY_TEXT,
        adjustment: PriceAdjustment = NO_ADJUSTMENT,
    ) -> Nano | None:
        """Return the maximum cost of a request of at most these tokens, rounded up; None if nothing bounds it."""
        if (reach.tools is None and any(self.tools[:5])) or (reach.units is None and self.units.by_the_piece):
            return None
        if reach.modes and not dict(self.modes).keys() >= set(reach.modes):
            return None
        atto = 0
        if self.base is not None:
            if input_tokens is None or output_tokens is None:
                return None
            atto = max([_highest(price, input_tokens, output_tokens, reach) for price in self._reached(reach)])
        # Most requests use none of the following features.
        if reach.units is not None and reach.units is not NO_UNITS:
            atto = max(atto, self.units.atto(reach.units))
        if self.modes and reach.modes:
            atto = _multiplied(atto, [multiplier for name, multiplier in self.modes if name in reach.modes])
        if reach.tools is not None and reach.tools is not NO_TOOL_CALLS:
            atto += self.tools.highest(reach.tools)
        atto += self.units.request
        if adjustment is not NO_ADJUSTMENT:
            atto = adjustment.atto(atto)
        return min(LARGEST_REQUEST, -(-atto // _ATTO_PER_NANO))

    def _reached(self, reach: PriceExposure) -> Sequence[Price]:
        """Return the prices at which a request may be billed."""
        if not reach.services and self.off_peak is None:
            return (self,)
        others = [price for name, price in self.services if name in reach.services]
        return (self, *others, *([] if self.off_peak is None else [self.off_peak.price]))


def _multiplied(atto: int, multipliers: Iterable[int]) -> int:
    """Return the product with all multipliers, rounded up to a whole atto-dollar after each."""
    for multiplier in multipliers:
        atto = -(-atto * multiplier // _ONE)
    return atto


def _rates_for(price: Price, input_tokens: int) -> Rates | None:
    rates = price.base
    for threshold, tier in price.tiers:
        if input_tokens > threshold:
            rates = tier
    return rates


def _highest(price: Price, input_tokens: int, output_tokens: int, reach: PriceExposure) -> int:
    highest = 0 if price.base is None else _at(price.base, input_tokens, output_tokens, reach)
    for threshold, rates in price.tiers:
        if input_tokens > threshold:
            highest = max(highest, _at(rates, input_tokens, output_tokens, reach))
    return highest


def _at(rates: Rates, input_tokens: int, output_tokens: int, reach: PriceExposure) -> int:
    each_input = (rates.highest if reach.media_input else rates.highest_text)[0]
    each_output = (rates.highest if reach.media_output else rates.highest_text)[1]
    return input_tokens * each_input + output_tokens * each_output


def _is_free(rates: Rates | None) -> bool:
    return rates is None or rates.highest == (0, 0)
