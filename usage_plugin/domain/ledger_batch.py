"""The batch port: the verbs of the request path as values, of which a ledger on a server takes many in one call.

The verbs mean the same as the methods of `Ledger`. Those that cross a network may arrive although their answer is lost,
so each can be sent again. `tracking.admission.remote_request_ledger` sends them; ledgers on a server implement
`LedgerTransport`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, Union

from usage_plugin.domain.ledger import NotSettled, Reserved, Settled
from usage_plugin.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usage_plugin.domain.ledger import AccountKey, Charge, Hold


class Reserve(NamedTuple):
    """Hold on every account, or on none. Sent again while it is open, it has the same answer and holds nothing more."""

    event_id: str
    worker: str
    started_at: int
    holds: Sequence[Hold]
    event: str


class Reassert(NamedTuple):
    """Send an open reservation again to a server that may have lost it.

    For an id that the ledger does not know, or that was released, hold on every account, even beyond its maximum. For
    an open reservation, worker, holds and event are replaced by these. An id that has ended in another way than by
    `Release` changes nothing.

    Attributes:
        holds: those that were not freed.
    """

    event_id: str
    worker: str
    started_at: int
    holds: Sequence[Hold]
    event: str


class Settle(NamedTuple):
    """Free the holds of a reservation, add the charges, append the event.

    Attributes:
        key: identifies this settlement among others of the same reservation. Sent again with the same key it is
            answered `Settled` again, with the same number and the present balances of the charged accounts; with
            another one `NotSettled.BEFORE`. The settlements of a transport's last batch are known for at least a day.
    """

    event_id: str
    charges: Sequence[Charge]
    event: str | None
    key: str


class Record(NamedTuple):
    """Add the charges and append the event of a request without a reservation; `key` as for `Settle`."""

    event_id: str
    charges: Sequence[Charge]
    event: str | None
    key: str


class Release(NamedTuple):
    """Free the holds of a request that never started. The id may be reserved again."""

    event_id: str


class Abandon(NamedTuple):
    """Give up a reservation whose answer is unknown: it holds nothing, also if it arrives later."""

    event_id: str


class Free(NamedTuple):
    """Free a reservation's holds on some accounts."""

    event_id: str
    accounts: Sequence[AccountKey]


Verb: TypeAlias = Union[  # noqa: UP007  # read at run time on 3.10
    Reserve, Settle, Record, Release, Abandon, Free, Reassert
]

Answer: TypeAlias = Union[Reserved, Settled, NotSettled, LedgerError, None]  # noqa: UP007
"""`Reserved` for `Reserve`, `Settled` or `NotSettled` for `Settle` and `Record`, None for the others. A `LedgerError`
for a verb that can never be done, for example because its text cannot be encoded.

Three errors of a `Reserve` leave the ledger unchanged: `LedgerBusyError` while the ledger is closed for reservations,
`WorkerLostError` if its worker is not a member of the fleet (also for `Reassert`), and `LedgerError` if the time of the
batch is more than `MOST_CLOCK_DIFFERENCE` off the server's.
"""

MOST_CLOCK_DIFFERENCE = 5_000_000
"""Microseconds by which the time of a batch may differ from the server's. With a wrong time, a reservation would count
in a wrong window."""


class LedgerTransport(ABC):
    """The connection of one worker to a ledger on a server."""

    @abstractmethod
    async def send(self, batch: Sequence[Verb]) -> Sequence[Answer]:
        """Do a batch in one atomic step, each verb in its turn, and return the answer to each.

        One call is under way at a time; it is cancelled if it takes too long. A batch that failed may still arrive at
        the server, but it must change nothing there once a later batch was done. A verb that can never be done has a
        `LedgerError` as its answer, and does not stop the others. An empty batch fails unless the server can write.

        A batch carries the time at which it is sent, and an incarnation: that of the first batch's answer, or of the
        last `accept`.

        Raises:
            LedgerBusyError: Nothing was done, for example because there is no connection.
            LedgerReplacedError: The server's incarnation is another one. Nothing was done.
            LedgerError: It is unknown whether the batch was done.
        """

    @abstractmethod
    def accept(self) -> None:
        """Carry the incarnation of the last `LedgerReplacedError` from now on."""

    @abstractmethod
    async def reasserted(self, worker: str) -> None:
        """State that a member has sent everything again to the incarnation that batches carry.

        The ledger opens for reservations once all members have.

        Raises:
            WorkerLostError: There is no such member.
            LedgerReplacedError: The server's incarnation is another one.
            LedgerError: The server does not answer.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close the connection."""
