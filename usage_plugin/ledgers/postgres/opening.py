"""Open the parts of the ledger over one connection."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from usage_plugin.domain.open_ledger import OpenLedger
from usage_plugin.errors import LedgerBusyError, LedgerError
from usage_plugin.ledgers.postgres.erasable import PostgresErasable
from usage_plugin.ledgers.postgres.ledger import PostgresLedger
from usage_plugin.ledgers.postgres.operations import PostgresOperationsLog
from usage_plugin.ledgers.postgres.profiles import PostgresProfileStore
from usage_plugin.postgres.failures import Failures
from usage_plugin.postgres.schema import Migrations, has_schema, migrate
from usage_plugin.postgres.server import Server

if TYPE_CHECKING:
    from usage_plugin.postgres.address import Address

_FAILURES = Failures("ledger", unavailable=LedgerError, busy=LedgerBusyError, invalid=LedgerError)
_MIGRATIONS = Migrations(__package__, "versions")


def open_postgres_ledger(address: Address, schema: str) -> OpenLedger:
    """Connect for the calling thread; create or migrate the schema.

    Raises:
        LedgerError: the server cannot be reached, or does not allow it.
        StorageVersionError: a newer version of the schema cannot be used by this one.
    """
    server = Server(address, schema, _FAILURES)
    try:
        migrate(server, _MIGRATIONS)
        return OpenLedger(
            PostgresLedger(server),
            PostgresOperationsLog(server),
            PostgresProfileStore(server),
            PostgresErasable(server),
        )
    except BaseException:
        server.close()
        raise


def has_ledger(address: Address, schema: str) -> bool:
    """Whether the schema has a ledger; create nothing.

    Raises:
        LedgerError: the server cannot be reached.
    """
    with closing(Server(address, schema, _FAILURES)) as server:
        return has_schema(server, _MIGRATIONS)
