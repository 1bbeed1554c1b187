from __future__ import annotations

import dataclasses
import math
from decimal import ROUND_HALF_UP, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_plugin.domain.prices import RATES, Price, PriceExposure, Rates, UnitRates, Units, atto_each
from usage_plugin.domain.usage import TokenUsage
from usage_plugin.testing.builders import make_rates

ATTO = 10**18


atto = st.integers(0, 10**16)
rates = st.builds(Rates, **dict.fromkeys(RATES, atto))
tiers = st.lists(st.tuples(st.integers(0, 300_000), rates), max_size=3, unique_by=lambda tier: tier[0]).map(
    lambda found: tuple(sorted(found, key=lambda tier: tier[0]))
)
services = st.lists(st.tuples(st.sampled_from(["flex", "priority"]), st.builds(Price, rates, tiers)), max_size=2).map(
    tuple
)
prices = st.builds(Price, rates, tiers, services, st.builds(UnitRates, atto, atto, atto, atto, atto))
counts = st.integers(0, 400_000)
WIDE = PriceExposure(media_input=True, media_output=True)


@given(prices | st.builds(Price, st.none(), units=st.builds(UnitRates, atto, atto, atto, atto, atto)), st.data())
def test_no_usage_within_the_bounds_costs_more_than_the_worst_case(price, data):
    """Any reported usage within the bounds, even with invalid parts, costs at most the worst case.

    So field-bugs C6 (reservations too small for long prompts) and C7 (priority billed at standard) cannot happen.
    """
    input_bound, output_bound = data.draw(counts), data.draw(counts)
    most = Units(*(data.draw(counts) for _ in Units._fields))
    reach = WIDE._replace(services=("flex", "priority"), units=most)
    tokens = TokenUsage(
        data.draw(st.integers(0, input_bound)),
        data.draw(st.integers(0, output_bound)),
        *(data.draw(counts) for _ in TokenUsage._fields[2:]),
    )
    units = Units(*(data.draw(st.integers(0, count)) for count in most))
    service = data.draw(st.sampled_from([None, "flex", "priority", "unknown"]))
    cost = price.cost(tokens, service=service, units=units)
    assert cost is None or 0 <= cost <= price.worst_case(input_bound, output_bound, reach)


@given(prices, st.data())
def test_a_usage_of_text_needs_no_more_than_a_bound_of_text(price, data):
    """If a request cannot use audio, images or other service tiers, their prices do not raise the worst case."""
    input_bound, output_bound = data.draw(counts), data.draw(counts)
    tokens = TokenUsage(
        data.draw(st.integers(0, input_bound)),
        data.draw(st.integers(0, output_bound)),
        *(data.draw(counts) for _ in range(4)),
    )
    cost = price.cost(tokens)
    assert cost is None or cost <= price.worst_case(input_bound, output_bound) <= price.worst_case(
        input_bound, output_bound, WIDE
    )


@given(prices, counts, counts, counts, counts)
def test_the_worst_case_grows_with_the_bounds(price, input_bound, output_bound, more_input, more_output):
    """A looser bound never has a smaller worst case."""
    worst = price.worst_case(input_bound, output_bound)
    assert worst <= price.worst_case(input_bound + more_input, output_bound + more_output)


@given(rates, counts, counts, st.data())
def test_every_token_is_priced_once(found, input_tokens, output_tokens, data):
    """Each part is subtracted from its whole and priced once (field-bugs C4: up to 10.9 times the cost)."""
    cached = data.draw(st.integers(0, input_tokens))
    written = data.draw(st.integers(0, input_tokens - cached))
    written_1h = data.draw(st.integers(0, written))
    cached_sound = data.draw(st.integers(0, cached))
    sound = data.draw(st.integers(0, input_tokens - cached - written))
    image = data.draw(st.integers(0, input_tokens - cached - written - sound))
    reasoning = data.draw(st.integers(0, output_tokens))
    spoken = data.draw(st.integers(0, output_tokens - reasoning))
    drawn = data.draw(st.integers(0, output_tokens - reasoning - spoken))
    expected = sum((
        (input_tokens - cached - written - sound - image) * found.input,
        (cached - cached_sound) * found.cached_input,
        cached_sound * found.cached_audio,
        (written - written_1h) * found.cache_write,
        written_1h * found.cache_write_1h,
        sound * found.audio_input,
        image * found.image_input,
        (output_tokens - reasoning - spoken - drawn) * found.output,
        reasoning * found.reasoning,
        spoken * found.audio_output,
        drawn * found.image_output,
    ))  # fmt: skip
    tokens = TokenUsage(
        input_tokens, output_tokens, cached, written, reasoning, written_1h, cached_sound, sound, image, spoken, drawn
    )
    assert found.atto(tokens) == expected


