"""Books: what the ledger and the store say of themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usage_plugin.cli.doctor.findings import Finding, ok, problem, warning
from usage_plugin.encoding import decode_event
from usage_plugin.errors import StorageError
from usage_plugin.tracking.problems import problems
from usage_plugin.tracking.secret import secret_trouble

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usage_plugin.runtime import Reader

_LATE = 300_000_000


async def check_books(reader: Reader) -> list[Finding]:
    """Go through the ledger and the store."""
    found = [ok("books", f"The ledger is {reader.ledger.location}.")]
    wrong = reader.ledger.verify()
    found += [
        problem("books", text, "Stop the proxy, keep a copy of the data folder, and report it.") for text in wrong
    ]
    if not wrong:
        found.append(ok("books", "The ledger is whole: no damage, no hold without a reservation, no sum below zero."))
    found += _outbox(reader)
    found += _lost(reader)
    found.append(_secret(reader))
    found += [
        problem("books", f"The proxy says of {told.name}: {told.text}", "Its log says more.")
        for told in problems(reader.operations)
    ]
    try:
        await reader.store.health()
    except StorageError as error:
        found.append(problem("books", f"The store takes no events: {error.message}", error.hint or ""))
    else:
        found.append(ok("books", f"The store ({reader.config.storage.backend}) takes events."))
    return found


def _outbox(reader: Reader) -> Iterator[Finding]:
    waiting = reader.ledger.waiting()
    if not waiting.events:
        yield ok("books", "The store has every event.")
        return
    page = reader.ledger.outbox(reader.ledger.acknowledged(), 1)
    oldest = decode_event(page[0].event).started_at if page else reader.clock.now()
    text = f"{waiting.events:,} events ({waiting.size:,} bytes) wait for the store"
    if not reader.workers.living():
        yield warning("books", f"{text}, since no proxy runs.", "They are moved when it starts.")
    elif reader.clock.now() - oldest > _LATE:
        yield problem(
            "books",
            f"{text}, the oldest for {(reader.clock.now() - oldest) // 60_000_000} min.",
            "The proxy's log says why (keeper.interrupted). Nothing is lost; at the bound new requests are refused.",
        )
    else:
        yield ok("books", f"{text}, for a moment.")


def _lost(reader: Reader) -> Iterator[Finding]:
    dead = [r for r in reader.ledger.open_reservations() if reader.workers.is_dead(r.worker)]
    if dead:
        yield warning(
            "books",
            f"{len(dead)} reservations are open whose worker is gone.",
            "The keeper settles them within seconds, once a proxy runs; they hold what they reserved until then.",
        )


def _secret(reader: Reader) -> Finding:
    trouble = secret_trouble(reader.operations, reader.pseudonyms, reader.secret_path, reader.clock.now())
    if trouble is None:
        return ok("books", "The secret that pseudonyms are made with is the one that the ledger knows.")
    return problem("books", f"{trouble}.", "Keep a copy of the file with the backups, for the owner only.")
