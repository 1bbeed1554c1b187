"""Simulation: recorded events are requested again, and limits decide as they do live."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usage_plugin.config import config_of
from usage_plugin.domain.limit_set import LimitSet
from usage_plugin.domain.subjects import INTERNAL
from usage_plugin.domain.usage import TokenUsage, UsageEvent, new_event_id, subjects_of
from usage_plugin.ledgers.sqlite import open_sqlite_ledger
from usage_plugin.testing.builders import NOON, make_event
from usage_plugin.testing.clock import FakeClock
from usage_plugin.tracking.admission.active_limits import ActiveLimits
from usage_plugin.tracking.admission.alerts import Alerts
from usage_plugin.tracking.admission.decide import AdmissionPolicy, Decider
from usage_plugin.tracking.admission.decisions import Refusal
from usage_plugin.tracking.admission.demands import Ask, Candidate, charged_by
from usage_plugin.tracking.admission.local_request_ledger import LocalRequestLedger
from usage_plugin.tracking.admission.recorder import OpenRequest, Outcome, Recorder
from usage_plugin.tracking.admission.remedies import Admission
from usage_plugin.tracking.analysis import simulation
from usage_plugin.tracking.analysis.simulation import OTHERS, Replay, Simulation, TallyKey
from usage_plugin.tracking.history.cache import UsageCache
from usage_plugin.tracking.notifications.anomalies import Anomalies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usage_plugin.domain.ledger import Charge
    from usage_plugin.domain.open_ledger import OpenLedger

CENT = 10_000_000
SECOND = 1_000_000
HOUR = 3_600 * SECOND
DAILY = {"name": "daily", "per": "user", "window": "day", "max_cost": "0.10"}
EVERY_KIND = [
    DAILY,
    {"name": "team", "per": "team", "window": {"rolling": "2h"}, "max_cost": "0.20"},
    {"name": "dear", "per": ["team", "user"], "match": {"model": "opus*"}, "window": "hour", "max_cost": "0.05"},
    {"name": "rate", "per": "user", "window": "minute", "max_requests": 4},
    {"name": "slots", "per": "global", "max_parallel_requests": 3},
    {"name": "tokens", "per": "tag", "window": "day", "max_total_tokens": 500},
    {"name": "single", "per": "global", "window": "request", "max_cost": "0.09"},
    {"name": "session", "per": "session", "window": "session", "max_output_tokens": 300},
    {"name": "tried", "per": "user", "window": "day", "max_cost": "0.01", "dry_run": True},
    {"name": "told", "per": "user", "window": "day", "max_cost": "0.01", "action": "warn"},
]


def limits_of(*limits: dict[str, Any]) -> LimitSet:
    return config_of({"data_dir": "unused", "limits": list(limits)}).limit_set()


class Asked(NamedTuple):
    """A client's request: its time, its duration, its reserved cost and its actual cost."""

    at: int
    lasts: int
    held: int
    cost: int
    tokens: int
    user: str
    team: str | None
    model: str
    session: str | None
    tags: tuple[str, ...]