@pytest.mark.parametrize(
    ("written", "atto_dollars"),
    [
        (1.5e-07, 150_000_000_000),
        (7.5e-09, 7_500_000_000),
        (3e-06, 3_000_000_000_000),
        (0.00001, 10_000_000_000_000),
        ("1.5e-07", 150_000_000_000),
        ("0.0000000075", 7_500_000_000),
        (Decimal("1.5E-7"), 150_000_000_000),
        (1.25e-10, 125_000_000),
        (1, ATTO),
        (0, 0),
        (0.0, 0),
        ("0", 0),
    ],
)
def test_sheet_prices_are_exact(written, atto_dollars):
    """A price of a sheet is converted to the exact integer; zero is a price."""
    assert atto_each(written) == atto_dollars


def test_a_price_finer_than_an_atto_dollar_is_rounded_up():
    """A price with a fraction of an atto-dollar is rounded up, never to zero."""
    assert atto_each(1e-19) == 1


@pytest.mark.parametrize(
    "written",
    [math.nan, math.inf, -math.inf, -1e-06, -1, None, "abc", "", True, False, "nan", "inf", "-1e-6", Decimal("NaN"),
     Decimal(-1), [], {}, b"1", object, "1e999999", Decimal("9E+999990")],
    ids=repr,
)  # fmt: skip
def test_what_is_no_price_is_none(written):
    """Missing, negative, infinite, boolean and invalid prices are None, and never an error."""
    assert atto_each(written) is None


@given(
    st.one_of(st.floats(), st.text(), st.integers(), st.decimals(allow_nan=True, allow_infinity=True), st.booleans())
)
def test_reading_a_price_never_raises(written):
    """Any value of a price sheet is either a price or None."""
    found = atto_each(written)
    assert found is None or (isinstance(found, int) and found >= 0)


@given(st.decimals(0, 1, places=18), st.decimals(0, 1, places=18), st.integers(1, 10**6), st.integers(0, 10**6))
def test_cost_is_the_sheets_decimal_arithmetic(input_usd, output_usd, input_tokens, output_tokens):
    """A cost equals the sheet's decimal arithmetic, rounded half up to the nano-dollar."""
    price = Price(make_rates(atto_each(input_usd), atto_each(output_usd)))
    exact = (input_usd * input_tokens + output_usd * output_tokens) * 10**9
    assert price.cost(TokenUsage(input_tokens, output_tokens)) == int(exact.to_integral_value(rounding=ROUND_HALF_UP))


def test_costs_of_fractions_of_a_nano_dollar_are_rounded_halves_up_and_the_worst_case_up():
    """Half a nano-dollar is rounded up to one, less is rounded to zero, and the worst case is always rounded up."""
    price = Price(make_rates(atto_each(7.5e-09)))
    assert price.cost(TokenUsage(input_tokens=1)) == 8
    assert price.cost(TokenUsage(input_tokens=2)) == 15
    tiny = Price(make_rates(atto_each(4e-10)))
    assert tiny.cost(TokenUsage(input_tokens=1)) == 0
    assert tiny.worst_case(1, 0) == 1


def test_the_parts_of_a_usage_have_their_own_prices():
    """Cached, cache-write and reasoning tokens have their own prices, and the rest has the ordinary one."""
    price = Price(
        make_rates(
            3_000 * 10**9, 15_000 * 10**9, cached_input=300 * 10**9, cache_write=3_750 * 10**9, reasoning=60_000 * 10**9
        )
    )
    tokens = TokenUsage(
        input_tokens=1_000, output_tokens=200, cached_input_tokens=600, cache_write_tokens=100, reasoning_tokens=50
    )
    assert price.cost(tokens) == 300 * 3_000 + 600 * 300 + 100 * 3_750 + 150 * 15_000 + 50 * 60_000


def test_nonsense_parts_never_price_more_tokens_than_the_whole():
    """Parts that exceed their whole are reduced to it; cached tokens are counted first."""
    price = Price(make_rates(10**9, 10**9, cached_input=2 * 10**9, cache_write=3 * 10**9, reasoning=4 * 10**9))
    assert price.cost(TokenUsage(10, 10, 7, 9, 99)) == 7 * 2 + 3 * 3 + 10 * 4


