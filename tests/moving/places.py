"""Places of a ledger and its history, random contents for them, and all that can be read from them."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usage_plugin.config import load_config
from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.erasure import NameMatches
from usage_plugin.domain.ledger import AccountKey, Charge, Hold
from usage_plugin.domain.operations import Adjustment, AlertKey, Anomaly, AuditEntry, RefusalCount
from usage_plugin.domain.profiles import UserProfile
from usage_plugin.domain.store import watermarks_of
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.encoding import encode_event
from usage_plugin.ledgers.workers.fleet_workers import FleetWorkers
from usage_plugin.moving.history_copy import WRITER
from usage_plugin.runtime import Parts
from usage_plugin.runtime.ledger_move import LedgerMove, MoveOutcome
from usage_plugin.testing.builders import DAY, MINUTE, NOON, TODAY, make_event, make_sum, numbered_from
from usage_plugin.testing.child_processes import PATIENCE
from usage_plugin.testing.faults import Faults, die
from usage_plugin.testing.store_model import contents_of, prune_all
from usage_plugin.tracking.maintenance.flusher import Flusher
from usage_plugin.tracking.privacy.secret import note_secret

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from multiprocessing.connection import Connection
    from random import Random

    from usage_plugin.domain.open_ledger import OpenLedger

SECRET = "0123456789abcdef" * 4
LARGEST = 2**62
SERVERS = ("postgres", "valkey")
_NAMES = ("", "ann", "Ann", "ann\x1fgpt", "zoë", "'; --", "😀", "x" * 200)


class Silence:
    """A receiver of progress that ignores it."""

    def begin(self, text: str, total: int | None) -> None:
        pass

    def advance(self, steps: int) -> None:
        pass


class Place:
    """A YAML, and the ledger and storage that it names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def parts(self) -> Parts:
        return Parts(load_config(self.path))

    def move_to(self, other: Place) -> MoveOutcome:
        return asyncio.run(LedgerMove(self.parts, other.parts, SystemClock(), Silence()).run())

    def undo(self, other: Place) -> MoveOutcome:
        return asyncio.run(LedgerMove(self.parts, other.parts, SystemClock(), Silence()).undo())

    def read(self) -> dict[str, Any]:
        """Return everything that the ports show, except the outbox, whose events are in the history."""
        parts = self.parts
        opened = parts.open_marked_ledger()
        try:
            assert opened.ledger.verify() == []
            found = records_in(opened)
        finally:
            opened.close()

        async def history() -> dict[str, Any]:
            async with parts.open_store() as store:
                events, sums, watermarks = await contents_of(store)
                filled = {key: totals for key, totals in sums.items() if any(totals)}
                return {"events": events, "sums": filled, "watermarks": without_copier(watermarks)}

        return found | asyncio.run(history())


def place(
    folder: Path,
    ledger: str = "sqlite",
    storage: str = "sqlite",
    options: Mapping[str, Any] | None = None,
    secret: str | None = SECRET,
    lost_after: str = "30s",
) -> Place:
    """Write a YAML; the options are those of a backend on a server."""
    folder.mkdir(parents=True, exist_ok=True)
    section: dict[str, Any] = {"data_dir": "./data", "timezone": "Europe/Berlin"}
    if secret is not None:
        section["privacy"] = {"secret": secret}
    for name, backend in (("ledger", ledger), ("storage", storage)):
        section[name] = {"backend": backend, "options": dict(options or {}) if backend in SERVERS else {}}
    if ledger in SERVERS:
        section["admission"] = {"worker_lost_after": lost_after}
    path = folder / "config.yaml"
    path.write_text(json.dumps({"usage_plugin": section}))
    return Place(path)


def without_copier(watermarks: Mapping[str, int]) -> dict[str, int]:
    """Return the watermarks of writers other than a move."""
    return {writer: seq for writer, seq in watermarks.items() if not writer.startswith(WRITER)}


def records_in(opened: OpenLedger) -> dict[str, Any]:
    """Return all records of a ledger, in an order of their own."""
    operations = opened.operations
    notes = {
        name: text for name, text in operations.notes("").items() if name.partition(":")[0] not in ("move", "rules")
    }
    return {
        "accounts": sorted(opened.ledger.every_account()),
        "reservations": sorted(
            (*one[:4], sorted(map(tuple, one.holds))) for one in opened.ledger.open_reservations(with_holds=True)
        ),
        "adjustments": operations.adjustments(),
        "alerts": operations.alerts(0, None),
        "refusal counts": sorted(operations.refusal_counts(0)),
        "refusals": operations.refusals(),
        "anomalies": operations.anomalies(),
        "notes": notes,
        "audit": operations.audited(),
        "profiles": [profile for _, profile in opened.profiles.changes(0, 10_000)],
        "waiting": opened.ledger.waiting().events,
    }


