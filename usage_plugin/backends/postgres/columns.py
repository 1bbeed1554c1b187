"""The columns that the tables have in common, as text for statements. All names are our own words."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from usage_plugin.domain.store import ROLLUP_DIMENSIONS
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.encoding import encode_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from usage_plugin.domain.store import UsageFilter


def listed(columns: Iterable[str]) -> str:
    """Return columns as a list; each is quoted, since `user` is a word of SQL."""
    return ", ".join(f'"{column}"' for column in columns)


NAMES = listed(ROLLUP_DIMENSIONS)
SUMS = listed(UsageTotals._fields)
SUMMED = ", ".join(f"sum({name}) AS {name}" for name in UsageTotals._fields)


def key_of(names: Sequence[str | None]) -> bytes:
    """Return the key of a combination of names, in the order of `ROLLUP_DIMENSIONS`; it is stored."""
    return hashlib.sha256(encode_record(names).encode()).digest()


def conditions(usage_filter: UsageFilter) -> tuple[str, list[str]]:
    """Return a filter as conditions of a WHERE clause, with its values."""
    wanted = usage_filter.wanted()
    return "".join(f' AND "{name}" = %s' for name in wanted), list(wanted.values())