@pytest.mark.parametrize(
    ("input_tokens", "each"), [(199_999, 1), (200_000, 1), (200_001, 2), (272_000, 2), (272_001, 5)]
)
def test_a_tier_begins_behind_its_threshold(input_tokens, each):
    """The higher rates apply to all tokens of a request above the threshold, not at it."""
    price = Price(
        make_rates(10**9, 10**9),
        ((200_000, make_rates(2 * 10**9, 2 * 10**9)), (272_000, make_rates(5 * 10**9, 5 * 10**9))),
    )
    assert price.cost(TokenUsage(input_tokens, 10)) == (input_tokens + 10) * each
    assert price.worst_case(input_tokens, 10) == (input_tokens + 10) * each


def test_a_cheaper_tier_does_not_lower_the_worst_case():
    """A request that may stay below a cheaper tier is reserved at the higher rates that may still apply."""
    price = Price(make_rates(10 * 10**9), ((100, make_rates(1 * 10**9)),))
    assert price.worst_case(101, 0) == 1_010
    assert price.worst_case(101, 0) >= price.cost(TokenUsage(input_tokens=100))


@pytest.mark.parametrize("dear", RATES)
def test_only_a_price_without_any_cost_is_free(dear):
    """A price is free only if no kind of token has a cost in any tier or service, and nothing has one by the piece."""
    free = make_rates()
    one = dataclasses.replace(free, **{dear: 1})
    assert Price(free).is_free
    assert not Price(one).is_free
    assert not Price(free, ((1_000, one),)).is_free
    assert not Price(free, services=(("priority", Price(one)),)).is_free
    assert not Price(free, units=UnitRates(image=1)).is_free


def test_a_usage_without_tokens_has_no_cost():
    """Without counted tokens, the cost of a priced request is unknown, and of a free one zero."""
    price = Price(make_rates(10**12, 10**12))
    assert price.cost(TokenUsage()) is None
    assert Price(make_rates()).cost(TokenUsage()) == 0
    assert price.worst_case(0, 0) == 0


def test_a_service_has_its_own_prices():
    """Service tiers such as priority and flex have their own prices; a tier without any has the ordinary ones (C7)."""
    price = Price(
        make_rates(10 * 10**9, 10 * 10**9),
        services=(("priority", Price(make_rates(20 * 10**9, 20 * 10**9), ((100, make_rates(50 * 10**9)),))), ("flex", Price(make_rates(5 * 10**9)))),
    )  # fmt: skip
    tokens = TokenUsage(10, 1)
    assert [price.cost(tokens, service=name) for name in (None, "priority", "flex", "scale")] == [110, 220, 50, 110]
    assert price.cost(TokenUsage(200), service="priority") == 200 * 50
    assert price.worst_case(10, 1) == 110
    assert price.worst_case(10, 1, PriceExposure(services=("flex",))) == 110
    assert price.worst_case(200, 0, PriceExposure(services=("priority",))) == 200 * 50


def test_what_is_billed_by_the_piece_is_counted_by_the_piece():
    """Images, characters and queries have prices; a request with none of them has no known cost."""
    price = Price(None, units=UnitRates(image=40_000_000 * 10**9, request=10**9))
    assert price.cost(TokenUsage(), units=Units(images=3)) == 120_000_001
    assert price.cost(TokenUsage(50, 50), units=Units(images=1)) == 40_000_001
    assert price.cost(TokenUsage(), units=Units()) is None
    assert price.worst_case(None, None, PriceExposure(units=Units(images=3))) == 120_000_001
    assert price.worst_case(None, None, PriceExposure(units=None)) is None


def test_a_price_for_the_request_comes_on_top():
    """A price for each request is added to that of its tokens, in the cost and in the worst case."""
    price = Price(make_rates(10**9, 10**9), units=UnitRates(request=5_000_000 * 10**9))
    assert price.cost(TokenUsage(10, 10)) == 5_000_020
    assert price.worst_case(10, 10) == 5_000_020


def test_without_a_bound_there_is_no_worst_case():
    """A request without a bound on its tokens has no worst case if tokens have a price."""
    price = Price(make_rates(10**9, 10**9))
    assert price.worst_case(None, 10) is None
    assert price.worst_case(10, None) is None
