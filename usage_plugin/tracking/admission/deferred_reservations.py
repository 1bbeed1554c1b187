"""Reservations of deferred work, such as batches: held until any worker gets the result from the provider.

The ledger keeps the reservation, and a note that maps the provider's id to it. So the result may be fetched through
another worker, after a restart, and any number of times: the ledger settles a reservation once.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from usage_plugin.domain.usage import subjects_of
from usage_plugin.domain.windows import MICROSECONDS
from usage_plugin.encoding import decode_event
from usage_plugin.tracking.admission.decisions import Admitted

if TYPE_CHECKING:
    from usage_plugin.domain.ledger import Ledger, OpenReservation
    from usage_plugin.domain.operations import OperationsLog

NOTE = "deferred:"
"""The prefix of the notes' names. The provider's id follows as a hash. The text of a note is the reservation's id."""

LONGEST_DEFERRED = 48 * 3600 * MICROSECONDS
"""A batch takes up to a day. After two, a result that was not fetched is charged as reserved."""


def defer(operations: OperationsLog, provider_id: str, event_id: str) -> None:
    """Note the reservation to settle when the result of this provider id is known.

    Raises:
        LedgerError: the note could not be written.
    """
    operations.note(_name(provider_id), event_id)


def find(ledger: Ledger, operations: OperationsLog, provider_id: str) -> Admitted | None:
    """Return the admission of a provider id; None if its result was known before, or no reservation waits for it.

    Raises:
        LedgerError: the ledger could not be read.
    """
    event_id = operations.notes(_name(provider_id)).get(_name(provider_id))
    if event_id is None:
        return None
    for reservation in ledger.open_reservations():
        if reservation.event_id == event_id:
            event = decode_event(reservation.event)
            # Its holds are freed by settling. The accounts to charge are determined by the active limits.
            return Admitted(event, subjects_of(event), (), {}, False, None, ())
    return None


def forget(operations: OperationsLog, provider_id: str) -> None:
    """Delete the note, after the reservation was settled.

    Raises:
        LedgerError: the note is still there, which is harmless.
    """
    operations.note(_name(provider_id), None)


class DeferredReservations:
    """The reservations that wait for a deferred result, for the keeper."""

    def __init__(self, operations: OperationsLog, now: int) -> None:
        """Read the notes."""
        self._operations = operations
        self._now = now
        self._names = {event_id: name for name, event_id in operations.notes(NOTE).items()}

    def spares(self, reservation: OpenReservation) -> bool:
        """Whether a reservation stays open although the worker that made it is dead."""
        return reservation.event_id in self._names and not self.is_late(reservation)

    def is_late(self, reservation: OpenReservation) -> bool:
        """Whether a reservation has waited longer than `LONGEST_DEFERRED`."""
        return reservation.event_id in self._names and self._now - reservation.started_at > LONGEST_DEFERRED

    def sweep(self, left: set[str]) -> None:
        """Delete the notes of reservations that are no longer open."""
        for event_id, name in self._names.items():
            if event_id not in left:
                self._operations.note(name, None)


def _name(provider_id: str) -> str:
    return NOTE + hashlib.sha256(provider_id.encode("utf-8", "replace")).hexdigest()
