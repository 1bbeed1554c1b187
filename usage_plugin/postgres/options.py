"""The options of a PostgreSQL server, and the check that its driver is installed. No driver is loaded here."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from usage_plugin.plugins.interface import Options, check_installed
from usage_plugin.postgres.address import Address


def _hidden(value: object) -> SecretStr:
    """Wrap the URL, also one that is not text: its validator must not print it, since it may have a password."""
    return SecretStr(str(value))


def _check_schema(name: str) -> str:
    if not re.fullmatch(r"(?!pg_)[a-z_][a-z0-9_]{0,62}", name, re.ASCII):
        raise ValueError("expected at most 63 small letters, digits and _, which do not begin with a digit or pg_")
    return name


class ServerOptions(Options):
    """The options of a server.

    Attributes:
        section: The key of the YAML whose options these are.
        url: The URL of the server and the database, `postgresql://user:password@host:port/database`.
        schema_name: The schema of the tables and functions, `schema` in the YAML; it is created if it is missing.
        connect_timeout: Seconds until a host counts as unreachable.
    """

    section: ClassVar[str]
    url: Annotated[SecretStr, BeforeValidator(_hidden)]
    schema_name: Annotated[str, Field(alias="schema"), AfterValidator(_check_schema)] = "usage_plugin"
    connect_timeout: Annotated[int, Field(ge=2, le=60)] = 5

    @property
    def address(self) -> Address:
        """The parsed URL.

        Raises:
            ConfigError: It is invalid.
        """
        return Address(self.url.get_secret_value(), self.connect_timeout, f"{self.section}.options.url")

    def check_installed(self) -> None:
        """Check that the driver is installed.

        Raises:
            ConfigError: It is not.
        """
        check_installed(self.section, "postgres", "psycopg", "psycopg")

    def check(self) -> None:
        """Check that the driver is installed, and that it takes the URL.

        Raises:
            ConfigError: The reason, without the URL.
        """
        self.check_installed()
        from usage_plugin.postgres.server import check_parameters  # noqa: PLC0415  # only now a driver is needed

        check_parameters(self.address)
