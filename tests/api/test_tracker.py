"""Recording and reading with the method names of the previous tracker."""

from __future__ import annotations

import asyncio
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.waiting import eventually
from usage_plugin.api import UsageTracker, open_tracker, to_decimal
from usage_plugin.config import CONFIG_VARIABLE, config_of
from usage_plugin.errors import ConfigError, MoneyError, SubjectNameError, UsagePluginError
from usage_plugin.tracking.ledger_retry import wait_while_busy

if TYPE_CHECKING:
    from usage_plugin.testing.clock import FakeClock

TODAY = date(2026, 11, 23)
TOMORROW = date(2026, 11, 24)


async def test_records_are_read_at_once(tracker: UsageTracker) -> None:
    """Spend by day, month and session is exact to the nano-dollar, for any part of it in the store."""
    assert await tracker.get_user_daily_usage("ann") == 0
    await tracker.record_usage("ann", cost="0.000000001", model="gpt", provider="openai", session_id="s1")
    await tracker.record_usage("ann", cost=Decimal("0.25"), session_id="s2")
    await tracker.record_usage("ann", cost=0.1, session_id="s1")
    await tracker.record_usage("bo", cost=2)
    assert await tracker.get_user_daily_usage("ann") == Decimal("0.350000001")
    assert await tracker.get_user_daily_usage("ann", TODAY) == Decimal("0.350000001")
    assert await tracker.get_user_daily_usage("ann", "2026-11-22") == 0
    assert await tracker.get_user_monthly_usage("ann") == Decimal("0.350000001")
    assert await tracker.get_user_monthly_usage("ann", "2026-11") == Decimal("0.350000001")
    assert await tracker.get_user_monthly_usage("ann", date(2026, 10, 31)) == 0
    assert await tracker.get_user_session_usage("ann", "s1") == Decimal("0.100000001")
    assert await tracker.get_user_session_usage("ann", "s3") == 0


async def test_an_event_has_all_given_facts(tracker: UsageTracker, clock: FakeClock) -> None:
    event = await tracker.record_usage(
        "ann", cost="0.01", model="gpt", provider="openai", input_tokens=90, output_tokens=12, cached_input_tokens=4,
        cache_write_tokens=3, reasoning_tokens=2, status="failure", error="Timeout", session_id="s", team="garden",
        api_key="hash", end_user="eve", organization="acme", tags=["a", "b", "a"], request_id="r1", seconds=1.5,
    )  # fmt: skip
    assert event._replace(event_id="") == event._replace(
        event_id="", started_at=clock.now() - 1_500_000, duration_us=1_500_000, status="failure", call_type="library",
        user="ann", cost=10_000_000, cost_source="given", tags=("a", "b"), call_id="r1", requested_model="gpt",
        model="gpt", session="s", team="garden", api_key="hash", end_user="eve", organization="acme",
    )  # fmt: skip
    assert (event.input_tokens, event.output_tokens, event.cached_input_tokens) == (90, 12, 4)
    assert [found async for found in tracker.events()] == [event]


async def test_recorded_usage_counts_on_limits_and_refuses_nothing(tracker: UsageTracker) -> None:
    """Recording a past request is never refused, but its cost may refuse the next one."""
    event = await tracker.record_usage("ann", cost="1.50")
    assert to_decimal(event.excess) == Decimal("1.50")
    with pytest.raises(UsagePluginError, match=r"ann has used 1\.50 of 1\.00 USD today"):
        async with tracker.reserve_budget("ann", "0.01"):
            pass


async def test_an_unknown_price_is_counted(tracker: UsageTracker) -> None:
    """Without a price nothing is charged, and `status` counts it."""
    event = await tracker.record_usage(None, cost=None, model="new", input_tokens=5)
    assert (event.user, event.cost, event.cost_source) == ("(anonymous)", None, "unpriced")

    def counted() -> list[tuple[str, str]]:
        # While the keeper writes, a flush leaves the counts for the next one.
        wait_while_busy(lambda: tracker._runtime.anomalies.hand_over(tracker._runtime.operations))
        return [(one.kind, one.concerns) for one in tracker._runtime.operations.anomalies()]

    assert await eventually(counted) == [("unpriced", "new")]


