"""The ledger port: what the rest of the code may ask of whatever keeps accounts and reservations.

A ledger is exact because each verb is one atomic step: `reserve` checks every account and holds on all of them
or on none; `settle` frees the holds, adds what was spent and appends the event to the outbox, once for each
reservation, whoever asks how often.

A rolling window is a row of accounts, one for each bucket of time: what counts is their sum. A calendar window is the
case of one row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from usage_plugin.domain.profiles import UserProfile


class AccountKey(NamedTuple):
    """One limit for one subject in one window or bucket; `window_start` in microseconds since 1970 UTC."""

    limit_key: int
    window_start: int
    subject: str


class Hold(NamedTuple):
    """What a request takes from an account until it is settled.

    Attributes:
        window_end: when the account no longer counts anywhere, microseconds since 1970 UTC.
        amount: at most what the request will need, in the limit's unit.
        maximum: refuse if spent + reserved + amount would pass it; None never refuses.
        if_lost: what is charged if the worker dies and nobody knows what the request used.
        since: the start of the oldest bucket that counts beside this one; None where the account stands alone.
    """

    account: AccountKey
    window_end: int
    amount: int
    maximum: int | None
    if_lost: int
    since: int | None = None

    def fits(self, balance: Balance) -> bool:
        """Say whether the account has room."""
        return has_room(balance, self.amount, self.maximum)


class Balance(NamedTuple):
    """What an account has spent, and what open reservations hold on it, in the limit's unit."""

    spent: int = 0
    reserved: int = 0


def has_room(balance: Balance, amount: int, maximum: int | None) -> bool:
    """Say whether so much more stays within a maximum. What needs nothing always fits, and None is no maximum."""
    return maximum is None or not amount or balance.spent + balance.reserved + amount <= maximum


NOTHING = Balance()
"""The balance of an account that nobody has used."""


class Reserved(NamedTuple):
    """The answer to `reserve`: the balances *before* it, in the order of the holds, and whether it holds now.

    The balance of a hold with `since` is the sum over its buckets.
    """

    admitted: bool
    balances: tuple[Balance, ...]


class Settled(NamedTuple):
    """The answer to `settle`: the event's number in the outbox, and the balances of all accounts touched.

    Of a rolling window this is the balance of the one bucket, not of the window.
    """

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


class Waiting(NamedTuple):
    """What the store does not have yet: how many events, and how many bytes they take in the outbox."""

    events: int
    size: int


class Adjustment(NamedTuple):
    """A change of a limit's amount for one subject that ends by itself; never of what was spent.

    Attributes:
        number: given by the ledger; 0 before.
        limit: the limit's name.
        subject: whose account; as in `AccountKey`.
        amount: the amount in force meanwhile, in the limit's unit; None: nothing is refused.
        before: the amount that was in force when it was made; None for unlimited.
        made_at: microseconds since 1970 UTC, as `until` (exclusive) and `ended_at`.
        ended_at: when somebody ended it early, or None.
    """

    number: int
    limit: str
    subject: str
    amount: int | None
    before: int | None
    made_at: int
    until: int
    actor: str
    reason: str
    ended_at: int | None = None


class AlertKey(NamedTuple):
    """What is alerted once: a limit, a subject, a window (or the day, where it rolls) and a threshold in percent."""

    limit_key: int
    subject: str
    window_start: int
    threshold: int


class NotedAlert(NamedTuple):
    """A threshold that was passed, as it was noted.

    Attributes:
        number: given by the ledger.
        at: microseconds since 1970 UTC, as `acknowledged_at`.
        details: JSON, as it was handed over.
        acknowledged_by: who has seen to it; None: nobody yet.
    """

    number: int
    key: AlertKey
    at: int
    details: str
    acknowledged_at: int | None = None
    acknowledged_by: str | None = None


