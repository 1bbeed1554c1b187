"""Packed rows: a sequence of report rows in few objects."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_plugin.domain.usage import UsageTotals
from usage_plugin.tracking.history.packed_rows import ReportRow, Rows

NAMES = st.none() | st.text(max_size=5)
GROUPS = st.tuples(st.tuples(NAMES, NAMES), st.builds(UsageTotals, cost=st.integers(-(2**70), 2**70)))


def rows_of(parts: list[list[tuple[tuple[str | None, ...], UsageTotals]]]) -> Rows[ReportRow]:
    rows = Rows(ReportRow)
    for part in parts:
        rows.add(part)
    return rows


@given(
    parts=st.lists(st.lists(GROUPS, max_size=4), max_size=5),
    at=st.integers(-25, 25),
    cut=st.slices(12),
)
def test_they_are_a_sequence(
    parts: list[list[tuple[tuple[str | None, ...], UsageTotals]]], at: int, cut: slice
) -> None:
    """Packed rows equal a list of the same rows, in length and at each position, for any names and amounts."""
    rows = rows_of(parts)
    expected = [ReportRow(*one) for part in parts for one in part]
    assert rows == expected
    assert expected == rows
    assert rows == rows_of([expected])
    assert (len(rows), list(rows), rows[cut]) == (len(expected), expected, expected[cut])
    assert rows != [*expected, None]
    if -len(expected) <= at < len(expected):
        assert rows[at] == expected[at]
    else:
        with pytest.raises(IndexError, match=f"There are {len(expected)} rows"):
            rows[at]


def test_they_are_read_as_other_rows() -> None:
    """Rows of another type are created from the same groups when they are read."""
    rows = rows_of([[(("ann",), UsageTotals(cost=7))], [(("bo",), UsageTotals(cost=5))]])
    assert rows.read_as(lambda group, totals: (*group, totals.cost)) == [("ann", 7), ("bo", 5)]
    assert rows != "ab"
    assert repr(rows).startswith("<2 rows: ReportRow(group=('ann',), totals=UsageTotals(requests=0,")
    assert repr(rows_of([[(("ann",), UsageTotals())] * 4])).endswith(", …>")


def test_a_long_answer_is_no_work_for_the_garbage_collector() -> None:
    """Individual rows are not objects that the garbage collector would traverse."""
    gc.collect()
    before = len(gc.get_objects())
    rows = rows_of([[((f"u{number}",), UsageTotals(cost=10**12 + number)) for number in range(500)]] * 100)
    assert len(rows) == 50_000
    gc.collect()
    assert len(gc.get_objects()) - before < 100
