"""The ledger `postgres`: one ledger for the workers of many hosts, in a schema of its own on a PostgreSQL server.

    ledger: {backend: postgres, options: {url: os.environ/USAGE_DATABASE_URL}}

Each part is a class of its own over one `Server`. The core's verbs are functions of the server
(`migrations/0002_core_v1.sql`), so that each is one round trip, and many can be in one transaction.

This module is imported at every start, so it loads no driver: psycopg comes with the extra `postgres`.
"""

from __future__ import annotations

import importlib.util
import re
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from usage_plugin.errors import ConfigError
from usage_plugin.ledgers.postgres.address import Address
from usage_plugin.plugins import hookimpl
from usage_plugin.plugins.interface import BackendContext, LedgerBackend, Options

if TYPE_CHECKING:
    from usage_plugin.domain.open_ledger import OpenLedger

INSTALL = 'pip install "usage-plugin[postgres]"'


def _hidden(value: object) -> SecretStr:
    """Wrap the URL, also one that is not text: its validator must not print it, since it may have a password."""
    return SecretStr(str(value))


def _check_schema(name: str) -> str:
    if not re.fullmatch(r"(?!pg_)[a-z_][a-z0-9_]{0,62}", name, re.ASCII):
        raise ValueError("expected at most 63 small letters, digits and _, which do not begin with a digit or pg_")
    return name


class PostgresOptions(Options):
    """The options of the ledger.

    Attributes:
        url: The URL of the server and the database, `postgresql://user:password@host:port/database`.
        schema_name: The schema of the tables and functions, `schema` in the YAML; it is created if it is missing.
        connect_timeout: Seconds until a host counts as unreachable.
    """

    url: Annotated[SecretStr, BeforeValidator(_hidden)]
    schema_name: Annotated[str, Field(alias="schema"), AfterValidator(_check_schema)] = "usage_plugin"
    connect_timeout: Annotated[int, Field(ge=2, le=60)] = 5

    @property
    def address(self) -> Address:
        """The parsed URL.

        Raises:
            ConfigError: It is invalid.
        """
        return Address(self.url.get_secret_value(), self.connect_timeout)


class PostgresLedgerBackend(LedgerBackend[PostgresOptions]):
    """Keep the ledger on a PostgreSQL server."""

    name = "postgres"
    options_model = PostgresOptions

    def check(self, options: PostgresOptions, context: BackendContext) -> None:
        """Check that the URL is valid and the driver installed."""
        del context
        _check_installed()
        from usage_plugin.ledgers.postgres.server import check_parameters  # noqa: PLC0415  # only now a driver is needed

        check_parameters(options.address)

    def exists(self, options: PostgresOptions, context: BackendContext) -> bool:
        """Whether the schema has a ledger."""
        del context
        _check_installed()
        from usage_plugin.ledgers.postgres.opening import has_ledger  # noqa: PLC0415  # as above

        return has_ledger(options.address, options.schema_name)

    def open(self, options: PostgresOptions, context: BackendContext) -> OpenLedger:
        """Connect to the server; create the schema and the tables if they are missing."""
        del context
        _check_installed()
        from usage_plugin.ledgers.postgres.opening import open_postgres_ledger  # noqa: PLC0415  # as above

        return open_postgres_ledger(options.address, options.schema_name)


def _check_installed() -> None:
    if importlib.util.find_spec("psycopg") is None:
        raise ConfigError(
            "usage_plugin.ledger.backend: postgres requires psycopg, which is not installed.", hint=f"Run: {INSTALL}"
        )


@hookimpl
def usage_register_ledgers() -> list[LedgerBackend[Any]]:
    """Register the PostgreSQL ledger."""
    return [PostgresLedgerBackend()]
