from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_plugin.domain.prices import Price, Rates, atto_per_token
from usage_plugin.domain.usage import TokenUsage

ATTO = 10**18


def make_rates(prompt=0, answer=0, cached_input=None, cache_write=None, reasoning=None):
    """Rates in atto-dollars; what is not given costs what its whole costs."""
    return Rates(
        input=prompt,
        output=answer,
        cached_input=prompt if cached_input is None else cached_input,
        cache_write=prompt if cache_write is None else cache_write,
        reasoning=answer if reasoning is None else reasoning,
    )


atto = st.integers(0, 10**16)
rates = st.builds(Rates, input=atto, output=atto, cached_input=atto, cache_write=atto, reasoning=atto)
tiers = st.lists(st.tuples(st.integers(0, 300_000), rates), max_size=3, unique_by=lambda tier: tier[0]).map(
    lambda found: tuple(sorted(found, key=lambda tier: tier[0]))
)
prices = st.builds(Price, rates, tiers)
counts = st.integers(0, 400_000)


@given(prices, st.data())
def test_no_usage_within_the_bounds_costs_more_than_the_worst_case(price, data):
    """Whatever a provider reports within the bounds, even nonsense parts, it costs at most the worst case."""
    input_bound, output_bound = data.draw(counts), data.draw(counts)
    tokens = TokenUsage(
        data.draw(st.integers(0, input_bound)),
        data.draw(st.integers(0, output_bound)),
        data.draw(counts),
        data.draw(counts),
        data.draw(counts),
    )
    assert 0 <= price.cost(tokens) <= price.worst_case(input_bound, output_bound)


@given(prices, counts, counts, counts, counts)
def test_the_worst_case_grows_with_the_bounds(price, input_bound, output_bound, more_input, more_output):
    """A looser bound never has a smaller worst case."""
    worst = price.worst_case(input_bound, output_bound)
    assert worst <= price.worst_case(input_bound + more_input, output_bound + more_output)


@given(rates, counts, counts, st.data())
def test_every_token_is_priced_once(found, input_tokens, output_tokens, data):
    """Cached and cache-write tokens are taken out of the input, reasoning out of the output, none is priced twice."""
    cached = data.draw(st.integers(0, input_tokens))
    written = data.draw(st.integers(0, input_tokens - cached))
    reasoning = data.draw(st.integers(0, output_tokens))
    expected = sum((
        (input_tokens - cached - written) * found.input,
        cached * found.cached_input,
        written * found.cache_write,
        (output_tokens - reasoning) * found.output,
        reasoning * found.reasoning,
    ))  # fmt: skip
    assert found.atto(TokenUsage(input_tokens, output_tokens, cached, written, reasoning)) == expected


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
    """A price as it stands in a sheet becomes exactly the integer that was meant; zero is a price."""
    assert atto_per_token(written) == atto_dollars


def test_a_price_finer_than_an_atto_dollar_is_rounded_up():
    """What cannot be written in atto-dollars is rounded up, never to nothing."""
    assert atto_per_token(1e-19) == 1


@pytest.mark.parametrize(
    "written",
    [math.nan, math.inf, -math.inf, -1e-06, -1, None, "abc", "", True, False, "nan", "inf", "-1e-6", Decimal("NaN"),
     Decimal(-1), [], {}, b"1", object(), "1e999999", Decimal("9E+999990")],
    ids=repr,
)  # fmt: skip
def test_what_is_no_price_is_none(written):
    """Missing, negative, not finite, boolean and meaningless prices are no price, and never an error."""
    assert atto_per_token(written) is None


@given(
    st.one_of(st.floats(), st.text(), st.integers(), st.decimals(allow_nan=True, allow_infinity=True), st.booleans())
)
def test_reading_a_price_never_raises(written):
    """Whatever stands in a price sheet is read as a price or as none."""
    found = atto_per_token(written)
    assert found is None or (isinstance(found, int) and found >= 0)


