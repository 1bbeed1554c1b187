"""`usage-plugin status`: the state of the plugin on one screen, for an operator at three in the morning."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from usage_plugin.cli.adjustments import ADJUSTMENT_COLUMNS, adjustment_cells, plain_adjustment
from usage_plugin.cli.anomalies import COUNT_COLUMNS, count_cells, counts, plain_counts
from usage_plugin.cli.output import Column, Output, console, escape_control, table, thousands
from usage_plugin.cli.workers import COLUMNS as WORKER_COLUMNS
from usage_plugin.cli.workers import fleet_lines, plain_workers, worker_cells
from usage_plugin.domain.subjects import SEPARATOR
from usage_plugin.domain.windows import to_datetime
from usage_plugin.encoding import decode_event
from usage_plugin.errors import StorageError
from usage_plugin.migration.background import Report, reported
from usage_plugin.tracking.maintenance.retention import last_run, oldest_event
from usage_plugin.tracking.notifications.health import Problem, problems
from usage_plugin.tracking.privacy.secret import secret_trouble

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usage_plugin.runtime import Reader

MINUTES = 15
DAYS = 7
_MOST_SHOWN = 10
_DAY = 86_400_000_000


async def run(reader: Reader, *, output: Output) -> None:
    """Print the state of workers, outbox, reservations, refusals and history."""
    now = reader.clock.now()
    waiting = reader.ledger.waiting()
    anomalies = [found for found in reader.operations.anomalies() if found.last_at >= now - DAYS * _DAY]
    adjustments = reader.operations.adjustments(now)
    reservations = reader.ledger.open_reservations()
    refusals, blocked = _refusals(reader, now // 60_000_000 - MINUTES)
    workers, fleet = plain_workers(reader)
    facts: dict[str, Any] = {
        "data_dir": str(reader.config.data_dir),
        "workers": workers,
        "fleet": fleet,
        "problems": [problem._asdict() for problem in (*problems(reader.operations), *_secret_problems(reader, now))],
        "outbox": {
            "events": waiting.events,
            "bytes": waiting.size,
            "oldest_seconds": _age(now, _oldest_waiting(reader)),
        },
        "reservations": {
            "open": len(reservations),
            "oldest_seconds": _age(now, reservations[0].started_at if reservations else None),
        },
        "history": await _history(reader),
        "refusals": refusals,
        "blocked": blocked,
        "anomalies": plain_counts(anomalies),
        "imperfections": plain_counts(anomalies),  # deprecated
        "adjustments": [plain_adjustment(reader, one) for one in adjustments],
        "migration": _migration(reported(reader.operations)),
    }
    if not output.is_table:
        output.document(facts, refusals)
        return
    screen = console()
    lines = Table.grid(padding=(0, 2))
    for name, text in _lines(facts):
        lines.add_row(Text(name), Text(escape_control(text), overflow="fold"))
    for problem in facts["problems"]:
        text = f"{problem['name']}: {problem['text']} (since {problem['since']})"
        lines.add_row(Text("PROBLEM"), Text(escape_control(text), overflow="fold"), style="red")
    screen.print(lines)
    screen.print()
    if fleet is not None and workers:
        table("Workers", WORKER_COLUMNS, worker_cells(workers))
    if refusals:
        table(
            f"Refusals of the last {MINUTES} minutes",
            [Column("limit"), Column("reason"), Column("count", number=True)],
            [[row["limit"], row["reason"], thousands(row["count"])] for row in refusals],
        )
        table(
            "Blocked subjects",
            [Column("limit"), Column("subject"), Column("refusals", number=True)],
            [[row["limit"], row["subject"], thousands(row["refusals"])] for row in blocked[:_MOST_SHOWN]],
        )
    if anomalies:
        known = [count for count in counts(anomalies) if count.times]
        table(
            f"Anomalies seen in the last {DAYS} days (total counts)",
            COUNT_COLUMNS,
            [count_cells(count) for count in known],
        )
    if adjustments:
        table("Adjustments in force", ADJUSTMENT_COLUMNS, [adjustment_cells(reader, one) for one in adjustments])


def _secret_problems(reader: Reader, now: int) -> Iterator[Problem]:
    trouble = secret_trouble(reader.operations, reader.pseudonyms, reader.secret, now)
    if trouble is not None:
        yield Problem("secret", trouble, to_datetime(now).isoformat())


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    outbox, held = facts["outbox"], facts["reservations"]
    return [
        ("data folder", facts["data_dir"]),
        ("workers", f"{len(facts['workers']) or 'none: the proxy is not running'}"),
        *fleet_lines(facts["fleet"]),
        ("outbox", f"{thousands(outbox['events'])} events waiting for the store{_size(outbox)}{_oldest(outbox)}"),
        ("reservations", f"{thousands(held['open'])} open{_oldest(held)}"),
        ("history", _history_words(facts["history"])),
        *_migration_line(facts["migration"]),
        *(() if facts["refusals"] else (("refusals", f"none in the last {MINUTES} minutes"),)),
    ]


async def _history(reader: Reader) -> dict[str, Any]:
    """Return the age of the oldest event, the size of the store, and the retention."""
    kept = reader.config.retention
    run = last_run(reader.operations)
    facts: dict[str, Any] = {
        "oldest_event": None,
        "bytes": None,
        "retention": {"events_days": kept.events, "daily_days": kept.daily, "max_bytes": kept.max_size},
        "last_pruned": run and {"at": to_datetime(run.at).isoformat(), "records": run.records},
    }
    with suppress(StorageError):  # reported among the problems
        oldest = await oldest_event(reader.store)
        facts["oldest_event"] = oldest and to_datetime(oldest.started_at).isoformat()
        facts["bytes"] = await reader.store.size()
    return facts


def _history_words(facts: dict[str, Any]) -> str:
    kept = facts["retention"]
    since = f"events since {facts['oldest_event'][:10]}" if facts["oldest_event"] else "no events"
    size = "unknown size" if facts["bytes"] is None else f"{thousands(facts['bytes'])} bytes"
    events, daily = (
        "forever" if kept[name] is None else f"{thousands(kept[name])} days" for name in ("events_days", "daily_days")
    )
    most = "" if kept["max_bytes"] is None else f", at most {thousands(kept['max_bytes'])} bytes"
    return f"{since}, {size}; kept: events {events}, daily sums {daily}{most}"


def _migration(how: Report | None) -> dict[str, Any] | None:
    return how and {**how._asdict(), "at": to_datetime(how.at).isoformat()}


def _migration_line(how: dict[str, Any] | None) -> list[tuple[str, str]]:
    return [("migration", f"{how['state']}: {how['directory']}: {how['text']}")] if how else []


def _oldest(part: dict[str, Any]) -> str:
    return "" if part["oldest_seconds"] is None else f", the oldest for {part['oldest_seconds']:.0f} s"


def _age(now: int, then: int | None) -> float | None:
    return None if then is None else max(0.0, (now - then) / 1e6)


def _size(outbox: dict[str, Any]) -> str:
    return f" ({thousands(outbox['bytes'])} bytes)" if outbox["events"] else ""


def _oldest_waiting(reader: Reader) -> int | None:
    """Return the time of admission of the oldest event in the outbox."""
    page = reader.ledger.outbox(reader.ledger.acknowledged(), 1)
    return decode_event(page[0].event).started_at if page else None


def _refusals(reader: Reader, since_minute: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    by_limit: Counter[tuple[str, str]] = Counter()
    by_subject: Counter[tuple[str, str]] = Counter()
    for row in reader.operations.refusal_counts(since_minute):
        by_limit[row.limit, row.reason] += row.times
        if row.reason in ("spent", "too_large", "unpriced", "unbounded"):
            by_subject[row.limit, row.subject] += row.times
    return (
        [{"limit": limit, "reason": reason, "count": n} for (limit, reason), n in by_limit.most_common()],
        [
            {"limit": limit, "subject": subject.replace(SEPARATOR, ", ") or "everybody", "refusals": n}
            for (limit, subject), n in by_subject.most_common()
        ],
    )
