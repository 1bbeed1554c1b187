"""For each value that a program passes, either the call raises an error, or the value is recorded and charged."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing, suppress
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from usage_plugin.api import open_tracker
from usage_plugin.api.profiles import ProfileFields
from usage_plugin.api.validation import Attribution, Facts, UsageFacts
from usage_plugin.errors import LedgerError, MoneyError, SubjectNameError, UsagePluginError
from usage_plugin.testing.clock import FakeClock
from usage_plugin.tracking.history.balances import AccountBalances

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from usage_plugin.api import UsageTracker

TEXTS = st.sampled_from(
    ["ok", "", " ", "\ud800", "a\udfffb", "\x00", "a\nb", "x" * 257, "x" * 100_000, '{"a": 1}', "(anonymous)", "(internal)", "é" * 256]
) | st.text(st.characters(categories=["Cs", "Cc", "L", "N", "P"]), max_size=20)  # fmt: skip
NUMBERS = st.sampled_from(
    [0, 1, -1, 2**31, 2**63 - 1, 2**63, 10**400, 0.1, 1e300, float("nan"), float("inf"), -0.0, True, False]
    + [
        Decimal(text)
        for text in ("0.25", "NaN", "sNaN", "Infinity", "-Infinity", "1E+999999", "1E-999999", "9000000000")
    ]
)
ANYTHING: st.SearchStrategy[Any] = st.one_of(
    TEXTS, NUMBERS, st.none(), st.binary(max_size=3), st.just(object()), st.lists(TEXTS, max_size=3),
    st.dictionaries(TEXTS, TEXTS | NUMBERS, max_size=2), st.sampled_from(["success", "failure", "recovered", "nonsense"]),
)  # fmt: skip
COSTS = st.sampled_from(["0.01", 0, 1, Decimal("0.000000001"), 0.5, None]) | ANYTHING


class Desk:
    """A tracker with its own event loop, shared by many examples, and its ledger."""

    def __init__(self, tracker: UsageTracker, loop: asyncio.AbstractEventLoop) -> None:
        self.tracker = tracker
        self.run: Callable[[Coroutine[Any, Any, Any]], Any] = loop.run_until_complete

    def books(self) -> tuple[int, int, int]:
        """Return the number of events in the outbox, and the spend and holds of the shared account."""
        runtime = self.tracker._runtime
        assert not runtime.request_ledger.pending
        with closing(sqlite3.connect(runtime.ledger.location)) as database:
            (events,) = database.execute("SELECT count(*) FROM outbox").fetchone()
        balances = AccountBalances(runtime.ledger, runtime.operations, runtime.limits, runtime.clock.now())
        (company,) = balances.all_of(runtime.limits.find("company")) or [None]
        return events, company.balance.spent if company else 0, company.balance.reserved if company else 0


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    section = {
        "data_dir": str(tmp_path_factory.mktemp("hostile") / "usage"), "admission": {"max_wait": "0s"},
        "limits": [{"name": "company", "per": "global", "window": "lifetime", "max_cost": "unlimited"}],
    }  # fmt: skip
    with closing(asyncio.new_event_loop()) as loop:
        opening = open_tracker(section, clock=FakeClock())
        yield Desk(loop.run_until_complete(opening.__aenter__()), loop)
        loop.run_until_complete(opening.__aexit__(None, None, None))


SWEEP = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def given_some(annotations: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Generate some of the parameters, each with any value."""
    return st.fixed_dictionaries({}, optional=dict.fromkeys(annotations, ANYTHING))


@SWEEP
@given(
    user=TEXTS | ANYTHING,
    cost=COSTS,
    facts=given_some(UsageFacts.__annotations__ | Facts.__annotations__ | Attribution.__annotations__),
)
def test_usage_is_recorded_or_the_call_raises(desk: Desk, user: Any, cost: Any, facts: dict[str, Any]) -> None:
    """`record_usage` with any values returns an event that is in the ledger, or raises an error and records nothing."""
    events, spent, reserved = desk.books()
    try:
        event = desk.run(desk.tracker.record_usage(user, cost=cost, **facts))
    except UsagePluginError:
        assert desk.books() == (events, spent, reserved)
    else:
        assert desk.books() == (events + 1, spent + (event.cost or 0), reserved)


