"""Backfill: make a new limit count the usage that its windows already contain.

The keeper adds up the store's sums and the later events of the outbox, up to the instant of a snapshot. The snapshot
has the accounts' balances at that instant. Each account is corrected by the difference, in chunks, so that requests do
not wait. Requests that settle meanwhile add to an account and to its sum alike, so the difference stays correct. The
keeper first waits until every living worker uses the new rules, so that no request is settled without the new limit.
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.globs import literal_of
from usage_plugin.domain.ledger import AccountKey, Charge
from usage_plugin.domain.limit_set import NO_MEMBERSHIP
from usage_plugin.domain.pseudonyms import is_key
from usage_plugin.domain.store import ROLLUP_DIMENSIONS, RollupDimension, UsageFilter
from usage_plugin.domain.subjects import ANONYMOUS, Subjects
from usage_plugin.domain.usage import new_event_id, subjects_of, totals_of
from usage_plugin.domain.windows import FOREVER, Window, local_date, to_datetime
from usage_plugin.encoding import decode_event
from usage_plugin.errors import StorageUnavailableError
from usage_plugin.log import get_logger
from usage_plugin.tracking.admission.active_limits import NOTE
from usage_plugin.tracking.ledger_retry import wait_while_busy
from usage_plugin.tracking.maintenance.retention import last_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import date
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.ledger import Ledger, OutboxEntry
    from usage_plugin.domain.limit_set import LimitSet
    from usage_plugin.domain.limits import Limit
    from usage_plugin.domain.liveness import Workers
    from usage_plugin.domain.operations import OperationsLog
    from usage_plugin.domain.store import Aggregate, UsageStore
    from usage_plugin.domain.usage import UsageEvent, UsageTotals
    from usage_plugin.tracking.admission.active_limits import ActiveLimits

COUNTING = "limits:counting"
"""The note with the keys of the limits whose accounts are complete."""

_CALENDAR = frozenset({"day", "week", "month", "quarter", "year"})
_WHOLE_DAYS = _CALENDAR | {"lifetime"}
_LOST = ("gap", "unstorable")
_STEP_EVERY = 500
_AT_ONCE = 250
"""The number of accounts that are corrected in one transaction. It takes a millisecond."""
_REST = 0.001
_PATIENT_ROUNDS = 10

log = get_logger()


class Backfill:
    """Detect active limits that were not backfilled yet, and backfill them."""

    def __init__(self, rules: ActiveLimits, workers: Workers, zone: ZoneInfo, clock: Clock) -> None:
        """Set the parts. `zone` is the store's time zone, in which it keeps daily sums."""
        self._rules = rules
        self._workers = workers
        self._zone = zone
        self._clock = clock
        self._done = ""
        self._rounds_waited = 0

    async def seed_new(
        self, ledger: Ledger, operations: OperationsLog, store: UsageStore, step: Callable[[], None]
    ) -> None:
        """Backfill new limits, if there are any. Call it once a second, after the outbox was flushed.

        Raises:
            StorageError: it is safe to retry, as after a LedgerError.
        """
        digest, limits = self._rules.digest, self._rules.limits
        charged = {limit.key: limit for limit in limits.limits if limit.is_charged}
        counting = _counting(operations)
        if digest == self._done and charged.keys() <= counting:
            return
        if not self._all_go_by(digest, operations):
            return
        new = [limit for key, limit in charged.items() if key not in counting]
        if new:
            self._tell_what_is_missing(operations, [limit for limit in new if limit.counts_history])
            sums = _History([limit for limit in new if limit.counts_history], limits, self._zone, self._clock.now())
            await sums.read(store, ledger.writer, step)
            for limit in sums.limits:
                await sums.correct(ledger, limit, step)
            _count(operations, charged.keys())
            log.info("limits.seeded", limits=[limit.name for limit in new])
        self._done = digest

    def _tell_what_is_missing(self, operations: OperationsLog, new: Sequence[Limit]) -> None:
        """Log which new limits will count less than their windows contained."""
        run, limits = last_run(operations), self._rules.limits
        if run and (lacking := self._lacking(new, self._clock.now(), run.events_before)):
            since = to_datetime(run.events_before).isoformat()
            log.warning("limits.history_was_pruned", limits=lacking, counted_from=since)
        if limits.hides_persons and (unknown := [limit.name for limit in new if _has_globs_of_persons(limit, limits)]):
            log.warning("limits.history_has_pseudonyms", limits=unknown, effect="names matched by globs begin at zero")

    def lacking(self, now: int, pruned: int) -> list[str]:
        """Return the limits that a backfill would undercount if events before `pruned` were deleted."""
        return self._lacking(self._rules.limits.limits, now, pruned)

    def _lacking(self, limits: Iterable[Limit], now: int, pruned: int) -> list[str]:
        return [limit.name for limit in limits if lacks_history(limit, self._zone, now, pruned)]

    def forget_old(self, operations: OperationsLog) -> None:
        """Remove limits that are no longer active from the note at once: if they return, they need a backfill."""
        charged = {limit.key for limit in self._rules.limits.limits if limit.is_charged}
        counting = _counting(operations)
        if counting - charged:
            _count(operations, counting & charged)

    def _all_go_by(self, digest: str, operations: OperationsLog) -> bool:
        if not self._workers.have_reasserted():
            # The store has events that the accounts lack for now: they would be counted twice.
            return False
        notes = operations.notes(NOTE)
        others = [worker for worker in self._workers.living() if notes.get(NOTE + worker) != digest]
        self._rounds_waited = self._rounds_waited + 1 if others else 0
        if self._rounds_waited == _PATIENT_ROUNDS:
            log.warning("limits.wait_for_workers", workers=others)
        return not others


