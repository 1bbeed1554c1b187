"""Translate the driver's errors into those of the ledger or the store, with a remedy and without credentials."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import psycopg
from psycopg import errors

if TYPE_CHECKING:
    from usage_plugin.errors import UsagePluginError

DRIVER_ERRORS = (psycopg.Error, UnicodeError)
"""Errors that the driver raises; UnicodeError for half a surrogate pair."""
LOST_A_RACE = (errors.DeadlockDetected, errors.SerializationFailure)
"""Errors after which the same transaction usually succeeds at once."""
_BUSY = (*LOST_A_RACE, errors.LockNotAvailable)
_INVALID = (psycopg.DataError, errors.ProgramLimitExceeded, UnicodeError, OverflowError)
"""A number or a text that no server takes; ProgramLimitExceeded for a name that is too long for an index."""
_HINTS: dict[type[psycopg.Error], str] = {
    errors.InsufficientPrivilege: "Grant the role of the URL the rights on the schema, or let it own the schema.",
    errors.ReadOnlySqlTransaction: "This is a replica: name all hosts in the URL, and target_session_attrs=read-write.",
    errors.TooManyConnections: "Raise max_connections, or connect through a pooler.",
    errors.UndefinedTable: "The schema was dropped or changed: restart, or restore it from a backup.",
    errors.UndefinedFunction: "The schema was dropped or changed: restart, or restore it from a backup.",
    errors.DiskFull: "Free disk space on the server.",
}


class Failures(NamedTuple):
    """The errors of one part of the package.

    Attributes:
        part: "ledger" or "store".
        unavailable: the server cannot do the operation for now.
        busy: other transactions hold the rows.
        invalid: a value that the server can never store.
    """

    part: str
    unavailable: type[UsagePluginError]
    busy: type[UsagePluginError]
    invalid: type[UsagePluginError]

    def translate(self, error: Exception, location: str) -> UsagePluginError:
        """Return the error for a driver's error at a place, which is named without credentials."""
        if isinstance(error, _BUSY):
            return self.busy(f"{location}: other transactions hold the rows.")
        text = " ".join(str(error).split("\n", 1)[0].split()).rstrip(".")
        if isinstance(error, psycopg.OperationalError) and error.sqlstate is None:
            return self.unavailable(
                f"The {self.part} {location} cannot be reached: {text}.",
                hint="Check that the server runs, that it accepts connections from here, and the URL.",
            )
        hint = next((hint for kind, hint in _HINTS.items() if isinstance(error, kind)), None)
        if isinstance(error, errors.InsufficientPrivilege) and "temporary" in text:
            hint = "Run as the owner of the database: GRANT TEMPORARY ON DATABASE … TO …."
        is_invalid = isinstance(error, _INVALID)
        kind = self.invalid if is_invalid else self.unavailable
        return kind(f"The {self.part} {location} does not work: {text}.", hint=hint)
