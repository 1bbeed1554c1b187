"""The ledger's ports, for authors of ledger backends: everything that a ledger imports, in one place.

`Ledger` is the core; `OperationsLog`, `ProfileStore` and `Erasable` are the other parts of an `OpenLedger`. A ledger
with a core of its own gets the other parts from `usage_plugin.ledgers.sqlite.open_sqlite_ledger`.

docs/writing-a-ledger.md goes through such a backend. These ports are provisional: see docs/compatibility.md.
"""

from usage_plugin.domain.erasure import Erasable, NameMatches
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
from usage_plugin.errors import LedgerBusyError, LedgerError, ReservationConflictError, StorageVersionError
from usage_plugin.plugins.interface import BackendContext, LedgerBackend, NoOptions, Options

__all__ = [
    "Account",
    "AccountKey",
    "Adjustment",
    "AlertKey",
    "Anomaly",
    "AuditEntry",
    "BackendContext",
    "Balance",
    "Charge",
    "Erasable",
    "Hold",
    "Ledger",
    "LedgerBackend",
    "LedgerBusyError",
    "LedgerError",
    "LedgerFileUpkeep",
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
    "RefusalCount",
    "ReservationConflictError",
    "Reserved",
    "Settled",
    "Snapshot",
    "StorageVersionError",
    "UserProfile",
    "Workers",
    "split_subject",
]
