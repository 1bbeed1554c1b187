"""Admission in special cases: rolling windows, slots, waiting, downgrades, and requests without a ledger."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.waiting import eventually
from tests.tracking.test_tracking import CENT, ask, configure
from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.operations import Anomaly
from usage_plugin.domain.usage import TokenUsage
from usage_plugin.encoding import decode_event
from usage_plugin.errors import LedgerError
from usage_plugin.runtime import Runtime
from usage_plugin.testing.clock import FakeClock
from usage_plugin.tracking.admission.decisions import Admitted, Downgrade, Refusal
from usage_plugin.tracking.admission.demands import Ask, Candidate
from usage_plugin.tracking.admission.recorder import OpenRequest, Outcome
from usage_plugin.tracking.ledger_retry import wait_while_busy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HOUR = timedelta(hours=1)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def start(tmp_path: Path, clock: FakeClock):
    made: list[Runtime] = []

    def with_limits(limits: str, more: str = "", *, clock: Any = clock) -> Runtime:
        made.append(Runtime(configure(tmp_path, f"\n{limits}\n", more), clock=clock))
        return made[-1]

    yield with_limits
    for runtime in made:
        await runtime.close()


async def spend(runtime: Runtime, clock: Any, cost: int = CENT, **how: Any) -> None:
    request = await take(runtime, clock, cost=cost, **how)
    model = request.admitted.event.model
    runtime.recorder.record(request, Outcome(status="success", model=model, cost=cost, cost_source="computed"))
    # If the keeper is writing at this moment, the settlement waits; until then the amount is reserved, not spent.
    await runtime.request_ledger.drain(60)


async def take(runtime: Runtime, clock: Any, **how: Any) -> OpenRequest:
    decision = (await runtime.admission.admit(ask(clock, **how))).outcome
    assert isinstance(decision, Admitted), decision
    return OpenRequest(decision, clock.monotonic())


async def refused(runtime: Runtime, clock: Any, **how: Any) -> Refusal:
    decision = (await runtime.admission.admit(ask(clock, **how))).outcome
    assert isinstance(decision, Refusal), decision
    return decision


# ── rolling windows ──────────────────────────────────────────────────────────────────────────────────────────────────

ROLLING = '    - {name: rolling, per: user, window: {rolling: 5h}, max_cost: "0.03"}'
BUCKET = timedelta(minutes=5)


async def test_what_was_spent_counts_until_it_has_rolled_away(start: Callable[..., Runtime], clock: FakeClock) -> None:
    runtime = start(ROLLING)
    for _ in range(3):
        await spend(runtime, clock)
        clock.advance(HOUR)
    assert (await refused(runtime, clock)).reason == "spent"
    clock.advance(2 * HOUR - timedelta(seconds=1))
    assert (await refused(runtime, clock)).reason == "spent", "it counts for the whole length"
    clock.advance(BUCKET + timedelta(seconds=1))
    await spend(runtime, clock)
    assert (await refused(runtime, clock)).reason == "spent"


async def test_a_rolling_refusal_says_when_enough_has_rolled_away(
    start: Callable[..., Runtime], clock: FakeClock
) -> None:
    runtime = start(ROLLING)
    for _ in range(3):
        await spend(runtime, clock)
        clock.advance(HOUR)
    refusal = await refused(runtime, clock, cost=2 * CENT)
    assert refusal.balance.spent == 3 * CENT
    assert refusal.rolled_away_at is not None
    clock.advance(timedelta(microseconds=refusal.rolled_away_at - clock.now()))
    await spend(runtime, clock, 2 * CENT)


async def test_a_rolling_hold_counts_in_every_bucket(start: Callable[..., Runtime], clock: FakeClock) -> None:
    runtime = start(ROLLING, "  admission: {max_wait: 0s}")
    held = await take(runtime, clock, cost=2 * CENT)
    clock.advance(2 * BUCKET)
    assert (await refused(runtime, clock, cost=2 * CENT)).reason == "busy"
    runtime.recorder.record(held, Outcome(status="failure", error="Timeout"))
    await spend(runtime, clock, 2 * CENT)


# ── slots ────────────────────────────────────────────────────────────────────────────────────────────────────────────

SLOTS = "    - {name: slots, per: user, max_parallel_requests: 2}"


async def test_so_many_requests_run_at_once(start: Callable[..., Runtime], clock: FakeClock) -> None:
    runtime = start(SLOTS, "  admission: {max_wait: 0s}")
    first, _ = [await take(runtime, clock) for _ in range(2)]
    refusal = await refused(runtime, clock)
    assert refusal.reason == "busy"
    assert refusal.balance.reserved == 2
    runtime.recorder.record(first, Outcome(status="success", model="gpt", cost=CENT, cost_source="computed"))
    await take(runtime, clock)
    assert (await refused(runtime, clock)).reason == "busy"


async def test_a_slot_is_free_after_any_end(start: Callable[..., Runtime], clock: FakeClock) -> None:
    runtime = start(SLOTS, "  admission: {max_wait: 0s}")
    for outcome in (
        Outcome(status="failure", error="Timeout"),
        Outcome(status="cancelled", as_reserved=True),
        Outcome(status="success", model="gpt", cost=CENT, cost_source="computed"),
    ):
        for request in [await take(runtime, clock) for _ in range(2)]:
            runtime.recorder.record(request, outcome)


async def test_a_slot_is_free_at_the_end_of_the_exchange_while_the_money_is_held(
    start: Callable[..., Runtime], clock: FakeClock
) -> None:
    runtime = start(
        f'{SLOTS}\n    - {{name: daily, per: user, window: day, max_cost: "0.02"}}', "  admission: {max_wait: 0s}"
    )
    gone = await take(runtime, clock)
    await take(runtime, clock, cost=0)
    assert (await refused(runtime, clock, cost=0)).demand.limit.name == "slots"  # type: ignore[union-attr]
    runtime.recorder.free_slots(gone)
    too_much = await refused(runtime, clock, cost=2 * CENT)
    assert (too_much.demand.limit.name, too_much.balance.reserved) == ("daily", CENT)  # type: ignore[union-attr]
    await take(runtime, clock, cost=0)
    runtime.recorder.record(gone, Outcome(status="cancelled", as_reserved=True))
    assert (await refused(runtime, clock, cost=0)).balance.reserved == 2, "its slot is not given back twice"


# ── waiting ──────────────────────────────────────────────────────────────────────────────────────────────────────────

PENNIES = '    - {name: daily, per: user, window: day, max_cost: "0.02"}'


async def test_a_request_waits_for_others_to_settle(start: Callable[..., Runtime]) -> None:
    clock = SystemClock()
    runtime = start(PENNIES, "  admission: {max_wait: 30s}", clock=clock)
    held = await take(runtime, clock, cost=2 * CENT)
    waiting = asyncio.ensure_future(runtime.admission.admit(ask(clock, cost=CENT)))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    runtime.recorder.record(held, Outcome(status="failure", error="Timeout"))
    outcome = (await asyncio.wait_for(waiting, 60)).outcome
    assert isinstance(outcome, Admitted)
    assert outcome.event.started_at > held.admitted.event.started_at


async def test_a_request_waits_no_longer_than_it_may(start: Callable[..., Runtime]) -> None:
    clock = SystemClock()
    runtime = start(PENNIES, "  admission: {max_wait: 1s}", clock=clock)
    await take(runtime, clock, cost=2 * CENT)
    began = clock.monotonic()
    assert (await refused(runtime, clock)).reason == "busy"
    assert clock.monotonic() - began >= 1_000_000


async def test_a_request_cut_to_the_free_room_does_not_wait(start: Callable[..., Runtime]) -> None:
    """It fits without waiting. If other requests were faster, it is cut again, and refused in the end."""
    clock = SystemClock()
    runtime = start(
        '    - {name: daily, per: user, window: day, max_cost: "0.03"}', "  admission: {max_wait: 60s}", clock=clock
    )
    await take(runtime, clock, cost=2 * CENT)
    await spend(runtime, clock, CENT // 2)
    forms = OtherForms(shorter=[ask(clock, cost=CENT)])
    decision = await asyncio.wait_for(runtime.admission.admit(ask(clock, cost=3 * CENT), forms), 30)
    assert isinstance(decision.outcome, Refusal)
    assert decision.outcome.reason == "busy"
    assert forms.rooms == [CENT // 2, CENT // 2, 5 * CENT // 2]


async def test_a_request_is_cut_to_the_unspent_rest_and_waits_for_it(start: Callable[..., Runtime]) -> None:
    """If nothing fits into the room that is free now, the shorter request waits until other requests settle."""
    clock = SystemClock()
    runtime = start(PENNIES, "  admission: {max_wait: 60s}", clock=clock)
    await spend(runtime, clock, CENT)
    held = await take(runtime, clock, cost=CENT)
    forms = OtherForms(shorter=[None, ask(clock, cost=CENT)])
    waiting = asyncio.ensure_future(runtime.admission.admit(ask(clock, cost=2 * CENT), forms))
    await eventually(lambda: runtime.admission.waiting == 1)
    runtime.recorder.record(held, Outcome(status="failure", error="Timeout"))
    outcome = (await asyncio.wait_for(waiting, 60)).outcome
    assert isinstance(outcome, Admitted)
    assert forms.rooms == [0, CENT]
    assert runtime.admission.waiting == 0


async def test_a_request_that_waited_is_cut_while_there_is_time_left(start: Callable[..., Runtime]) -> None:
    """The spend of others makes a waiting request too large. The shorter one waits for the rest of the time."""
    clock = SystemClock()
    runtime = start(PENNIES.replace("0.02", "0.03"), "  admission: {max_wait: 60s}", clock=clock)
    spending, failing = await take(runtime, clock, cost=CENT), await take(runtime, clock, cost=2 * CENT)
    forms = OtherForms(shorter=[None, ask(clock, cost=2 * CENT)])
    waiting = asyncio.ensure_future(runtime.admission.admit(ask(clock, cost=3 * CENT), forms))
    await eventually(lambda: runtime.admission.waiting == 1)
    runtime.recorder.record(spending, Outcome(status="success", model="gpt", cost=CENT, cost_source="computed"))
    await eventually(lambda: forms.rooms == [0, 2 * CENT])
    runtime.recorder.record(failing, Outcome(status="failure", error="Timeout"))
    outcome = (await asyncio.wait_for(waiting, 60)).outcome
    assert isinstance(outcome, Admitted)
    assert (outcome.event.reserved, runtime.admission.waiting) == (2 * CENT, 0)


async def test_a_cancelled_request_gives_its_place_among_the_waiting_back(start: Callable[..., Runtime]) -> None:
    clock = SystemClock()
    runtime = start(PENNIES, "  admission: {max_wait: 60s}", clock=clock)
    await take(runtime, clock, cost=2 * CENT)
    waiting = asyncio.ensure_future(runtime.admission.admit(ask(clock)))
    await eventually(lambda: runtime.admission.waiting == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert runtime.admission.waiting == 0
    assert len(runtime.ledger.open_reservations()) == 1


async def test_nobody_waits_for_money_that_is_spent(start: Callable[..., Runtime], clock: FakeClock) -> None:
    runtime = start(PENNIES, "  admission: {max_wait: 60s}")
    await spend(runtime, clock, 2 * CENT)
    # The fake clock does not advance, so a wait would never end.
    assert (await asyncio.wait_for(refused(runtime, clock), 30)).reason == "spent"


async def test_the_number_of_those_who_wait_is_bounded(
    start: Callable[..., Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usage_plugin.tracking.admission.remedies.MOST_WAITING", 3)
    clock = SystemClock()
    runtime = start(PENNIES, "  admission: {max_wait: 60s}", clock=clock)
    held = await take(runtime, clock, cost=2 * CENT)
    asked = [asyncio.ensure_future(refused(runtime, clock)) for _ in range(10)]
    await eventually(lambda: sum(request.done() for request in asked) == 7)
    await asyncio.sleep(0.2)
    assert sum(request.done() for request in asked) == 7
    runtime.recorder.record(held, Outcome(status="success", model="gpt", cost=2 * CENT, cost_source="computed"))
    assert sorted([(await request).reason for request in asked]) == ["busy"] * 7 + ["spent"] * 3


# ── downgrades ───────────────────────────────────────────────────────────────────────────────────────────────────────

DOWN = """
    - {name: dear, per: user, match: {model: "opus*"}, window: day, max_cost: "0.02", action: downgrade, downgrade_to: mini}
    - {name: all, per: user, window: day, max_cost: "0.05"}
