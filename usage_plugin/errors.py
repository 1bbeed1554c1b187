"""Every error that the package raises, as one tree; a test draws it from the classes and compares.

    UsagePluginError                    the message defaults to the docstring; `hint` is the remedy
    ├─ ConfigError                      the configuration cannot be used: key, found value, allowed values
    ├─ PluginError                      a plugin that cannot be loaded, or two that claim one name
    ├─ MoneyError                       an amount that cannot be money
    ├─ SubjectNameError                 an invalid name of a user, team, tag …
    │  └─ IdentityRequiredError         the request names no user where one is required
    ├─ ResolverFailedError              an identity resolver does not answer
    ├─ UnknownLimitError                no limit in force has this name
    ├─ NotAdmittedError                 the work may not start; `facts` has the reason and the remedies
    │  └─ BudgetExceededError           because a limit has no room for it
    ├─ MigrationError                   data from elsewhere that cannot be imported
    │  ├─ RejectedError                 one record of it; the import goes on
    │  └─ BrokenSourceError             one of its files, from here on; the import goes on
    ├─ SecretError                      the data folder's secret cannot be read or made
    ├─ LedgerError                      the ledger cannot do the operation
    │  ├─ LedgerBusyError               another process holds the lock; retry
    │  ├─ LedgerMovedError              it was moved, or is being moved; the error names the other place
    │  ├─ LedgerReplacedError           the server restarted or failed over; send again what it may have lost
    │  ├─ KeeperReplacedError           another worker is the keeper now
    │  ├─ WorkerLostError               this worker was declared dead; join again
    │  └─ ReservationConflictError      one id was sent with two contents
    ├─ HistoryError                     the history cannot answer the question, or no longer
    │  └─ NothingRecordedError          because nothing has been recorded yet
    ├─ StorageError                     the store cannot do the operation; the driver's error is the cause
    │  ├─ StorageUnavailableError       for now; retry
    │  │  ├─ ObjectReplacedError        until the newer state is read
    │  │  └─ StorageDamagedError        until the store is replaced or restored
    │  ├─ StoragePrunedError            because it has been deleted
    │  └─ StorageVersionError           because a newer version of this package wrote the file
    ├─ NotFlushedError                  no user can be forgotten while the store lacks events
    ├─ NotForgottenError                a plugin could not forget a user
    ├─ VectorsError                     the plugin chroma cannot read or write its vectors
    └─ CommandError                     a command cannot do its work
       ├─ AdjustmentError               this amount cannot be changed
       ├─ ExportError                   the export cannot be written
       ├─ MoveError                     the ledger cannot be moved there
       ├─ NotStartedError               the doctor's temporary proxy did not start
       ├─ UnknownEventError             no event has this id
       ├─ UnknownProfileError           no user profile has this name
       └─ UnknownRefError               no refusal has this ref

Backends raise these and never their driver's own; nothing here knows a driver. Four errors are not in the tree,
because they are not caught by name outside of their module. `atomic_files.NotRegularFileError` is an `OSError`, like
the other errors of reading. Callers of `locked` turn `file_locks.LockTimeoutError` into an error of their own.
`supervisor.AbandonedError` ends a thread. `outgoing_check.StoppedError` must be LiteLLM's own class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class UsagePluginError(Exception):
    """Something in usage_plugin went wrong."""

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        """Take the problem as a sentence, and the operator's remedy as `hint`."""
        self.message = message or (type(self).__doc__ or type(self).__name__).strip()
        self.hint = hint
        super().__init__(self.message if hint is None else f"{self.message} {hint}")


class ConfigError(UsagePluginError):
    """The configuration cannot be used."""


class PluginError(UsagePluginError):
    """A plugin cannot be loaded."""


class MoneyError(UsagePluginError):
    """This is not an amount of money."""


class SubjectNameError(UsagePluginError):
    """This name cannot be taken as it is."""


class IdentityRequiredError(SubjectNameError):
    """The request names no user, and this proxy asks for one."""


class ResolverFailedError(UsagePluginError):
    """The user of this request cannot be determined at the moment."""


class UnknownLimitError(UsagePluginError):
    """No limit in force has this name."""


class NotAdmittedError(UsagePluginError):
    """This may not start.

    Attributes:
        reason: a word of docs/refusals.md, for example `unpriced` or `unavailable`.
        facts: the known facts, as `usage-plugin explain` prints them: amounts are decimal strings.
        retry_after: seconds after which trying again makes sense; None if waiting does not help.
    """

    def __init__(self, message: str, *, reason: str, facts: Mapping[str, Any], retry_after: float | None) -> None:
        """Take the refusal as a sentence, and as facts."""
        super().__init__(message)
        self.reason = reason
        self.facts = facts
        self.retry_after = retry_after


class BudgetExceededError(NotAdmittedError):
    """A limit has no room for this: `spent`, `busy` (others hold it just now) or `too_large`."""


class MigrationError(UsagePluginError):
    """This cannot be imported."""


class RejectedError(MigrationError):
    """This record cannot be right; the message says why."""


class BrokenSourceError(MigrationError):
    """The source cannot be read any further; the message says why."""


class SecretError(UsagePluginError):
    """The secret of the pseudonyms cannot be used."""


class LedgerError(UsagePluginError):
    """The ledger cannot do this operation."""


class LedgerBusyError(LedgerError):
    """Another process holds the ledger's lock; try again."""


class LedgerMovedError(LedgerError):
    """The ledger was moved to another place, or is being moved."""


class LedgerReplacedError(LedgerError):
    """The server of the ledger restarted, or another one took over."""


class KeeperReplacedError(LedgerError):
    """Another worker is the keeper now, so this one changes nothing as keeper any more."""


class WorkerLostError(LedgerError):
    """This worker was declared dead."""


class ReservationConflictError(LedgerError):
    """This id is reserved already, with other content."""


class HistoryError(UsagePluginError):
    """The history cannot answer this question, or no longer."""


class NothingRecordedError(HistoryError):
    """Nothing has been recorded yet."""


class StorageError(UsagePluginError):
    """The store cannot do this operation."""


class StorageUnavailableError(StorageError):
    """The store cannot be reached for now; try again."""


class ObjectReplacedError(StorageUnavailableError):
    """An object of the store is missing: another process has replaced it."""


class StorageDamagedError(StorageUnavailableError):
    """The store is damaged: nothing that it says is to be relied on."""


class StoragePrunedError(StorageError):
    """The store has deleted these records."""


class StorageVersionError(StorageError):
    """The store was written by a newer version of usage_plugin."""


class NotFlushedError(UsagePluginError):
    """The store lacks events, so no user can be forgotten completely yet."""


class NotForgottenError(UsagePluginError):
    """A plugin still has something of a user who is to be forgotten."""


class VectorsError(UsagePluginError):
    """The vectors cannot be read or written."""


class CommandError(UsagePluginError):
    """The command cannot do its work."""


class AdjustmentError(CommandError):
    """This amount cannot be changed so."""


class ExportError(CommandError):
    """The export cannot be written."""


class MoveError(CommandError):
    """The ledger cannot be moved there."""


class NotStartedError(CommandError):
    """The temporary proxy did not start."""


class UnknownEventError(CommandError):
    """No event has this id."""


class UnknownProfileError(CommandError):
    """There is no such profile."""


class UnknownRefError(CommandError):
    """No refusal has this ref."""
