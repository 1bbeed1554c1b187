"""The server on which the ledger `postgres` is tested."""

from tests.support.postgres import postgres

__all__ = ["postgres"]
