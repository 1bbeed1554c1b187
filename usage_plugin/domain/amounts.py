"""Amounts of limits in text: USD as a decimal, counts as whole numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usage_plugin.domain.money import format_usd

if TYPE_CHECKING:
    from usage_plugin.domain.limits import Unit


def format_amount(unit: Unit, amount: int) -> str:
    """Return an amount as text in its unit: USD as a decimal, counts as whole numbers."""
    return format_usd(amount) if unit == "usd" else str(amount)


def plain_amount(unit: Unit, amount: int) -> str | int:
    """Return an amount for JSON: USD as a decimal string, counts as numbers."""
    return format_usd(amount) if unit == "usd" else amount