class Imperfection(NamedTuple):
    """Something that is not known exactly, or was let through: counted by its kind and by what it concerns.

    Attributes:
        kind: for example `estimated`, `unpriced`, `recovered`, `orphaned`, `degraded`, `gap`.
        concerns: a model, a limit, a store …; bounded by whoever counts.
        times: how often; `amount` adds up what the kind says: nano-dollars, or microseconds for what lasted.
        first_at: microseconds since 1970 UTC, as `last_at`.
    """

    kind: str
    concerns: str
    times: int
    amount: int
    first_at: int
    last_at: int


class RefusalCount(NamedTuple):
    """How often a limit refused a subject in one minute; `minute` in minutes since 1970 UTC."""

    minute: int
    limit: str
    subject: str
    reason: str
    times: int


class Naming(NamedTuple):
    """What has a name among the names of its subject: whose it is, whoever asked must tell.

    Attributes:
        refusals: refs, and details as they were handed over.
        entries: of the outbox, those that the store has and that have the name anywhere.
    """

    accounts: Sequence[Account]
    alerts: Sequence[NotedAlert]
    refusal_counts: Sequence[RefusalCount]
    refusals: Sequence[tuple[str, str]]
    adjustments: Sequence[Adjustment]
    entries: Sequence[OutboxEntry]


