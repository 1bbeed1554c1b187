"""The summary of a user, from the daily sums, the accounts and the events of the last 24 hours."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import date, timedelta
from typing import TYPE_CHECKING

from usage_plugin.api.results import Session, Statistics, Usage, UsageSummary, UserAlert, UserLimit, amount_of, usage_of
from usage_plugin.domain.alerts import Alert, decode_alert
from usage_plugin.domain.money import to_decimal
from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.subjects import Subjects
from usage_plugin.domain.usage import UsageTotals, totals_of
from usage_plugin.domain.windows import MICROSECONDS, Window, month_of, start_of_day, to_datetime
from usage_plugin.tracking.history.balances import AccountBalances

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.limit_set import LimitSet, Matched
    from usage_plugin.domain.operations import NotedAlert
    from usage_plugin.domain.store import Grouping
    from usage_plugin.runtime import Runtime
    from usage_plugin.tracking.history.balances import AccountBalance
    from usage_plugin.tracking.history.packed_rows import ReportRow
    from usage_plugin.tracking.history.reader import UsageReader

_BY: tuple[Grouping, ...] = ("day", "model", "provider", "team", "api_key", "organization", "end_user")
_ACTIVE_FOR = 24 * 3_600 * MICROSECONDS


async def summarise(runtime: Runtime, reader: UsageReader, name: str, days: int) -> UsageSummary:
    """Return the summary of the last days, today included, for a user's real name."""
    user = runtime.pseudonyms.kept(name)
    limits = runtime.limits if user == name else runtime.limits.knowing({user: name})
    now, zone = runtime.clock.now(), runtime.config.timezone
    today = reader.today()
    first = today - timedelta(days=days - 1)
    begin = month_of(first)[0]
    rows = await reader.report(_BY, begin, today, UsageFilter(user=user))
    recent = [row for row in rows if (row.group[0] or "") >= first.isoformat()]
    sessions = await _active_sessions(reader, user, now, zone)
    accounts = _accounts(runtime, _matching(limits, user, recent, sessions), now)
    by_day = _summed((row.group[0] or "", row.totals) for row in recent)
    return UsageSummary(
        user_id=name,
        profile=runtime.profiles.get(user),
        limits=[_limit(account, zone) for account in accounts if account.limit.has_accounts],
        daily_usage={date.fromisoformat(day): usage_of(totals) for day, totals in by_day.items()},
        monthly_usage={
            month: usage_of(totals)
            for month, totals in _summed(((row.group[0] or "")[:7], row.totals) for row in rows).items()
        },
        recent_alerts=_alerts(runtime, accounts, start_of_day(first, zone), now),
        active_sessions=sessions,
        statistics=_statistics(recent, days),
    )


def _summed(named: Iterable[tuple[str, UsageTotals]]) -> dict[str, UsageTotals]:
    sums: defaultdict[str, UsageTotals] = defaultdict(UsageTotals)
    for name, totals in named:
        sums[name] = sums[name].plus(totals)
    return dict(sorted(sums.items()))


