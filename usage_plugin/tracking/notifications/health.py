"""Current problems, kept as notes in the ledger for readers until they are solved."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.windows import to_datetime

if TYPE_CHECKING:
    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.operations import OperationsLog

NOTE = "problem:"
"""The prefix of the notes' names."""


class Problem(NamedTuple):
    """A part that does not work (`store`, `database`, `config`, `outbox`), the reason, and its start (ISO 8601)."""

    name: str
    text: str
    since: str


def problems(operations: OperationsLog) -> list[Problem]:
    """Return the current problems, by name."""
    notes = operations.notes(NOTE)
    return [Problem(name.removeprefix(NOTE), **json.loads(notes[name])) for name in sorted(notes)]


class HealthNotes:
    """Write the notes of problems that this worker sees. Only the keeper writes them."""

    def __init__(self, clock: Clock) -> None:
        """Start without reading the notes of an earlier keeper."""
        self._clock = clock
        self._known: dict[str, Problem | None] = {}

    def tell(self, operations: OperationsLog, name: str, text: str | None) -> None:
        """Write the note of a problem, or delete it if `text` is None. Free if nothing has changed.

        Raises:
            LedgerError: the note was not written; repeat the call.
        """
        if name not in self._known:
            self._known[name] = next((problem for problem in problems(operations) if problem.name == name), None)
        known = self._known[name]
        if text != (known and known.text):
            problem = None
            if text is not None:
                problem = Problem(name, text, known.since if known else to_datetime(self._clock.now()).isoformat())
            operations.note(NOTE + name, problem and json.dumps({"text": problem.text, "since": problem.since}))
            self._known[name] = problem
