"""Open the parts of the ledger over one connection."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from usage_plugin.domain.open_ledger import OpenLedger
from usage_plugin.ledgers.postgres.erasable import PostgresErasable
from usage_plugin.ledgers.postgres.keeper_server import KeeperServer
from usage_plugin.ledgers.postgres.ledger import PostgresLedger
from usage_plugin.ledgers.postgres.ledger_failures import FAILURES
from usage_plugin.ledgers.postgres.operations import PostgresOperationsLog
from usage_plugin.ledgers.postgres.profiles import PostgresProfileStore
from usage_plugin.ledgers.postgres.register import PostgresRegister
from usage_plugin.postgres.schema import Migrations, has_schema, migrate
from usage_plugin.postgres.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

    from usage_plugin.postgres.address import Address

_MIGRATIONS = Migrations(__package__, "versions")
_REGISTER_PATIENCE = 3
"""Seconds for an answer of the register, which a worker asks once a second, and for each host until it connects."""


def open_postgres_ledger(address: Address, schema: str) -> OpenLedger:
    """Connect for the calling thread; create or migrate the schema.

    Raises:
        LedgerError: the server cannot be reached, or does not allow it.
        StorageVersionError: a newer version of the schema cannot be used by this one.
    """
    server = Server(address, schema, FAILURES)
    try:
        migrate(server, _MIGRATIONS)
        return _parts_over(server)
    except BaseException:
        server.close()
        raise


def open_as_keeper(address: Address, schema: str, term: Callable[[], int]) -> OpenLedger:
    """Connect for a thread of the keeper, as `open_postgres_ledger` does; each change checks the term."""
    with closing(Server(address, schema, FAILURES)) as server:
        migrate(server, _MIGRATIONS)
    return _parts_over(KeeperServer(address, schema, FAILURES, term))


def open_register(address: Address, schema: str) -> PostgresRegister:
    """Connect to the register for the calling thread; create or migrate the schema.

    Raises:
        LedgerError: the server cannot be reached, or does not allow it.
        StorageVersionError: a newer version of the schema cannot be used by this one.
    """
    with closing(Server(address, schema, FAILURES)) as server:
        migrate(server, _MIGRATIONS)
    return PostgresRegister(Server(address.within(_REGISTER_PATIENCE), schema, FAILURES, patience=_REGISTER_PATIENCE))


def _parts_over(server: Server) -> OpenLedger:
    return OpenLedger(
        PostgresLedger(server),
        PostgresOperationsLog(server),
        PostgresProfileStore(server),
        PostgresErasable(server),
    )


def has_ledger(address: Address, schema: str) -> bool:
    """Whether the schema has a ledger; create nothing.

    Raises:
        LedgerError: the server cannot be reached.
    """
    with closing(Server(address, schema, FAILURES)) as server:
        return has_schema(server, _MIGRATIONS)
