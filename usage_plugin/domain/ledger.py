"""The ledger port: accounts, reservations and the outbox, which change together or not at all.

A ledger is exact because each verb is one atomic step. `reserve` checks every account and holds on all of them or on
none. `settle` frees the holds, adds the spend and appends the event to the outbox, once for each reservation.

A rolling window has one account for each bucket of time, and their sum counts. A calendar window has one account.

Records that decide nothing about a request are in ports of their own: `operations`, `profiles` and `erasure`.
`open_ledger` combines the parts, as a backend opens them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class AccountKey(NamedTuple):
    """One limit for one subject in one window or bucket.

    Attributes:
        limit_key: a number that identifies the limit, from 0 to 2**63 - 1.
        window_start: microseconds since 1970 UTC.
        subject: the names of the limit's dimensions, such as user and model, joined by U+001F, which no name contains.
            `split_subject` returns them.
    """

    limit_key: int
    window_start: int
    subject: str


class Hold(NamedTuple):
    """The amount that a request takes from an account until it is settled.

    Attributes:
        window_end: the time from which the account no longer counts anywhere, microseconds since 1970 UTC.
        amount: the maximum that the request can need, in the limit's unit.
        maximum: refuse if spent + reserved + amount would exceed it; None never refuses.
        if_lost: the charge if the worker dies and the request's usage stays unknown.
        since: the start of the oldest bucket that counts with this one; None if the account counts alone.
    """

    account: AccountKey
    window_end: int
    amount: int
    maximum: int | None
    if_lost: int
    since: int | None = None

    def fits(self, balance: Balance) -> bool:
        """Whether the account has room."""
        return has_room(balance, self.amount, self.maximum)


class Balance(NamedTuple):
    """The amount an account has spent, and the amount open reservations hold on it, in the limit's unit."""

    spent: int = 0
    reserved: int = 0


def has_room(balance: Balance, amount: int, maximum: int | None) -> bool:
    """Whether an amount stays within a maximum. An amount of 0 always fits; None means unlimited."""
    return maximum is None or not amount or balance.spent + balance.reserved + amount <= maximum


NOTHING = Balance()
"""The balance of an unused account."""


_NO_BUCKETS: Mapping[AccountKey, Sequence[Account]] = MappingProxyType({})


class Reserved(NamedTuple):
    """The answer to `reserve`: the balances *before* it, in the order of the holds, and whether it holds now.

    Attributes:
        balances: for a hold with `since`, the sum over its buckets.
        buckets: after a refusal, the accounts of each hold with `since` that did not fit, oldest first.
    """

    admitted: bool
    balances: tuple[Balance, ...]
    buckets: Mapping[AccountKey, Sequence[Account]] = _NO_BUCKETS


class Settled(NamedTuple):
    """The answer to `settle`: the event's number in the outbox, and the balances of all changed accounts.

    For a rolling window this is the balance of one bucket, not of the window.
    """

    seq: int
    balances: Mapping[AccountKey, Balance]


class NotSettled(Enum):
    """The answers of `settle` where it changed nothing; both are false.

    Attributes:
        BEFORE: the reservation ended before. This settlement is a repetition, or too late: ignore it.
        UNKNOWN: the ledger never had this reservation, or no longer knows it. Record the event instead.
    """

    BEFORE = "settled before"
    UNKNOWN = "never known here"

    def __bool__(self) -> bool:
        """Return False."""
        return False


class Charge(NamedTuple):
    """The amount that a settled request adds to an account."""

    account: AccountKey
    window_end: int
    amount: int


class Account(NamedTuple):
    """An account with its balance, for reports."""

    key: AccountKey
    window_end: int
    balance: Balance


class Snapshot(NamedTuple):
    """Balances and the newest number of the outbox, at one instant."""

    seq: int
    balances: dict[AccountKey, Balance]


class OutboxEntry(NamedTuple):
    """An encoded event with its number. Numbers ascend in the order of settlement and are never reused."""

    seq: int
    event: str


class OpenReservation(NamedTuple):
    """A reservation that is not settled; `event` is recorded if its worker dies.

    Attributes:
        holds: those that were not freed, if they were asked for. Their `maximum` and `since` are None, since only
            `reserve` needs them.
    """

    event_id: str
    worker: str
    started_at: int
    event: str
    holds: tuple[Hold, ...] = ()


class OutboxBacklog(NamedTuple):
    """The events that the store does not have yet: their number, and their bytes in the outbox."""

    events: int
    size: int


