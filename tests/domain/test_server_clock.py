"""The clock that follows a server's time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from usage_plugin.domain.clock import ServerClock, SystemClock

SECOND = 1_000_000
TRIPS = st.integers(100, SECOND // 2)


def measured(clock: ServerClock, offset: int, trip: int, part: float = 0.5) -> None:
    """Measure a server whose time is the monotonic one plus an offset; its answer comes after a part of the trip."""
    received = clock.monotonic()
    sent = received - trip
    clock.synchronise(sent + int(trip * part) + offset, sent, received)


def off(clock: ServerClock, offset: int) -> int:
    return clock.now() - clock.monotonic() - offset


def test_it_is_the_machines_time_before_the_first_measurement() -> None:
    """A worker that has not reached the server yet logs with plausible times."""
    assert abs(ServerClock().now() - SystemClock().now()) < SECOND


@given(st.integers(-(10**15), 10**15), st.lists(st.tuples(TRIPS, st.floats(0, 1)), min_size=1, max_size=9))
def test_it_is_never_off_by_more_than_half_the_shortest_trip(offset: int, trips: list[tuple[int, float]]) -> None:
    """Wherever in the round trip the server reads its clock."""
    clock = ServerClock()
    for trip, part in trips:
        measured(clock, offset, trip, part)
    assert abs(off(clock, offset)) <= min(trip for trip, _ in trips) // 2 + 1_000


@given(st.sampled_from([-3600 * SECOND, -6 * SECOND, 6 * SECOND, 3600 * SECOND]), TRIPS, TRIPS)
def test_a_jump_is_followed_at_once(jump: int, before: int, after: int) -> None:
    """A measurement that contradicts the last one counts, also over a slower network: the machine was suspended."""
    clock = ServerClock()
    measured(clock, 0, before)
    measured(clock, jump, after)
    assert abs(off(clock, jump)) <= after
