"""Consistency checks of the ledger and the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usage_plugin.cli.doctor.findings import Finding, ok, problem, warning
from usage_plugin.encoding import decode_event
from usage_plugin.errors import StorageError
from usage_plugin.tracking.notifications.health import problems
from usage_plugin.tracking.privacy.secret import secret_trouble

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usage_plugin.runtime import Reader

_LATE = 300_000_000


async def check_data(reader: Reader) -> list[Finding]:
    """Check the ledger, the outbox, the reservations, the secret and the store."""
    findings = [ok("books", f"The ledger is {reader.ledger.location}.")]
    wrong = reader.ledger.verify()
    findings += [
        problem("books", text, "Stop the proxy, copy the data folder, and report the problem.") for text in wrong
    ]
    if not wrong:
        findings.append(ok("books", "The ledger is consistent: no damage, no orphaned hold, no negative sum."))
    findings += _outbox(reader)
    findings += _dead_reservations(reader)
    findings.append(_secret(reader))
    findings += [
        problem("books", f"The proxy reports a problem of {found.name}: {found.text}", "See the proxy's log.")
        for found in problems(reader.operations)
    ]
    try:
        await reader.store.health()
    except StorageError as error:
        findings.append(problem("books", f"The store rejects events: {error.message}", error.hint or ""))
    else:
        findings.append(ok("books", f"The store ({reader.config.storage.backend}) accepts events."))
    return findings


def _outbox(reader: Reader) -> Iterator[Finding]:
    waiting = reader.ledger.waiting()
    if not waiting.events:
        yield ok("books", "The store has every event.")
        return
    page = reader.ledger.outbox(reader.ledger.acknowledged(), 1)
    oldest = decode_event(page[0].event).started_at if page else reader.clock.now()
    text = f"{waiting.events:,} events ({waiting.size:,} bytes) are waiting for the store"
    if not reader.workers.living():
        yield warning("books", f"{text}, since no proxy is running.", "The proxy moves them when it starts.")
    elif reader.clock.now() - oldest > _LATE:
        yield problem(
            "books",
            f"{text}, the oldest for {(reader.clock.now() - oldest) // 60_000_000} min.",
            "See keeper.interrupted in the proxy's log. No event is lost; when the outbox is full, new requests are"
            " refused.",
        )
    else:
        yield ok("books", f"{text}, as usual for a few seconds.")


def _dead_reservations(reader: Reader) -> Iterator[Finding]:
    dead = [r for r in reader.ledger.open_reservations() if reader.workers.is_dead(r.worker)]
    if dead:
        yield warning(
            "books",
            f"{len(dead)} reservations of dead workers are open.",
            "The keeper settles them within seconds of the next start of a proxy; until then they hold their amounts.",
        )


def _secret(reader: Reader) -> Finding:
    trouble = secret_trouble(reader.operations, reader.pseudonyms, reader.secret, reader.clock.now())
    if trouble is None:
        return ok("books", "The secret for pseudonyms is the one that the ledger was created with.")
    return problem("books", f"{trouble}.", "Keep a copy of the file with the backups, readable by its owner only.")
