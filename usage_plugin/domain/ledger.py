"""The ledger port: what the rest of the code may ask of whatever keeps accounts and reservations.

A ledger is exact because each verb is one atomic step: `reserve` checks every account and holds on all of them
or on none; `settle` frees the holds, adds what was spent and appends the event to the outbox, once for each
reservation, whoever asks how often.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class AccountKey(NamedTuple):
    """One limit for one subject in one window; `window_start` in microseconds since 1970 UTC."""

    limit_key: int
    window_start: int
    subject: str


class Hold(NamedTuple):
    """What a request takes from an account until it is settled.

    Attributes:
        window_end: when the account's window ends, microseconds since 1970 UTC.
        amount: at most what the request will need, in the limit's unit.
        maximum: refuse if spent + reserved + amount would pass it; None never refuses.
    """

    account: AccountKey
    window_end: int
    amount: int
    maximum: int | None

    def fits(self, balance: Balance) -> bool:
        """Say whether the account has room. What needs nothing always fits."""
        return self.maximum is None or not self.amount or balance.spent + balance.reserved + self.amount <= self.maximum


class Balance(NamedTuple):
    """What an account has spent, and what open reservations hold on it, in the limit's unit."""

    spent: int = 0
    reserved: int = 0


NOTHING = Balance()
"""The balance of an account that nobody has used."""


class Reserved(NamedTuple):
    """The answer to `reserve`: the balances *before* it, in the order of the holds, and whether it holds now."""

    admitted: bool
    balances: tuple[Balance, ...]


class Settled(NamedTuple):
    """The answer to `settle`: the event's number in the outbox, and the balances of all accounts touched."""

    seq: int
    balances: Mapping[AccountKey, Balance]


class Charge(NamedTuple):
    """What a settled request adds to an account."""

    account: AccountKey
    window_end: int
    amount: int


class Account(NamedTuple):
    """An account as it stands, for reports."""

    key: AccountKey
    window_end: int
    balance: Balance


class OutboxEntry(NamedTuple):
    """An encoded event, and its number: ascending, never used twice, in the order of settling."""

    seq: int
    event: str


class OpenReservation(NamedTuple):
    """A reservation nobody has settled; `event` is what will be recorded if nobody does."""

    event_id: str
    worker: str
    started_at: int
    event: str


class RefusalCount(NamedTuple):
    """How often a limit refused a subject in one minute; `minute` in minutes since 1970 UTC."""

    minute: int
    limit: str
    subject: str
    reason: str
    times: int


class Ledger(ABC):
    """Accounts, reservations and the outbox, kept together so that they change together.

    All verbs of the request path are synchronous and short. `LedgerBusyError` means that another process is
    writing at this instant and nothing was done; `LedgerError` that the ledger does not work.
    """

    writer: str
    """Identifies this ledger's outbox for ever: stores keep one watermark for each writer."""

    location: str
    """Where it is, for people: a file, or an address without credentials."""

    @abstractmethod
    def reserve(self, event_id: str, worker: str, started_at: int, holds: Sequence[Hold], event: str) -> Reserved:
        """Hold on every account, or on none if one has no room. `event` is recorded if the worker dies."""

    @abstractmethod
    def settle(self, event_id: str, charges: Sequence[Charge], event: str) -> Settled | None:
        """Free the reservation's holds, add the charges, append the event. None: it was settled before."""

    @abstractmethod
    def recover(self, event_id: str) -> Settled | None:
        """Settle at the reserved amounts, with the event the reservation carries. None: settled before."""

    @abstractmethod
    def open_reservations(self) -> list[OpenReservation]:
        """List what is reserved and not settled, oldest first."""

    @abstractmethod
    def balances(self, keys: Sequence[AccountKey]) -> dict[AccountKey, Balance]:
        """Read accounts; those that do not exist have spent nothing."""

    @abstractmethod
    def accounts(self, limit_key: int, window_start: int) -> list[Account]:
        """List the accounts of one limit in one window, by subject."""

    @abstractmethod
    def outbox(self, after: int, most: int) -> list[OutboxEntry]:
        """Read entries with a number above `after`, ascending, also acknowledged ones that are still there."""

    @abstractmethod
    def acknowledged(self) -> int:
        """Give the number up to which the store has everything."""

    @abstractmethod
    def acknowledge(self, seq: int) -> None:
        """Note that the store has everything up to this number; the entries may go."""

    @abstractmethod
    def agree(self, stored: int) -> None:
        """Go on from what the store has, whichever of the two was restored from a backup.

        Entries that are not acknowledged but have a number that the store has seen get new numbers, since they may
        be others; the store knows an event that it gets twice. No number up to `stored` is given out again.
        """

    @abstractmethod
    def count_refusals(self, counts: Sequence[RefusalCount], details: Sequence[tuple[str, int, str]]) -> None:
        """Add up refusals, and keep the last 10,000 `(ref, at, JSON)` for look-up."""

    @abstractmethod
    def refusal_counts(self, since_minute: int) -> list[RefusalCount]:
        """List the refusals counted from this minute on."""

    @abstractmethod
    def refusal(self, ref: str) -> str | None:
        """Find the details of a refusal by the ref the client was told."""

    @abstractmethod
    def tidy(self, now: int) -> None:
        """Do a slice of housekeeping: closed windows, old refusals; make what was written survive a power cut."""

    @abstractmethod
    def shorten_log(self) -> None:
        """Keep what the ledger writes ahead short; asked for several times a second, worth little each time."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the ledger. Nothing is lost by not calling this."""
