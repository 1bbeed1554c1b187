"""The ledger `valkey`: one ledger for the workers of many hosts, on a Valkey server or Redis from 6.2.

    ledger: {backend: valkey, options: {url: os.environ/USAGE_VALKEY_URL}}

Accounts, reservations and the outbox are the core. Each batch of its verbs, and each verb of the fleet's register, is
one run of a script, whose text is in four files from `fence.lua` to `batch.lua`. Each verb of the operations log and of
the profiles is one run of `records.lua`, behind the same fence. All keys have one hash tag.

This module is imported at every start, so it loads no driver: redis-py comes with the extra `valkey`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usage_plugin.ledgers.valkey.address import Address
from usage_plugin.ledgers.valkey.options import ValkeyOptions
from usage_plugin.plugins import hookimpl
from usage_plugin.plugins.interface import BackendContext, LedgerBackend, SharedLedgerBackend, check_installed

if TYPE_CHECKING:
    from collections.abc import Callable

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.fleet import FleetRegister
    from usage_plugin.domain.ledger_batch import LedgerTransport
    from usage_plugin.domain.open_ledger import OpenLedger


class ValkeyLedgerBackend(SharedLedgerBackend[ValkeyOptions]):
    """Keep the ledger on a Valkey server."""

    name = "valkey"
    options_model = ValkeyOptions
    outbox_max = 100_000_000  # it is in the server's memory

    def check(self, options: ValkeyOptions, context: BackendContext) -> None:
        """Check that the URL is valid and the driver installed."""
        del context
        _check_installed()
        Address(options.url.get_secret_value())

    def exists(self, options: ValkeyOptions, context: BackendContext) -> bool:
        """Whether the server has the ledger."""
        del context
        _check_installed()
        from usage_plugin.ledgers.valkey.opening import has_ledger  # noqa: PLC0415  # only now a driver is needed

        return has_ledger(options)

    def open(self, options: ValkeyOptions, context: BackendContext) -> OpenLedger:
        """Connect to the server; create the ledger if it is missing."""
        del context
        _check_installed()
        from usage_plugin.ledgers.valkey.opening import open_valkey_ledger  # noqa: PLC0415  # as above

        return open_valkey_ledger(options)

    def open_as_keeper(self, options: ValkeyOptions, context: BackendContext, term: Callable[[], int]) -> OpenLedger:
        """Connect to the server for a keeper."""
        del context
        _check_installed()
        from usage_plugin.ledgers.valkey.opening import open_valkey_ledger  # noqa: PLC0415  # as above

        return open_valkey_ledger(options, term)

    def transport(self, options: ValkeyOptions, context: BackendContext, clock: Clock) -> LedgerTransport:
        """Return a connection for batches."""
        del context
        _check_installed()
        from usage_plugin.ledgers.valkey.opening import transport_to  # noqa: PLC0415  # as above

        return transport_to(options, clock)

    def register(self, options: ValkeyOptions, context: BackendContext) -> FleetRegister:
        """Connect to the register; create the ledger if it is missing."""
        del context
        _check_installed()
        from usage_plugin.ledgers.valkey.opening import open_register  # noqa: PLC0415  # as above

        return open_register(options)

    def trouble(self, options: ValkeyOptions, context: BackendContext) -> list[str]:
        """Return the settings of the server that endanger the ledger, each with its remedy, for people."""
        del context
        _check_installed()
        from usage_plugin.ledgers.valkey.trouble import trouble_of  # noqa: PLC0415  # as above

        return trouble_of(options)


def _check_installed() -> None:
    check_installed("usage_plugin.ledger", "valkey", "redis", "redis-py")


@hookimpl
def usage_register_ledgers() -> list[LedgerBackend[Any]]:
    """Register the Valkey ledger."""
    return [ValkeyLedgerBackend()]
