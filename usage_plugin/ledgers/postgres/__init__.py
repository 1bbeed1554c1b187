"""The ledger `postgres`: one ledger for the workers of many hosts, in a schema of its own on a PostgreSQL server.

    ledger: {backend: postgres, options: {url: os.environ/USAGE_DATABASE_URL}}

Each part is a class of its own over one `Server`. The core's verbs are functions of the server
(`migrations/0002_core_v1.sql`), so that each is one round trip, and many can be in one transaction. The request path
has a connection of its own (`transport`), and so has the register of the fleet (`register`).

This module is imported at every start, so it loads no driver: psycopg comes with the extra `postgres`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usage_plugin.plugins import hookimpl
from usage_plugin.plugins.interface import BackendContext, SharedLedgerBackend
from usage_plugin.postgres.options import ServerOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.fleet import FleetRegister
    from usage_plugin.domain.ledger_batch import LedgerTransport
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.plugins.interface import LedgerBackend


class PostgresOptions(ServerOptions):
    """The options of the ledger."""

    section = "usage_plugin.ledger"


class PostgresLedgerBackend(SharedLedgerBackend[PostgresOptions]):
    """Keep the ledger on a PostgreSQL server."""

    name = "postgres"
    options_model = PostgresOptions

    def check(self, options: PostgresOptions, context: BackendContext) -> None:
        """Check that the URL is valid and the driver installed."""
        del context
        options.check()

    def exists(self, options: PostgresOptions, context: BackendContext) -> bool:
        """Whether the schema has a ledger."""
        del context
        options.check_installed()
        from usage_plugin.ledgers.postgres.opening import has_ledger  # noqa: PLC0415  # only now a driver is needed

        return has_ledger(options.address, options.schema_name)

    def open(self, options: PostgresOptions, context: BackendContext) -> OpenLedger:
        """Connect to the server; create the schema and the tables if they are missing."""
        del context
        options.check_installed()
        from usage_plugin.ledgers.postgres.opening import open_postgres_ledger  # noqa: PLC0415  # as above

        return open_postgres_ledger(options.address, options.schema_name)

    def transport(self, options: PostgresOptions, context: BackendContext, clock: Clock) -> LedgerTransport:
        """Return a connection for the request path, which connects with its first batch."""
        del context
        options.check_installed()
        from usage_plugin.ledgers.postgres.transport import PostgresTransport  # noqa: PLC0415  # as above

        return PostgresTransport(options.address, options.schema_name, clock)

    def register(self, options: PostgresOptions, context: BackendContext) -> FleetRegister:
        """Connect to the register of the fleet; create the schema and the tables if they are missing."""
        del context
        options.check_installed()
        from usage_plugin.ledgers.postgres.opening import open_register  # noqa: PLC0415  # as above

        return open_register(options.address, options.schema_name)

    def open_as_keeper(self, options: PostgresOptions, context: BackendContext, term: Callable[[], int]) -> OpenLedger:
        """Connect for a thread of the keeper; each transaction that changes something checks the term."""
        del context
        options.check_installed()
        from usage_plugin.ledgers.postgres.opening import open_as_keeper  # noqa: PLC0415  # as above

        return open_as_keeper(options.address, options.schema_name, term)

    def trouble(self, options: PostgresOptions, context: BackendContext) -> list[str]:
        """Return the settings of the server that endanger the ledger."""
        del context
        options.check_installed()
        from usage_plugin.ledgers.postgres.trouble import trouble  # noqa: PLC0415  # as above

        return trouble(options.address, options.schema_name)


@hookimpl
def usage_register_ledgers() -> list[LedgerBackend[Any]]:
    """Register the PostgreSQL ledger."""
    return [PostgresLedgerBackend()]
