"""Simulate proposed limits on recorded events, with the same rules, admission and ledger as live.

Each event requests admission again at the time of its original admission. It holds its original amount until the time
at which it ended, so the same requests are in flight together as live. The replay has a real ledger of its own.
Memory is bounded by the requests in flight and by `MOST_TALLIED`, not by the number of events.

Requests without an event cannot be replayed: a request that was refused live has none.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple

from usage_plugin.domain.clock import Clock
from usage_plugin.domain.ledger import AccountKey, Charge
from usage_plugin.domain.subjects import INTERNAL
from usage_plugin.domain.usage import subjects_of
from usage_plugin.domain.windows import MICROSECONDS, Window, days_window, local_date
from usage_plugin.errors import LedgerError, UsagePluginError
from usage_plugin.tracking.admission.active_limits import ActiveLimits
from usage_plugin.tracking.admission.decide import AdmissionPolicy, Decider
from usage_plugin.tracking.admission.decisions import Admitted, Downgrade, Refusal
from usage_plugin.tracking.admission.demands import Ask, Candidate, Demand, charged_by
from usage_plugin.tracking.admission.local_request_ledger import LocalRequestLedger
from usage_plugin.tracking.admission.remedies import FIRST_LOOK, MOST_WAITING, is_worth_waiting, next_look
from usage_plugin.tracking.maintenance.backfill import amount_of, daily_dimensions, names_of
from usage_plugin.tracking.notifications.anomalies import Anomalies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import date
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.limit_set import LimitSet
    from usage_plugin.domain.limits import Limit
    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.domain.refusals import Reason
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.tracking.history.reader import UsageReader

MOST_TALLIED = 20_000
"""The maximum number of tallied combinations of limit, effect, subject and user. The rest is counted as `OTHERS`."""
OTHERS = "(others)"

Effect = Literal["refused", "downgraded", "warned", "dry run"]
"""The effect of a limit on a request. Only `refused` prevents its start. `dry run`: the limit would have refused it."""

_TIDY_EVERY = 1_000
_YIELD_EVERY = 50
_CHARGED_AT_ONCE = 200


class TallyKey(NamedTuple):
    """The key of a tally: a limit, its effect, the subject as in `AccountKey`, and the user of the request."""

    limit: str
    effect: Effect
    subject: str
    user: str


@dataclass(slots=True)
class Tally:
    """Requests that were affected by a limit.

    Attributes:
        cost: their recorded cost, in nano-dollars.
        only_in_flight: the number of them that would have fitted if all requests in flight had been settled.
        first_at: the time of the first of them, in microseconds since 1970 UTC.
        reasons: the number of refusals for each reason.
    """

    requests: int = 0
    cost: Nano = 0
    only_in_flight: int = 0
    first_at: int = 0
    reasons: Counter[Reason] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Add another tally to this one."""
        self.first_at = min(self.first_at, other.first_at) if self.requests else other.first_at
        self.requests += other.requests
        self.cost += other.cost
        self.only_in_flight += other.only_in_flight
        self.reasons.update(other.reasons)


@dataclass(slots=True)
class Simulation:
    """The result of a replay. Amounts are nano-dollars.

    Attributes:
        requests: the number of replayed requests.
        refused: all refusals, each by the limit that would have been reported to the client.
        waited: the number of requests that were admitted only after other requests had settled.
        cost: the recorded cost of all requests.
        only_charged: the number of events recorded live without admission, such as health checks. They are charged
            and never refused.
        held_as_cost: the number of events without a recorded hold, for which only their cost was held.
        without_event: the number of recorded requests of these days whose events were deleted, so that they could not
            be replayed.
        tallies: the effects of each limit, by subject and user.
    """

    requests: int = 0
    refused: Tally = field(default_factory=Tally)
    waited: int = 0
    cost: Nano = 0
    only_charged: int = 0
    held_as_cost: int = 0
    without_event: int = 0
    tallies: dict[TallyKey, Tally] = field(default_factory=dict)

    def count(self, key: TallyKey, one: Tally) -> None:
        """Count the effect of a limit on a request. Beyond `MOST_TALLIED` combinations, count it under `OTHERS`."""
        if key not in self.tallies and len(self.tallies) >= MOST_TALLIED:
            key = key._replace(subject=OTHERS, user=OTHERS)
        self.tallies.setdefault(key, Tally()).add(one)


class _ReplayClock(Clock):
    """A clock that shows the replayed instant."""

    def __init__(self) -> None:
        self.at = 0

    def now(self) -> int:
        return self.at

    def monotonic(self) -> int:
        return self.at


class _Open(NamedTuple):
    """A request in flight, and its future charges."""

    event_id: str
    charges: tuple[Charge, ...]


class _Waiting(NamedTuple):
    """A request that would fit once other requests settle, and is retried as live."""

    ask: Ask
    event: UsageEvent
    until: int
    delay: float