"""


class OtherForms:
    """The other forms of a request, given by the test; records which were asked for."""

    def __init__(
        self,
        *,
        tighter: Ask | None = None,
        other: Callable[[str], Ask] | None = None,
        shorter: Sequence[Ask | None] = (),
    ) -> None:
        self.tokenisations: list[Refusal | Downgrade] = []
        self.downgrades: list[Downgrade] = []
        self.rooms: list[int] = []
        self._tighter = tighter
        self._other = other
        self._shorter = iter(shorter)

    async def tokenised(self, ask: Ask, obstacle: Refusal | Downgrade) -> Ask | None:
        self.tokenisations.append(obstacle)
        return self._tighter

    def downgraded(self, ask: Ask, obstacle: Downgrade) -> Ask | None:
        self.downgrades.append(obstacle)
        return self._other(obstacle.model) if self._other else None

    def without_thinking_room(self) -> Ask | None:
        return None

    def shortened(self, ask: Ask, obstacle: Refusal, room: int) -> Ask | None:
        self.rooms.append(room)
        return next(self._shorter, None)


async def test_a_request_goes_to_another_model_when_the_dear_one_is_spent(
    start: Callable[..., Runtime], clock: FakeClock
) -> None:
    runtime = start(DOWN)
    await spend(runtime, clock, 2 * CENT, model="opus-4")
    forms = OtherForms(other=lambda model: ask(clock, model=model))
    outcome = (await runtime.admission.admit(ask(clock, model="opus-4"), forms)).outcome
    (wish,) = forms.downgrades
    assert (wish.demand.limit.name, wish.balance.spent, wish.model) == ("dear", 2 * CENT, "mini")
    assert isinstance(outcome, Admitted)
    assert outcome.event.model == "mini"


@pytest.mark.parametrize("downgraded", [None, "again"])
async def test_a_downgrade_happens_once(
    start: Callable[..., Runtime], clock: FakeClock, downgraded: str | None
) -> None:
    runtime = start(DOWN)
    await spend(runtime, clock, 2 * CENT, model="opus-4")
    to_opus = OtherForms(other=lambda _: ask(clock, model="opus-mini")) if downgraded else None
    outcome = (await runtime.admission.admit(ask(clock, model="opus-4"), to_opus)).outcome
    assert isinstance(outcome, Admitted), "the limit that caused it counts and does not block"
    assert {demand.limit.name for demand in outcome.demands} == {"dear", "all"}


async def test_a_limit_that_blocks_still_blocks_what_was_downgraded(
    start: Callable[..., Runtime], clock: FakeClock
) -> None:
    runtime = start(DOWN)
    await spend(runtime, clock, 5 * CENT, model="mini")
    to_mini = OtherForms(other=lambda _: ask(clock, model="mini"))
    outcome = (await runtime.admission.admit(ask(clock, model="opus-4"), to_mini)).outcome
    assert isinstance(outcome, Refusal)
    assert outcome.reason == "spent"


async def test_a_request_for_the_cheap_model_is_not_downgraded_to_it(
    start: Callable[..., Runtime], clock: FakeClock
) -> None:
    runtime = start(DOWN.replace('"opus*"', '"*"'))
    await spend(runtime, clock, 2 * CENT, model="mini")
    never = OtherForms()
    outcome = (await runtime.admission.admit(ask(clock, model="mini"), never)).outcome
    assert not never.downgrades
    assert isinstance(outcome, Admitted)
    assert {demand.limit.name for demand in outcome.demands} == {"dear", "all"}


async def test_a_request_that_was_cut_and_downgraded_waits_like_any_other(start: Callable[..., Runtime]) -> None:
    """The cut was for a limit of the requested model only. The other model has room once other requests settle."""
    clock = SystemClock()
    runtime = start(
        """
    - {name: one, per: user, match: {model: "opus*"}, window: request, max_cost: "0.02"}
    - {name: dear, per: user, match: {model: "opus*"}, window: day, max_cost: "0.01", action: downgrade, downgrade_to: mini}
    - {name: all, per: user, window: day, max_cost: "0.03"}
