"""`usage-plugin simulate`: what proposed limits would have done to the requests that were recorded."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.text import Text

from usage_plugin.cli.output import Column, Output, console, harmless, table, thousands
from usage_plugin.cli.progress import Bar
from usage_plugin.cli.spans import read_span
from usage_plugin.cli.standings import subject_words
from usage_plugin.config import with_limits
from usage_plugin.domain.money import format_usd
from usage_plugin.domain.windows import days_window, to_datetime
from usage_plugin.tracking.pruning import last_run
from usage_plugin.tracking.seeding import lacks_history
from usage_plugin.tracking.simulation import OTHERS, Replay, Simulation, Tally, count_what_windows_held, simulate

if TYPE_CHECKING:
    from datetime import date
    from pathlib import Path
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.limits import Action, Limit, LimitSet
    from usage_plugin.runtime import Reader
    from usage_plugin.tracking.simulation import Effect, TallyKey

_NUMBERS = (
    Column("requests", number=True), Column("cost USD", number=True), Column("only in flight", number=True),
    Column("first"),
)  # fmt: skip
_LIMITS = (Column("limit"), Column("effect"), Column("users", number=True), *_NUMBERS, Column("reasons"))
_WHO = (Column("limit"), Column("effect"), Column("subject"), Column("user"), *_NUMBERS)


class _LimitRow(NamedTuple):
    """What a limit did to everybody together."""

    limit: str
    effect: Effect
    users: int
    all_known: bool
    tally: Tally


async def run(
    reader: Reader, *, output: Output, limits: Path, since: str | None, until: str | None, month: str | None, top: int
) -> None:
    """Replay the limits of a file over the days, and print what they would have done."""
    proposed = reader.limits_of(with_limits(reader.config, limits))
    first, last = read_span(reader.tracker.today(), since, until, month)
    zone = reader.config.timezone
    bar = Bar()
    with bar.shown(), reader.parts.scratch_ledger() as ledger:
        replay = Replay(ledger, proposed, max_wait=reader.config.admission.max_wait)
        bar.begin("What the windows held before", None)
        await count_what_windows_held(reader.tracker, replay, proposed, first, zone)
        recorded = sum(row.totals.requests for row in await reader.tracker.report((), first, last))
        bar.begin(f"Requests from {first} to {last}", recorded)
        found = await simulate(reader.tracker, replay, days_window(first, last, zone), recorded, bar.advance)
    notes = [*_notes(found, proposed), *_lacking(reader, proposed, first)]
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
    """Add up what each limit did; one that did nothing has a row too."""
    sums: defaultdict[tuple[str, Effect], Tally] = defaultdict(Tally)
    users: defaultdict[tuple[str, Effect], set[str]] = defaultdict(set)
    for key, tally in found.tallies.items():
        sums[key.limit, key.effect].add(tally)
        users[key.limit, key.effect].add(key.user)
    rows = []
    for limit in limits.limits:
        effects = sorted(effect for name, effect in sums if name == limit.name) or [_own_effect(limit)]
        for effect in effects:
            whom = users[limit.name, effect]
            rows.append(
                _LimitRow(limit.name, effect, len(whom - {OTHERS}), OTHERS not in whom, sums[limit.name, effect])
            )
    return rows


def _own_effect(limit: Limit) -> Effect:
    by_action: dict[Action, Effect] = {"block": "refused", "warn": "warned", "downgrade": "downgraded"}
    return "dry run" if limit.dry_run else by_action[limit.action]


class _Names:
    """Takes the subjects of limits apart."""

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
    table(f"What the limits would have done {span}", _LIMITS, [_cells(row, zone) for row in _by_limit(found, limits)])
    names = _Names(limits)
    everybody = _by_cost(found)
    if everybody:
        shown = everybody[:top]
        more = f", the dearest {len(shown)} of {thousands(len(everybody))}" if len(shown) < len(everybody) else ""
        table(
            f"Who{more}",
            _WHO,
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
        screen.print(Text(harmless(line)))


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
    told = f"Refused: {thousands(refused.requests)} of {thousands(found.requests)} requests"
    told += f", which cost {format_usd(refused.cost)} of {format_usd(found.cost)} USD"
    if refused.only_in_flight:
        told += f"; {thousands(refused.only_in_flight)} of them only because of what was in flight"
    waited = f" {thousands(found.waited)} more waited for others to settle." if found.waited else ""
    return f"{told}.{waited}"


def _notes(found: Simulation, limits: LimitSet) -> list[str]:
    """Say what was assumed, and what could not be replayed."""
    notes = ["Requests that were refused when they came left no event, so they could not ask again."]
    if found.held_as_cost:
        notes.append(
            f"Events that do not tell what was held for them: {thousands(found.held_as_cost)}. They held what they"
            " cost, so fewer may be refused here than would have been."
        )
    if any(limit.unit.endswith("tokens") for limit in limits.limits):
        notes.append("On limits on tokens requests held what they used, since events do not tell the bound.")
    if found.without_event:
        notes.append(
            "Recorded requests that have no event any more (retention.events), or never had one:"
            f" {thousands(found.without_event)}. They asked for nothing here."
        )
    if found.only_charged:
        notes.append(f"Health checks: {thousands(found.only_charged)}. They were charged, and never refused.")
    return notes


def _lacking(reader: Reader, limits: LimitSet, first: date) -> list[str]:
    """Name the limits whose windows held more before the first day than events can tell."""
    run, zone = last_run(reader.ledger), reader.config.timezone
    if run is None:
        return []
    at = days_window(first, first, zone).start
    names = [limit.name for limit in limits.limits if lacks_history(limit, zone, at, run.events_before)]
    if not names:
        return []
    pruned = f"{to_datetime(run.events_before, zone):%Y-%m-%d}"
    return [f"Events before {pruned} are gone, so windows that were open by then began with less: {', '.join(names)}."]