@SWEEP
@pytest.mark.parametrize(
    "name", sorted(UsageFacts.__annotations__ | Facts.__annotations__ | Attribution.__annotations__)
)
@given(value=ANYTHING)
def test_each_fact_is_checked(desk: Desk, name: str, value: Any) -> None:
    """If one of the facts is hostile, the error names it."""
    events, spent, reserved = desk.books()
    try:
        event = desk.run(desk.tracker.record_usage("ann", cost="0.01", **{name: value}))
    except UsagePluginError as error:
        word = {"session_id": "session", "tags": "tag"}.get(name, name)
        assert word.replace("_", " ") in error.message.replace("_", " ")
        assert desk.books() == (events, spent, reserved)
    else:
        assert desk.books() == (events + 1, spent + event.cost, reserved)


RESERVED = {"model", "provider", "max_input_tokens", "max_output_tokens", *Attribution.__annotations__}


@SWEEP
@given(
    user=TEXTS | ANYTHING, amount=COSTS, about=given_some(dict.fromkeys(RESERVED)), cost=COSTS, facts=given_some(Facts.__annotations__)
)  # fmt: skip
def test_a_reservation_is_settled_or_the_call_raises(
    desk: Desk, user: Any, amount: Any, about: dict[str, Any], cost: Any, facts: dict[str, Any]
) -> None:
    """With `reserve_budget` and `settle`, a settled cost is charged, and the hold is released after an error."""
    events, spent, reserved = desk.books()
    settled = []

    async def work() -> None:
        async with desk.tracker.reserve_budget(user, amount, **about) as hold:
            settled.append(hold.settle(cost, **facts))

    try:
        desk.run(work())
    except UsagePluginError:
        assert not settled
        assert desk.books() == (events, spent, reserved)
    else:
        assert desk.books() == (events + 1, spent + (settled[0].cost or 0), reserved)


@SWEEP
@given(user=TEXTS | ANYTHING, fields=given_some(ProfileFields.__annotations__))
def test_a_profile_is_kept_or_the_call_raises(desk: Desk, user: Any, fields: dict[str, Any]) -> None:
    """`put_user_profile` returns the profile that a later read returns."""
    try:
        profile = desk.run(desk.tracker.put_user_profile(user, **fields))
    except UsagePluginError:
        return
    assert desk.run(desk.tracker.get_user_profile(user)) == profile


async def test_a_lone_surrogate_raises_at_once(tmp_path: Path) -> None:
    """Records that cannot be stored raise an error and charge nothing, and a valid one succeeds (a reported bug)."""
    section = {
        "data_dir": str(tmp_path),
        "limits": [{"name": "daily", "per": "user", "window": "day", "max_cost": "0.05"}],
    }
    async with open_tracker(section) as tracker:
        for name in ("provider", "model", "request_id", "error", "session_id"):
            with pytest.raises(UsagePluginError, match=name.removesuffix("_id")):
                await tracker.record_usage("ann", cost="0.02", **{"model": "m", name: "\ud800"})
        assert await tracker.get_user_daily_usage("ann") == 0
        async with tracker.reserve_budget("ann", "0.04", model="m") as hold:
            with pytest.raises(SubjectNameError, match="provider"):
                hold.settle("0.04", provider="\ud800")
            hold.settle("0.04")
        assert await tracker.get_user_daily_usage("ann") == Decimal("0.04")


async def test_no_request_costs_more_than_ten_million(tracker: UsageTracker) -> None:
    """A cost above ten million dollars is an error, since such sums could overflow."""
    for cost in ("10000000.01", Decimal(9_000_000_000), 10_000_001):
        with pytest.raises(MoneyError, match="10000000"):
            await tracker.record_usage("ann", cost=cost)
        with pytest.raises(MoneyError):
            tracker.reserve_budget("ann", cost)
    await tracker.record_usage("ann", cost=10_000_000)


async def test_an_event_that_the_ledger_rejects_raises(tracker: UsageTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """If another process writes for longer than a program waits, the call raises an error and never records."""
    monkeypatch.setattr("usage_plugin.api.tracker.LONGEST_WAIT", 0.05)
    runtime = tracker._runtime
    with closing(sqlite3.connect(runtime.ledger.location, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="not recorded"):
            await tracker.record_usage("ann", cost=1)
        with suppress(asyncio.TimeoutError):
            monkeypatch.setattr("usage_plugin.api.tracker.LONGEST_WAIT", 5.0)
            await asyncio.wait_for(tracker.record_usage("bo", cost=1), timedelta(milliseconds=50).total_seconds())
        other.execute("ROLLBACK")
    assert runtime.request_ledger.pending == 0
    await tracker.record_usage("ann", cost=2)
    assert [event.cost async for event in tracker.events()] == [2 * 10**9]