class Replay:
    """Replay events against proposed limits, in the order of their admission."""

    def __init__(self, opened: OpenLedger, limits: LimitSet, *, max_wait: timedelta = timedelta(0)) -> None:
        """Start without any charges.

        Args:
            opened: an empty ledger that only the replay uses.
            limits: the proposed limits.
            max_wait: the maximum wait of a request that would fit once other requests settle.
        """
        self._opened = opened
        self._ledger = opened.ledger
        self._limits = limits
        self._clock = _ReplayClock()
        self._max_wait = max_wait // timedelta(microseconds=1)
        self._decider = Decider(
            LocalRequestLedger(opened.ledger),
            ActiveLimits(limits),
            self._clock,
            worker=lambda: "replay",
            anomalies=Anomalies(self._clock),
            policy=AdmissionPolicy(),
        )
        self._due: list[tuple[int, int, int, _Open | _Waiting]] = []
        """The heap of future steps: by time, then settlements before retries, then in the order of their creation."""
        self._number = 0
        self._waiting = 0
        self._coming: Counter[AccountKey] = Counter()
        """The future charges of requests in flight, by account."""
        self.found = Simulation()

    def charge(self, charges: Iterable[Charge]) -> None:
        """Charge usage that the windows contained before the first event."""
        self._number += 1
        self._ledger.record(f"charge-{self._number}", list(charges), None)

    async def add(self, event: UsageEvent) -> None:
        """Replay an event, after all earlier settlements and retries.

        Raises:
            LedgerError: the ledger of the replay does not work.
        """
        await self._pass_time(event.started_at)
        if event.user == INTERNAL:
            self.found.only_charged += 1
            self.charge(demand.charge() for demand in charged_by(event, subjects_of(event), self._limits))
            return
        self.found.requests += 1
        self.found.cost += event.cost or 0
        if not event.reserved and event.cost:
            self.found.held_as_cost += 1
        await self._ask(_Waiting(_ask_of(event), event, event.started_at + self._max_wait, FIRST_LOOK), first=True)
        if self.found.requests % _TIDY_EVERY == 0:
            self._ledger.maintain(self._clock.at)
            if self._opened.file is not None:
                self._opened.file.shorten_log()

    async def end(self) -> Simulation:
        """Settle or refuse all requests that are in flight or wait, and return the result."""
        while self._due:
            await self._pass_time(self._due[0][0])
        return self.found

    async def _pass_time(self, until: int) -> None:
        """Settle the requests that have ended up to an instant, and retry those that wait."""
        while self._due and self._due[0][0] <= until:
            at, _, _, what = heapq.heappop(self._due)
            self._clock.at = at
            if isinstance(what, _Open):
                self._settle(what)
            else:
                self._waiting -= 1
                await self._ask(what, first=False)
        self._clock.at = until

    def _later(self, at: int, what: _Open | _Waiting) -> None:
        self._number += 1
        heapq.heappush(self._due, (at, int(isinstance(what, _Waiting)), self._number, what))

    def _settle(self, request: _Open) -> None:
        self._ledger.settle(request.event_id, request.charges, None)
        for account, _, amount in request.charges:
            self._coming[account] -= amount
            if not self._coming[account]:
                del self._coming[account]

    async def _ask(self, waiting: _Waiting, *, first: bool) -> None:
        now = self._clock.at
        event = waiting.event._replace(started_at=now)
        ask = waiting.ask if first else waiting.ask._replace(draft=waiting.ask.draft._replace(started_at=now))
        decision = await self._decider.decide(ask)
        if isinstance(decision, Downgrade):
            if first:
                self._count(event, "downgraded", decision.demand)
            # The usage with the other model is unknown, so the limit only counts.
            decision = await self._decider.decide(ask._replace(is_downgraded=True))
        if isinstance(decision, Downgrade):
            raise UsagePluginError("A request was downgraded twice.")
        outcome, dry_run_refusals = decision
        if first:
            # Count each request once, not for each retry.
            for refusal in dry_run_refusals:
                if refusal.demand is not None:
                    self._count(event, "dry run", refusal.demand, refusal)
        if isinstance(outcome, Admitted):
            self._open(event, outcome)
            self.found.waited += not first
        elif is_worth_waiting(outcome) and now < waiting.until and self._waiting < MOST_WAITING:
            self._waiting += 1
            at = min(waiting.until, now + round(waiting.delay * MICROSECONDS))
            self._later(at, waiting._replace(delay=next_look(waiting.delay)))
        else:
            self._refuse(waiting.event, outcome)

    def _open(self, event: UsageEvent, admitted: Admitted) -> None:
        for demand in admitted.demands:
            if demand.limit.name in admitted.warnings and not demand.fits(admitted.balances[demand.account]):
                self._count(event, "warned", demand)
        charges = tuple(demand.charge() for demand in charged_by(event, admitted.subjects, self._limits))
        for account, _, amount in charges:
            self._coming[account] += amount
        self._later(event.started_at + event.duration_us, _Open(event.event_id, charges))

    def _refuse(self, event: UsageEvent, refusal: Refusal) -> None:
        if refusal.demand is None:
            raise LedgerError("The ledger of the replay does not work, so nothing can be said.")
        self.found.refused.add(self._count(event, "refused", refusal.demand, refusal))

    def _count(self, event: UsageEvent, effect: Effect, demand: Demand, refusal: Refusal | None = None) -> Tally:
        in_flight = refusal is not None and self._fits_once_settled(demand, refusal)
        reasons = Counter([refusal.reason] if refusal else ())
        one = Tally(1, event.cost or 0, int(in_flight), event.started_at, reasons)
        self.found.count(TallyKey(demand.limit.name, effect, demand.subject, event.user), one)
        return one

    def _fits_once_settled(self, demand: Demand, refusal: Refusal) -> bool:
        """Whether the request would fit if all requests in flight had been charged, and nothing were held."""
        if refusal.reason not in ("busy", "spent"):
            return False
        account = demand.account
        coming = self._coming[account]
        if demand.since is not None:
            coming = sum(
                amount
                for key, amount in self._coming.items()
                if key.limit_key == account.limit_key and key.subject == account.subject
                if key.window_start >= demand.since
            )
        return refusal.balance.spent + coming + demand.amount <= (demand.maximum or 0)