def count_history_anew(operations: OperationsLog, limits: LimitSet, zone: ZoneInfo) -> None:
    """Have limits backfilled again, because history was imported. The seeder does it, now or when a worker starts.

    Only limits with calendar windows that the daily sums fully determine are included. For others, events or the days
    of a lifetime may have been pruned. Limits whose history is hidden by pseudonyms are left out too. Nothing is
    changed if events were lost: then accounts know more than the history, and spend must not decrease.
    """
    if any(found.kind in _LOST for found in operations.anomalies()):
        log.warning("limits.not_counted_anew", why="events were lost, which only the accounts know of")
        return
    anew = {
        limit.key
        for limit in limits.limits
        if limit.counts_history
        and limit.window.kind in _CALENDAR
        and daily_dimensions(limit, zone) is not None
        and not (limits.hides_persons and _has_globs_of_persons(limit, limits))
    }
    _count(operations, _counting(operations) - anew)


def _counting(operations: OperationsLog) -> set[int]:
    return set(json.loads(operations.notes(COUNTING).get(COUNTING, "[]")))


def _count(operations: OperationsLog, keys: Iterable[int]) -> None:
    text = json.dumps(sorted(keys))
    wait_while_busy(lambda: operations.note(COUNTING, text))


class _Sum(NamedTuple):
    end: int
    amount: int


class _Names(NamedTuple):
    subjects: Subjects
    model: str | None
    provider: str | None


def names_of(by: Sequence[RollupDimension], group: Sequence[str | None]) -> _Names:
    """Return the names of a row of sums, in the form in which limits match a request."""
    names = dict(zip(by, group, strict=True))
    subjects = Subjects(
        user=names.get("user") or ANONYMOUS,
        team=names.get("team"),
        api_key=names.get("api_key"),
        end_user=names.get("end_user"),
        organization=names.get("organization"),
    )
    return _Names(subjects, names.get("model"), names.get("provider"))


