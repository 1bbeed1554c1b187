"""Vectors are exact for any history and interruption, in bounded memory."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from tests.contrib.conftest import LAST_WEEK, THIS_WEEK, at, requests
from usage_plugin.contrib.chroma import indexer
from usage_plugin.domain.behaviour import DIMENSIONS, vector_of, week_of_use
from usage_plugin.domain.subjects import ANONYMOUS, FORGOTTEN, INTERNAL
from usage_plugin.domain.usage import totals_of
from usage_plugin.encoding import encode_event
from usage_plugin.testing.builders import make_event, make_sum

if TYPE_CHECKING:
    from tests.contrib.conftest import Place


async def test_a_vector_is_made_of_what_the_history_has(place: Place) -> None:
    """One vector for each user and week, from sums and hours, including events that have not reached the store."""
    events = [*requests("ann", LAST_WEEK, 3, hour=9), *requests("ann", LAST_WEEK + timedelta(days=6), 2, hour=23)]
    events += requests("bo", THIS_WEEK, 1, model="opus", provider="anthropic")
    await place.record(events)
    waiting = make_event(user="bo", started_at=at(THIS_WEEK, 10))
    ledger = place.parts.open_ledger().ledger
    assert ledger.reserve(waiting.event_id, "worker", waiting.started_at, [], "{}").admitted
    assert ledger.settle(waiting.event_id, [], encode_event(waiting))
    ledger.close()
    await place.catch_up()
    (ann,) = place.vectors(LAST_WEEK).values()
    hours = [0] * 24
    hours[9], hours[23] = 3, 2
    sums = [(LAST_WEEK, "gpt", "openai", totals_of(one)) for one in events[:3]]
    sums += [(LAST_WEEK + timedelta(days=6), "gpt", "openai", totals_of(one)) for one in events[3:5]]
    use = week_of_use(sums, hours)
    assert (ann.user, ann.week, ann.totals) == ("ann", LAST_WEEK, use.totals)
    assert list(ann.numbers) == pytest.approx(vector_of(use), abs=1e-6)
    assert len(ann.numbers) == DIMENSIONS
    (bo,) = place.vectors(THIS_WEEK).values()
    assert (bo.user, bo.totals.requests) == ("bo", 2)


@pytest.mark.parametrize("zone", ["Asia/Tokyo"])
async def test_hours_and_weeks_are_those_of_the_zone(place: Place) -> None:
    """A Sunday afternoon in London is a Monday in Tokyo."""
    await place.record([make_event(started_at=at(THIS_WEEK - timedelta(days=1), 16))])
    await place.catch_up()
    hours = [0] * 24
    hours[1] = 1
    use = week_of_use([(THIS_WEEK, "gpt", "openai", totals_of(make_event()))], hours)
    assert list(place.vectors(THIS_WEEK)["ann"].numbers) == pytest.approx(vector_of(use), abs=1e-6)
    assert not place.vectors(LAST_WEEK)


async def test_nothing_is_lost_and_nothing_counted_twice(place: Place) -> None:
    """A late event of any week is in the vector once; unchanged weeks are not read."""
    await place.record(requests("ann", LAST_WEEK, 3) + requests("bo", THIS_WEEK, 3))
    assert [week for week, *_ in await place.catch_up()] == [THIS_WEEK, LAST_WEEK]
    assert await place.catch_up() == []
    await place.record(requests("ann", LAST_WEEK, 2, hour=15))
    assert await place.catch_up() == [(LAST_WEEK, 1, 1)]
    assert place.vectors(LAST_WEEK)["ann"].totals.requests == 5
    async with place.parts.open_store() as store:
        imported = make_sum(user="eva", day=LAST_WEEK)
        await store.append_sums("import", [(1, imported)])
    await place.catch_up()
    assert place.vectors(LAST_WEEK)["eva"].totals == imported.totals
    assert place.vectors(LAST_WEEK)["ann"].totals.requests == 5


async def test_killed_in_the_middle_it_is_made_up_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A week is only taken for done when it is."""
    await place.record(requests("ann", THIS_WEEK, 3) + requests("bo", THIS_WEEK, 3))
    monkeypatch.setattr(indexer, "MOST_AT_ONCE", 1)
    whole = indexer.Indexer._vector

    async def killed(self: indexer.Indexer, week: object, user: str) -> object:
        if user == "bo":
            raise KeyboardInterrupt
        return await whole(self, week, user)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(indexer.Indexer, "_vector", killed)
        with pytest.raises(KeyboardInterrupt):
            await place.catch_up()
    assert place.vectors(THIS_WEEK).keys() == {"ann"}
    await place.catch_up()
    assert place.vectors(THIS_WEEK).keys() == {"ann", "bo"}


async def test_more_users_than_fit_are_gone_through_in_turns(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of two users at a time give the same as those of all at once."""
    users = [f"user-{number:02}" for number in range(23)]
    days = [THIS_WEEK - timedelta(days=7 - day) for day in range(7)]
    await place.record([one for day in days for user in reversed(users) for one in requests(user, day, 2)])
    most: list[int] = []
    monkeypatch.setattr(indexer, "MOST_USERS", 2)
    for _, _, count in await place.catch_up():
        most.append(count)
    assert max(most) <= 4
    found = place.vectors(LAST_WEEK)
    assert sorted(found) == users
    assert {one.totals.requests for one in found.values()} == {14}


async def test_who_is_nobody_has_no_vector(place: Place) -> None:
    """The usage of shared subjects, and of the proxy itself, is not a person's behaviour."""
    for user in (ANONYMOUS, INTERNAL, FORGOTTEN, "ann"):
        await place.record(requests(user, THIS_WEEK, 2))
    await place.catch_up()
    assert place.vectors(THIS_WEEK).keys() == {"ann"}


async def test_what_was_pruned_does_not_spoil_a_vector(place: Place) -> None:
    """A week that the history has lost a part of keeps the vector of the whole."""
    await place.record(requests("ann", LAST_WEEK, 3) + requests("ann", LAST_WEEK + timedelta(days=5), 2))
    await place.catch_up()
    before = place.vectors(LAST_WEEK)
    async with place.parts.open_store() as store:
        while await store.prune(events_before=at(THIS_WEEK, 0), days_before=LAST_WEEK + timedelta(days=3), most=1_000):
            pass
    await place.catch_up()
    assert place.vectors(LAST_WEEK) == before


async def test_old_weeks_are_dropped(place: Place) -> None:
    """The number of weeks in the options is kept."""
    long_ago = THIS_WEEK - timedelta(weeks=11)
    await place.record(requests("ann", long_ago, 3) + requests("ann", LAST_WEEK, 3))
    await place.catch_up(12)
    assert place.vectors(long_ago)
    await place.catch_up(11)
    assert not place.vectors(long_ago)
    assert place.vectors(LAST_WEEK)


async def test_who_is_forgotten_while_a_week_is_read_does_not_come_back(place: Place) -> None:
    """Sums from before an erasure make no vector afterwards."""
    await place.record(requests("ann", THIS_WEEK, 3) + requests("bo", THIS_WEEK, 3))
    original = indexer.Indexer._bring_up

    async def forgotten_meanwhile(self: indexer.Indexer, *what: object) -> None:
        async with place.parts.open_store() as store:
            while await store.forget("ann", most=100):
                pass
        place.plugin.usage_user_forgotten("ann")
        await original(self, *what)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(indexer.Indexer, "_bring_up", forgotten_meanwhile)
        await place.catch_up()
    assert place.vectors(THIS_WEEK).keys() == {"bo"}