class Live:
    """The components of a worker, with a ledger of their own, and a clock that is set to each request's time."""

    def __init__(self, opened: OpenLedger, limits: LimitSet) -> None:
        self.clock = FakeClock()
        ledger = opened.ledger
        rules, counts = ActiveLimits(limits), Anomalies(self.clock)
        requests = LocalRequestLedger(ledger)
        decider = Decider(
            requests, rules, self.clock, worker=lambda: "w", anomalies=counts, policy=AdmissionPolicy(max_wait=0)
        )
        self.admission = Admission(decider, self.clock)
        cache = UsageCache(size=10, retention_days=7, zone=ZoneInfo("UTC"))
        self.recorder = Recorder(requests, rules, cache, self.clock, anomalies=counts, alerts=Alerts(self.clock))
        self._open: list[tuple[int, OpenRequest, Outcome]] = []
        self.recorded: list[UsageEvent] = []
        self.refused: list[str] = []

    async def serve(self, requests: Sequence[Asked]) -> None:
        """Admit each request at its start, and settle it at its end."""
        for number, asked in enumerate(requests):
            self._settle_up_to(asked.at)
            self._set(asked.at)
            draft = UsageEvent(
                event_id=new_event_id(), started_at=asked.at, status="recovered", call_type="acompletion",
                user=asked.user, team=asked.team, session=asked.session, tags=asked.tags, call_id=str(number),
                requested_model=asked.model, model=asked.model, provider="openai",
            )  # fmt: skip
            candidate = Candidate(asked.model, "openai", priced=True, worst_cost=asked.held)
            ask = Ask(
                draft=draft, subjects=subjects_of(draft), primary=(candidate,),
                input_tokens=asked.tokens, output_tokens=asked.tokens,
            )  # fmt: skip
            outcome = (await self.admission.admit(ask)).outcome
            if isinstance(outcome, Refusal):
                self.refused.append(str(number))
                continue
            tokens = TokenUsage(input_tokens=asked.tokens, output_tokens=asked.tokens)
            end = Outcome(status="success", model=asked.model, provider="openai", tokens=tokens, cost=asked.cost)
            self._open.append((asked.at + asked.lasts, OpenRequest(outcome, self.clock.monotonic()), end))
        self._settle_up_to(None)

    def _settle_up_to(self, at: int | None) -> None:
        for ended in sorted((one for one in self._open if at is None or one[0] <= at), key=lambda one: one[0]):
            self._open.remove(ended)
            self._set(ended[0])
            recorded = self.recorder.record(*ended[1:])
            assert recorded is not None
            self.recorded.append(recorded.event)

    def _set(self, at: int) -> None:
        self.clock.advance(timedelta(microseconds=at - self.clock.now()))


def ledger_in(folder: str) -> closing[OpenLedger]:
    return closing(open_sqlite_ledger(Path(folder) / "ledger.db"))


async def live(requests: Sequence[Asked], limits: LimitSet) -> Live:
    with TemporaryDirectory() as folder, ledger_in(folder) as opened:
        served = Live(opened, limits)
        await served.serve(requests)
        return served


async def replayed(
    events: Sequence[UsageEvent], limits: LimitSet, *, before: Sequence[Charge] = (), **options: Any
) -> tuple[list[str | None], Simulation]:
    """Replay events in order of admission; return the call ids of the refused requests, and the simulation."""
    refused = []
    with TemporaryDirectory() as folder, ledger_in(folder) as opened:
        replay = Replay(opened, limits, **options)
        replay.charge(before)
        for event in sorted(events, key=lambda event: event.started_at):
            count = replay.found.refused.requests
            await replay.add(event)
            if replay.found.refused.requests > count:
                refused.append(event.call_id)
        found = await replay.end()
        assert opened.ledger.verify() == []
        assert opened.ledger.open_reservations() == []
        return refused, found


