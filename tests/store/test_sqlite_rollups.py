"""The rollups of the SQLite store: after any change they are the sums of its days."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from datetime import date, timedelta
from importlib import resources
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from usage_plugin.backends.sqlite.sqlite_store import SqliteStore, open_store
from usage_plugin.domain.store import ROLLUP_DIMENSIONS, UsageFilter, daily_sum
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.domain.windows import hour_name, start_of_day, start_of_hour
from usage_plugin.testing.builders import make_event, make_sum
from usage_plugin.testing.store_model import days_of

if TYPE_CHECKING:
    from pathlib import Path

BERLIN = ZoneInfo("Europe/Berlin")
FIRST, LAST = date(2026, 1, 1), date(2026, 4, 30)
EVERYTHING = UsageFilter()

DAYS = st.dates(FIRST, LAST)
EVENTS = st.fixed_dictionaries(
    {
        "user": st.sampled_from(["ann", "bo", "cy", "dee"]),
        "team": st.sampled_from([None, "red"]),
        "model": st.sampled_from(["gpt", "mini"]),
        "cost": st.integers(0, 10**12),
        "input_tokens": st.integers(0, 1000),
        "status": st.sampled_from(["success", "failure"]),
        "started_at": st.builds(
            lambda day, second: start_of_day(day, BERLIN) + second * 1_000_000, DAYS, st.integers(0, 82_799)
        ),
    }
)


def sums_of(path: Path) -> list[list[tuple[Any, ...]]]:
    """Return the rollups, and the sums of the days in their place."""
    connection = sqlite3.connect(path)
    names = ", ".join(ROLLUP_DIMENSIONS)
    summed = ", ".join(f"sum({name})" for name in UsageTotals._fields)
    found = [
        connection.execute(query).fetchall()
        for query in (
            "SELECT * FROM monthly ORDER BY 1, 2, 3, 4, 5, 6, 7, 8",
            f"SELECT day / 100, {names}, {summed} FROM daily GROUP BY 1, 2, 3, 4, 5, 6, 7, 8 ORDER BY 1, 2, 3, 4, 5, 6, 7, 8",
            "SELECT * FROM model_days ORDER BY 1, 2, 3",
            f"SELECT day, model, provider, {summed} FROM daily GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
        )
    ]
    connection.close()
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(data=st.data(), batches=st.lists(st.lists(EVENTS, min_size=1, max_size=8), min_size=1, max_size=4))
async def test_rollups_are_the_sums_of_the_days(
    data: st.DataObject, batches: list[list[dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After events, imported days, pruning and forgetting, and by every span, grouping and filter."""
    path = tmp_path_factory.mktemp("rollups") / "usage.db"
    async with open_store(path, BERLIN) as store:
        seq = 0
        for number, batch in enumerate(batches):
            events = [make_event(event_id=f"{number}-{at}", **fields) for at, fields in enumerate(batch)]
            await store.append("w", list(enumerate(events, seq + 1)))
            seq += len(events)
            day = data.draw(DAYS)
            totals = UsageTotals(requests=0, cost=data.draw(st.integers(1, 10**9)))
            await store.append_sums(f"old-{number}", [(1, make_sum(day=day, user="ann", totals=totals))])
            what = data.draw(st.sampled_from(["prune", "forget", "nothing"]))
            if what == "prune":
                before = data.draw(DAYS)
                while await store.prune(events_before=0, days_before=before, most=3):
                    pass
            while what == "forget" and await store.forget("bo", most=3):
                pass
            monthly, of_months, models, of_models = sums_of(path)
            assert monthly == of_months
            assert models == of_models
        await _check_answers(store, data)


async def _check_answers(store: SqliteStore, data: st.DataObject) -> None:
    """Return the answer of single days, and the answer of the store's choice."""
    first, last = sorted((data.draw(DAYS), data.draw(DAYS)))
    wanted = data.draw(st.sampled_from([{}, {"user": "ann"}, {"team": "red"}, {"model": "gpt"}]))
    usage_filter = UsageFilter(**wanted)
    by = data.draw(
        st.lists(st.sampled_from(["user", "team", "model", "month", "week", "day"]), max_size=3, unique=True)
    )
    expected: defaultdict[tuple[str | None, ...], UsageTotals] = defaultdict(UsageTotals)
    for one in await days_of(store, first, last, usage_filter):
        expected[one.group(by)] = expected[one.group(by)].plus(one.totals)
    assert (await store.aggregate(by, first, last, usage_filter)).groups == expected
    names = [one for one in by if one not in ("month", "week", "day")]
    if names:
        groups = (await store.aggregate(names, first, last, usage_filter)).groups
        dearest = sorted(groups.items(), key=lambda item: (-item[1].cost, -item[1].requests))
        also = [*list(groups)[:1], tuple("nobody" for _ in names)]
        pages = [page async for page in store.in_order_of_cost(names, first, last, usage_filter)]
        assert {group: totals for page in pages for group, totals in page.groups.items()} == groups
        ranking = await store.ranking(names, first, last, usage_filter, most=2, also=also)
        assert ranking.in_all == len(groups)
        assert ranking.groups.items() <= groups.items()
        assert set(also[:-1]) <= set(ranking.groups)
        found = sorted((totals.cost for totals in ranking.groups.values()), reverse=True)
        assert found[:2] == [totals.cost for _, totals in dearest[:2]]