def fill(where: Place, rng: Random, size: int = 20) -> None:
    """Put random records of every kind into a place; some events are flushed, and the rest waits in the outbox."""
    parts = where.parts
    opened = parts.open_ledger()
    try:
        note_secret(opened.operations, parts.make_pseudonyms(), parts.secret, NOON)
        _spend(opened, rng, size)
        asyncio.run(_keep_history(parts, opened, rng, size))
        _spend(opened, rng, size // 2)
        _operate(opened, rng, size)
    finally:
        opened.close()


def _amount(rng: Random) -> int:
    return rng.choice((0, 1, 10**9, 2**53 + 1, rng.randrange(10**12)))


def _spend(opened: OpenLedger, rng: Random, size: int) -> None:
    ledger = opened.ledger
    for number in range(size):
        key = AccountKey(rng.choice((0, 1, 2**63 - 1)), rng.choice((-DAY, 0, NOON)), rng.choice(_NAMES))
        other = AccountKey(rng.randrange(2**63), NOON, f"user {rng.randrange(10**9)}")
        event = make_event(started_at=NOON + rng.randrange(30 * DAY), user=rng.choice(("ann", "bo")))
        draft = encode_event(event)
        holds = [
            Hold(key, NOON + rng.randrange(DAY), _amount(rng), None, _amount(rng)),
            # An account of its own, since the largest amounts cannot be added.
            Hold(other, NOON + DAY, LARGEST, None, rng.choice((0, 7, LARGEST))),
        ]
        assert ledger.reserve(event.event_id, f"worker-{number % 3}", event.started_at, holds, draft).admitted
        end = rng.choice(("settle", "settle", "release", "recover", "free", "stay", "stay"))
        charges = [Charge(key, NOON, _amount(rng)), Charge(other, NOON + 2 * DAY, rng.choice((0, LARGEST)))]
        if end == "settle":
            assert ledger.settle(event.event_id, charges, draft)
        elif end == "release":
            assert ledger.release(event.event_id)
        elif end == "recover":
            assert ledger.recover(event.event_id)
        elif end == "free":
            ledger.free(event.event_id, [other])
    ledger.correct(f"correction {rng.random()}", [Charge(AccountKey(5, 0, "low"), NOON, 12)])


async def _keep_history(parts: Parts, opened: OpenLedger, rng: Random, size: int) -> None:
    async with parts.open_store() as store:
        flusher = Flusher(opened.ledger, opened.operations, store, parts.unstorable(SystemClock()))
        await flusher.begin()
        while await flusher.flush():
            pass
        marks = await watermarks_of(store)
        events = [
            make_event(
                started_at=NOON - rng.randrange(400 * DAY),
                user=rng.choice(("ann", "bo", "zoë")),
                team=rng.choice((None, "research")),
                cost=rng.choice((None, 0, 10**17 + 1)),
                usage=rng.choice((None, {"b": 1, "a": 2**40})),
                tags=rng.choice(((), ("x", "y"))),
            )
            for _ in range(size)
        ]
        await store.append("events", numbered_from(marks.get("events", 0) + 1, events))
        totals = UsageTotals(requests=3, cost=10**17)
        sums = [make_sum(day=TODAY.replace(day=1 + number % 28), user="old", totals=totals) for number in range(size)]
        await store.append_sums("sums", numbered_from(marks.get("sums", 0) + 1, sums))
        await prune_all(store, NOON - rng.randrange(100, 300) * DAY, TODAY.replace(year=2025), most=100)


def _operate(opened: OpenLedger, rng: Random, size: int) -> None:
    operations, profiles = opened.operations, opened.profiles
    for number in range(size):
        name, at = rng.choice(_NAMES), NOON + number
        amount = rng.choice((None, 0, LARGEST))
        made = operations.adjust(Adjustment(0, "daily", name, amount, LARGEST, at, at + DAY, "root", "why"))
        if rng.random() < 0.3:
            operations.end_adjustment(made.number, at + 1)
        operations.alert(AlertKey(rng.randrange(2**63), name, NOON, 80), at, '{"a": 1}')
        (newest, *_) = operations.alerts(0, None)
        if rng.random() < 0.3:
            operations.acknowledge_alert(newest.number, at, "kim")
        if rng.random() < 0.3:
            # A gap in the numbers, as an erasure leaves it.
            opened.erasable.erase(NameMatches(alerts=[newest], adjustments=[made]))
        counts = [RefusalCount(at // MINUTE, "daily", name, "spent", rng.randrange(1, LARGEST // 100))]
        operations.count_refusals(counts, [(f"REF{rng.randrange(10**12)}", at, json.dumps({"user": name}))])
        operations.count_anomalies([Anomaly("unpriced", f"model {number % 7}", 1, rng.randrange(10**15), at, at)])
        operations.note(f"deferred:{rng.randrange(size)}", name)
        operations.audit(AuditEntry(0, at, "forget", "p-abc", "root", name, {"history": number}))
        user = f"user {rng.randrange(size)}"
        profiles.put([UserProfile(user, email=name, metadata={"n": [number]}, created_at=at, updated_at=at + number)])
        if rng.random() < 0.2:
            profiles.remove(user)
    operations.note("rules:worker-1", "a digest")


def move_and_die(source: Path, target: Path, points: Sequence[str], number: int, report: Connection) -> None:
    """Move in a child that dies at the n-th low-level call, or reports that there is none."""
    faults = Faults({point: Exception() for point in points})
    with faults.installed(), faults.at(number, die):
        Place(source).move_to(Place(target))
    report.send("survived")


def live_until_killed(path: Path, report: Connection) -> None:
    """Be a member of the fleet of a place, and report the worker's name."""
    workers = Place(path).parts.workers()
    assert isinstance(workers, FleetWorkers)
    workers.join()
    workers.watch(lambda: "{}", lambda: None)
    report.send(workers.name)
    time.sleep(PATIENCE)