class Audited(NamedTuple):
    """That somebody did something with all that is kept of a person.

    Attributes:
        number: given by the ledger; 0 before.
        at: microseconds since 1970 UTC.
        action: `forget` or `export`.
        subject: the person's pseudonym, never the name.
        counts: how many records of each kind.
    """

    number: int
    at: int
    action: str
    subject: str
    actor: str
    reason: str
    counts: Mapping[str, int]


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
    def settle(self, event_id: str, charges: Sequence[Charge], event: str | None) -> Settled | None:
        """Free the reservation's holds, add the charges, append the event. None: it was settled before.

        Without an event, because no more of them can be kept, nothing is appended and the number is 0.
        """

    @abstractmethod
    def release(self, event_id: str) -> bool:
        """Free the holds of a request that never started: no event, no charge. False: it was settled before."""

    @abstractmethod
    def free(self, event_id: str, accounts: Sequence[AccountKey]) -> None:
        """Give back what a reservation holds on some accounts, before it is settled; the rest stays held."""

    @abstractmethod
    def record(self, charges: Sequence[Charge], event: str | None) -> Settled:
        """Add the charges and append the event of a request that was let through without a reservation.

        Without an event as in `settle`.
        """

    @abstractmethod
    def recover(self, event_id: str) -> Settled | None:
        """Settle with what the reservation carries: its event, and each hold's `if_lost`. None: settled before."""

    @abstractmethod
    def open_reservations(self) -> list[OpenReservation]:
        """List what is reserved and not settled, oldest first."""

    @abstractmethod
    def balances(self, keys: Sequence[AccountKey]) -> dict[AccountKey, Balance]:
        """Read accounts; those that do not exist have spent nothing."""

    @abstractmethod
    def buckets(self, limit_key: int, subject: str, since: int) -> list[Account]:
        """List the accounts of one limit and subject that start at `since` or later, oldest first."""

    @abstractmethod
    def accounts(self, limit_key: int, since: int) -> list[Account]:
        """List the accounts of one limit that start at `since` or later, by subject, oldest first."""

    @abstractmethod
    def seed(self, after: int, work_out: Callable[[Sequence[OutboxEntry]], Iterable[Charge]]) -> None:
        """Set what some accounts of a new limit have spent, in one transaction with the outbox.

        `work_out` gets every entry after that number and gives each account's whole sum, which is set, never added.
        """

    @abstractmethod
    def outbox(self, after: int, most: int) -> list[OutboxEntry]:
        """Read entries with a number above `after`, ascending, also acknowledged ones that are still there."""

    @abstractmethod
    def waiting(self) -> Waiting:
        """Say what the store does not have yet; cheap enough to be asked once a second."""

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
    def adjust(self, adjustment: Adjustment) -> Adjustment:
        """Put a change of an amount in force, and keep it for the audit; gives it with its number."""

    @abstractmethod
    def end_adjustment(self, number: int, at: int) -> bool:
        """End one early. False: it is not in force."""

    @abstractmethod
    def adjustments(self, since: int | None = None) -> list[Adjustment]:
        """List those in force at `since` or later; if None, all, for a year at least. Oldest first."""

    @abstractmethod
    def adjustments_version(self) -> int:
        """A number that changes with each adjustment made or ended; cheap enough to be asked once a second."""

    @abstractmethod
    def alert(self, key: AlertKey, at: int, details: str = "") -> bool:
        """Note that a threshold was passed. False: it was noted before, by whichever worker."""

    @abstractmethod
    def alerts(self, since: int, subjects: Collection[str]) -> list[NotedAlert]:
        """List what was noted of these subjects at `since` or later, for a year at least. Newest first."""

    @abstractmethod
    def acknowledge_alert(self, number: int, at: int, actor: str) -> bool:
        """Note who has seen to an alert. False: there is no such alert, or somebody has already."""

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
    def count(self, imperfections: Sequence[Imperfection]) -> None:
        """Add up what is not known exactly."""

    @abstractmethod
    def imperfections(self) -> list[Imperfection]:
        """List what was ever counted, by kind and what it concerns."""

    @abstractmethod
    def note(self, name: str, text: str | None) -> None:
        """Leave a short text for the other workers and for readers, in place of an earlier one; None takes it away."""

    @abstractmethod
    def notes(self, prefix: str) -> dict[str, str]:
        """Read the notes whose names begin so."""

    @abstractmethod
    def put_profiles(self, profiles: Sequence[UserProfile]) -> None:
        """Keep profiles; one that is not newer (`updated_at`) than what is there of its user changes nothing."""

    @abstractmethod
    def drop_profile(self, user: str) -> bool:
        """Forget a user's profile. False: there is none."""

    @abstractmethod
    def profile(self, user: str) -> UserProfile | None:
        """Give a user's profile."""

    @abstractmethod
    def profiles(self, after: str, most: int) -> list[UserProfile]:
        """List profiles by user, those behind a name; "" begins."""

    @abstractmethod
    def changed_profiles(self, after: int, most: int) -> list[tuple[int, UserProfile]]:
        """List profiles in the order of their last change, each with its number, above `after`."""

    @abstractmethod
    def profiles_version(self) -> int:
        """A number that grows with each profile put or dropped; cheap enough to be asked once a second."""

    @abstractmethod
    def naming(self, name: str) -> Naming:
        """List everything beside profiles that has a name among the names of its subject. Slow."""

    @abstractmethod
    def erase(self, naming: Naming) -> None:
        """Delete all of it, but for accounts on which something is held; entries of the outbox keep their number."""

    @abstractmethod
    def compact(self) -> None:
        """Leave no trace of what was deleted in any file. Slow; others wait for it."""

    @abstractmethod
    def audit(self, entry: Audited) -> None:
        """Keep for good what somebody did with a person's records."""

    @abstractmethod
    def audited(self) -> list[Audited]:
        """List all that was audited, oldest first."""

    @abstractmethod
    def verify(self) -> list[str]:
        """Look for what must never be: a damaged file, holds without a reservation, sums below zero. Slow."""

    @abstractmethod
    def tidy(self, now: int) -> None:
        """Do a slice of housekeeping: closed windows, old refusals; make what was written survive a power cut."""

    @abstractmethod
    def sync(self) -> None:
        """Make everything settled so far survive a power cut: a store must never be ahead of its ledger."""

    @abstractmethod
    def check_place(self) -> None:
        """Make sure that others who open the ledger now find this one; asked once a second, from any thread.

        Raises:
            LedgerError: it was deleted, or another stands in its place: it would count from nothing.
        """

    @abstractmethod
    def shorten_log(self) -> None:
        """Keep what the ledger writes ahead short; asked for several times a second, worth little each time."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the ledger. Nothing is lost by not calling this."""
