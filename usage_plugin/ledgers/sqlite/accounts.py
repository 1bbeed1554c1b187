"""Read and change accounts: the change of each account, and SQL statements that SQLite keeps prepared."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from usage_plugin.domain.ledger import Account, AccountKey, Balance, Hold
from usage_plugin.encoding import encode_record
from usage_plugin.ledgers.sqlite.file import translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from usage_plugin.domain.ledger import Charge

Change: TypeAlias = tuple[int, int, int]
"""A change of an account: window_end (the later one is kept), amounts to add to spent and reserved."""

MOST = 2**63 - 1
"""The maximum amount of an account: 9.2 billion USD. Above it SQLite would convert integers to floats."""

_PAGE = 1_000


def encoded(holds: Sequence[Hold]) -> str:
    """Encode the holds of a reservation as JSON."""
    return encode_record([(*account, end, amount, if_lost) for account, end, amount, _, if_lost, _ in holds])


def decoded(text: str) -> list[Hold]:
    """Return the holds that `encoded` wrote."""
    return [
        Hold(AccountKey(key, start, subject), end, amount, None, if_lost)
        for key, start, subject, end, amount, if_lost in json.loads(text)
    ]


def pages_of_accounts(path: Path, execute: Callable[..., Any]) -> Iterator[Account]:
    """Iterate over all accounts in the order of their key, in pages, so that no read stays open between two of them."""
    after: tuple[str, int, int] = ("", -(2**63), -(2**63))
    while True:
        with translated(path):
            rows = execute(
                "SELECT subject, limit_key, window_start, window_end, spent, reserved FROM accounts"
                f" WHERE (subject, limit_key, window_start) > (?, ?, ?)"
                f" ORDER BY subject, limit_key, window_start LIMIT {_PAGE}",
                after,
            ).fetchall()
        for subject, limit_key, start, end, spent, reserved in rows:
            yield Account(AccountKey(limit_key, start, subject), end, Balance(spent, reserved))
        if len(rows) < _PAGE:
            return
        after = rows[-1][:3]


def changes_of(holds: Sequence[Hold], charges: Sequence[Charge]) -> dict[AccountKey, Change]:
    """Return the change of each account when a reservation's holds are replaced by charges."""
    changes = {account: (end, 0, -amount) for account, end, amount, _, _, _ in holds}
    for account, end, amount in charges:
        known_end, spent, reserved = changes.get(account, (end, 0, 0))
        changes[account] = (max(known_end, end), spent + amount, reserved)
    return changes


def _bounded_sum(column: str) -> str:
    """Return SQL for the sum of a column, at most 2^63 - 1.

    It adds 32-bit halves, since SQLite's own sum raises an error above that.
    """
    high, low = f"coalesce(sum({column} >> 32), 0)", f"coalesce(sum({column} & 4294967295), 0)"
    return f"min({high} * 4294967296 + {low}, {MOST})"


@cache
def reserving(sums: tuple[bool, ...]) -> str:
    """Return the statement of `reading`, with one more row numbered -1 if the request was abandoned."""
    abandoned = "SELECT -1, 0, 0 FROM tombstones WHERE event_id = ?"
    return f"{reading(sums)} UNION ALL {abandoned}" if sums else abandoned


@cache
def reading(sums: tuple[bool, ...]) -> str:
    """Return one statement that reads all accounts: a look-up or a sum for each. SQLite keeps it prepared."""
    balance = "spent, reserved FROM accounts WHERE limit_key = ? AND window_start = ?"
    total = (
        f"{_bounded_sum('spent')}, {_bounded_sum('reserved')} FROM accounts WHERE limit_key = ? AND window_start >= ?"
    )
    return " UNION ALL ".join(
        [f"SELECT {number}, {total if is_sum else balance} AND subject = ?" for number, is_sum in enumerate(sums)]
    )
