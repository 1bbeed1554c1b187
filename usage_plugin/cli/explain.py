"""`usage-plugin explain`: the reason of a refusal or an admission, and the limits that a request would meet now.

The limits are those in force now; a refusal also has the numbers that decided it. For an event, each account is shown
in the window that the event counts in.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from rich.text import Text

from usage_plugin.cli.adjustments import clean_option
from usage_plugin.cli.balances import COLUMNS, amount_words, cells, plain, resets_words, unit_words
from usage_plugin.cli.events import plain_event
from usage_plugin.cli.output import Column, Output, console, escape_control, table, thousands
from usage_plugin.config import read_proxy_section
from usage_plugin.domain.amounts import format_amount, plain_amount
from usage_plugin.domain.money import format_usd
from usage_plugin.domain.subjects import ANONYMOUS, Subjects
from usage_plugin.domain.usage import subjects_of
from usage_plugin.domain.windows import Window, to_datetime
from usage_plugin.encoding import decode_event
from usage_plugin.errors import UnknownEventError, UnknownRefError
from usage_plugin.tracking.history.balances import AccountBalance, AccountBalances

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from usage_plugin.domain.limit_set import Matched
    from usage_plugin.domain.limits import Limit
    from usage_plugin.domain.usage import UsageEvent
    from usage_plugin.runtime import Reader

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_AROUND = 60_000_000
"""Search radius: an event's id contains its time of creation, which is near its admission."""

_WHY = {
    "spent": "the amount is used up",
    "busy": "it does not fit while other requests are in flight, or before the window ends within a minute",
    "too_large": "the request may need more than the whole amount",
    "unpriced": "no price is known for the model, and a cost limit counts it",
    "unbounded": "the request has no upper bound",
    "unmetered": "the usage of requests on this route cannot be measured",
    "outbox_full": "the outbox was full: the store had not taken its events",
    "unavailable": "the ledger was unavailable",
}


async def run(reader: Reader, *, output: Output, ref_or_id: str) -> None:
    """Explain a refusal by its ref, or an event by its id."""
    name = ref_or_id.strip()
    if _ID.fullmatch(name.lower()):
        await _explain_event(reader, output, name.lower())
    else:
        _explain_refusal(reader, output, name.upper())


async def run_subject(reader: Reader, *, output: Output, names: Mapping[str, str | None]) -> None:
    """Print the limits that count a request of the subject, and a verdict on a request now."""
    given = {name: clean_option(reader, name, value) for name, value in names.items() if value is not None}
    rows = _accounts(reader, _matching(reader, given))
    verdict = _verdict(rows)
    if not output.is_table:
        found = [_plain(row) for row in rows]
        output.document({"subject": given, "verdict": verdict, "limits": found}, found)
        return
    subject = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in given.items())
    table(f"Limits that count {subject}", COLUMNS, [cells(row) for row in rows])
    for line in (verdict, _unshown_limits(reader, given)):
        console().print(Text(escape_control(line)))


# ── a refusal ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _explain_refusal(reader: Reader, output: Output, ref: str) -> None:
    found = reader.operations.refusal(ref)
    if found is None:
        raise UnknownRefError(
            f"Refusal not found: {ref}.", hint="The last 10,000 refusals are kept; new ones are written once a second."
        )
    facts: dict[str, Any] = json.loads(found)
    given = {**facts.get("subject", {}), "user": facts["user"]}
    if facts.get("model"):
        given["model"] = facts["model"]
    rows = _accounts(reader, _matching(reader, given))
    verdict = _current_verdict(facts, rows)
    if not output.is_table:
        document = {
            **facts,
            "why": _WHY.get(facts["reason"], ""),
            "now": verdict,
            "limits": [_plain(row) for row in rows],
        }
        output.document(document, [document])
        return
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            text = ", ".join(f"{dimension} {subject}" for dimension, subject in value.items()) or "everybody"
        elif isinstance(value, bool):
            text = "yes" if value else "no"
        else:
            text = "-" if value is None else str(value)
        lines.append([name.replace("_", " "), text])
    lines.append(["why", _sum_of(facts)])
    table(f"Refusal {facts['ref']}", [Column("field"), Column("value")], lines)
    if rows:
        table("Current balances of the limits that count it", COLUMNS, [cells(row) for row in rows])
    console().print(Text(escape_control(verdict)))