@pytest.mark.parametrize(
    ("facts", "error"),
    [
        ({"cost": -1}, MoneyError), ({"cost": float("nan")}, MoneyError), ({"cost": "1e-10"}, MoneyError),
        ({"cost": 1, "user_id": "x" * 257}, SubjectNameError), ({"cost": 1, "team": 5}, SubjectNameError),
        ({"cost": 1, "input_tokens": -1}, UsagePluginError), ({"cost": 1, "output_tokens": 1.5}, UsagePluginError),
        ({"cost": 1, "latency": 1}, UsagePluginError), ({"cost": 1, "seconds": -1}, UsagePluginError),
    ],
)  # fmt: skip
async def test_nonsense_is_refused_and_records_nothing(
    tracker: UsageTracker, facts: dict[str, Any], error: type[Exception]
) -> None:
    """The error contains the invalid value, and the ledger is unchanged."""
    with pytest.raises(error):
        await tracker.record_usage(facts.pop("user_id", "ann"), **facts)
    assert not [event async for event in tracker.events()]


@pytest.mark.parametrize("day", ["2026-11", "yesterday", "2026-13-01"])
async def test_a_day_that_is_none_is_refused(tracker: UsageTracker, day: str) -> None:
    with pytest.raises(UsagePluginError, match="expected a day as YYYY-MM-DD"):
        await tracker.get_user_daily_usage("ann", day)


async def test_reports_and_events_are_filtered(tracker: UsageTracker, clock: FakeClock) -> None:
    """Groups are ordered by cost, events by time; both are filtered by span and by name."""
    began = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)
    for user, model, cost in (("ann", "gpt", 1), ("ann", "o3", 3), ("bo", "gpt", 2)):
        await tracker.record_usage(user, cost=cost, model=model)
        clock.advance(timedelta(minutes=1))
    rows = await tracker.aggregate(["user"], start=TODAY, end=TOMORROW)
    assert [(row.group, row.usage.cost, row.usage.requests) for row in rows] == [(("ann",), 4, 2), (("bo",), 2, 1)]
    (row,) = await tracker.aggregate(start=TODAY, end=TOMORROW, user="ann", model="gpt")
    assert row.usage.cost == 1
    assert [event.model async for event in tracker.events(user="ann", newest_first=True)] == ["o3", "gpt"]
    middle = tracker.events(began + timedelta(minutes=1), began + timedelta(minutes=2))
    assert [event.model async for event in middle] == ["o3"]


async def test_records_survive_and_reach_the_history(section: dict[str, Any]) -> None:
    """A closed tracker has moved all events into the store, and the next one reads them."""
    async with open_tracker(section) as tracker:
        for _ in range(20):
            await tracker.record_usage("ann", cost="0.01")
    async with open_tracker(section) as tracker:
        assert tracker._runtime.ledger.waiting().events == 0
        assert await tracker.get_user_daily_usage("ann") == Decimal("0.20")


async def test_two_programs_share_a_folder(section: dict[str, Any]) -> None:
    """Records of one tracker are visible to another at once, also in cached sums."""
    async with open_tracker(section) as one, open_tracker(section) as two:
        await one.record_usage("ann", cost="0.10")
        assert await two.get_user_daily_usage("ann") == Decimal("0.10")
        assert await one.get_user_daily_usage("ann") == Decimal("0.10")
        await two.record_usage("ann", cost="0.20")
        assert await one.get_user_daily_usage("ann") == Decimal("0.30")
        assert await two.get_user_monthly_usage("ann") == Decimal("0.30")


async def test_recording_goes_on_while_the_store_is_away(section: dict[str, Any], tmp_path: Path) -> None:
    """A store that cannot be opened delays the history; all calls that do not need it work."""
    (tmp_path / "usage").mkdir()
    (tmp_path / "usage" / "usage.db").write_text("no database " * 100)
    async with open_tracker(section) as tracker:
        await tracker.record_usage("ann", cost="0.60")
        with pytest.raises(UsagePluginError, match="0\\.60 of 1\\.00 USD"):
            async with tracker.reserve_budget("ann", "0.50"):
                pass
        with pytest.raises(UsagePluginError, match=r"usage\.db"):
            await tracker.get_user_daily_usage("ann")


# ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_tracker_opens_a_folder_a_yaml_or_a_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, a YAML and a section open the same data; without any of them, the command line's YAML is used."""
    yaml = tmp_path / "config.yaml"
    yaml.write_text("usage_plugin: {data_dir: ./usage, limits: [{name: d, per: user, window: day, max_cost: 0.5}]}\n")
    folder = tmp_path / "usage"
    monkeypatch.setenv(CONFIG_VARIABLE, str(yaml))
    for source in (str(folder), folder, yaml, str(yaml), {"data_dir": folder}, config_of({"data_dir": folder}), None):
        async with open_tracker(source) as tracker:
            await tracker.record_usage("ann", cost="0.01")
    async with open_tracker(yaml) as tracker:
        assert await tracker.get_user_daily_usage("ann") == Decimal("0.07")
        (limit,) = (await tracker.get_user_usage_summary("ann")).limits
        assert limit.amount == Decimal("0.5")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone.yaml", "gone.yaml"),
        ({"limits": [{"name": "d", "per": "user", "window": "day", "max_budget": 1}]}, "limits.0.max_budget"),
        ({"timezone": "Nowhere"}, "timezone.*Nowhere"),
    ],
)
async def test_an_invalid_source_is_an_error(
    source: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing YAML or an unknown key is named in the error, and no file is created."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        async with open_tracker(source):
            pass
    assert not list(tmp_path.iterdir())


async def test_floats_of_a_section_have_their_decimal_value() -> None:
    limits = config_of({"limits": [{"name": "d", "per": "user", "window": "day", "max_cost": 0.1}]}).limit_set().limits
    assert limits[0].amount == 100_000_000


# ── the summary ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_summary_shows_a_user_at_a_glance(tracker: UsageTracker, clock: FakeClock) -> None:
    """The summary has limits with remaining amounts, days, whole months, sessions and statistics of the given days."""
    clock.set(datetime(2026, 10, 30, 12, tzinfo=timezone.utc))
    await tracker.record_usage("ann", cost="0.30", model="o3", provider="openai")
    clock.set(datetime(2026, 11, 3, 12, tzinfo=timezone.utc))
    await tracker.record_usage("ann", cost="0.10", model="gpt", provider="openai", team="garden")
    clock.set(datetime(2026, 11, 23, 12, tzinfo=timezone.utc))
    await tracker.record_usage(
        "ann", cost="0.20", model="opus-5", provider="anthropic", session_id="s1", input_tokens=5
    )
    clock.advance(timedelta(minutes=5))
    await tracker.record_usage("ann", cost="0.05", model="gpt", provider="openai", session_id="s1", status="failure")
    await tracker.record_usage("bo", cost=9, session_id="s2")
    summary = await tracker.get_user_usage_summary("ann", days=21)
    assert {day: usage.cost for day, usage in summary.daily_usage.items()} == {
        date(2026, 11, 3): Decimal("0.10"), TODAY: Decimal("0.25"),
    }  # fmt: skip
    assert (summary.daily_usage[TODAY].requests, summary.daily_usage[TODAY].failed_requests) == (2, 1)
    assert {month: usage.cost for month, usage in summary.monthly_usage.items()} == {"2026-11": Decimal("0.35")}
    longer = await tracker.get_user_usage_summary("ann")
    assert {month: usage.cost for month, usage in longer.monthly_usage.items()} == {
        "2026-10": Decimal("0.30"), "2026-11": Decimal("0.35"),
    }  # fmt: skip
    assert summary.statistics == (3, Decimal("0.35"), Decimal("0.016666667"), "openai", "gpt")
    limits = {(limit.name, *limit.subject.values()): (limit.spent, limit.remaining) for limit in summary.limits}
    assert limits == {
        ("daily", "ann"): (Decimal("0.25"), Decimal("0.75")),
        ("opus", "ann"): (Decimal("0.20"), Decimal("0.30")),
        ("tokens", "s1"): (5, 995),
        ("team", "garden"): (Decimal("0.10"), Decimal("99.90")),
        ("rate", "ann"): (1, 99),
    }
    assert [limit.blocks for limit in summary.limits] == [True, True, True, True, False]
    assert summary.limits[0].resets_at == datetime(2026, 11, 24, tzinfo=timezone.utc)
    (session,) = summary.active_sessions
    assert (session.session_id, session.usage.requests, session.usage.cost) == ("s1", 2, Decimal("0.25"))
    assert session.last_at - session.first_at == timedelta(minutes=5)


async def test_an_unknown_user_has_an_empty_summary(tracker: UsageTracker) -> None:
    """A user without spend has the full amount of each limit."""
    summary = await tracker.get_user_usage_summary("nobody")
    assert (summary.user_id, summary.daily_usage, summary.monthly_usage, summary.active_sessions) == (
        "nobody",
        {},
        {},
        [],
    )
    assert summary.statistics == (0, 0, 0, None, None)
    assert [limit.remaining for limit in summary.limits] == [1, Decimal("0.5"), 100]
    with pytest.raises(UsagePluginError, match="days"):
        await tracker.get_user_usage_summary("nobody", days=0)


async def alerts_of(tracker: UsageTracker, count: int) -> Any:
    """Wait for the keeper's thread, which records alerts once a second."""
    for _ in range(600):
        alerts = (await tracker.get_user_usage_summary("ann")).recent_alerts
        if len(alerts) >= count:
            return alerts
        await asyncio.sleep(0.05)
    raise AssertionError(alerts)


async def test_alerts_are_acknowledged_by_people_and_resolved_by_facts(tracker: UsageTracker, clock: FakeClock) -> None:
    """An alert is in the summary until its days have passed, and is resolved when it no longer applies."""
    await tracker.record_usage("ann", cost="0.85")
    await tracker.record_usage("bo", cost="0.85")
    newest, oldest = await alerts_of(tracker, 2)
    assert [(a.limit, a.threshold, a.amount, a.maximum, a.resolved) for a in (newest, oldest)] == [
        ("daily", 80, Decimal("0.85"), Decimal("1.00"), False), ("daily", 50, Decimal("0.85"), Decimal("1.00"), False),
    ]  # fmt: skip
    assert newest.acknowledged_by is None
    assert await tracker.acknowledge_alert(newest.id, "kim")
    assert not await tracker.acknowledge_alert(newest.id, "lee")
    assert not await tracker.acknowledge_alert(12345, "lee")
    newest, oldest = await alerts_of(tracker, 2)
    assert (newest.acknowledged_by, newest.acknowledged_at, oldest.acknowledged_by) == (
        "kim", datetime(2026, 11, 23, 12, tzinfo=timezone.utc), None,
    )  # fmt: skip
    clock.advance(timedelta(days=1))
    assert [alert.resolved for alert in await alerts_of(tracker, 2)] == [True, True]
    assert (await tracker.get_user_usage_summary("ann", days=1)).recent_alerts == []


# ── profiles ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_profiles_are_made_and_changed(tracker: UsageTracker, clock: FakeClock) -> None:
    """Omitted fields are unchanged, the summary shows the profile, and the newest change counts."""
    assert await tracker.get_user_profile("ann") is None
    made = await tracker.put_user_profile("ann", email="ann@example.com", tier="premium", metadata={"cost centre": 7})
    assert (made.user, made.username, made.tier, made.is_active) == ("ann", None, "premium", True)
    assert made.created_at == clock.now()
    clock.advance(timedelta(minutes=1))
    changed = await tracker.put_user_profile("ann", username="Ann", is_active=False)
    assert (changed.email, changed.username, changed.is_active, changed.metadata) == (
        "ann@example.com", "Ann", False, {"cost centre": 7},
    )  # fmt: skip
    assert (changed.created_at, changed.updated_at) == (made.created_at, clock.now())
    assert (await tracker.get_user_usage_summary("ann")).profile == changed
    await tracker.put_user_profile("bo")
    assert [profile.user async for profile in tracker.user_profiles()] == ["ann", "bo"]
    assert await tracker.delete_user_profile("ann")
    assert not await tracker.delete_user_profile("ann")
    assert [profile.user async for profile in tracker.user_profiles()] == ["bo"]


@pytest.mark.parametrize(
    "fields",
    [{"tier": None}, {"email": 5}, {"is_active": 1}, {"metadata": {"at": TODAY}}, {"preferences": []}, {"x": 1}],
)
async def test_a_profile_that_cannot_be_kept_is_refused(tracker: UsageTracker, fields: Any) -> None:
    """The error names the field, and nothing changes."""
    with pytest.raises(UsagePluginError, match=next(iter(fields))):
        await tracker.put_user_profile("ann", **fields)
    assert await tracker.get_user_profile("ann") is None


async def test_users_are_kept_under_pseudonyms_and_read_by_name(section: dict[str, Any], clock: FakeClock) -> None:
    """With `privacy: {user: pseudonym}`, a program passes names; events have pseudonyms, and keys never a name."""
    section["privacy"] = {"user": "pseudonym"}
    async with open_tracker(section, clock=clock) as tracker:
        event = await tracker.record_usage("eva", cost="0.25", api_key="sk-1234")
        assert event.user.startswith("p-")
        assert (event.api_key or "").startswith("k-")
        assert await tracker.get_user_daily_usage("eva") == Decimal("0.25")
        assert await tracker.get_user_daily_usage("bo") == 0
        assert (await tracker.get_user_usage_summary("eva")).user_id == "eva"
        assert [found.user async for found in tracker.events(user="eva")] == [event.user]
