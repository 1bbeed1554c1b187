"""Open the parts of the ledger over one connection."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from usage_plugin.domain.erasure import ErasableParts
from usage_plugin.domain.open_ledger import OpenLedger
from usage_plugin.ledgers.valkey.connections import ANSWER_TIMEOUT
from usage_plugin.ledgers.valkey.erasable import ValkeyErasable
from usage_plugin.ledgers.valkey.erasable_records import ValkeyErasableRecords
from usage_plugin.ledgers.valkey.ledger import ValkeyLedger
from usage_plugin.ledgers.valkey.operations import ValkeyOperationsLog
from usage_plugin.ledgers.valkey.profiles import ValkeyProfileStore
from usage_plugin.ledgers.valkey.register import ANSWER_TIMEOUT as REGISTER_TIMEOUT
from usage_plugin.ledgers.valkey.register import ValkeyRegister
from usage_plugin.ledgers.valkey.server import ValkeyServer
from usage_plugin.ledgers.valkey.transport import ValkeyTransport

if TYPE_CHECKING:
    from collections.abc import Callable

    from usage_plugin.domain.clock import Clock
    from usage_plugin.ledgers.valkey.options import ValkeyOptions


def connect_to(
    options: ValkeyOptions, term: Callable[[], int] | None = None, answer_timeout: float = ANSWER_TIMEOUT
) -> ValkeyServer:
    """Return a connection for one thread, which connects with its first command.

    Args:
        options: The server.
        term: The term of a keeper; None for all others.
        answer_timeout: Seconds until a server counts as unreachable.

    Raises:
        ConfigError: the URL is invalid.
    """
    return ValkeyServer(
        options.url.get_secret_value(),
        options.prefix,
        replicas=options.replicas,
        term=term,
        answer_timeout=answer_timeout,
    )


def open_valkey_ledger(options: ValkeyOptions, term: Callable[[], int] | None = None) -> OpenLedger:
    """Connect for the calling thread; create the ledger if it is missing.

    Args:
        options: The server.
        term: The term of a keeper; None for all others.

    Raises:
        ConfigError: the URL is invalid.
        LedgerError: the server does not answer, or cannot keep a ledger.
        StorageVersionError: a newer version wrote it.
    """
    server = connect_to(options, term)
    try:
        ledger = ValkeyLedger(server)
        return OpenLedger(
            ledger,
            ValkeyOperationsLog(server),
            ValkeyProfileStore(server),
            ErasableParts(ValkeyErasable(server, ledger), ValkeyErasableRecords(server)),
        )
    except BaseException:
        server.close()
        raise


def has_ledger(options: ValkeyOptions) -> bool:
    """Whether the ledger exists; create nothing.

    Raises:
        LedgerError: the server does not answer, or cannot keep a ledger.
    """
    with closing(connect_to(options)) as server:
        return bool(server.command("EXISTS", server.keys[0]))


def transport_to(options: ValkeyOptions, clock: Clock) -> ValkeyTransport:
    """Return a connection for batches, which connects with the first one.

    Raises:
        ConfigError: the URL is invalid.
    """
    return ValkeyTransport(options.url.get_secret_value(), options.prefix, clock, replicas=options.replicas)


def open_register(options: ValkeyOptions) -> ValkeyRegister:
    """Connect to the register for the calling thread; create the ledger if it is missing.

    Raises:
        ConfigError: the URL is invalid.
        LedgerError: the server does not answer, or cannot keep a ledger.
        StorageVersionError: a newer version wrote it.
    """
    server = connect_to(options, answer_timeout=REGISTER_TIMEOUT)
    try:
        return ValkeyRegister(server)
    except BaseException:
        server.close()
        raise
