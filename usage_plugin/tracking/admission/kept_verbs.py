"""The verbs that a server may have lost when it restarted or another one took over: a worker sends them again.

They are this worker's open reservations, and the verbs of the last minute that ended one. The server does each of them
once: it knows the ids that it has not lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.domain.ledger import Reserved
from usage_plugin.domain.ledger_batch import Free, Reassert, Reserve
from usage_plugin.errors import LedgerError

if TYPE_CHECKING:
    from usage_plugin.domain.ledger_batch import Answer, Verb

KEPT_FOR = 60.0
"""Seconds for which the verb that ended a reservation is kept. Replicas and disks lag by less."""

MOST_BYTES = 32 * 2**20
"""The bound of these verbs in memory; the oldest are dropped."""


class _Ending(NamedTuple):
    at: float
    size: int
    verb: Verb


class KeptVerbs:
    """The open reservations of one worker, and the last ends."""

    def __init__(self) -> None:
        """Start empty."""
        self._open: dict[str, Reserve] = {}
        self._endings: dict[str, _Ending] = {}
        """By id, in the order of the answers."""
        self._bytes = 0

    def note(self, verb: Verb, answer: Answer, size: int, now: float) -> None:
        """Note an answered verb.

        Args:
            verb: the verb.
            answer: its answer.
            size: the verb's bytes, estimated.
            now: seconds on any steady clock.
        """
        if isinstance(answer, LedgerError):
            return
        event_id = verb.event_id
        if isinstance(verb, Reserve):
            if isinstance(answer, Reserved) and answer.admitted:
                self._open[event_id] = verb
                # Sent again, the release of an earlier form of this request would release this form.
                self._forget(event_id)
        elif isinstance(verb, Free):
            if (reserved := self._open.get(event_id)) is not None:
                freed = set(verb.accounts)
                left = [hold for hold in reserved.holds if hold.account not in freed]
                self._open[event_id] = reserved._replace(holds=left)
        else:
            self._open.pop(event_id, None)
            self._forget(event_id)
            self._endings[event_id] = _Ending(now, size, verb)
            self._bytes += size
            self._drop_old(now)

    def _forget(self, event_id: str) -> None:
        if (ending := self._endings.pop(event_id, None)) is not None:
            self._bytes -= ending.size

    def _drop_old(self, now: float) -> None:
        while self._endings:
            oldest = next(iter(self._endings))
            if self._endings[oldest].at >= now - KEPT_FOR and self._bytes <= MOST_BYTES:
                return
            self._forget(oldest)

    def verbs(self, worker: str, now: float) -> list[Verb]:
        """Return the verbs to send again, reservations under the name of `worker`."""
        self._drop_old(now)
        return [
            *(Reassert(r.event_id, worker, r.started_at, r.holds, r.event) for r in self._open.values()),
            *(ending.verb for ending in self._endings.values()),
        ]
