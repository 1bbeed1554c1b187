"""`usage-plugin status`: one screen for three in the morning."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.text import Text

from usage_plugin.cli.output import Column, Output, console, table, thousands
from usage_plugin.domain.subjects import SEPARATOR

if TYPE_CHECKING:
    from usage_plugin.runtime import Reader

MINUTES = 15
_MOST_SHOWN = 10
_OUTBOX_PAGE = 1_000


async def run(reader: Reader, *, output: Output) -> None:
    """Print how things are."""
    now = reader.clock.now()
    waiting = _waiting(reader)
    reservations = reader.ledger.open_reservations()
    refusals, blocked = _refusals(reader, now // 60_000_000 - MINUTES)
    facts: dict[str, Any] = {
        "data_dir": str(reader.config.data_dir),
        "workers": reader.workers.living(),
        "outbox": {"events": waiting[0], "oldest_seconds": _age(now, waiting[1])},
        "reservations": {
            "open": len(reservations),
            "oldest_seconds": _age(now, reservations[0].started_at if reservations else None),
        },
        "refusals": refusals,
        "blocked": blocked,
    }
    if not output.is_table:
        output.document(facts, refusals)
        return
    screen = console()
    for line in _lines(facts):
        screen.print(Text(line))
    if refusals:
        table(
            f"Refusals of the last {MINUTES} minutes",
            [Column("limit"), Column("reason"), Column("count", number=True)],
            [[row["limit"], row["reason"], thousands(row["count"])] for row in refusals],
        )
        table(
            "Who is blocked",
            [Column("limit"), Column("subject"), Column("refusals", number=True)],
            [[row["limit"], row["subject"], thousands(row["refusals"])] for row in blocked[:_MOST_SHOWN]],
        )


def _lines(facts: dict[str, Any]) -> list[str]:
    outbox, held = facts["outbox"], facts["reservations"]
    return [
        f"data folder   {facts['data_dir']}",
        f"workers       {len(facts['workers']) or 'none: the proxy does not run'}",
        f"outbox        {thousands(outbox['events'])} events wait for the store{_oldest(outbox)}",
        f"reservations  {thousands(held['open'])} open{_oldest(held)}",
        *(() if facts["refusals"] else (f"refusals      none in the last {MINUTES} minutes",)),
    ]


def _oldest(part: dict[str, Any]) -> str:
    return "" if part["oldest_seconds"] is None else f", the oldest for {part['oldest_seconds']:.0f} s"


def _age(now: int, then: int | None) -> float | None:
    return None if then is None else max(0.0, (now - then) / 1e6)


def _waiting(reader: Reader) -> tuple[int, int | None]:
    """Count the events the store does not have, and find when the first of them was admitted."""
    count = 0
    oldest = None
    seq = reader.ledger.acknowledged()
    while page := reader.tracker.settled_after(seq):
        oldest = oldest if oldest is not None else page[0][1].started_at
        count += len(page)
        seq = page[-1][0]
    return count, oldest


def _refusals(reader: Reader, since_minute: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    by_limit: Counter[tuple[str, str]] = Counter()
    by_subject: Counter[tuple[str, str]] = Counter()
    for row in reader.ledger.refusal_counts(since_minute):
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
