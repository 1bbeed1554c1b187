"""Reservations of work that a provider does later: held until its result is known, by whichever worker learns of it.

The ledger keeps the reservation, and a note that leads from the provider's id to it. So the result may be fetched
through another worker, or after a restart, and however often: the ledger settles a reservation once.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from usage_plugin.domain.usage import subjects_of
from usage_plugin.domain.windows import MICROSECONDS
from usage_plugin.encoding import decode_event
from usage_plugin.tracking.admission import Admitted
from usage_plugin.tracking.flusher import until_free

if TYPE_CHECKING:
    from usage_plugin.domain.ledger import Ledger, OpenReservation
    from usage_plugin.domain.operations import OperationsLog

NOTE = "deferred:"
"""Begins the names of the notes: the provider's id follows, as a hash, and the text is the reservation's id."""

LONGEST_DEFERRED = 48 * 3600 * MICROSECONDS
"""A batch takes up to a day. After two, a result that was not fetched is charged as reserved."""

_PATIENCE = 0.05


def defer(operations: OperationsLog, provider_id: str, event_id: str) -> None:
    """Note which reservation is settled once the result of this id is known.

    Raises:
        LedgerError: it could not be noted.
    """
    until_free(lambda: operations.note(_name(provider_id), event_id), _PATIENCE)


def find(ledger: Ledger, operations: OperationsLog, provider_id: str) -> Admitted | None:
    """Find what was admitted; None if the result was known before, or nothing waits for it.

    Raises:
        LedgerError: the ledger does not answer.
    """
    event_id = operations.notes(_name(provider_id)).get(_name(provider_id))
    if event_id is None:
        return None
    for reservation in ledger.open_reservations():
        if reservation.event_id == event_id:
            event = decode_event(reservation.event)
            # What it holds is freed with it; which accounts it is charged on, the limits in force decide.
            return Admitted(event, subjects_of(event), (), {}, False, None, ())
    return None


def forget(operations: OperationsLog, provider_id: str) -> None:
    """Take the note away, once the reservation is settled.

    Raises:
        LedgerError: it is still there, which does no harm.
    """
    until_free(lambda: operations.note(_name(provider_id), None), _PATIENCE)


class Waiting:
    """What waits for a result, as the keeper sees it."""

    def __init__(self, operations: OperationsLog, now: int) -> None:
        """Read the notes."""
        self._operations = operations
        self._now = now
        self._names = {event_id: name for name, event_id in operations.notes(NOTE).items()}

    def spares(self, reservation: OpenReservation) -> bool:
        """Whether a reservation outlives the worker that made it."""
        return reservation.event_id in self._names and not self.is_late(reservation)

    def is_late(self, reservation: OpenReservation) -> bool:
        """Whether a reservation has waited for too long."""
        return reservation.event_id in self._names and self._now - reservation.started_at > LONGEST_DEFERRED

    def sweep(self, left: set[str]) -> None:
        """Take away the notes of reservations that are no longer open."""
        for event_id, name in self._names.items():
            if event_id not in left:
                self._operations.note(name, None)


def _name(provider_id: str) -> str:
    return NOTE + hashlib.sha256(provider_id.encode("utf-8", "replace")).hexdigest()
