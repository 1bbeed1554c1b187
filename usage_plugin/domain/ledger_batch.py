"""The batch port: the verbs of the request path as values, of which a ledger on a server takes many in one call.

The verbs mean the same as the methods of `Ledger`. Those that cross a network may arrive although their answer is lost,
so each can be sent again. `tracking.admission.remote_request_ledger` sends them; ledgers on a server implement
`LedgerTransport`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, Union

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


class Settle(NamedTuple):
    """Free the holds of a reservation, add the charges, append the event.

    Attributes:
        key: identifies this settlement among others of the same reservation. Sent again with the same key it is
            answered `Settled` again, with the same number; with another one `NotSettled.BEFORE`.
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


Verb: TypeAlias = Union[Reserve, Settle, Record, Release, Abandon, Free]  # noqa: UP007  # read at run time on 3.10

Answer: TypeAlias = Union[Reserved, Settled, NotSettled, LedgerError, None]  # noqa: UP007
"""`Reserved` for `Reserve`, `Settled` or `NotSettled` for `Settle` and `Record`, None for the others. A `LedgerError`
for a verb that can never be done, for example because its text cannot be encoded."""


class LedgerTransport(Protocol):
    """The connection of one worker to a ledger on a server."""

    async def send(self, batch: Sequence[Verb]) -> Sequence[Answer]:
        """Do a batch in one atomic step, each verb in its turn, and return the answer to each.

        One call is under way at a time; it is cancelled if it takes too long. A batch that failed may still arrive at
        the server, but it must change nothing there once a later batch was done. A verb that can never be done has a
        `LedgerError` as its answer, and does not stop the others. An empty batch fails unless the server can write.

        Raises:
            LedgerBusyError: Nothing was done, for example because there is no connection.
            LedgerError: It is unknown whether the batch was done.
        """