def _sum_of(facts: Mapping[str, Any]) -> str:
    """Return the reason, with the sum that decided the refusal if there was one."""
    why = _WHY.get(facts["reason"], str(facts["reason"]))
    if facts["reason"] in ("spent", "busy", "too_large") and facts.get("max") is not None:
        spent, reserved, needed, most = (Decimal(str(facts[name])) for name in ("spent", "reserved", "needed", "max"))
        used = f"{spent:,f} spent + {reserved:,f} reserved + {needed:,f} needed"
        return f"{why}: {used} = {spent + reserved + needed:,f} of {most:,f}"
    return why


def _current_verdict(facts: Mapping[str, Any], rows: Sequence[AccountBalance]) -> str:
    """Return whether the refusing limit would admit the same request now, in words."""
    if facts.get("limit") is None:
        return "The refusal was not caused by a limit."
    same = [row for row in rows if row.limit.name == facts["limit"]]
    if not same:
        return f"The limit {facts['limit']} no longer exists or no longer counts this request."
    row = same[0]
    needed = Decimal(str(facts["needed"]))
    if row.remaining is None:
        return f"Now {row.limit.name} would admit it: its amount is unlimited."
    left = amount_words(row.limit, row.remaining)
    if facts["reason"] in ("unpriced", "unbounded"):
        return f"Now {row.limit.name} has {left} left; the refusal had another cause than the amount."
    fits = Decimal(format_amount(row.limit.unit, row.remaining)) >= needed
    word = "would admit it" if fits else "would still refuse it"
    return f"Now {row.limit.name} {word}: {left} left, {needed:,f} needed; resets: {resets_words(row)}."


# ── an event ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _explain_event(reader: Reader, output: Output, event_id: str) -> None:
    event, in_flight = await _find(reader, event_id)
    subjects = subjects_of(event)
    matched = reader.limits.matching(subjects, event.model, event.provider)
    rows = [(_account_of(reader, one, event), 0 if in_flight else _counted(one.limit, event)) for one in matched]
    sentence = _outcome_words(event, in_flight=in_flight)
    if not output.is_table:
        document = {
            **plain_event(event),
            "in_flight": in_flight,
            "why": sentence,
            "limits": [{**_plain(row), "counted": plain_amount(row.limit.unit, amount)} for row, amount in rows],
        }
        output.document(document, [document])
        return
    facts = {name: value for name, value in plain_event(event).items() if value not in (None, [], {}, False, 0)}
    lines = [[name.replace("_", " "), json.dumps(value) if isinstance(value, list | dict) else str(value)]
             for name, value in facts.items()]  # fmt: skip
    table(f"Event {event_id}", [Column("field"), Column("value")], lines)
    table(
        "Current limits that count it, in its window",
        [Column("counted", number=True), *COLUMNS],
        [[amount_words(row.limit, amount), *cells(row)] for row, amount in rows],
    )
    console().print(Text(escape_control(sentence)))


async def _find(reader: Reader, event_id: str) -> tuple[UsageEvent, bool]:
    """Return an event, or the draft of a request in flight, and whether it is in flight."""
    for reservation in reader.ledger.open_reservations():
        if reservation.event_id == event_id:
            return decode_event(reservation.event), True
    made = int(event_id.replace("-", "")[:12], 16) * 1000
    async for event in reader.tracker.events(Window(made - _AROUND, made + _AROUND)):
        if event.event_id == event_id:
            return event, False
    raise UnknownEventError(
        f"Event not found: {event_id}.", hint="usage-plugin events --format json shows the ids of the last events."
    )


def _account_of(reader: Reader, matched: Matched, event: UsageEvent) -> AccountBalance:
    """Return an account in the event's window: its current state, or its final state if the window has ended."""
    now = reader.clock.now()
    still_counts = matched.limit.window_at(event.started_at).end > now
    rolling = matched.limit.since_at(now) is not None
    return AccountBalances(
        reader.ledger, reader.operations, reader.limits, now if still_counts and rolling else event.started_at
    ).of(matched)


def _counted(limit: Limit, event: UsageEvent) -> int:
    """Return the amount that an event adds to a limit."""
    return {
        "usd": event.cost or 0,
        "total_tokens": event.input_tokens + event.output_tokens,
        "input_tokens": event.input_tokens,
        "output_tokens": event.output_tokens,
        "requests": 1,
    }.get(limit.unit, 0)


