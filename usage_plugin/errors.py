"""Every error the package raises, as one tree.

    UsagePluginError            the message defaults to the docstring; `hint` says what to do about it
    ├─ ConfigError              where in the YAML, what was found, what is allowed
    ├─ PluginError              a plugin that cannot be loaded, or two that claim one name
    ├─ MoneyError               an amount that cannot be money
    ├─ SubjectNameError         a user, team, tag … name that cannot be taken as it is
    ├─ NotAdmittedError         what was asked for may not start; `facts` says why, and what would help
    │  └─ BudgetExceededError   because a limit has no room for it
    ├─ MigrationError           data from elsewhere that cannot be imported
    ├─ LedgerError              the ledger cannot do what was asked
    │  ├─ LedgerBusyError       another process holds the lock; trying again is right
    │  └─ ReservationConflictError   one id was sent with two contents
    └─ StorageError             the store cannot do what was asked; the driver's error is the cause
       ├─ StorageUnavailableError   for now: trying again is right
       │  └─ StorageDamagedError    until somebody, or something, puts another in its place
       ├─ StoragePrunedError        what was asked for has been deleted
       └─ StorageVersionError       the file was written by a newer version of this package

Backends raise these and never their driver's own; nothing here knows a driver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class UsagePluginError(Exception):
    """Something in usage_plugin went wrong."""

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        """Say what happened, and in `hint` what the operator can do about it."""
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


class UnknownLimitError(UsagePluginError):
    """No limit in force has this name."""


class NotAdmittedError(UsagePluginError):
    """This may not start.

    Attributes:
        reason: a word of docs/refusals.md, for example `unpriced` or `unavailable`.
        facts: what is known, as `usage-plugin explain` prints it: amounts are decimal strings.
        retry_after: seconds after which trying again makes sense; None if waiting does not help.
    """

    def __init__(self, message: str, *, reason: str, facts: Mapping[str, Any], retry_after: float | None) -> None:
        """Say it in a sentence, and in facts."""
        super().__init__(message)
        self.reason = reason
        self.facts = facts
        self.retry_after = retry_after


class BudgetExceededError(NotAdmittedError):
    """A limit has no room for this: `spent`, `busy` (others hold it just now) or `too_large`."""


class MigrationError(UsagePluginError):
    """This cannot be imported."""


class LedgerError(UsagePluginError):
    """The ledger cannot do what was asked."""


class LedgerBusyError(LedgerError):
    """Another process holds the ledger's lock; try again."""


class ReservationConflictError(LedgerError):
    """This id is reserved already, with other content."""


class HistoryError(UsagePluginError):
    """The history cannot answer this question, or no longer."""


class StorageError(UsagePluginError):
    """The store cannot do what was asked."""


class StorageUnavailableError(StorageError):
    """The store cannot be reached for now; try again."""


class StorageDamagedError(StorageUnavailableError):
    """The store is damaged: nothing that it says is to be relied on."""


class StoragePrunedError(StorageError):
    """The store no longer has what was asked for."""


class StorageVersionError(StorageError):
    """The store was written by a newer version of usage_plugin."""