@st.composite
def some_requests(draw: st.DrawFn, *, at_once: bool) -> list[Asked]:
    """Generate requests in order of their start; with `at_once`, some overlap."""
    at, requests = NOON + 11 * HOUR, []
    for _ in range(draw(st.integers(1, 40))):
        held = draw(st.integers(0, 10)) * CENT
        lasts = draw(st.sampled_from([0, SECOND, 40 * SECOND, HOUR])) if at_once else SECOND
        at += draw(st.sampled_from([1, SECOND, 20 * SECOND, HOUR // 2])) + (0 if at_once else SECOND)
        requests.append(
            Asked(
                at=at, lasts=lasts, held=held, cost=draw(st.integers(0, held + CENT)),
                tokens=draw(st.integers(0, 100)), user=draw(st.sampled_from(["ann", "bo"])),
                team=draw(st.sampled_from([None, "research"])), model=draw(st.sampled_from(["gpt", "opus-4"])),
                session=draw(st.sampled_from([None, "s1"])), tags=draw(st.sampled_from([(), ("x",), ("x", "y")])),
            )
        )  # fmt: skip
    return requests


async def both(requests: Sequence[Asked]) -> tuple[list[str], list[str | None], Simulation]:
    limits = limits_of(*EVERY_KIND)
    served = await live(requests, limits)
    refused, found = await replayed((await live(requests, LimitSet([]))).recorded, limits)
    return served.refused, refused, found


@given(some_requests(at_once=False))
@settings(max_examples=25)
async def test_a_replay_refuses_those_whom_the_limits_refused_live(requests: list[Asked]) -> None:
    """A replay of events recorded without limits refuses the same requests as live limits, if no two overlap."""
    lived, refused, found = await both(requests)
    assert refused == lived
    assert found.refused.only_in_flight == 0
    assert found.requests == len(requests)


@given(some_requests(at_once=True))
@settings(max_examples=40)
async def test_what_was_in_flight_is_in_flight_in_a_replay(requests: list[Asked]) -> None:
    """The same is true for overlapping requests, since each one holds until it ends."""
    lived, refused, _ = await both(requests)
    assert refused == lived


def asked_of(at: int, lasts: int, *, held: int = 4 * CENT, cost: int = CENT, **fields: Any) -> UsageEvent:
    fields = {"reserved": held, "cost": cost, "call_id": str(at), **fields}
    return make_event(started_at=NOON + at, duration_us=lasts, **fields)


async def test_a_refusal_by_what_was_in_flight_is_told_apart() -> None:
    """A refusal counts as `only_in_flight` if the request would fit after all others have settled."""
    limits = limits_of(DAILY)
    in_flight = [asked_of(0, HOUR), asked_of(1, HOUR), asked_of(2, HOUR)]
    refused, found = await replayed(in_flight, limits)
    assert (refused, found.refused.only_in_flight) == (["2"], 1)
    dear = [event._replace(cost=4 * CENT) for event in in_flight]
    refused, found = await replayed(dear, limits)
    assert (refused, found.refused.only_in_flight) == (["2"], 0)


async def test_what_fits_soon_waits_as_it_does_live() -> None:
    """A request waits for room for up to `admission.max_wait`, and is admitted when there is room."""
    events = [
        asked_of(0, SECOND),
        asked_of(1, SECOND),
        asked_of(2, SECOND),
        asked_of(3 * SECOND, SECOND, held=7 * CENT),
    ]
    refused, found = await replayed(events, limits_of(DAILY), max_wait=timedelta(seconds=2))
    assert (refused, found.waited) == ([], 1)
    refused, found = await replayed(events, limits_of(DAILY), max_wait=timedelta(seconds=0.5))
    assert (found.refused.requests, found.waited) == (1, 0)
    assert found.refused.first_at == NOON + 2


async def test_who_waits_is_counted_once() -> None:
    """A request counts as one refusal and one dry run, for any number of attempts while it waits."""
    limits = limits_of(DAILY, {**DAILY, "name": "tried", "max_cost": "0.05", "dry_run": True})
    events = [asked_of(at, 60 * SECOND) for at in range(3)]
    _, found = await replayed(events, limits, max_wait=timedelta(seconds=2))
    assert {key[:2]: tally.requests for key, tally in found.tallies.items()} == {
        ("daily", "refused"): 1,
        ("tried", "dry run"): 2,
    }


async def test_tallies_say_who_when_and_how_much() -> None:
    """Tallies have the limit, the refused user, the first time, the number of requests and their cost."""
    team = {"name": "team", "per": "team", "window": "day", "max_cost": "0.05"}
    events = [asked_of(at * SECOND, 0, cost=3 * CENT, team="research", user=user) for at, user in enumerate("abab")]
    refused, found = await replayed(events, limits_of(team))
    assert len(refused) == 3
    assert found.tallies == {
        TallyKey("team", "refused", "research", "a"): simulation.Tally(1, 3 * CENT, 0, NOON + 2 * SECOND, {"spent": 1}),
        TallyKey("team", "refused", "research", "b"): simulation.Tally(2, 6 * CENT, 0, NOON + SECOND, {"spent": 2}),
    }
    assert (found.refused.requests, found.refused.cost, found.refused.first_at) == (3, 9 * CENT, NOON + SECOND)
    assert found.cost == 12 * CENT


async def test_limits_that_do_not_block_refuse_nobody() -> None:
    """Dry runs, warnings and downgrades are counted separately, and the request is not changed."""
    limits = limits_of(
        {**DAILY, "name": "tried", "max_cost": "0.01", "dry_run": True},
        {**DAILY, "name": "told", "max_cost": "0.01", "action": "warn"},
        {**DAILY, "name": "down", "max_cost": "0.01", "action": "downgrade", "downgrade_to": "small"},
    )
    refused, found = await replayed([asked_of(0, 0), asked_of(1, 0)], limits)
    assert refused == []
    assert {key[:2]: tally.requests for key, tally in found.tallies.items()} == {
        ("tried", "dry run"): 2, ("told", "warned"): 2, ("down", "downgraded"): 2,
    }  # fmt: skip


async def test_an_event_that_does_not_tell_what_it_held_holds_what_it_cost() -> None:
    """An event without its hold holds its cost and is counted, unless it cost nothing: a replay may refuse too few."""
    events = [asked_of(0, 0, held=0, cost=9 * CENT), asked_of(1, 0, held=0, cost=CENT), asked_of(2, 0, held=0, cost=0)]
    refused, found = await replayed(events, limits_of(DAILY))
    assert (refused, found.held_as_cost) == ([], 2)


async def test_what_has_no_price_is_refused_as_it_is_live() -> None:
    """A model without a price is refused under a cost limit, unless the limit allows it."""
    event = asked_of(0, 0, held=0, cost=None)
    refused, found = await replayed([event], limits_of(DAILY))
    assert len(refused) == 1
    assert found.refused.reasons == {"unpriced": 1}
    assert await replayed([event], limits_of({**DAILY, "allow_unpriced": ["gpt"]})) != (refused, found)


async def test_health_checks_are_charged_and_never_refused() -> None:
    """Health checks were never subject to admission."""
    limits = limits_of({"name": "all", "per": "global", "window": "day", "max_cost": "0.05"})
    checks = [asked_of(at, 0, held=0, cost=3 * CENT, user=INTERNAL) for at in range(2)]
    refused, found = await replayed([*checks, asked_of(2, 0, cost=CENT, held=CENT)], limits)
    assert (refused, found.requests, found.only_charged) == (["2"], 1, 2)


async def test_what_the_windows_held_counts() -> None:
    """A replay includes the charges made before it."""
    limits = limits_of(DAILY)
    charges = [
        demand.charge() for demand in charged_by(asked_of(-HOUR, 0, cost=9 * CENT), subjects_of(make_event()), limits)
    ]
    assert (await replayed([asked_of(0, 0, held=CENT)], limits, before=charges))[0] == []
    assert (await replayed([asked_of(0, 0, held=2 * CENT)], limits, before=charges))[0] == ["0"]


async def test_memory_is_bounded_by_tallies_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a maximum number of names, the rest is counted together, and all sums are complete."""
    monkeypatch.setattr(simulation, "MOST_TALLIED", 3)
    events = [asked_of(at, 0, held=11 * CENT, user=f"u{at}") for at in range(10)]
    _, found = await replayed(events, limits_of(DAILY))
    assert len(found.tallies) == 4
    assert found.tallies[TallyKey("daily", "refused", OTHERS, OTHERS)].requests == 7
    assert sum(tally.requests for tally in found.tallies.values()) == found.refused.requests == 10


async def test_the_ledger_of_a_long_replay_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accounts of closed windows are deleted as they are live."""
    monkeypatch.setattr(simulation, "_TIDY_EVERY", 10)
    with TemporaryDirectory() as folder, ledger_in(folder) as opened:
        limits = limits_of({"name": "rate", "per": "user", "window": "minute", "max_requests": 1})
        replay = Replay(opened, limits)
        for number in range(400):
            await replay.add(asked_of(number * HOUR, 0))
        await replay.end()
        assert len(opened.ledger.accounts(limits.limits[0].key, 0)) < 50
