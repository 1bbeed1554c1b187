"""The operations log: records about limits and requests that decide nothing within a request's transaction.

It keeps adjustments of amounts, alerts, refusals, counts of anomalies, notes between workers and the privacy audit.
A ledger that keeps accounts elsewhere may use another ledger's operations log.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence


class Adjustment(NamedTuple):
    """A temporary change of a limit's amount for one subject. It never changes the amount spent.

    Attributes:
        number: assigned by the log; 0 before. One that was assigned by another log is kept.
        limit: the limit's name.
        subject: the names of the account, joined as in `AccountKey`.
        amount: the amount in force meanwhile, in the limit's unit; None: nothing is refused.
        before: the amount that was in force when it was made; None for unlimited.
        made_at: microseconds since 1970 UTC, as `until` (exclusive) and `ended_at`.
        ended_at: the time of an early end, or None.
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
    """The identity of one alert: limit, subject, window (the day, if the window rolls), threshold in percent."""

    limit_key: int
    subject: str
    window_start: int
    threshold: int


class NotedAlert(NamedTuple):
    """A recorded alert: a threshold that was crossed.

    Attributes:
        number: assigned by the log.
        at: microseconds since 1970 UTC, as `acknowledged_at`.
        details: JSON, as received.
        acknowledged_by: the person who acknowledged it; None: not acknowledged yet.
    """

    number: int
    key: AlertKey
    at: int
    details: str
    acknowledged_at: int | None = None
    acknowledged_by: str | None = None


class Anomaly(NamedTuple):
    """A count of inexact or exceptional facts, such as estimated or unreserved requests, by kind and object.

    Attributes:
        kind: for example `estimated`, `unpriced`, `recovered`, `orphaned`, `degraded`, `gap`.
        concerns: the object: a model, a limit, a store …; the counting side bounds the number of objects.
        times: the number of occurrences.
        amount: a sum whose unit depends on the kind: nano-dollars, or microseconds for durations.
        first_at: microseconds since 1970 UTC, as `last_at`.
    """

    kind: str
    concerns: str
    times: int
    amount: int
    first_at: int
    last_at: int


class RefusalCount(NamedTuple):
    """The number of a limit's refusals of a subject in one minute; `minute` in minutes since 1970 UTC."""

    minute: int
    limit: str
    subject: str
    reason: str
    times: int


class AuditEntry(NamedTuple):
    """An action on all records of a person.

    Attributes:
        number: as in `Adjustment`.
        at: microseconds since 1970 UTC.
        action: `forget` or `export`.
        subject: the person's pseudonym, never the name.
        counts: the number of records of each kind.
    """

    number: int
    at: int
    action: str
    subject: str
    actor: str
    reason: str
    counts: Mapping[str, int]


class OperationsLog(ABC):
    """Records for people and workers. Their loss never lets a request exceed a limit.

    Errors are the ledger's: `LedgerBusyError` means that another process is writing and nothing was done.
    """

    @abstractmethod
    def adjust(self, adjustment: Adjustment) -> Adjustment:
        """Put an adjustment in force, and keep it for the audit; return it with its number.

        If it has a number that the log knows, nothing is changed.
        """

    @abstractmethod
    def end_adjustment(self, number: int, at: int) -> bool:
        """End an adjustment early. False: it is not in force."""

    @abstractmethod
    def adjustments(self, since: int | None = None) -> list[Adjustment]:
        """Return the adjustments in force at `since` or later, oldest first; None: all, kept for at least a year."""

    @abstractmethod
    def adjustments_version(self) -> int:
        """Return a number that changes with each adjustment made or ended; cheap enough to call once a second."""

    @abstractmethod
    def alert(self, key: AlertKey, at: int, details: str = "") -> bool:
        """Record that a threshold was crossed. False: it was recorded before, by any worker."""

    @abstractmethod
    def keep_alert(self, alert: NotedAlert) -> None:
        """Record an alert of another log as it is, with its number. Nothing is changed if its number or key is known.

        Later alerts have higher numbers.
        """

    @abstractmethod
    def alerts(self, since: int, subjects: Collection[str] | None) -> list[NotedAlert]:
        """Return the alerts of these subjects at `since` or later, newest first; they are kept for at least a year.

        None: of all subjects.
        """

    @abstractmethod
    def acknowledge_alert(self, number: int, at: int, actor: str) -> bool:
        """Record the acknowledgement of an alert. False: the alert does not exist, or is already acknowledged."""

    @abstractmethod
    def count_refusals(self, counts: Sequence[RefusalCount], details: Sequence[tuple[str, int, str]]) -> None:
        """Add up refusals, and keep the last 10,000 details, `(ref, at, JSON)`, for look-up."""

    @abstractmethod
    def refusal_counts(self, since_minute: int) -> list[RefusalCount]:
        """Return the refusals counted from this minute on."""

    @abstractmethod
    def refusal(self, ref: str) -> str | None:
        """Return the details of a refusal by the ref that the client received; None if it is unknown."""

    @abstractmethod
    def refusals(self) -> list[tuple[str, int, str]]:
        """Return the kept details of refusals as `(ref, at, JSON)`, in the order in which they were counted."""

    @abstractmethod
    def count_anomalies(self, anomalies: Sequence[Anomaly]) -> None:
        """Add up anomalies by kind and object."""

    @abstractmethod
    def anomalies(self) -> list[Anomaly]:
        """Return all counted anomalies, ordered by kind and object."""

    @abstractmethod
    def note(self, name: str, text: str | None) -> None:
        """Leave a short text for other workers and readers; it replaces an earlier one, and None deletes it."""

    @abstractmethod
    def notes(self, prefix: str) -> dict[str, str]:
        """Return the notes whose names begin with a prefix."""

    @abstractmethod
    def audit(self, entry: AuditEntry) -> None:
        """Record an action on a person's records permanently. If it has a number that is known, nothing is changed."""

    @abstractmethod
    def audited(self) -> list[AuditEntry]:
        """Return the audit, oldest first."""

    @abstractmethod
    def maintain(self, now: int) -> None:
        """Delete a slice of the records whose retention has ended."""