def _statistics(rows: Sequence[ReportRow], days: int) -> Statistics:
    cost = sum(row.totals.cost for row in rows)
    models: Counter[str | None] = Counter()
    providers: Counter[str | None] = Counter()
    for row in rows:
        models[row.group[1]] += row.totals.requests
        providers[row.group[2]] += row.totals.requests
    return Statistics(
        total_requests=sum(row.totals.requests for row in rows),
        total_cost=to_decimal(cost),
        average_daily_cost=to_decimal((cost + days // 2) // days),
        most_used_provider=_most_used(providers),
        most_used_model=_most_used(models),
    )


def _most_used(counts: Counter[str | None]) -> str | None:
    """Return the name with the most requests; of equal ones the first in the alphabet."""
    return min((name for name in counts if name), key=lambda name: (-counts[name], name), default=None)


def _matching(
    limits: LimitSet, user: str, rows: Iterable[ReportRow], sessions: Iterable[Session]
) -> dict[tuple[int, str], Matched]:
    """Return every account that counts the user's requests: their own, and those of their recent teams, keys etc."""
    alone = Subjects(user=user)
    found = [
        *limits.matching(alone, None, None),
        *(
            limits.account(limit, user)
            for limit in limits.limits
            if limit.per == ("user",) and limits.may_count(limit, {"user": user})
        ),
        *(
            matched
            for session in sessions
            for matched in limits.matching(alone._replace(session=session.session_id), None, None)
        ),
    ]
    for _, model, provider, team, api_key, organization, end_user in {row.group for row in rows}:
        subjects = Subjects(user=user, team=team, api_key=api_key, organization=organization, end_user=end_user)
        found += limits.matching(subjects, model, provider)
    return {(matched.limit.key, matched.subject): matched for matched in reversed(found)}


def _accounts(runtime: Runtime, matching: Mapping[tuple[int, str], Matched], now: int) -> list[AccountBalance]:
    """Return the accounts, in the order of the YAML."""
    balances = AccountBalances(runtime.ledger, runtime.operations, runtime.limits, now)
    order = {limit.key: number for number, limit in enumerate(runtime.limits.limits)}
    return [balances.of(matching[key]) for key in sorted(matching, key=lambda key: (order[key[0]], key[1]))]


def _limit(account: AccountBalance, zone: ZoneInfo) -> UserLimit:
    limit, unit = account.limit, account.limit.unit
    resets = limit.reset_of(account.window)
    return UserLimit(
        name=limit.name,
        subject=limit.names_of(account.subject),
        unit=unit,
        amount=None if account.amount is None else amount_of(unit, account.amount),
        spent=amount_of(unit, account.balance.spent),
        reserved=amount_of(unit, account.balance.reserved),
        remaining=None if account.remaining is None else amount_of(unit, account.remaining),
        resets_at=resets and resets.astimezone(zone),
        blocks=limit.blocks,
    )


def _alerts(runtime: Runtime, accounts: Iterable[AccountBalance], since: int, now: int) -> list[UserAlert]:
    by_account = {(account.limit.key, account.subject): account for account in accounts}
    noted = runtime.operations.alerts(since, {subject for _, subject in by_account})
    zone = runtime.config.timezone
    return [
        _alert(one, decode_alert(one.details), account, now, zone)
        for one in noted
        if (account := by_account.get((one.key.limit_key, one.key.subject))) is not None
    ]


def _alert(noted: NotedAlert, alert: Alert, account: AccountBalance, now: int, zone: ZoneInfo) -> UserAlert:
    still_exceeded = (
        now < alert.window.end
        and account.amount is not None
        and account.balance.spent * 100 >= alert.threshold * account.amount
    )
    return UserAlert(
        id=noted.number,
        limit=alert.limit,
        subject=alert.subject,
        threshold=alert.threshold,
        unit=alert.unit,
        amount=amount_of(alert.unit, alert.amount),
        maximum=amount_of(alert.unit, alert.maximum),
        at=to_datetime(noted.at, zone),
        acknowledged_at=None if noted.acknowledged_at is None else to_datetime(noted.acknowledged_at, zone),
        acknowledged_by=noted.acknowledged_by,
        resolved=not still_exceeded,
    )


async def _active_sessions(reader: UsageReader, user: str, now: int, zone: ZoneInfo) -> list[Session]:
    sessions: dict[str, Session] = {}
    totals: defaultdict[str, UsageTotals] = defaultdict(UsageTotals)
    async for event in reader.events(Window(now - _ACTIVE_FOR, now + 1), UsageFilter(user=user)):
        if event.session is not None:
            at = to_datetime(event.started_at, zone)
            known = sessions.get(event.session, Session(event.session, at, at, Usage()))
            sessions[event.session] = known._replace(last_at=at)
            totals[event.session] = totals[event.session].plus(totals_of(event))
    used = [one._replace(usage=usage_of(totals[name])) for name, one in sessions.items()]
    return sorted(used, key=lambda session: session.last_at, reverse=True)
