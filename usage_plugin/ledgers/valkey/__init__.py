"""The ledger on a Valkey server, or Redis from 6.2: exact for all workers of all hosts that use the server.

It is a core: accounts, reservations and the outbox. Only this package knows the driver, redis-py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from usage_plugin.ledgers.valkey.erasable import ValkeyErasable
from usage_plugin.ledgers.valkey.ledger import ValkeyLedger
from usage_plugin.ledgers.valkey.server import SCHEMES, ValkeyServer
from usage_plugin.plugins.interface import Options

if TYPE_CHECKING:
    from collections.abc import Callable


class ValkeyOptions(Options):
    """The address of the server.

    Attributes:
        url: `valkey://host:6379/0`; `valkeys://` with TLS; `unix:///path` for a socket. It may have a password.
        replicas: the number of replicas that must have a batch before it counts as done. Without one, the settlements
            of the last moments are lost when a replica takes over. With one, requests fail while it is away.
        prefix: the hash tag of all keys. Ledgers with different prefixes can share a server.
    """

    url: SecretStr
    replicas: int = Field(0, ge=0, le=10)
    prefix: str = Field("usage", pattern=r"^[A-Za-z0-9_.-]{1,64}$")

    @field_validator("url")
    @classmethod
    def _has_known_scheme(cls, url: SecretStr) -> SecretStr:
        if urlsplit(url.get_secret_value()).scheme not in SCHEMES:
            raise ValueError("expected an address such as valkey://host:6379/0")
        return url


class ValkeyCore(NamedTuple):
    """The parts of an open core, as `OpenLedger.with_core` takes them."""

    ledger: ValkeyLedger
    erasable: ValkeyErasable


def valkey_ledger_exists(options: ValkeyOptions) -> bool:
    """Whether the ledger exists; create nothing.

    Raises:
        LedgerError: the server does not answer.
    """
    server = ValkeyServer(options.url.get_secret_value(), options.prefix)
    try:
        return bool(server.command("EXISTS", server.keys[0]))
    finally:
        server.close()


def open_valkey_core(options: ValkeyOptions, term: Callable[[], int] | None = None) -> ValkeyCore:
    """Open the core for the calling thread; create it if it is missing.

    Args:
        options: the address of the server.
        term: the term of a keeper; None for all others.

    Raises:
        LedgerError: the server does not answer, or cannot keep a ledger.
        StorageVersionError: a newer version wrote it.
    """
    server = ValkeyServer(options.url.get_secret_value(), options.prefix, replicas=options.replicas, term=term)
    try:
        ledger = ValkeyLedger(server)
    except BaseException:
        server.close()
        raise
    return ValkeyCore(ledger, ValkeyErasable(server, ledger))
