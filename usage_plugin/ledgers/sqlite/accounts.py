"""How accounts are read and changed: amounts by account, and statements that SQLite keeps prepared."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, TypeAlias

from usage_plugin.encoding import encode_record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usage_plugin.domain.ledger import AccountKey, Charge, Hold

Change: TypeAlias = tuple[int, int, int]
"""What to add to an account: window_end (the later one stays), spent, reserved."""

MOST = 2**63 - 1
"""The most that an account counts: 9.2 billion USD. Beyond that SQLite would make floats of integers."""


def encoded(holds: Sequence[Hold]) -> str:
    """Write the holds of a reservation as JSON."""
    return encode_record([(*account, end, amount, if_lost) for account, end, amount, _, if_lost, _ in holds])


def changes_of(holds: Sequence[Hold], charges: Sequence[Charge]) -> dict[AccountKey, Change]:
    """Work out what to add to each account."""
    changes = {account: (end, 0, -amount) for account, end, amount, _, _, _ in holds}
    for account, end, amount in charges:
        known_end, spent, reserved = changes.get(account, (end, 0, 0))
        changes[account] = (max(known_end, end), spent + amount, reserved)
    return changes


def _bounded_sum(column: str) -> str:
    """Sum a column up to 2^63 - 1, in halves: SQLite's own sum raises beyond that."""
    high, low = f"coalesce(sum({column} >> 32), 0)", f"coalesce(sum({column} & 4294967295), 0)"
    return f"min({high} * 4294967296 + {low}, {MOST})"


@cache
def reserving(sums: tuple[bool, ...]) -> str:
    """Read as `reading`, and in the same statement whether the request was abandoned: then there is a row -1."""
    abandoned = "SELECT -1, 0, 0 FROM tombstones WHERE event_id = ?"
    return f"{reading(sums)} UNION ALL {abandoned}" if sums else abandoned


@cache
def reading(sums: tuple[bool, ...]) -> str:
    """One look-up for each account, or one sum, in one statement; SQLite keeps it prepared."""
    balance = "spent, reserved FROM accounts WHERE limit_key = ? AND window_start = ?"
    total = (
        f"{_bounded_sum('spent')}, {_bounded_sum('reserved')} FROM accounts WHERE limit_key = ? AND window_start >= ?"
    )
    return " UNION ALL ".join(
        [f"SELECT {number}, {total if is_sum else balance} AND subject = ?" for number, is_sum in enumerate(sums)]
    )
