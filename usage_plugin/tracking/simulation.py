"""What-if: proposed limits over recorded events, by the same rules, admission and ledger as live.

Each event asks again at the instant of its admission, and holds what was held for it until the instant at which it
ended; so what was in flight at the same time is in flight here. The ledger is a real one that belongs to the replay.
Memory is bounded by what is in flight and by `MOST_TALLIED`, whatever the number of events.

What is not in the events cannot be replayed: whoever was refused live left none.
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
from usage_plugin.errors import LedgerError
from usage_plugin.tracking.admission import (
    FIRST_LOOK,
    MOST_WAITING,
    Admission,
    AdmissionPolicy,
    Admitted,
    Downgrade,
    Refusal,
    is_worth_waiting,
    next_look,
)
from usage_plugin.tracking.demands import Ask, Candidate, Demand, charged_by
from usage_plugin.tracking.imperfections import Imperfections
from usage_plugin.tracking.rules import RulesInForce
from usage_plugin.tracking.seeding import amount_of, daily_dimensions, names_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import date
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.limits import Limit, LimitSet
    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.domain.refusals import Reason
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.tracking.tracker import UsageReader

MOST_TALLIED = 20_000
"""So many combinations of limit, subject and user are told apart; the rest is counted as `OTHERS`."""
OTHERS = "(others)"

Effect = Literal["refused", "downgraded", "warned", "dry run"]
"""What a limit did: only the first keeps a request from starting. `dry run`: it would have refused it."""

_TIDY_EVERY = 1_000
_YIELD_EVERY = 50
_CHARGED_AT_ONCE = 200


class TallyKey(NamedTuple):
    """What is told apart: which limit did what to whom; `subject` as in `AccountKey`, and the user who asked."""

    limit: str
    effect: Effect
    subject: str
    user: str


@dataclass(slots=True)
class Tally:
    """Requests to which a limit did something.

    Attributes:
        cost: what they cost when they were served, nano-dollars.
        only_in_flight: of them, those that would have fitted with everything settled that was in flight.
        first_at: when the first of them came, microseconds since 1970 UTC.
        reasons: how many for each reason of a refusal.
    """

    requests: int = 0
    cost: Nano = 0
    only_in_flight: int = 0
    first_at: int = 0
    reasons: Counter[Reason] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Add another to it."""
        self.first_at = min(self.first_at, other.first_at) if self.requests else other.first_at
        self.requests += other.requests
        self.cost += other.cost
        self.only_in_flight += other.only_in_flight
        self.reasons.update(other.reasons)


@dataclass(slots=True)
class Simulation:
    """What came of a replay. Amounts are nano-dollars.

    Attributes:
        requests: that asked again.
        refused: in all; each by the limit that a client would have been told of.
        waited: admitted once others had settled.
        cost: what all requests cost when they were served.
        only_charged: recorded live without having asked, as health checks are; they are charged and never refused.
        held_as_cost: events that do not tell what was held for them, so that no more was held than they cost.
        without_event: recorded requests of these days whose events are gone, so that they could not ask.
        tallies: what each limit did to whom.
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
        """Count what a limit did to a request; what cannot be told apart any more is counted together."""
        if key not in self.tallies and len(self.tallies) >= MOST_TALLIED:
            key = key._replace(subject=OTHERS, user=OTHERS)
        self.tallies.setdefault(key, Tally()).add(one)


class _ReplayClock(Clock):
    """Stands at the instant that is replayed."""

    def __init__(self) -> None:
        self.at = 0

    def now(self) -> int:
        return self.at

    def monotonic(self) -> int:
        return self.at


class _Open(NamedTuple):
    """A request in flight, and what it will be charged."""

    event_id: str
    charges: tuple[Charge, ...]


class _Waiting(NamedTuple):
    """A request that would fit once others settle, and looks again and again, as live."""

    ask: Ask
    event: UsageEvent
    until: int
    delay: float


class Replay:
    """Lets events ask again, in the order of their admission."""

    def __init__(self, opened: OpenLedger, limits: LimitSet, *, max_wait: timedelta = timedelta(0)) -> None:
        """Begin at nothing.

        Args:
            opened: an empty ledger, of the replay's own.
            limits: those that are proposed.
            max_wait: how long a request waits that would fit once others settle.
        """
        self._opened = opened
        self._ledger = opened.ledger
        self._limits = limits
        self._clock = _ReplayClock()
        self._max_wait = max_wait // timedelta(microseconds=1)
        self._admission = Admission(
            opened.ledger,
            RulesInForce(limits),
            self._clock,
            worker="replay",
            imperfections=Imperfections(opened.operations, self._clock),
            policy=AdmissionPolicy(),
        )
        self._due: list[tuple[int, int, int, _Open | _Waiting]] = []
        """What is still to happen: by time, ends before looks, then in the order in which it came about."""
        self._number = 0
        self._waiting = 0
        self._coming: Counter[AccountKey] = Counter()
        """What requests in flight will be charged."""
        self.found = Simulation()

    def charge(self, charges: Iterable[Charge]) -> None:
        """Charge what the windows held before the first event."""
        self._number += 1
        self._ledger.record(f"charge-{self._number}", list(charges), None)

    async def add(self, event: UsageEvent) -> None:
        """Let an event ask, after everything that came before it.

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
        """Let everything that is in flight come to its end, and give what came of it."""
        while self._due:
            await self._pass_time(self._due[0][0])
        return self.found

    async def _pass_time(self, until: int) -> None:
        """Settle what has ended up to an instant, and let those look again who wait."""
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
        sent_elsewhere: list[Downgrade] = []

        async def downgraded(ask: Ask, obstacle: Refusal | Downgrade) -> None:
            del ask  # nobody knows what the other model would have used
            if isinstance(obstacle, Downgrade):
                sent_elsewhere.append(obstacle)

        outcome, unfelt = await self._admission.admit(ask, downgraded=downgraded)
        if first:
            # Once for each request, however often it looks.
            for refusal in unfelt:
                if refusal.demand is not None:
                    self._count(event, "dry run", refusal.demand, refusal)
            for obstacle in sent_elsewhere:
                self._count(event, "downgraded", obstacle.demand)
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
        """Say whether there would have been room with everything charged that was in flight, and nothing held."""
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
    """Make of an event what was asked, as far as it tells."""
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
        replay: charged with what the windows held before.
        window: in microseconds since 1970 UTC.
        recorded: how many requests the sums have in it, of which some may have no event any more.
        advanced: is told after so many requests more.

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
    """Charge what the windows that are open at the beginning of a day held before it.

    As a new limit counts it live: out of the daily sums where they tell it, else out of the events; a limit with
    `count_from: now` begins at nothing.
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
    """Say from when on a limit counts for a request at an instant."""
    since = limit.since_at(at)
    if since is not None:
        return since
    return 0 if limit.window.kind == "session" else limit.window_at(at).start
