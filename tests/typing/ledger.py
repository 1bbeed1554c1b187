"""A ledger backend with a core of its own, and the helpers that its author needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from typing_extensions import assert_type

from usage_plugin.ledgers.sqlite import open_sqlite_ledger
from usage_plugin.plugins.ledger import (
    Account,
    AccountKey,
    Adjustment,
    AlertKey,
    Anomaly,
    AuditEntry,
    BackendContext,
    Balance,
    Charge,
    Erasable,
    Hold,
    Ledger,
    LedgerBackend,
    LedgerBusyError,
    LedgerError,
    LedgerFileUpkeep,
    NameMatches,
    NoOptions,
    NotedAlert,
    NotSettled,
    OpenLedger,
    OpenReservation,
    OperationsLog,
    Options,
    OutboxBacklog,
    OutboxEntry,
    ProfileStore,
    RefusalCount,
    ReservationConflictError,
    Reserved,
    Settled,
    Snapshot,
    StorageVersionError,
    UserProfile,
    Workers,
    split_subject,
)


class DictOptions(Options):
    file: Path = Path("dict.db")


class DictLedger(Ledger):
    """Keeps accounts in a dictionary; the contract would fail it, mypy does not."""

    def __init__(self, path: Path) -> None:
        self.writer, self.location = path.name, str(path)
        self.kept: dict[AccountKey, tuple[int, Balance]] = {}
        self.held: dict[str, tuple[str, Sequence[Hold], str]] = {}
        self.entries: list[OutboxEntry] = []

    def reserve(self, event_id: str, worker: str, started_at: int, holds: Sequence[Hold], event: str) -> Reserved:
        if event_id in self.held:
            raise ReservationConflictError
        before = tuple(self.kept.get(one.account, (0, Balance()))[1] for one in holds)
        fits = all(one.fits(balance) for one, balance in zip(holds, before, strict=True))
        if fits and started_at:
            self.held[event_id] = (worker, holds, event)
        return Reserved(fits, before)

    def settle(self, event_id: str, charges: Sequence[Charge], event: str | None) -> Settled | NotSettled:
        return self.record(event_id, charges, event) or NotSettled.BEFORE

    def release(self, event_id: str) -> bool:
        return self.held.pop(event_id, None) is not None

    def abandon(self, event_id: str) -> bool:
        return self.release(event_id)

    def free(self, event_id: str, accounts: Sequence[AccountKey]) -> None:
        worker, holds, event = self.held[event_id]
        self.held[event_id] = (worker, [one for one in holds if one.account not in accounts], event)

    def record(self, event_id: str, charges: Sequence[Charge], event: str | None) -> Settled | None:
        if not self.release(event_id):
            return None
        for one in charges:
            self.kept[one.account] = (one.window_end, Balance(spent=one.amount))
        if event is not None:
            self.entries.append(OutboxEntry(len(self.entries) + 1, event))
        return Settled(len(self.entries), {one.account: self.kept[one.account][1] for one in charges})

    def recover(self, event_id: str) -> Settled | None:
        _, holds, event = self.held[event_id]
        return self.record(event_id, [Charge(one.account, one.window_end, one.if_lost) for one in holds], event)

    def open_reservations(self, *, with_holds: bool = False) -> list[OpenReservation]:
        return [
            OpenReservation(event_id, worker, 0, event, tuple(holds) if with_holds else ())
            for event_id, (worker, holds, event) in self.held.items()
        ]

    def every_account(self) -> Iterator[Account]:
        return (Account(key, end, balance) for key, (end, balance) in self.kept.items())

    def snapshot(self, keys: Sequence[AccountKey]) -> Snapshot:
        return Snapshot(len(self.entries), {key: self.kept[key][1] for key in keys})

    def accounts(self, limit_key: int, since: int, subject: str | None = None) -> list[Account]:
        return [
            Account(key, end, balance)
            for key, (end, balance) in self.kept.items()
            if key.limit_key == limit_key and key.window_start >= since and subject in (None, key.subject)
        ]

    def correct(self, correction_id: str, differences: Sequence[Charge]) -> bool:
        return self.record(correction_id, differences, None) is not None

    def outbox(self, after: int, most: int, *, durable: bool = False) -> list[OutboxEntry]:
        return self.entries[after : after + most] if durable else self.entries

    def waiting(self) -> OutboxBacklog:
        return OutboxBacklog(len(self.entries), sum(len(entry.event) for entry in self.entries))

    def acknowledged(self) -> int:
        return 0

    def acknowledge(self, seq: int) -> None:
        self.entries = [entry for entry in self.entries if entry.seq > seq]

    def agree(self, stored: int) -> None:
        self.acknowledge(stored)

    def maintain(self, now: int) -> None:
        self.kept = {key: one for key, one in self.kept.items() if one[0] > now}

    def verify(self) -> list[str]:
        return []

    def close(self) -> None:
        raise LedgerError(f"{self.location} cannot be closed.", hint="Stop the proxy.")


class DictErasable(Erasable):
    def __init__(self, ledger: DictLedger) -> None:
        self.ledger = ledger

    def find(self, name: str) -> NameMatches:
        accounts = [
            Account(key, end, balance)
            for key, (end, balance) in self.ledger.kept.items()
            if name in split_subject(key.subject)
        ]
        return NameMatches(accounts=accounts, entries=self.ledger.outbox(0, 100))

    def erase(self, matches: NameMatches) -> None:
        for account in matches.accounts:
            assert_type(account.key, AccountKey)
            self.ledger.kept.pop(account.key)

    def compact(self) -> None:
        raise LedgerBusyError


class DictUpkeep:
    """The file of the ledger, without a common base."""

    def check_place(self) -> None:
        raise LedgerError

    def shorten_log(self) -> None:
        raise LedgerBusyError


class DictBackend(LedgerBackend[DictOptions]):
    name = "dict"
    options_model = DictOptions

    def exists(self, options: DictOptions, context: BackendContext) -> bool:
        return (context.data_dir / options.file).exists()

    def open(self, options: DictOptions, context: BackendContext) -> OpenLedger:
        ledger = DictLedger(context.data_dir / options.file)
        if not ledger.location:
            raise StorageVersionError
        upkeep: LedgerFileUpkeep = DictUpkeep()
        lender = open_sqlite_ledger(context.data_dir / "ledger.db")
        return lender.with_core(ledger, DictErasable(ledger), file=upkeep)


def opened_by(backend: LedgerBackend[NoOptions], context: BackendContext) -> tuple[OperationsLog, ProfileStore]:
    opened = backend.open(NoOptions(), context)
    assert_type(opened.ledger, Ledger)
    assert_type(opened.file, LedgerFileUpkeep | None)
    return opened.operations, opened.profiles


def records_of(operations: OperationsLog, profiles: ProfileStore) -> int:
    """Each kind of record has its type."""
    assert_type(operations.adjustments(), list[Adjustment])
    assert_type(operations.alerts(0, ["ann"]), list[NotedAlert])
    assert_type(operations.alerts(0, ["ann"])[0].key, AlertKey)
    assert_type(operations.anomalies(), list[Anomaly])
    assert_type(operations.audited(), list[AuditEntry])
    assert_type(operations.refusal_counts(0), list[RefusalCount])
    assert_type(operations.refusals(), list[tuple[str, int, str]])
    assert_type(profiles.get("ann"), UserProfile | None)
    return profiles.version()


def keeper_of(workers: Workers) -> str | None:
    return workers.name if workers.try_to_keep() else None
