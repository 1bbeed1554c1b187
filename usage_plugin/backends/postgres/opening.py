"""Open the store: migrate the schema and check the zone over one connection, then connect for the event loop."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING

from usage_plugin.backends.postgres.store import PostgresStore
from usage_plugin.errors import StorageError, StorageUnavailableError
from usage_plugin.postgres.async_server import AsyncServer
from usage_plugin.postgres.failures import Failures
from usage_plugin.postgres.schema import Migrations, migrate
from usage_plugin.postgres.server import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from zoneinfo import ZoneInfo

    from usage_plugin.postgres.address import Address

_FAILURES = Failures("store", unavailable=StorageUnavailableError, busy=StorageUnavailableError, invalid=StorageError)
_MIGRATIONS = Migrations(__package__, "store_versions")


@asynccontextmanager
async def open_store(address: Address, schema: str, zone: ZoneInfo) -> AsyncIterator[PostgresStore]:
    """Connect; create or migrate the schema.

    Raises:
        StorageError: it does not work, or its days are of another time zone.
        StorageVersionError: this version cannot use the newer schema.
    """
    await asyncio.to_thread(_prepare, address, schema, zone)
    server = AsyncServer(address, schema, _FAILURES)
    try:
        yield PostgresStore(server, zone)
    finally:
        await server.close()


def _prepare(address: Address, schema: str, zone: ZoneInfo) -> None:
    with closing(Server(address, schema, _FAILURES)) as server:
        migrate(server, _MIGRATIONS)
        table = f"{server.schema}.store_zone"
        # Read first: the role of a reader need not have the right to write.
        row = server.one(f"SELECT zone FROM {table}")
        if row is None:
            server.run(f"INSERT INTO {table} (zone) VALUES (%s) ON CONFLICT DO NOTHING", (str(zone),))
            row = server.one(f"SELECT zone FROM {table}")
        (kept,) = row
        if kept != str(zone):
            raise StorageError(
                f"{server.location} keeps days of the zone {kept}; found usage_plugin.timezone {zone}.",
                hint=f"Set usage_plugin.timezone to {kept}, or name another schema to start a new history.",
            )
