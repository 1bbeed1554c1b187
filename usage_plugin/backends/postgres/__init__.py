"""The `postgres` backend: the history in a schema of a PostgreSQL server, for the proxies of many hosts.

    storage: {backend: postgres, options: {url: os.environ/USAGE_DATABASE_URL}}

It may be the server and the schema of the ledger `postgres`: their tables have different names.

This module and `store` are imported at every start, so they load no driver; `opening` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# Abilities are found in the classes that exist once this module is imported.
from usage_plugin.backends.postgres.store import PostgresStore as PostgresStore
from usage_plugin.plugins import hookimpl
from usage_plugin.plugins.interface import BackendContext, StorageBackend
from usage_plugin.postgres.options import ServerOptions

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from usage_plugin.domain.store import UsageStore


class PostgresOptions(ServerOptions):
    """The options of the store."""

    section = "usage_plugin.storage"


class PostgresBackend(StorageBackend[PostgresOptions]):
    """The backend that keeps the history on a PostgreSQL server."""

    name = "postgres"
    options_model = PostgresOptions

    def check(self, options: PostgresOptions, context: BackendContext) -> None:
        """Check that the URL is valid and the driver installed."""
        del context
        options.check()

    def open(self, options: PostgresOptions, context: BackendContext) -> AbstractAsyncContextManager[UsageStore]:
        """Connect to the server; create the schema and the tables if they are missing."""
        options.check_installed()
        from usage_plugin.backends.postgres.opening import open_store  # noqa: PLC0415  # only now a driver is needed

        return open_store(options.address, options.schema_name, context.zone)


@hookimpl
def usage_register_storage_backends() -> list[StorageBackend[Any]]:
    """Register the PostgreSQL backend."""
    return [PostgresBackend()]
