"""The request ledger port: the ledger as the request path uses it.

A request awaits only its reservation. All other changes are posted: they are written as soon as possible, retried until
the ledger has taken them, and lost only with the worker, whose reservations are recovered then. A ledger in a local
file writes them at once, and nothing suspends.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usage_plugin.domain.ledger import Account, AccountKey, Charge, Hold, Reserved, Settled


class PostedSettlement(ABC):
    """A settlement, and the actions after it is written.

    Attributes:
        event_id: The id of the reservation and of its event.
        charges: The amounts that it adds to accounts.
        event: The encoded event; None if the outbox can keep no more, so that only the accounts are charged.
        is_reserved: Whether the request has a reservation.
    """

    __slots__ = ()

    event_id: str
    charges: Sequence[Charge]
    event: str | None
    is_reserved: bool

    @abstractmethod
    def written(self, settled: Settled, *, was_unknown: bool) -> None:
        """Go on after it is written; not called if the id had ended before.

        Args:
            settled: The answer of the ledger.
            was_unknown: Whether the ledger had no reservation of that id, although there should be one. The usage is
                recorded nevertheless, since it is owed.
        """

    @abstractmethod
    def given_up(self) -> None:
        """Go on after it cannot be written at all; the hold is charged when the worker ends."""


class RequestLedger(ABC):
    """Reserves, and takes the posts of the request path. Used by one event loop."""

    @abstractmethod
    async def reserve(self, event_id: str, worker: str, started_at: int, holds: Sequence[Hold], event: str) -> Reserved:
        """Hold on every account, or on none, as `Ledger.reserve`. Wait while other processes write.

        Raises:
            LedgerError: The ledger does not work, or does not answer in time. The reservation may exist nevertheless,
                so `abandon` it.
        """

    @abstractmethod
    async def accounts(self, limit_key: int, since: int, subject: str) -> Sequence[Account]:
        """Return the accounts of one limit and subject, as `Ledger.accounts`.

        Raises:
            LedgerError: The ledger does not work, or does not answer in time.
        """

    @abstractmethod
    def abandon(self, event_id: str) -> None:
        """Post that a reservation whose answer is unknown is given up."""

    @abstractmethod
    async def release(self, event_id: str) -> bool:
        """Free the holds of a request that did not start, before it reserves again; return whether that succeeded."""

    @abstractmethod
    def free(self, event_id: str, accounts: Sequence[AccountKey]) -> None:
        """Post that a reservation's holds on some accounts are freed; the others stay."""

    @abstractmethod
    def settle(self, settlement: PostedSettlement) -> None:
        """Post a settlement. If it is written at once, `settlement.written` is called before this returns."""

    @abstractmethod
    def withdraw(self, event_id: str) -> bool:
        """Remove a posted settlement that is not written yet; return whether there was one.

        One that may be written although its answer is missing stays, and is retried: False.
        """

    @property
    @abstractmethod
    def pending(self) -> int:
        """The number of posted settlements that are not written yet."""

    @abstractmethod
    async def drain(self, seconds: float) -> None:
        """Write the posted changes, for at most this time."""

    @abstractmethod
    async def close(self, seconds: float) -> None:
        """Write the posted changes, for at most this time, and take no more.

        The rest stays reserved, and is recovered when this worker has ended.
        """