@given(st.decimals(0, 1, places=18), st.decimals(0, 1, places=18), st.integers(0, 10**6), st.integers(0, 10**6))
def test_cost_is_the_sheets_decimal_arithmetic(input_usd, output_usd, input_tokens, output_tokens):
    """A cost is what decimal arithmetic on the sheet gives, rounded to the nano-dollar, halves up."""
    price = Price(make_rates(atto_per_token(input_usd), atto_per_token(output_usd)))
    exact = (input_usd * input_tokens + output_usd * output_tokens) * 10**9
    assert price.cost(TokenUsage(input_tokens, output_tokens)) == int(exact.to_integral_value(rounding=ROUND_HALF_UP))


def test_costs_of_fractions_of_a_nano_dollar_are_rounded_halves_up_and_the_worst_case_up():
    """Half a nano-dollar counts as one, less as none, and the worst case always as one."""
    price = Price(make_rates(atto_per_token(7.5e-09)))
    assert price.cost(TokenUsage(input_tokens=1)) == 8
    assert price.cost(TokenUsage(input_tokens=2)) == 15
    tiny = Price(make_rates(atto_per_token(4e-10)))
    assert tiny.cost(TokenUsage(input_tokens=1)) == 0
    assert tiny.worst_case(1, 0) == 1


def test_the_parts_of_a_usage_have_their_own_prices():
    """Cached, cache-write and reasoning tokens cost their own price, the rest of input and output the ordinary one."""
    price = Price(make_rates(3_000 * 10**9, 15_000 * 10**9, 300 * 10**9, 3_750 * 10**9, 60_000 * 10**9))
    tokens = TokenUsage(
        input_tokens=1_000, output_tokens=200, cached_input_tokens=600, cache_write_tokens=100, reasoning_tokens=50
    )
    assert price.cost(tokens) == 300 * 3_000 + 600 * 300 + 100 * 3_750 + 150 * 15_000 + 50 * 60_000


def test_nonsense_parts_never_price_more_tokens_than_the_whole():
    """Parts that are larger than their whole are cut to it, cached tokens first."""
    price = Price(make_rates(1 * 10**9, 1 * 10**9, 2 * 10**9, 3 * 10**9, 4 * 10**9))
    assert price.cost(TokenUsage(10, 10, 7, 9, 99)) == 7 * 2 + 3 * 3 + 10 * 4


@pytest.mark.parametrize(
    ("input_tokens", "each"), [(199_999, 1), (200_000, 1), (200_001, 2), (272_000, 2), (272_001, 5)]
)
def test_a_tier_begins_behind_its_threshold(input_tokens, each):
    """The dearer rates apply to all tokens of a request with more input tokens than the threshold, not with as many."""
    price = Price(
        make_rates(10**9, 10**9),
        ((200_000, make_rates(2 * 10**9, 2 * 10**9)), (272_000, make_rates(5 * 10**9, 5 * 10**9))),
    )
    assert price.cost(TokenUsage(input_tokens, 10)) == (input_tokens + 10) * each
    assert price.worst_case(input_tokens, 10) == (input_tokens + 10) * each


def test_a_cheaper_tier_does_not_lower_the_worst_case():
    """A request that may stay below a cheaper tier is reserved at the dearer rates it can still be billed at."""
    price = Price(make_rates(10 * 10**9), ((100, make_rates(1 * 10**9)),))
    assert price.worst_case(101, 0) == 1_010
    assert price.worst_case(101, 0) >= price.cost(TokenUsage(input_tokens=100))


@pytest.mark.parametrize("dear", ["input", "output", "cached_input", "cache_write", "reasoning"])
def test_only_a_price_without_any_cost_is_free(dear):
    """A price is free only if no kind of token costs anything, in any tier."""
    free = {"input": 0, "output": 0, "cached_input": 0, "cache_write": 0, "reasoning": 0}
    assert Price(Rates(**free)).is_free
    assert not Price(Rates(**{**free, dear: 1})).is_free
    assert not Price(Rates(**free), ((1_000, Rates(**{**free, dear: 1})),)).is_free


def test_a_usage_without_tokens_costs_nothing():
    """No tokens, no cost, and no worst case."""
    price = Price(make_rates(10**12, 10**12))
    assert price.cost(TokenUsage()) == 0
    assert price.worst_case(0, 0) == 0
