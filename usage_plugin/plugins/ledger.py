"""The ledger's ports, for authors of ledger backends: everything that a ledger imports, in one place.

`Ledger` is the core; `OperationsLog`, `ProfileStore` and `Erasable` are the other parts of an `OpenLedger`. A ledger
with a core of its own gets the other parts from `usage_plugin.ledgers.sqlite.open_sqlite_ledger`. A ledger on a server,
which many hosts share, also implements `SharedLedgerBackend`, `LedgerTransport` and `FleetRegister`.

docs/writing-a-ledger.md goes through such a backend. These ports are provisional: see docs/compatibility.md.
"""

from usage_plugin.domain.clock import Clock
from usage_plugin.domain.erasure import Erasable, NameMatches
from usage_plugin.domain.fleet import Fleet, FleetRegister, Member
from usage_plugin.domain.ledger import (
    Account,
    AccountKey,
    Balance,
    Charge,
    Hold,
    Ledger,
    NotSettled,
    OpenReservation,
    OutboxBacklog,
    OutboxEntry,
    Reserved,
    Settled,
    Snapshot,
)
from usage_plugin.domain.ledger_batch import (
    MOST_CLOCK_DIFFERENCE,
    Abandon,
    Answer,
    Free,
    LedgerTransport,
    Reassert,
    Record,
    Release,
    Reserve,
    Settle,
    Verb,
)
from usage_plugin.domain.liveness import Workers
from usage_plugin.domain.open_ledger import LedgerFileUpkeep, OpenLedger
from usage_plugin.domain.operations import (
    Adjustment,
    AlertKey,
    Anomaly,
    AuditEntry,
    NotedAlert,
    OperationsLog,
    RefusalCount,
)
from usage_plugin.domain.profiles import ProfileStore, UserProfile
from usage_plugin.domain.subjects import split_subject
from usage_plugin.errors import (
    KeeperReplacedError,
    LedgerBusyError,
    LedgerError,
    LedgerReplacedError,
    ReservationConflictError,
    StorageVersionError,
    WorkerLostError,
)
from usage_plugin.plugins.interface import BackendContext, LedgerBackend, NoOptions, Options, SharedLedgerBackend

__all__ = [
    "MOST_CLOCK_DIFFERENCE",
    "Abandon",
    "Account",
    "AccountKey",
    "Adjustment",
    "AlertKey",
    "Anomaly",
    "Answer",
    "AuditEntry",
    "BackendContext",
    "Balance",
    "Charge",
    "Clock",
    "Erasable",
    "Fleet",
    "FleetRegister",
    "Free",
    "Hold",
    "KeeperReplacedError",
    "Ledger",
    "LedgerBackend",
    "LedgerBusyError",
    "LedgerError",
    "LedgerFileUpkeep",
    "LedgerReplacedError",
    "LedgerTransport",
    "Member",
    "NameMatches",
    "NoOptions",
    "NotSettled",
    "NotedAlert",
    "OpenLedger",
    "OpenReservation",
    "OperationsLog",
    "Options",
    "OutboxBacklog",
    "OutboxEntry",
    "ProfileStore",
    "Reassert",
    "Record",
    "RefusalCount",
    "Release",
    "ReservationConflictError",
    "Reserve",
    "Reserved",
    "Settle",
    "Settled",
    "SharedLedgerBackend",
    "Snapshot",
    "StorageVersionError",
    "UserProfile",
    "Verb",
    "WorkerLostError",
    "Workers",
    "split_subject",
]