def _outcome_words(event: UsageEvent, *, in_flight: bool) -> str:
    """Return an event's admission and outcome in words."""
    at = f"{to_datetime(event.started_at):%Y-%m-%d %H:%M:%S} UTC"
    admitted = (
        f"Admitted at {at}: every limit that counts it had room for its worst case, {format_usd(event.reserved)} USD."
    )
    if in_flight:
        return f"{admitted} It is in flight, and holds that amount."
    cost = "no price is known" if event.cost is None else f"cost {format_usd(event.cost)} USD ({event.cost_source})"
    seconds = thousands(event.duration_us // 1000)
    remarks = [
        f"{format_usd(event.excess)} USD above the reserved amount" if event.excess else "",
        "estimated" if event.estimated else "",
        "disputed: our cost and LiteLLM's differ" if event.disputed else "",
        "answered from the cache" if event.cache_hit else "",
    ]
    details = ", ".join(filter(None, (cost, *remarks)))
    return f"{admitted} It ended after {seconds} ms as {event.status}: {details}."


# ── a subject ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _matching(reader: Reader, given: Mapping[str, str]) -> list[Matched]:
    """Return the limits that count a request of the subject; without a user, limits per user are omitted."""
    tags = (given["tag"],) if "tag" in given else ()
    subjects = Subjects(
        user=given.get("user", ANONYMOUS),
        team=given.get("team"),
        api_key=given.get("api_key"),
        end_user=given.get("end_user"),
        organization=given.get("organization"),
        session=given.get("session"),
        tags=tags,
    )
    model = given.get("model")
    provider = given.get("provider") or _provider_of(reader, model)
    found = reader.limits.matching(subjects, model, provider)
    return [matched for matched in found if "user" in given or "user" not in matched.limit.per]


def _provider_of(reader: Reader, model: str | None) -> str | None:
    """Return a model's provider if the YAML names it, and the same one for every deployment."""
    listed = read_proxy_section(reader.config.path, "model_list") if model else None
    names = {
        str((entry.get("litellm_params") or {}).get("model", "")).partition("/")
        for entry in (listed if isinstance(listed, list) else ())
        if isinstance(entry, dict) and entry.get("model_name") == model
    }
    providers = {name[0] if name[1] else None for name in names}
    return providers.pop() if len(providers) == 1 else None


def _accounts(reader: Reader, matched: Iterable[Matched]) -> list[AccountBalance]:
    accounts = AccountBalances(reader.ledger, reader.operations, reader.limits, reader.clock.now())
    return [accounts.of(one) for one in matched]


def refuses_now(row: AccountBalance) -> bool:
    """Whether a limit refuses every request that needs a positive amount."""
    return row.limit.blocks and row.remaining == 0


def _verdict(rows: Sequence[AccountBalance]) -> str:
    """Return whether a request would be admitted now, in words."""
    refusing = [row for row in rows if refuses_now(row)]
    if refusing:
        reasons = "; ".join(
            f"{row.limit.name} ({amount_words(row.limit, row.balance.spent)} spent and"
            f" {amount_words(row.limit, row.balance.reserved)} reserved of {amount_words(row.limit, row.amount)},"
            f" resets: {resets_words(row)})"
            for row in refusing
        )
        return f"A request now is refused by {reasons}."
    bounds = [
        f"{amount_words(row.limit, row.remaining or 0)} {unit_words(row.limit.unit)} ({row.limit.name})"
        for row in _most_constrained(rows)
    ]
    if not bounds:
        return "A request now is admitted: no limit that blocks counts it."
    return f"A request now is admitted if it needs at most {' and '.join(bounds)}."


def _most_constrained(rows: Sequence[AccountBalance]) -> list[AccountBalance]:
    """Return the limit with the smallest remaining amount for each unit."""
    least: dict[str, AccountBalance] = {}
    for row in rows:
        known = least.get(row.limit.unit)
        if row.limit.blocks and row.remaining is not None and (known is None or row.remaining < (known.remaining or 0)):
            least[row.limit.unit] = row
    return list(least.values())


def _unshown_limits(reader: Reader, given: Mapping[str, str]) -> str:
    """Return a note on limits that count by dimensions which were not given."""
    missing = {
        dimension
        for limit in reader.limits.limits
        for dimension in (*limit.per, *(key for key, _ in limit.match.conditions))
        if dimension not in given and dimension not in ("global", "group")
    }
    if not missing:
        return ""
    options = ", ".join(f"--{dimension.replace('_', '-')}" for dimension in sorted(missing))
    return f"Other limits may count a request that also has {options}."


def _plain(row: AccountBalance) -> dict[str, Any]:
    return {**plain(row), "refuses_now": refuses_now(row)}