class _History:
    """The usage in the windows of some limits, as of one instant.

    Whole days are read from the store's daily sums, if those are grouped by all dimensions that the limit needs. For
    other limits, events are added up, in one pass for all of them.
    """

    def __init__(self, limits: Sequence[Limit], groups: LimitSet, zone: ZoneInfo, now: int) -> None:
        self.limits = limits
        self._zone = zone
        self._spans = {limit.key: _span(limit, now) for limit in limits}
        self._sets = {limit.key: groups.alone(limit) for limit in limits}
        self._sums: dict[int, dict[AccountKey, _Sum]] = {limit.key: {} for limit in limits}
        self._uncorrected: dict[int, list[AccountKey]] = {limit.key: [] for limit in limits}
        self._watermarks: dict[int, int] = {}
        self._late: dict[int, UsageEvent | None] = {}

    async def read(self, store: UsageStore, writer: str, step: Callable[[], None]) -> None:
        """Add up the usage in the store."""
        aggregates: dict[tuple[object, ...], Aggregate] = {}
        streamed = []
        for limit in self.limits:
            by = daily_dimensions(limit, self._zone)
            if by is None:
                streamed.append(limit)
                continue
            span = self._spans[limit.key]
            first, last = self._days(span)
            known = aggregates.get((by, first, last))
            if known is None:
                step()
                known = aggregates[by, first, last] = await store.aggregate(by, first, last, UsageFilter())
            self._watermarks[limit.key] = known.watermarks.get(writer, 0)
            for group, totals in known.groups.items():
                self._add(limit, names_of(by, group), span.start, totals)
        if streamed:
            await self._stream(store, writer, streamed, step)

    async def _stream(self, store: UsageStore, writer: str, limits: Sequence[Limit], step: Callable[[], None]) -> None:
        step()
        watermark = await store.watermark(writer)
        whole = Window(min(self._spans[limit.key].start for limit in limits), FOREVER)
        count = 0
        async for event in store.events(whole, UsageFilter()):
            for limit in limits:
                self._add_event(limit, event)
            count += 1
            if count % _STEP_EVERY == 0:
                step()
        if await store.watermark(writer) != watermark:
            # An append that was abandoned as hanging has completed meanwhile.
            raise StorageUnavailableError("The store changed while its history was read.")
        self._watermarks.update((limit.key, watermark) for limit in limits)

    async def correct(self, ledger: Ledger, limit: Limit, step: Callable[[], None]) -> None:
        """Correct the limit's accounts, in chunks, by the amount that each lacks at an instant."""
        sums, uncorrected = self._sums[limit.key], self._uncorrected[limit.key]
        # Events in the outbox may add accounts that are not in the store.
        self._add_outbox(ledger, limit, ledger.snapshot(()).seq, step)
        while uncorrected:
            step()
            some = uncorrected[-_AT_ONCE:]
            del uncorrected[-_AT_ONCE:]
            seq, balances = ledger.snapshot(some)
            self._add_outbox(ledger, limit, seq, step)
            differences = [Charge(one, sums[one].end, sums[one].amount - balances[one].spent) for one in some]
            # A new id for each correction, since each difference is from another snapshot.
            wait_while_busy(partial(ledger.correct, new_event_id(), differences))
            await asyncio.sleep(_REST)

    def _add_outbox(self, ledger: Ledger, limit: Limit, last: int, step: Callable[[], None]) -> None:
        """Add the events of the outbox after those already added, up to the number `last`."""
        while self._watermarks[limit.key] < last:
            step()
            entries = ledger.outbox(self._watermarks[limit.key], _STEP_EVERY)
            for entry in entries:
                if entry.seq <= last and (event := self._decoded(entry)):
                    self._add_event(limit, event)
            # Numbers may be missing: of an entry that was erased, or never had an event.
            self._watermarks[limit.key] = min(entries[-1].seq, last) if entries else last

    def _decoded(self, entry: OutboxEntry) -> UsageEvent | None:
        if entry.seq not in self._late:
            try:
                self._late[entry.seq] = decode_event(entry.event)
            except (ValueError, TypeError):
                self._late[entry.seq] = None
        return self._late[entry.seq]

    def _add_event(self, limit: Limit, event: UsageEvent) -> None:
        span = self._spans[limit.key]
        if span.start <= event.started_at < span.end:
            names = _Names(subjects_of(event), event.model, event.provider)
            self._add(limit, names, event.started_at, totals_of(event))

    def _add(self, limit: Limit, names: _Names, at: int, totals: UsageTotals) -> None:
        for matched in self._sets[limit.key].matching(*names):
            window = limit.window_at(at)
            sums = self._sums[limit.key]
            account = AccountKey(limit.key, window.start, matched.subject)
            known = sums.get(account)
            if known is None:
                self._uncorrected[limit.key].append(account)
            # An account that was unused until its end starts again at zero. Only accounts of sessions can.
            end, before = known if known and at < known.end else (0, 0)
            sums[account] = _Sum(max(end, window.end), before + amount_of(limit, totals))

    def _days(self, span: Window) -> tuple[date, date]:
        # To the end of the window: while a clock was ahead, events with future times were recorded.
        return local_date(span.start, self._zone), local_date(span.end - 1, self._zone)


def lacks_history(limit: Limit, zone: ZoneInfo, now: int, pruned: int) -> bool:
    """Whether a backfill of a limit would undercount, given that events before `pruned` were deleted.

    A limit that is backfilled from daily sums does not need the events.
    """
    if not limit.is_charged or not limit.counts_history or daily_dimensions(limit, zone) is not None:
        return False
    return _span(limit, now).start < pruned


def daily_dimensions(limit: Limit, zone: ZoneInfo) -> tuple[RollupDimension, ...] | None:
    """Return the dimensions to group a zone's daily sums by to backfill a limit; None if sums do not suffice."""
    kind = limit.window.kind
    if kind not in _WHOLE_DAYS or (kind != "lifetime" and str(limit.zone) != str(zone)):
        return None
    asked = {*limit.per, *(key for key, _ in limit.match.conditions)} - {"global"}
    needed = {"user" if key == "group" else key for key in asked}
    by_alias = any(key == "api_key" and not all(map(is_key, globs)) for key, globs in limit.match.conditions)
    if by_alias or not needed.issubset(ROLLUP_DIMENSIONS):
        return None
    return tuple(name for name in ROLLUP_DIMENSIONS if name in needed)


def _has_globs_of_persons(limit: Limit, limits: LimitSet) -> bool:
    """Whether a limit matches persons by a glob or a resolver, so that the YAML does not list their names."""
    return any(
        (key == "group" and limits.membership != NO_MEMBERSHIP) or literal_of(glob) is None
        for key, names in limit.match.conditions
        if key in ("user", "end_user", "group")
        for name in names
        for glob in (limits.groups.get(name, ("",)) if key == "group" else (name,))
        if glob != "*"
    )


def _span(limit: Limit, now: int) -> Window:
    """Return the span of the events that a limit counts now."""
    since = limit.since_at(now)
    if since is not None:
        return Window(since, FOREVER)
    if limit.window.kind == "session":
        return Window(0, FOREVER)
    return limit.window_at(now)


def amount_of(limit: Limit, totals: UsageTotals) -> int:
    """Return the amount that sums add to a limit, in its unit."""
    return {
        "usd": totals.cost,
        "total_tokens": totals.input_tokens + totals.output_tokens,
        "input_tokens": totals.input_tokens,
        "output_tokens": totals.output_tokens,
        "requests": totals.requests,
    }[limit.unit]
