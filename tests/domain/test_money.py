from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_plugin.domain.money import NANO_PER_USD, format_usd, from_float, parse_usd, to_decimal
from usage_plugin.errors import MoneyError

LARGEST = 9_000_000_000 * NANO_PER_USD


@given(st.integers(0, LARGEST))
def test_written_amounts_read_back(nano):
    """Every amount written as USD is parsed to exactly the same amount."""
    assert parse_usd(format_usd(nano)) == nano


@given(st.integers(0, LARGEST))
def test_written_amounts_are_exact_decimals(nano):
    """An amount is written with at least two decimals, without an exponent or further trailing zeros."""
    text = format_usd(nano)
    decimals = text.partition(".")[2]
    assert Decimal(text) * NANO_PER_USD == nano
    assert 2 <= len(decimals) <= 9
    assert len(decimals) == 2 or not decimals.endswith("0")


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (0, "0.00"),
        (1, "0.000000001"),
        (10_000_000, "0.01"),
        (100_000_000, "0.10"),
        (NANO_PER_USD, "1.00"),
        (1_230_000_000, "1.23"),
        (1_234_500_000, "1.2345"),
        (20_000 * NANO_PER_USD, "20000.00"),
        (-1_500_000_000, "-1.50"),
    ],
)
def test_amounts_look_as_documented(nano, text):
    """Amounts have the documented format."""
    assert format_usd(nano) == text


@pytest.mark.parametrize(
    ("value", "nano"),
    [
        (5, 5_000_000_000),
        (0, 0),
        ("0.1", 100_000_000),
        ("0.000000001", 1),
        (Decimal("0.10"), 100_000_000),
        (Decimal("1E-9"), 1),
        (Decimal("1E+3"), 1_000_000_000_000),
        ("0.1000000000000000000000000000000000000000", 100_000_000),
        (Decimal("-0"), 0),
        (9_000_000_000, LARGEST),
    ],
)
def test_amounts_are_read_exactly(value, nano):
    """Whole numbers, decimal text and decimals are parsed without rounding."""
    assert parse_usd(value) == nano


@pytest.mark.parametrize(
    "value",
    [
        -1, "-0.01", Decimal("-0.000000001"), "nan", "NaN", "sNaN", Decimal("NaN"), "inf", "-inf", Decimal("Infinity"),
        "abc", "", " ", "5 USD", "$5", "1,5", None, [], {}, (), object, b"5",
        "0.0000000001", Decimal("1.0000000001"), 9_000_000_001, "1e400", "1e-400",
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_amount_is_refused(value):
    """Negative, infinite, too precise, too large and invalid values raise MoneyError, and no other error."""
    with pytest.raises(MoneyError):
        parse_usd(value)


@pytest.mark.parametrize("value", [True, False])
def test_booleans_are_no_amounts(value):
    """A boolean is not parsed as one dollar or zero."""
    with pytest.raises(MoneyError):
        parse_usd(value)


@pytest.mark.parametrize("value", [0.5, 5.0, 0.1])
def test_floats_are_no_amounts(value):
    """`parse_usd` rejects all floats, even exact ones."""
    with pytest.raises(MoneyError):
        parse_usd(value)


@given(st.one_of(st.integers(-LARGEST, LARGEST), st.integers(-100, 100).map(lambda cents: cents * 10**7)))
def test_programs_get_the_decimals_that_people_read(nano):
    """`to_decimal` has the same value and number of decimals as the text of `format_usd`."""
    assert to_decimal(nano).as_tuple() == Decimal(format_usd(nano)).as_tuple()


@given(st.integers(0, LARGEST - 1), st.integers(1, 60))
def test_nothing_finer_than_a_nano_dollar_passes(nano, places):
    """An amount with a nonzero digit after the ninth decimal is rejected and not rounded."""
    dollars, rest = divmod(nano, NANO_PER_USD)
    with pytest.raises(MoneyError):
        parse_usd(f"{dollars}.{rest:09d}{'0' * (places - 1)}1")


@pytest.mark.parametrize(
    ("value", "nano"),
    [
        (9.999999999999999e-05, 100_000),
        (0.0, 0),
        (0.1, 100_000_000),
        (0.1 + 0.2, 300_000_000),
        (1e-10, 0),
        (6e-10, 1),
        (1.5e-07, 150),
        (5, 5_000_000_000),
        (123456.789012345, 123_456_789_012_345),
    ],
)
def test_costs_computed_in_floats_are_rounded_to_the_nearest(value, nano):
    """A cost that LiteLLM computed as a float is rounded to the nearest nano-dollar of its shortest decimal text."""
    assert from_float(value) == nano


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e-9, -0.5])
def test_impossible_float_costs_are_refused(value):
    """NaN, infinite and negative costs raise MoneyError."""
    with pytest.raises(MoneyError):
        from_float(value)


def test_float_costs_have_the_same_upper_end_as_amounts():
    """A cost above the maximum of the ledger's integers is rejected, before it could break the ledger."""
    with pytest.raises(MoneyError):
        from_float(1e11)


@given(st.integers(0, 10**15))
def test_float_costs_of_whole_nano_dollars_are_exact(nano):
    """A cost in whole nano-dollars is unchanged by conversion to a float and back, up to a million dollars."""
    assert from_float(nano / NANO_PER_USD) == nano


@given(
    st.floats(0, 10_000_000)
    # Near the middle between two nano-dollars, and small.
    | st.tuples(st.integers(0, 10**13), st.integers(-5, 5)).map(lambda of: (of[0] + 0.5) / NANO_PER_USD + of[1] * 1e-17)
    | st.floats(0, 1e-8)
)
def test_a_float_is_rounded_as_its_decimal_text(value):
    """A cost is rounded to the nano-dollar that is nearest to its printed text."""
    assert from_float(value) == int((Decimal(repr(value)) * NANO_PER_USD).to_integral_value())
