"""`usage-plugin simulate`: the effect of proposed limits on the recorded requests."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.text import Text

from usage_plugin.cli.balances import subject_words
from usage_plugin.cli.output import Column, Output, console, escape_control, table, thousands
from usage_plugin.cli.progress import Bar
from usage_plugin.config import with_limits
from usage_plugin.domain.money import format_usd
from usage_plugin.domain.windows import days_window, to_datetime
from usage_plugin.tracking.analysis.simulation import (
    OTHERS,
    Replay,
    Simulation,
    Tally,
    count_what_windows_held,
    simulate,
)
from usage_plugin.tracking.maintenance.backfill import lacks_history
from usage_plugin.tracking.maintenance.retention import last_run

if TYPE_CHECKING:
    from datetime import date
    from pathlib import Path
    from zoneinfo import ZoneInfo

    from usage_plugin.cli.date_ranges import TypedDates
    from usage_plugin.domain.limit_set import LimitSet
    from usage_plugin.domain.limits import Action, Limit
    from usage_plugin.runtime import Reader
    from usage_plugin.tracking.analysis.simulation import Effect, TallyKey

_NUMBERS = (
    Column("requests", number=True), Column("cost USD", number=True), Column("only in flight", number=True),
    Column("first"),
)  # fmt: skip
_LIMITS = (Column("limit"), Column("effect"), Column("users", number=True), *_NUMBERS, Column("reasons"))
_SUBJECTS = (Column("limit"), Column("effect"), Column("subject"), Column("user"), *_NUMBERS)


class _LimitRow(NamedTuple):
    """The effect of a limit over all of its subjects."""

    limit: str
    effect: Effect
    users: int
    all_known: bool
    tally: Tally


async def run(reader: Reader, *, output: Output, limits: Path, dates: TypedDates, top: int) -> None:
    """Replay the recorded events of the days against the limits of a file, and print their effect."""
    proposed = reader.limits_of(with_limits(reader.config, limits))
    first, last = dates.read(reader.tracker.today())
    zone = reader.config.timezone
    bar = Bar()
    with bar.shown(), reader.parts.scratch_ledger() as ledger:
        replay = Replay(ledger, proposed, max_wait=reader.config.admission.max_wait)
        bar.begin("What the windows held before", None)
        await count_what_windows_held(reader.tracker, replay, proposed, first, zone)
        recorded = sum(row.totals.requests for row in await reader.tracker.report((), first, last))
        bar.begin(f"Requests from {first} to {last}", recorded)
        found = await simulate(reader.tracker, replay, days_window(first, last, zone), recorded, bar.advance)
    notes = [*_notes(found, proposed), *_missing_history(reader, proposed, first)]
    if output.is_table:
        _show(found, proposed, notes, zone, f"from {first} to {last} ({zone})", top)
        return
    names = _Names(proposed)
    who = [_plain(names, key, tally) for key, tally in _by_cost(found)]
    document = {
        "first": first.isoformat(),
        "last": last.isoformat(),
        "requests": found.requests,
        "cost": format_usd(found.cost),
        "refused": found.refused.requests,
        "refused_cost": format_usd(found.refused.cost),
        "only_in_flight": found.refused.only_in_flight,
        "first_refused_at": _instant(found.refused),
        "waited": found.waited,
        "held_as_cost": found.held_as_cost,
        "only_charged": found.only_charged,
        "without_event": found.without_event,
        "notes": notes,
        "limits": [
            {"limit": row.limit, "effect": row.effect, "users": row.users, **_numbers(row.tally)}
            for row in _by_limit(found, proposed)
        ],
        "who": who,
    }
    output.document(document, who)


def _by_cost(found: Simulation) -> list[tuple[TallyKey, Tally]]:
    return sorted(found.tallies.items(), key=lambda item: (-item[1].cost, -item[1].requests, item[0]))


def _by_limit(found: Simulation, limits: LimitSet) -> list[_LimitRow]:
    """Sum the effects of each limit; a limit without effect has a row too."""
    sums: defaultdict[tuple[str, Effect], Tally] = defaultdict(Tally)
    users: defaultdict[tuple[str, Effect], set[str]] = defaultdict(set)
    for key, tally in found.tallies.items():
        sums[key.limit, key.effect].add(tally)
        users[key.limit, key.effect].add(key.user)
    rows = []
    for limit in limits.limits:
        effects = sorted(effect for name, effect in sums if name == limit.name) or [_own_effect(limit)]
        for effect in effects:
            affected = users[limit.name, effect]
            all_known = OTHERS not in affected
            rows.append(_LimitRow(limit.name, effect, len(affected - {OTHERS}), all_known, sums[limit.name, effect]))
    return rows


def _own_effect(limit: Limit) -> Effect:
    by_action: dict[Action, Effect] = {"block": "refused", "warn": "warned", "downgrade": "downgraded"}
    return "dry run" if limit.dry_run else by_action[limit.action]


class _Names:
    """Splits subjects of limits into names by dimension."""

    def __init__(self, limits: LimitSet) -> None:
        self._limits = {limit.name: limit for limit in limits.limits}

    def of(self, key: TallyKey) -> dict[str, str]:
        return {"subject": OTHERS} if key.subject == OTHERS else self._limits[key.limit].names_of(key.subject)


def _plain(names: _Names, key: TallyKey, tally: Tally) -> dict[str, Any]:
    return {
        "limit": key.limit,
        "effect": key.effect,
        "subject": names.of(key),
        "user": key.user,
        **_numbers(tally),
    }


def _numbers(tally: Tally) -> dict[str, Any]:
    return {
        "requests": tally.requests,
        "cost": format_usd(tally.cost),
        "only_in_flight": tally.only_in_flight,
        "first_at": _instant(tally),
        "reasons": dict(tally.reasons),
    }


def _instant(tally: Tally) -> str | None:
    return to_datetime(tally.first_at).isoformat(timespec="microseconds") if tally.requests else None


def _show(found: Simulation, limits: LimitSet, notes: list[str], zone: ZoneInfo, span: str, top: int) -> None:
    table(f"Effect of the limits {span}", _LIMITS, [_cells(row, zone) for row in _by_limit(found, limits)])
    names = _Names(limits)
    affected = _by_cost(found)
    if affected:
        shown = affected[:top]
        cut = f", top {len(shown)} of {thousands(len(affected))} by cost" if len(shown) < len(affected) else ""
        table(
            f"Affected subjects{cut}",
            _SUBJECTS,
            [
                [
                    key.limit, key.effect, subject_words(names.of(key)), key.user,
                    *_number_cells(tally, zone),
                ]
                for key, tally in shown
            ],
        )  # fmt: skip
    screen = console()
    for line in (_verdict(found), *notes):
        screen.print(Text(escape_control(line)))


def _cells(row: _LimitRow, zone: ZoneInfo) -> list[str]:
    reasons = [f"{reason.replace('_', ' ')} {thousands(n)}" for reason, n in row.tally.reasons.most_common()]
    users = f"{thousands(row.users)}{'' if row.all_known else ' +'}"
    return [row.limit, row.effect, users, *_number_cells(row.tally, zone), ", ".join(reasons)]


def _number_cells(tally: Tally, zone: ZoneInfo) -> list[str]:
    return [
        thousands(tally.requests),
        format_usd(tally.cost),
        thousands(tally.only_in_flight) if tally.only_in_flight else "",
        f"{to_datetime(tally.first_at, zone):%Y-%m-%d %H:%M:%S}" if tally.requests else "",
    ]


def _verdict(found: Simulation) -> str:
    refused = found.refused
    text = f"Refused: {thousands(refused.requests)} of {thousands(found.requests)} requests"
    text += f", which cost {format_usd(refused.cost)} of {format_usd(found.cost)} USD"
    if refused.only_in_flight:
        text += f"; {thousands(refused.only_in_flight)} of them only because of other requests in flight"
    waited = f" {thousands(found.waited)} more waited for others to settle." if found.waited else ""
    return f"{text}.{waited}"


def _notes(found: Simulation, limits: LimitSet) -> list[str]:
    """Return the assumptions of the replay, and the requests that it lacks."""
    notes = ["Requests that were refused at the time have no event, so they are not replayed."]
    if found.held_as_cost:
        notes.append(
            f"Events without a recorded hold: {thousands(found.held_as_cost)}. Their cost was used as the hold, so"
            " fewer may be refused here than in reality."
        )
    if any(limit.unit.endswith("tokens") for limit in limits.limits):
        notes.append("On token limits, requests held their actual usage, since events do not record the bound.")
    if found.without_event:
        notes.append(
            "Recorded requests whose event has expired (retention.events) or never existed:"
            f" {thousands(found.without_event)}. They are not replayed."
        )
    if found.only_charged:
        notes.append(f"Health checks: {thousands(found.only_charged)}. They are charged and never refused.")
    return notes


def _missing_history(reader: Reader, limits: LimitSet, first: date) -> list[str]:
    """Return a note on limits whose windows opened before the oldest remaining event."""
    run, zone = last_run(reader.operations), reader.config.timezone
    if run is None:
        return []
    at = days_window(first, first, zone).start
    names = [limit.name for limit in limits.limits if lacks_history(limit, zone, at, run.events_before)]
    if not names:
        return []
    pruned = f"{to_datetime(run.events_before, zone):%Y-%m-%d}"
    return [f"Events before {pruned} have expired, so windows open at that time begin with less: {', '.join(names)}."]
