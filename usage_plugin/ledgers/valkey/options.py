"""The options of the ledger."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, SecretStr

from usage_plugin.plugins.interface import Options


def _hidden(value: object) -> SecretStr:
    """Wrap the URL, also one that is not text: its validator must not print it, since it may have a password."""
    return value if isinstance(value, SecretStr) else SecretStr(str(value))


class ValkeyOptions(Options):
    """The options of the ledger.

    Attributes:
        url: `valkey://host:6379/0`; `valkeys://` with TLS; `unix:///path` for a socket;
            `valkey+sentinel://host1,host2/mymaster/0` for the primary that sentinels name. It may have a password.
        replicas: The number of replicas that must have a change before it counts as done. Without one, the settlements
            of the last moments are lost when a replica takes over. With one, requests fail while it is away.
        prefix: The hash tag of all keys. Ledgers with different prefixes can share a server.
    """

    url: Annotated[SecretStr, BeforeValidator(_hidden)]
    replicas: int = Field(0, ge=0, le=10)
    prefix: str = Field("usage", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