class Ledger(ABC):
    """Accounts, reservations and the outbox, kept together so that they change together.

    All verbs are synchronous and short: those of requests run on the event loop, which serves all others meanwhile.
    `LedgerBusyError` means that another process is writing at this instant and nothing was done. It is raised at once,
    or after a few milliseconds: callers wait and try again. `LedgerError` means that the ledger does not work.

    A reservation has ended when it was settled, recorded, released, recovered or abandoned. Its id is known for at
    least ten minutes, and an abandoned one for at least a day, by the `now` of `maintain`: a ledger has no clock. A
    ledger that many hosts share knows a recovered one for a day too: its host may be cut off for hours, then settle it.

    Events are JSON, as text. A ledger reads them only to find a name in them (`Erasable`).

    Attributes:
        writer: identifies this ledger's outbox for ever; stores keep one watermark for each writer.
        location: the file, or the address without credentials, for people.
    """

    writer: str
    location: str

    # ── reservations ─────────────────────────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def reserve(self, event_id: str, worker: str, started_at: int, holds: Sequence[Hold], event: str) -> Reserved:
        """Hold on every account, or on none if one has no room. `event` is recorded if the worker dies.

        It is idempotent: while the reservation is open, the same content returns the same answer and holds nothing
        more. An abandoned id is not admitted, and holds nothing. Callers reserve no other id that has ended.

        Args:
            event_id: the id of the request.
            worker: the name of the worker, by which the keeper finds reservations of dead ones.
            started_at: microseconds since 1970 UTC.
            holds: at most one for each account; none for a request without limits.
            event: the event of a request that was lost.

        Raises:
            ReservationConflictError: the id is reserved with other content.
        """

    @abstractmethod
    def settle(self, event_id: str, charges: Sequence[Charge], event: str | None) -> Settled | NotSettled:
        """Free the reservation's holds, add the charges, append the event.

        Several charges of one account add up. An account is created if it does not exist.

        Without an event, because the outbox cannot keep more, nothing is appended and the number is 0.
        """

    @abstractmethod
    def release(self, event_id: str) -> bool:
        """Free the holds of a request that never started: no event, no charge. False: it ended before, in any way.

        For an id that was never reserved nothing changes, and either answer is right.
        """

    @abstractmethod
    def abandon(self, event_id: str) -> bool:
        """Give up a reservation whose answer is unknown: release it, and let it hold nothing if it arrives later.

        True also for an id that was never reserved. False: it ended before, in any way.
        """

    @abstractmethod
    def free(self, event_id: str, accounts: Sequence[AccountKey]) -> None:
        """Free a reservation's holds on some accounts before it ends; the rest stays held.

        Called by the worker that reserved. Accounts without a hold and reservations that are not open are ignored.
        """

    @abstractmethod
    def record(self, event_id: str, charges: Sequence[Charge], event: str | None) -> Settled | None:
        """Add the charges and append the event of a request that was admitted without a reservation.

        If it has a reservation after all, that is freed. None: the id ended before, in any way, and nothing was done.
        Without an event, it does the same as `settle`.
        """

    @abstractmethod
    def recover(self, event_id: str) -> Settled | None:
        """Settle with the reservation's own event, and the `if_lost` of each hold that was not freed.

        None: the reservation is not open, and nothing was done.
        """

    @abstractmethod
    def open_reservations(self, *, with_holds: bool = False) -> list[OpenReservation]:
        """List the reservations that are not settled, oldest first; without their holds, unless asked for."""

    # ── accounts ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def snapshot(self, keys: Sequence[AccountKey]) -> Snapshot:
        """Return the balances of accounts and the outbox's last number at one instant.

        Every key is in the answer; an account that does not exist has the balance `NOTHING`, and is not created.
        """

    def balances(self, keys: Sequence[AccountKey]) -> dict[AccountKey, Balance]:
        """Return the balances of accounts, as `snapshot` does."""
        return self.snapshot(keys).balances

    @abstractmethod
    def accounts(self, limit_key: int, since: int, subject: str | None = None) -> list[Account]:
        """List the accounts of one limit that start at `since` or later, by subject, oldest first.

        With a subject, only the accounts of that subject.
        """

    @abstractmethod
    def every_account(self) -> Iterator[Account]:
        """Iterate over all accounts, in any order and in bounded memory. Not one instant, if others write."""

    @abstractmethod
    def correct(self, correction_id: str, differences: Sequence[Charge]) -> bool:
        """Add differences, which may be negative, to accounts' spend. False: this id was applied before.

        A difference that was computed from a snapshot stays right, however much is settled after it. Ids are
        remembered as long as those of events.
        """

    # ── the outbox ───────────────────────────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def outbox(self, after: int, most: int, *, durable: bool = False) -> list[OutboxEntry]:
        """Return entries with a number above `after`, ascending, including acknowledged ones that still exist.

        With `durable`, no entry is returned before it would survive a power cut: a store must never be ahead of its
        ledger.
        """

    @abstractmethod
    def waiting(self) -> OutboxBacklog:
        """Return the number and the size of the events that the store lacks; cheap enough to call once a second."""

    @abstractmethod
    def acknowledged(self) -> int:
        """Return the number up to which the store has everything."""

    @abstractmethod
    def acknowledge(self, seq: int) -> None:
        """Record that the store has everything up to this number; the entries may be deleted."""

    @abstractmethod
    def agree(self, stored: int) -> None:
        """Reconcile outbox numbers with the store's watermark after either was restored from a backup.

        Unacknowledged entries with a number that the store has seen get new numbers, since they may be other events.
        They keep their order, behind all other entries. The store recognizes an event that it receives twice. No number
        up to `stored` is assigned again, and `stored` is acknowledged.
        """

    # ── upkeep ───────────────────────────────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def maintain(self, now: int) -> None:
        """Do a slice of housekeeping, and make all settlements durable. The keeper calls it once a second.

        Accounts without a hold are deleted when more than a day has passed since their `window_end`.

        Args:
            now: microseconds since 1970 UTC. It never jumps ahead, as a clock may: deleted accounts would be lost.
        """

    @abstractmethod
    def verify(self) -> list[str]:
        """Describe damage: a broken file, holds without a reservation, sums below zero. Slow."""

    @abstractmethod
    def close(self) -> None:
        """Close the ledger. Nothing is lost by not calling this."""