async def test_hours_are_those_of_the_zone(tmp_path: Path) -> None:
    """Sums by local hour, the repeated one separately; imported days have none; they are deleted with their days."""
    night = start_of_day(date(2026, 10, 25), BERLIN)
    hour = 3_600_000_000
    async with open_store(tmp_path / "usage.db", BERLIN) as store:
        events = [
            make_event(event_id=str(at), started_at=night + at * hour + 5, model="gpt" if at % 2 else "mini", cost=at)
            for at in range(5)
        ]
        await store.append("w", list(enumerate(events, 1)))
        await store.append_sums("old", [(1, make_sum(day=date(2026, 10, 25)))])
        day = date(2026, 10, 25)
        found = await store.aggregate_hours(("hour",), day, day, EVERYTHING)
        assert {group: totals.cost for group, totals in found.groups.items()} == {
            ("2026-10-25T00:00+02:00",): 0,
            ("2026-10-25T01:00+02:00",): 1,
            ("2026-10-25T02:00+02:00",): 2,
            ("2026-10-25T02:00+01:00",): 3,
            ("2026-10-25T03:00+01:00",): 4,
        }
        assert found.watermarks == {"w": 5, "old": 1}
        of_gpt = await store.aggregate_hours(("model",), day, day, UsageFilter(model="gpt"))
        assert {group: totals.cost for group, totals in of_gpt.groups.items()} == {("gpt",): 4}
        while await store.prune(events_before=0, days_before=day + timedelta(days=1), most=2):
            pass
        assert not (await store.aggregate_hours(("hour",), day, day, EVERYTHING)).groups


async def test_an_older_store_gets_its_rollups(tmp_path: Path) -> None:
    """A file of the first schema is migrated with its data."""
    path = tmp_path / "usage.db"
    async with open_store(path, BERLIN) as store:
        events = [
            make_event(
                event_id=str(at), started_at=start_of_day(FIRST + timedelta(days=20 * at), BERLIN) + at, cost=at + 1
            )
            for at in range(4)
        ]
        events.append(make_event(event_id="x", started_at=events[0].started_at, cost=None, status="failure"))
        await store.append("w", list(enumerate(events, 1)))
        await store.append_sums("old", [(1, make_sum(day=FIRST))])
        hours = await store.aggregate_hours(("hour", "model"), FIRST, LAST, EVERYTHING)
    connection = sqlite3.connect(path, isolation_level=None)
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    for table in ("monthly", "model_days", "hourly"):
        connection.execute(f"DROP TABLE {table}")
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    async with open_store(path, BERLIN) as store:
        monthly, of_months, models, of_models = sums_of(path)
        assert monthly == of_months
        assert models == of_models
        assert await store.aggregate_hours(("hour", "model"), FIRST, LAST, EVERYTHING) == hours
        await store.append("w", [(6, events[0]._replace(event_id="new"))])
        monthly, of_months, *_ = sums_of(path)
        assert monthly == of_months


def test_nothing_else_writes_to_what_triggers_keep() -> None:
    """The rollups of days are written by the migration's triggers only."""
    package = resources.files("usage_plugin.backends.sqlite")
    text = "".join(part.read_text(encoding="utf-8") for part in package.iterdir() if part.name.endswith(".py"))
    assert "INSERT INTO daily" in text
    assert not any(
        f"{verb} {table}" in text for verb in ("INTO", "UPDATE", "DELETE FROM") for table in ("monthly", "model_days")
    )


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "Europe/Berlin", "Australia/Lord_Howe"])
def test_an_hour_begins_where_its_day_does(zone: str) -> None:
    """Also in zones half an hour off."""
    found = ZoneInfo(zone)
    begin = start_of_day(date(2026, 4, 5), found)
    assert start_of_hour(begin, found) == begin
    assert hour_name(begin, found).startswith("2026-04-05T00:00")
    assert daily_sum(make_event(started_at=begin), found).day == date(2026, 4, 5)
