"""Verbs that wait for the answer of a ledger on a server: reservations with their requests, and posted verbs.

`PostedVerbs` bounds the posted ones, and knows when all that were posted up to now are answered. The order of verbs and
the sending are the task of `remote_request_ledger`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from usage_plugin.domain.ledger import NotSettled, Reserved, Settled
from usage_plugin.domain.ledger_batch import Free, Record, Reserve, Settle
from usage_plugin.errors import LedgerError
from usage_plugin.log import get_logger, short_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from usage_plugin.domain.ledger_batch import Answer, Verb
    from usage_plugin.domain.request_ledger import PostedSettlement

MOST_PENDING = 10_000
MOST_PENDING_BYTES = 64 * 2**20
"""The bounds of posted verbs in memory while the ledger does not take them. Beyond them the hold of a request stays and
is charged when this worker ends, and a line is logged."""

_VERB_BYTES = 256
_ACCOUNT_BYTES = 128
"""Estimates for a verb and for each of its accounts, without the subject's characters."""

log = get_logger()


class WaitingVerb(ABC):
    """A verb without an answer.

    Attributes:
        verb: the verb.
        size: its bytes, estimated.
        may_be_done: whether it was sent, so that the server may have done it.
    """

    __slots__ = ("may_be_done", "size", "verb")

    def __init__(self, verb: Verb) -> None:
        """Wrap a verb that was not sent yet."""
        self.verb = verb
        self.size = _size_of(verb)
        self.may_be_done = False

    @property
    def is_wanted(self) -> bool:
        """Whether it is to be sent."""
        return True

    @abstractmethod
    def finish(self, answer: Answer) -> bool:
        """Go on after the answer. False: another verb has taken the place of this one, and is to be sent."""


class WaitingReservation(WaitingVerb):
    """A reservation that a request awaits; it is not sent any more once the request was cancelled or answered.

    Attributes:
        future: its result is the answer, also if that is an error: asyncio logs exceptions that no task retrieves.
        since: the loop's time when the request began to wait.
    """

    __slots__ = ("future", "since")

    def __init__(self, verb: Reserve) -> None:
        """Make the future, in the running event loop."""
        super().__init__(verb)
        loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Reserved | LedgerError] = loop.create_future()
        self.since = loop.time()

    def wait_for(self, worker: str) -> None:
        """Wait on, under the worker's present name: the ledger has not done it, and will do it later."""
        if isinstance(self.verb, Reserve):
            self.verb = self.verb._replace(worker=worker)
        self.may_be_done = False

    @property
    def is_wanted(self) -> bool:
        """Whether the request still waits."""
        return not self.future.done()

    def finish(self, answer: Answer) -> bool:
        """Answer the request."""
        if not isinstance(answer, Reserved | LedgerError):
            answer = LedgerError(f"expected an answer to a reservation; found {answer!r}")
        if not self.future.done():
            self.future.set_result(answer)
        return True


class PostedVerb(WaitingVerb):
    """A verb that no request awaits.

    Attributes:
        number: its place among all posted verbs.
    """

    __slots__ = ("number",)

    def __init__(self, verb: Verb) -> None:
        """Wrap a verb; `PostedVerbs.add` gives it a number."""
        super().__init__(verb)
        self.number = 0

    def finish(self, answer: Answer) -> bool:
        """Log an error; the holds remain until the worker ends, which is the safe side."""
        if isinstance(answer, LedgerError):
            log.error(
                "ledger.verb_failed", verb=type(self.verb).__name__, event_id=self.verb.event_id, **short_error(answer)
            )
        return True

    def give_up(self) -> None:
        """Log that it is not sent any more."""
        log.error("ledger.verb_dropped", verb=type(self.verb).__name__, event_id=self.verb.event_id)


class WaitingSettlement(PostedVerb):
    """A posted settlement. If the ledger does not know its reservation, it is recorded nevertheless: it is owed."""

    __slots__ = ("_settlement",)

    def __init__(self, settlement: PostedSettlement, key: str) -> None:
        """Settle the reservation, or record a request without one."""
        kind = Settle if settlement.is_reserved else Record
        super().__init__(kind(settlement.event_id, settlement.charges, settlement.event, key))
        self._settlement = settlement

    def finish(self, answer: Answer) -> bool:
        """Tell the settlement that it is written, unless its request had ended before."""
        if answer is NotSettled.UNKNOWN and isinstance(self.verb, Settle):
            self.verb = Record(*self.verb)
            return False
        if isinstance(answer, Settled):
            was_unknown = self._settlement.is_reserved and isinstance(self.verb, Record)
            self._settlement.written(answer, was_unknown=was_unknown)
        elif answer is not NotSettled.BEFORE:
            super().finish(answer)
            self.give_up()
        return True

    def give_up(self) -> None:
        """Tell the settlement."""
        self._settlement.given_up()


class PostedVerbs:
    """The posted verbs without an answer, in their order."""

    def __init__(self) -> None:
        """Start empty."""
        self._verbs: dict[int, PostedVerb] = {}
        self._last_number = 0
        self._bytes = 0
        self._drains: list[tuple[int, asyncio.Future[None]]] = []
        self.settlements = 0

    def __len__(self) -> int:
        """Return the number of verbs."""
        return len(self._verbs)

    def __iter__(self) -> Iterator[PostedVerb]:
        """Iterate over the verbs; the set must not change meanwhile."""
        return iter(self._verbs.values())

    def add(self, posted: PostedVerb) -> bool:
        """Add a verb; False if there is no room."""
        if len(self._verbs) >= MOST_PENDING or self._bytes + posted.size > MOST_PENDING_BYTES:
            return False
        self._last_number += 1
        posted.number = self._last_number
        self._verbs[posted.number] = posted
        self._bytes += posted.size
        self.settlements += isinstance(posted, WaitingSettlement)
        return True

    def remove(self, posted: PostedVerb) -> None:
        """Remove a verb that is answered or given up."""
        del self._verbs[posted.number]
        self._bytes -= posted.size
        self.settlements -= isinstance(posted, WaitingSettlement)
        if self._drains:
            oldest = next(iter(self._verbs), self._last_number + 1)
            for number, future in self._drains:
                if number < oldest and not future.done():
                    future.set_result(None)
            self._drains = [drain for drain in self._drains if not drain[1].done()]

    def drained(self) -> asyncio.Future[None]:
        """Return a future that is done once all verbs that are posted now are answered, regardless of later ones."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._verbs:
            self._drains.append((self._last_number, future))
        else:
            future.set_result(None)
        return future


def _size_of(verb: Verb) -> int:
    size = _VERB_BYTES + len(getattr(verb, "event", None) or "")
    if isinstance(verb, Reserve):
        accounts = [hold.account for hold in verb.holds]
    elif isinstance(verb, Settle | Record):
        accounts = [charge.account for charge in verb.charges]
    elif isinstance(verb, Free):
        accounts = list(verb.accounts)
    else:
        accounts = []
    return size + sum([_ACCOUNT_BYTES + len(account.subject) for account in accounts])
