"""Make the records of one ledger equal to those of another, through the ports alone.

Nothing else may use the two ledgers meanwhile. Each kind of record is read on both sides, and only the differences are
written. So the copy may stop anywhere and begin again, also in a ledger that has an older copy of the same records.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from usage_plugin.domain.erasure import NameMatches
from usage_plugin.domain.ledger import Charge
from usage_plugin.errors import MoveError
from usage_plugin.moving import mark
from usage_plugin.tracking.admission import active_limits
from usage_plugin.tracking.ledger_retry import wait_while_busy
from usage_plugin.tracking.notifications import health

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from usage_plugin.domain.ledger import Account, AccountKey, Hold, OpenReservation
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.domain.operations import Adjustment, Anomaly, AuditEntry, NotedAlert, RefusalCount
    from usage_plugin.domain.profiles import UserProfile
    from usage_plugin.moving.progress import Progress

_SLICE = 500
_ALWAYS = -(2**63)
_OF_WORKERS = (mark.NOTE, health.NOTE, active_limits.NOTE)
"""The prefixes of notes about a place and its workers, not about the records."""

RecordT = TypeVar("RecordT")
ResultT = TypeVar("ResultT")


class _Kind(ABC):
    """One kind of record, each with a key; `name` is for people."""

    name: ClassVar[str]

    @abstractmethod
    def read(self, opened: OpenLedger) -> Mapping[Any, Any]:
        """Return all records by key, in the order in which they are to be added."""

    @abstractmethod
    def add(self, target: OpenLedger, records: Mapping[Any, Any]) -> None:
        """Write some records, in their order."""

    @abstractmethod
    def remove(self, target: OpenLedger, records: Mapping[Any, Any]) -> None:
        """Delete some records."""

    def missing(self, source: Mapping[Any, Any], target: Mapping[Any, Any]) -> Mapping[Any, Any]:
        """Return the records to add, so that the target has those of the source."""
        return {key: record for key, record in source.items() if target.get(key) != record}

    def surplus(self, source: Mapping[Any, Any], target: Mapping[Any, Any]) -> Mapping[Any, Any]:
        """Return the records to remove first, since the source lacks them or has others."""
        return {key: record for key, record in target.items() if source.get(key) != record}


class _LastingKind(_Kind):
    """A kind of record that no verb deletes: what only the target has stays there."""

    def remove(self, target: OpenLedger, records: Mapping[Any, Any]) -> None:
        del target, records

    def surplus(self, source: Mapping[Any, Any], target: Mapping[Any, Any]) -> Mapping[Any, Any]:
        del source, target
        return {}


class _Reservations(_Kind):
    """The open reservations with their holds. Their workers are dead, in the new ledger too."""

    name = "open reservations"

    def read(self, opened: OpenLedger) -> Mapping[str, OpenReservation]:
        found = opened.ledger.open_reservations(with_holds=True)
        # A reservation has at most one hold on an account; their order has no meaning.
        return {one.event_id: one._replace(holds=tuple(sorted(one.holds, key=_account_of))) for one in found}

    def add(self, target: OpenLedger, records: Mapping[str, OpenReservation]) -> None:
        for event_id, worker, started_at, event, holds in records.values():
            if not _write(target.ledger.reserve, event_id, worker, started_at, holds, event).admitted:
                raise MoveError(
                    f"The ledger {target.ledger.location} does not accept the reservation {event_id}: it ended there.",
                    hint="Move to a new, empty place.",
                )

    def remove(self, target: OpenLedger, records: Mapping[str, OpenReservation]) -> None:
        for event_id in records:
            _write(target.ledger.release, event_id)


class _Adjustments(_Kind):
    name = "adjustments"

    def read(self, opened: OpenLedger) -> Mapping[int, Adjustment]:
        return {one.number: one for one in opened.operations.adjustments()}

    def add(self, target: OpenLedger, records: Mapping[int, Adjustment]) -> None:
        for one in records.values():
            _write(target.operations.adjust, one)

    def remove(self, target: OpenLedger, records: Mapping[int, Adjustment]) -> None:
        _write(target.erasable.erase, NameMatches(adjustments=list(records.values())))


class _Alerts(_Kind):
    name = "alerts"

    def read(self, opened: OpenLedger) -> Mapping[int, NotedAlert]:
        return {one.number: one for one in reversed(opened.operations.alerts(_ALWAYS, None))}

    def add(self, target: OpenLedger, records: Mapping[int, NotedAlert]) -> None:
        for one in records.values():
            _write(target.operations.keep_alert, one)

    def remove(self, target: OpenLedger, records: Mapping[int, NotedAlert]) -> None:
        _write(target.erasable.erase, NameMatches(alerts=list(records.values())))


class _RefusalCounts(_Kind):
    name = "refusal counts"

    def read(self, opened: OpenLedger) -> Mapping[tuple[Any, ...], RefusalCount]:
        return {one[:-1]: one for one in opened.operations.refusal_counts(_ALWAYS)}

    def add(self, target: OpenLedger, records: Mapping[Any, RefusalCount]) -> None:
        for some in _slices(records.values()):
            _write(target.operations.count_refusals, some, [])

    def remove(self, target: OpenLedger, records: Mapping[Any, RefusalCount]) -> None:
        _write(target.erasable.erase, NameMatches(refusal_counts=list(records.values())))


class _Refusals(_Kind):
    name = "refusals"

    def read(self, opened: OpenLedger) -> Mapping[str, tuple[str, int, str]]:
        return {one[0]: one for one in opened.operations.refusals()}

    def add(self, target: OpenLedger, records: Mapping[str, tuple[str, int, str]]) -> None:
        # One by one: a log may order those of one call by their ref.
        for one in records.values():
            _write(target.operations.count_refusals, [], [one])

    def remove(self, target: OpenLedger, records: Mapping[str, tuple[str, int, str]]) -> None:
        found = [(ref, details) for ref, _, details in records.values()]
        _write(target.erasable.erase, NameMatches(refusals=found))


class _Anomalies(_LastingKind):
    """The counts of anomalies. Those that only the target has are over a year old: its keeper deletes them."""

    name = "anomalies"

    def read(self, opened: OpenLedger) -> Mapping[tuple[str, str], Anomaly]:
        # Of too many objects the last ones are counted together, under a name in parentheses: those come last.
        found = sorted(opened.operations.anomalies(), key=lambda one: one.concerns.startswith("("))
        return {(one.kind, one.concerns): one for one in found}

    def missing(self, source: Mapping[Any, Anomaly], target: Mapping[Any, Anomaly]) -> Mapping[Any, Anomaly]:
        wanted = super().missing(source, target)
        return {key: _difference(one, target[key]) if key in target else one for key, one in wanted.items()}

    def add(self, target: OpenLedger, records: Mapping[Any, Anomaly]) -> None:
        for some in _slices(records.values()):
            _write(target.operations.count_anomalies, some)


def _account_of(hold: Hold) -> AccountKey:
    return hold.account


def _difference(one: Anomaly, known: Anomaly) -> Anomaly:
    return one._replace(times=one.times - known.times, amount=one.amount - known.amount)


class _Notes(_Kind):
    name = "notes"

    def read(self, opened: OpenLedger) -> Mapping[str, str]:
        found = opened.operations.notes("")
        return {name: text for name, text in found.items() if not name.startswith(_OF_WORKERS)}

    def add(self, target: OpenLedger, records: Mapping[str, str | None]) -> None:
        for name, text in records.items():
            _write(target.operations.note, name, text)

    def remove(self, target: OpenLedger, records: Mapping[str, str]) -> None:
        self.add(target, dict.fromkeys(records))


class _Audit(_LastingKind):
    name = "audit entries"

    def read(self, opened: OpenLedger) -> Mapping[int, AuditEntry]:
        return {one.number: one for one in opened.operations.audited()}

    def add(self, target: OpenLedger, records: Mapping[int, AuditEntry]) -> None:
        for one in records.values():
            _write(target.operations.audit, one)


class _Profiles(_Kind):
    name = "profiles"

    def read(self, opened: OpenLedger) -> Mapping[str, UserProfile]:
        found: dict[str, UserProfile] = {}
        after = 0
        while page := opened.profiles.changes(after, _SLICE):
            found.update((profile.user, profile) for _, profile in page)
            after = page[-1][0]
        return found

    def add(self, target: OpenLedger, records: Mapping[str, UserProfile]) -> None:
        for some in _slices(records.values()):
            _write(target.profiles.put, some)

    def remove(self, target: OpenLedger, records: Mapping[str, UserProfile]) -> None:
        for user in records:
            _write(target.profiles.remove, user)


_KINDS: tuple[_Kind, ...] = (
    _Reservations(),
    _Adjustments(),
    _Alerts(),
    _RefusalCounts(),
    _Refusals(),
    _Anomalies(),
    _Notes(),
    _Audit(),
    _Profiles(),
)


def copy_records(source: OpenLedger, target: OpenLedger, progress: Progress) -> None:
    """Make the target's records equal to the source's. The outbox is not copied: its events belong into the store.

    Raises:
        LedgerError: Repeat the call.
        MoveError: The target cannot have these records.
    """
    for kind in _KINDS:
        known = kind.read(target)
        wanted = kind.read(source)
        missing, surplus = kind.missing(wanted, known), kind.surplus(wanted, known)
        if surplus:
            kind.remove(target, surplus)
        progress.begin(kind.name, len(missing))
        for some in _slices(missing.items()):
            kind.add(target, dict(some))
            progress.advance(len(some))
    # After the reservations: an account that lacks a hold would count as another one.
    _copy_accounts(source, target, progress)


def _copy_accounts(source: OpenLedger, target: OpenLedger, progress: Progress) -> None:
    present = {_digest(account) for account in target.ledger.every_account()}
    if present:
        wanted = {_digest(account) for account in source.ledger.every_account()}
        outdated = [account for account in target.ledger.every_account() if _digest(account) not in wanted]
        for some in _slices(outdated):
            _write(target.erasable.erase, NameMatches(accounts=some))
    progress.begin("accounts", None)
    missing = (account for account in source.ledger.every_account() if _digest(account) not in present)
    for some in _slices(missing):
        known = target.ledger.balances([account.key for account in some])
        charges = [Charge(key, end, balance.spent - known[key].spent) for key, end, balance in some]
        # Not remembered by its id, but by its result: a repetition finds no difference.
        _write(target.ledger.correct, f"move-{uuid.uuid4().hex}", charges)
        progress.advance(len(some))


def differing_records(source: OpenLedger, target: OpenLedger) -> list[str]:
    """Return the kinds of records that are not equal in both ledgers; none after `copy_records`."""
    found = []
    for kind in _KINDS:
        wanted, known = kind.read(source), kind.read(target)
        if kind.missing(wanted, known) or kind.surplus(wanted, known):
            found.append(kind.name)
    if _sum_of_accounts(source) != _sum_of_accounts(target):
        found.append("accounts")
    return found


def count_records(opened: OpenLedger) -> dict[str, int]:
    """Return the number of records of each kind, with the events that wait in the outbox."""
    counts = {"accounts": sum(1 for _ in opened.ledger.every_account())}
    counts |= {kind.name: len(kind.read(opened)) for kind in _KINDS}
    return counts | {"events in the outbox": opened.ledger.waiting().events}


def is_unused(opened: OpenLedger) -> bool:
    """Whether a ledger has no records, except the notes of a proxy that was only started."""
    return (
        next(opened.ledger.every_account(), None) is None
        and not opened.ledger.snapshot([]).seq
        and not any(kind.read(opened) for kind in _KINDS if not isinstance(kind, _Notes))
    )


class _Sum(NamedTuple):
    """A number of accounts, and the sum of their digests, which does not depend on their order."""

    accounts: int
    digests: int


def _sum_of_accounts(opened: OpenLedger) -> _Sum:
    accounts = digests = 0
    for account in opened.ledger.every_account():
        accounts += 1
        digests += int.from_bytes(_digest(account), "big")
    return _Sum(accounts, digests)


def _digest(account: Account) -> bytes:
    """Return 16 bytes for an account with its balance: a million of them must fit into memory."""
    return blake2b(repr(account).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _slices(records: Iterable[RecordT]) -> Iterator[list[RecordT]]:
    records = iter(records)
    while some := list(islice(records, _SLICE)):
        yield some


def _write(verb: Callable[..., ResultT], *arguments: Any) -> ResultT:
    """Call a writing verb; retry while another process, such as a reader, has the lock."""
    return wait_while_busy(lambda: verb(*arguments))
