"""The operations log: records about limits and requests that decide nothing within a request's transaction.

Adjustments of amounts, alerts, refusals, counts of anomalies, short notes between workers, and the audit of privacy. A
ledger that keeps accounts elsewhere may use another ledger's operations log.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence


class Adjustment(NamedTuple):
    """A temporary change of a limit's amount for one subject; never of what was spent.

    Attributes:
        number: given by the log; 0 before.
        limit: the limit's name.
        subject: the account's, as in `AccountKey`.
        amount: the amount in force meanwhile, in the limit's unit; None: nothing is refused.
        before: the amount that was in force when it was made; None for unlimited.
        made_at: microseconds since 1970 UTC, as `until` (exclusive) and `ended_at`.
        ended_at: when it was ended early, or None.
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
    """The identity of one alert: a limit, a subject, a window (or the day, where it rolls), a threshold in percent."""

    limit_key: int
    subject: str
    window_start: int
    threshold: int


class NotedAlert(NamedTuple):
    """A recorded alert: a threshold that was passed.

    Attributes:
        number: given by the log.
        at: microseconds since 1970 UTC, as `acknowledged_at`.
        details: JSON, as it was handed over.
        acknowledged_by: the person who has seen to it; None: not acknowledged yet.
    """

    number: int
    key: AlertKey
    at: int
    details: str
    acknowledged_at: int | None = None
    acknowledged_by: str | None = None


class Anomaly(NamedTuple):
    """A count of facts that are not known exactly, or were let through, by kind and by what it concerns.

    Attributes:
        kind: for example `estimated`, `unpriced`, `recovered`, `orphaned`, `degraded`, `gap`.
        concerns: a model, a limit, a store …; bounded by the counting side.
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


class AuditEntry(NamedTuple):
    """An action on all that is kept of a person.

    Attributes:
        number: given by the log; 0 before.
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


class OperationsLog(ABC):
    """Records that people and workers read; a loss of them never lets a request pass a limit.

    Errors are the ledger's: `LedgerBusyError` means that another process is writing and nothing was done.
    """

    @abstractmethod
    def adjust(self, adjustment: Adjustment) -> Adjustment:
        """Put a change of an amount in force, and keep it for the audit; return it with its number."""

    @abstractmethod
    def end_adjustment(self, number: int, at: int) -> bool:
        """End one early. False: it is not in force."""

    @abstractmethod
    def adjustments(self, since: int | None = None) -> list[Adjustment]:
        """List those in force at `since` or later; if None, all, for a year at least. Oldest first."""

    @abstractmethod
    def adjustments_version(self) -> int:
        """Return a number that changes with each adjustment made or ended; cheap enough for once a second."""

    @abstractmethod
    def alert(self, key: AlertKey, at: int, details: str = "") -> bool:
        """Record that a threshold was passed. False: it was recorded before, by any worker."""

    @abstractmethod
    def alerts(self, since: int, subjects: Collection[str]) -> list[NotedAlert]:
        """List the alerts of these subjects at `since` or later, for a year at least. Newest first."""

    @abstractmethod
    def acknowledge_alert(self, number: int, at: int, actor: str) -> bool:
        """Record who has seen to an alert. False: there is no such alert, or it is acknowledged already."""

    @abstractmethod
    def count_refusals(self, counts: Sequence[RefusalCount], details: Sequence[tuple[str, int, str]]) -> None:
        """Add up refusals, and keep the last 10,000 `(ref, at, JSON)` for look-up."""

    @abstractmethod
    def refusal_counts(self, since_minute: int) -> list[RefusalCount]:
        """List the refusals counted from this minute on."""

    @abstractmethod
    def refusal(self, ref: str) -> str | None:
        """Return the details of a refusal by the ref that the client was given."""

    @abstractmethod
    def count_anomalies(self, anomalies: Sequence[Anomaly]) -> None:
        """Add up anomalies by kind and by what they concern."""

    @abstractmethod
    def anomalies(self) -> list[Anomaly]:
        """List all that were counted, by kind and by what they concern."""

    @abstractmethod
    def note(self, name: str, text: str | None) -> None:
        """Leave a short text for other workers and readers, in place of an earlier one; None deletes it."""

    @abstractmethod
    def notes(self, prefix: str) -> dict[str, str]:
        """Read the notes whose names begin with a prefix."""

    @abstractmethod
    def audit(self, entry: AuditEntry) -> None:
        """Keep for good what was done with a person's records."""

    @abstractmethod
    def audited(self) -> list[AuditEntry]:
        """List the audit, oldest first."""

    @abstractmethod
    def maintain(self, now: int) -> None:
        """Delete a slice of the records that are older than they are kept."""