def _ask_of(event: UsageEvent) -> Ask:
    """Return the admission request of an event, as far as the event records it."""
    held = event.reserved or event.cost
    output = max(event.output_tokens, event.clamped_to or 0, event.injected_output_tokens or 0)
    return Ask(
        draft=event,
        subjects=subjects_of(event),
        primary=(Candidate(event.model, event.provider, priced=held is not None, worst_cost=held),),
        input_tokens=event.input_tokens,
        output_tokens=output,
    )


async def simulate(
    reader: UsageReader,
    replay: Replay,
    window: Window,
    recorded: int,
    advanced: Callable[[int], None] = lambda _: None,
) -> Simulation:
    """Replay the events of a window.

    Args:
        reader: reads the history.
        replay: a replay that was charged with the earlier usage of the windows.
        window: the span to replay, in microseconds since 1970 UTC.
        recorded: the number of requests in the sums of the window. Some of their events may have been deleted.
        advanced: called with the number of requests replayed since the last call.

    Raises:
        LedgerError: the ledger of the replay does not work.
    """
    seen = 0
    async for event in reader.events(window):
        await replay.add(event)
        seen += 1
        if seen % _YIELD_EVERY == 0:
            advanced(_YIELD_EVERY)
            await asyncio.sleep(0)
    advanced(seen % _YIELD_EVERY)
    found = await replay.end()
    found.without_event = max(0, recorded - seen)
    return found


async def count_what_windows_held(
    reader: UsageReader, replay: Replay, limits: LimitSet, since: date, zone: ZoneInfo
) -> None:
    """Charge the earlier usage of windows that are open at the start of a day.

    This works like the backfill of a new limit: from the daily sums if they suffice, else from events. A limit with
    `count_from: now` starts at zero.
    """
    at = days_window(since, since, zone).start
    streamed: list[tuple[Limit, int]] = []
    for limit in limits.limits:
        begin = _begin(limit, at)
        if not limit.is_charged or not limit.counts_history or begin >= at:
            continue
        by = daily_dimensions(limit, zone)
        if by is None:
            streamed.append((limit, begin))
            continue
        alone, window = limits.alone(limit), limit.window_at(at)
        rows = await reader.report(by, local_date(begin, zone), since - timedelta(days=1))
        charges = (
            Charge(AccountKey(limit.key, window.start, matched.subject), window.end, amount_of(limit, row.totals))
            for row in rows
            for matched in alone.matching(*names_of(by, row.group))
        )
        await _charge(replay, charges)
    if streamed:
        await _stream(reader, replay, limits, streamed, at)


async def _stream(
    reader: UsageReader, replay: Replay, limits: LimitSet, streamed: Sequence[tuple[Limit, int]], at: int
) -> None:
    begins = {limit.key: begin for limit, begin in streamed}
    alone = [limits.alone(limit) for limit, _ in streamed]
    charges: list[Charge] = []
    async for event in reader.events(Window(min(begins.values()), at)):
        subjects = subjects_of(event)
        charges += [
            demand.charge()
            for one in alone
            for demand in charged_by(event, subjects, one)
            if event.started_at >= begins[demand.limit.key]
        ]
        if len(charges) >= _CHARGED_AT_ONCE:
            await _charge(replay, charges)
            charges.clear()
    await _charge(replay, charges)


async def _charge(replay: Replay, charges: Iterable[Charge]) -> None:
    left = iter(charges)
    while some := list(islice(left, _CHARGED_AT_ONCE)):
        replay.charge(some)
        await asyncio.sleep(0)


def _begin(limit: Limit, at: int) -> int:
    """Return the time from which a limit counts for a request at an instant."""
    since = limit.since_at(at)
    if since is not None:
        return since
    return 0 if limit.window.kind == "session" else limit.window_at(at).start