""",
        "  admission: {max_wait: 60s}",
        clock=clock,
    )
    held = await take(runtime, clock, cost=2 * CENT, model="mini")
    forms = OtherForms(
        shorter=[ask(clock, cost=2 * CENT, model="opus-4")],
        other=lambda model: ask(clock, cost=2 * CENT, model=model),
    )
    waiting = asyncio.ensure_future(runtime.admission.admit(ask(clock, cost=3 * CENT, model="opus-4"), forms))
    await eventually(lambda: runtime.admission.waiting == 1 or waiting.done())
    runtime.recorder.record(held, Outcome(status="failure", error="Timeout"))
    outcome = (await asyncio.wait_for(waiting, 60)).outcome
    assert isinstance(outcome, Admitted), outcome
    assert outcome.event.model == "mini"


# ── tighter bounds ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_tighter_bound_is_asked_for_where_it_may_help(start: Callable[..., Runtime], clock: FakeClock) -> None:
    """It is asked for once, before any wait or downgrade, and never for a request that fits."""
    runtime = start(DOWN)
    forms = OtherForms(tighter=ask(clock, cost=1 * CENT, model="opus-4"))
    outcome = (await runtime.admission.admit(ask(clock, cost=3 * CENT, model="opus-4"), forms)).outcome
    assert isinstance(outcome, Admitted)
    assert (outcome.event.reserved, len(forms.tokenisations), forms.downgrades) == (1 * CENT, 1, [])
    unasked = OtherForms()
    assert isinstance(
        (await runtime.admission.admit(ask(clock, cost=1 * CENT, model="mini"), unasked)).outcome, Admitted
    )
    assert not unasked.tokenisations


async def test_a_tighter_bound_that_does_not_help_changes_nothing(
    start: Callable[..., Runtime], clock: FakeClock
) -> None:
    """The request is refused or downgraded, by its new, tighter bound."""
    runtime = start(DOWN)
    forms = OtherForms(tighter=ask(clock, cost=3 * CENT, model="opus-4"), other=lambda _: ask(clock, model="mini"))
    outcome = (await runtime.admission.admit(ask(clock, cost=4 * CENT, model="opus-4"), forms)).outcome
    assert isinstance(outcome, Admitted)
    assert (outcome.event.model, forms.downgrades[0].demand.amount) == ("mini", 3 * CENT)
    refused = (await runtime.admission.admit(ask(clock, cost=9 * CENT, model="mini"), OtherForms())).outcome
    assert isinstance(refused, Refusal)
    assert refused.reason == "too_large"


# ── lost requests ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("on_lost", "spent", "tokens"), [("charge", 5 * CENT, 30), ("charge_input", CENT, 10), ("release", 0, 0)]
)
async def test_what_is_lost_is_charged_by_policy(
    start: Callable[..., Runtime], clock: FakeClock, on_lost: str, spent: int, tokens: int
) -> None:
    runtime = start(
        "    - {name: money, per: user, window: day, max_cost: 1}\n"
        "    - {name: tokens, per: user, window: day, max_total_tokens: 1000}\n"
        "    - {name: times, per: user, window: day, max_requests: 10}\n"
        "    - {name: slots, per: user, max_parallel_requests: 2}",
        f"  admission: {{on_lost: {on_lost}}}",
    )
    wish = ask(clock)._replace(primary=(Candidate("gpt", "openai", True, 5 * CENT, CENT),))
    outcome = (await runtime.admission.admit(wish)).outcome
    assert isinstance(outcome, Admitted)
    assert outcome.event.cost == 5 * CENT, "if the worker lives and nobody knows, what was held is charged"
    assert runtime.ledger.recover(outcome.event.event_id)
    after = {demand.limit.name: runtime.ledger.balances([demand.account])[demand.account] for demand in outcome.demands}
    assert {name: balance.spent for name, balance in after.items()} == {
        "money": spent, "tokens": tokens, "times": 1, "slots": 0,
    }  # fmt: skip
    assert not any(balance.reserved for balance in after.values())
    (entry,) = runtime.ledger.outbox(0, 10)
    event = decode_event(entry.event)
    assert (event.status, event.cost, event.input_tokens + event.output_tokens) == ("recovered", spent, tokens)


# ── without a ledger, without an outbox ──────────────────────────────────────────────────────────────────────────────


def break_ledger(runtime: Runtime, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make methods of this worker's ledger fail, as a damaged disk would."""

    def fail(*_: object) -> None:
        raise LedgerError("disk I/O error")

    for name in names:
        monkeypatch.setattr(runtime.ledger, name, fail)


