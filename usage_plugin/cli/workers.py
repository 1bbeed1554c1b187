"""The workers of the ledger, with their hosts, for `status`."""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING, Any

from usage_plugin.cli.output import Column, thousands
from usage_plugin.domain.windows import to_datetime
from usage_plugin.ledgers.workers.fleet_workers import FleetWorkers
from usage_plugin.runtime.worker_description import decode_description

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usage_plugin.domain.fleet import Fleet, Member
    from usage_plugin.runtime.read_session import Reader

COLUMNS = [
    Column("host"),
    Column("worker"),
    Column("version"),
    Column("since"),
    Column("batches", number=True),
    Column("requests each", number=True),
    Column("round trip", number=True),
    Column("not written", number=True),
]
"""The columns of the table of a fleet's workers."""


def plain_workers(reader: Reader) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Return the live workers, and the state of the fleet; None for a ledger in a file.

    Raises:
        LedgerError: the ledger's server does not answer.
    """
    if not isinstance(reader.workers, FleetWorkers):
        here = platform.node()
        return [
            {"name": name, "host": here, "pid": int(name.partition("-")[0])} for name in reader.workers.living()
        ], None
    began = time.monotonic()
    fleet = reader.workers.view()
    took = time.monotonic() - began
    living = set(reader.workers.living())
    workers = [_plain_member(member, fleet) for member in fleet.members if member.name in living]
    rules = {worker["rules"] for worker in workers if worker["rules"] is not None}
    return workers, {
        "server": reader.ledger.location,
        "round_trip_ms": _milliseconds(took),
        "is_open": fleet.is_open,
        "incarnation": fleet.incarnation,
        "keeper": fleet.keeper,
        "term": fleet.term,
        "rules_differ": len(rules) > 1,
    }


def _plain_member(member: Member, fleet: Fleet) -> dict[str, Any]:
    found = decode_description(member.details)
    batches = found and found.batches
    return {
        "name": member.name,
        "host": found.hostname if found else member.host,
        "pid": found and found.pid,
        "version": found and found.version,
        "started_at": found and to_datetime(found.started_at).isoformat(),
        "is_keeper": member.name == fleet.keeper,
        "has_reasserted": member.has_reasserted,
        "rules": found and found.rules,
        "batches": batches
        and {
            "count": batches.batches,
            "verbs": round(batches.verbs, 1),
            "round_trip_ms": _milliseconds(batches.round_trip),
            "slowest_ms": _milliseconds(batches.slowest),
            "pending": batches.pending,
            "is_reachable": batches.is_reachable,
        },
    }


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def fleet_lines(fleet: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return the lines about a fleet; none for a ledger in a file."""
    if fleet is None:
        return []
    state = "admits requests" if fleet["is_open"] else "waits until all workers have sent their open requests again"
    return [
        ("ledger", f"{fleet['server']}: answers in {fleet['round_trip_ms']} ms, {state}"),
        ("keeper", fleet["keeper"] or "none"),
    ]


def worker_cells(workers: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return the cells of a fleet's workers."""
    return [
        [
            worker["host"],
            worker["name"] + (" (keeper)" if worker["is_keeper"] else ""),
            worker["version"] or "",
            (worker["started_at"] or "")[:16].replace("T", " "),
            *_batch_cells(worker["batches"]),
        ]
        for worker in workers
    ]


def _batch_cells(batches: dict[str, Any] | None) -> list[str]:
    if batches is None:
        return [""] * 4
    return [
        thousands(batches["count"]),
        f"{batches['verbs']:.1f}",
        f"{batches['round_trip_ms']:.1f} ms" if batches["is_reachable"] else "no answer",
        thousands(batches["pending"]),
    ]
