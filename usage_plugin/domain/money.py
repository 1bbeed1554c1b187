"""Money: an integer count of nano-dollars, written as a decimal string at every interface.

One nano-dollar is 10⁻⁹ USD. Floats never become money directly: LiteLLM's prices and costs are read from
their shortest decimal text (`from_float`), which equals the price as it was written.
"""

from __future__ import annotations

import math
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import TYPE_CHECKING, TypeAlias

from usage_plugin.errors import MoneyError

if TYPE_CHECKING:
    from collections.abc import Iterable

Nano: TypeAlias = int
"""An amount in nano-dollars."""

NANO_PER_USD = 10**9
_NANO_PER_CENT = 10**7
LARGEST_REQUEST: Nano = 10**16
"""The maximum cost of a request: ten million dollars. A higher one is wrong, and must not make sums overflow."""

_EXACT = Context(prec=100, traps=[Inexact, InvalidOperation])
_SURELY_NEAREST = 2**40
_LARGEST_USD = 9_000_000_000
"""The maximum of a single amount: 9 billion dollars, since SQLite's integers end at 9.22 × 10¹⁸."""


def parse_usd(value: str | int | Decimal) -> Nano:
    """Return an amount of money in USD as nano-dollars.

    Args:
        value: dollars, for example `5`, `"0.25"` or `Decimal("0.000000001")`; at most nine decimals.

    Raises:
        MoneyError: not a number, negative, not finite, finer than a nano-dollar, or beyond 9 billion.
    """
    if isinstance(value, bool | float):
        raise MoneyError(f"{value!r} is not an amount in USD.")
    try:
        amount = Decimal(value)
    except (InvalidOperation, TypeError, ValueError):
        raise MoneyError(f"{value!r} is not an amount in USD.") from None
    if not amount.is_finite():
        raise MoneyError(f"{value} is not an amount in USD.")
    if amount < 0:
        raise MoneyError(f"{value} is negative.")
    if amount > _LARGEST_USD:
        raise MoneyError(f"{value} is more than {_LARGEST_USD} USD.")
    try:
        return int(_EXACT.scaleb(amount, 9).to_integral_exact(context=_EXACT))
    except Inexact:
        raise MoneyError(f"{value} is finer than a nano-dollar (nine decimals).") from None


def format_usd(nano: Nano) -> str:
    """Return an amount in USD as text, exactly: at least two decimals, without superfluous zeros after them."""
    sign = "-" if nano < 0 else ""
    dollars, rest = divmod(abs(nano), NANO_PER_USD)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{dollars}.{decimals}"


def to_decimal(nano: Nano) -> Decimal:
    """Return an amount in USD as an exact decimal for programs, with as many decimals as `format_usd` writes."""
    (usd,) = to_decimals((nano,))
    return usd


def to_decimals(nanos: Iterable[Nano]) -> list[Decimal]:
    """Return many amounts as `to_decimal` does, twice as fast as one by one."""
    scaleb, normalize, cent = _EXACT.scaleb, _EXACT.normalize, _NANO_PER_CENT
    return [scaleb(nano // cent, -2) if nano % cent == 0 else normalize(scaleb(nano, -9)) for nano in nanos]


def from_float(value: float) -> Nano:
    """Return a cost that another program computed in floats, rounded to the nearest nano-dollar.

    Raises:
        MoneyError: negative, not finite, or more than any request costs.
    """
    if not math.isfinite(value) or value < 0 or value * NANO_PER_USD > LARGEST_REQUEST:
        raise MoneyError(f"{value!r} is not a cost.")
    nano = value * NANO_PER_USD
    nearest = round(nano)
    if nano < _SURELY_NEAREST and abs(nano - nearest) < 0.49:
        # The product's error is much smaller than the distance to the next rounding boundary.
        return nearest
    return int((Decimal(repr(value)) * NANO_PER_USD).to_integral_value())