async def counted(runtime: Runtime, kind: str) -> Anomaly:
    """Flush this worker's counts and return the anomaly; retry while the keeper is writing."""
    for _ in range(500):
        wait_while_busy(lambda: runtime.anomalies.hand_over(runtime.operations))
        for found in runtime.operations.anomalies():
            if found.kind == kind:
                return found
        await asyncio.sleep(0.01)
    raise AssertionError(f"nothing counted as {kind}")


async def test_without_a_ledger_nothing_is_admitted(
    start: Callable[..., Runtime], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = start(PENNIES)
    with monkeypatch.context() as broken:
        break_ledger(runtime, broken, "reserve")
        for _ in range(3):
            assert (await refused(runtime, clock)).reason == "unavailable"
            clock.advance(timedelta(seconds=2))
    await take(runtime, clock)
    away = await counted(runtime, "ledger_away")
    assert (away.times, away.amount) == (1, 6_000_000)


async def test_without_a_ledger_requests_are_let_through_if_the_operator_says_so(
    start: Callable[..., Runtime], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = start(PENNIES, "  admission: {on_ledger_error: allow}")
    with monkeypatch.context() as broken:
        break_ledger(runtime, broken, "reserve", "settle", "record")
        request = await take(runtime, clock, cost=5 * CENT)
        runtime.recorder.record(
            request,
            Outcome(status="success", model="gpt", cost=5 * CENT, cost_source="computed", tokens=TokenUsage(1, 2)),
        )
        assert runtime.request_ledger.pending == 1
    await runtime.request_ledger.drain(20)
    assert runtime.request_ledger.pending == 0
    (entry,) = runtime.ledger.outbox(0, 10)
    event = decode_event(entry.event)
    assert (event.degraded, event.cost, event.status) == (True, 5 * CENT, "success")
    assert (await refused(runtime, clock)).balance.spent == 5 * CENT, "it counts as soon as it can be written"


@pytest.fixture
def _nobody_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevent the worker's thread from measuring the outbox and resetting the test's value."""
    monkeypatch.setattr("usage_plugin.runtime.change_watcher.ChangeWatcher._measure_outbox", lambda *_: None)


async def test_without_enforcing_a_ledger_that_does_not_work_stops_nobody(
    start: Callable[..., Runtime], clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USAGE_PLUGIN_ENFORCE", "off")
    runtime = start(PENNIES)
    break_ledger(runtime, monkeypatch, "reserve")
    assert (await take(runtime, clock)).admitted.event.degraded


@pytest.mark.usefixtures("_nobody_measures")
async def test_a_full_outbox_refuses(start: Callable[..., Runtime], clock: FakeClock) -> None:
    runtime = start(PENNIES)
    runtime.faults.outbox_full = True
    assert (await refused(runtime, clock)).reason == "outbox_full"
    runtime.faults.outbox_full = False
    await take(runtime, clock)


@pytest.mark.usefixtures("_nobody_measures")
async def test_a_full_outbox_can_be_served_on_with_a_gap(start: Callable[..., Runtime], clock: FakeClock) -> None:
    runtime = start(PENNIES, "  storage: {on_outbox_full: allow}")
    runtime.faults.outbox_full = runtime.faults.drops_events = True
    await spend(runtime, clock, 2 * CENT)
    assert runtime.ledger.outbox(0, 10) == []
    assert (await refused(runtime, clock)).balance.spent == 2 * CENT, "limits hold all the same"
    gap = await counted(runtime, "gap")
    assert (gap.concerns, gap.times, gap.amount) == ("gpt", 1, 2 * CENT)


# ── unforeseen changes ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_limit_that_came_meanwhile_is_charged_as_reserved(
    start: Callable[..., Runtime], clock: FakeClock
) -> None:
    """A charge as reserved is made on all limits in force, not only on those that held it."""
    runtime = start(PENNIES)
    request = await take(runtime, clock)
    runtime.rules.replace(
        configure(
            runtime.config.path.parent, f"\n{PENNIES}\n    - {{name: new, per: user, window: day, max_cost: 1}}"
        ).limit_set()
    )
    runtime.recorder.record(request, Outcome(status="cancelled", as_reserved=True))
    limits = {limit.name: limit for limit in runtime.rules.limits.limits}
    (new,) = runtime.ledger.accounts(limits["new"].key, 0)
    (old,) = runtime.ledger.accounts(limits["daily"].key, 0)
    assert (new.balance.spent, old.balance.spent, new.balance.reserved + old.balance.reserved) == (CENT, CENT, 0)


async def test_more_tokens_than_were_held_are_counted(start: Callable[..., Runtime], clock: FakeClock) -> None:
    runtime = start("    - {name: tokens, per: user, window: day, max_total_tokens: 1000}")
    request = await take(runtime, clock)
    tokens = TokenUsage(input_tokens=10, output_tokens=21)
    runtime.recorder.record(request, Outcome(status="success", model="gpt", tokens=tokens))
    overrun = await counted(runtime, "overrun")
    assert (overrun.concerns, overrun.times) == ("tokens", 1)


async def test_what_can_never_be_written_holds_up_nothing(
    start: Callable[..., Runtime], clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = start(PENNIES)
    first, second = [await take(runtime, clock) for _ in range(2)]
    runtime.recorder.record(first, Outcome(status="success", model="gpt", served_model="\ud800", cost=CENT))
    runtime.recorder.record(second, Outcome(status="success", model="gpt", cost=CENT))
    await runtime.request_ledger.drain(20)
    assert runtime.request_ledger.pending == 0
    assert len(runtime.ledger.outbox(0, 10)) == 1
    assert (await refused(runtime, clock, cost=CENT)).balance == (CENT, CENT), "its hold stays, and is charged later"
