"""The servers that the tests of moves share."""

from tests.ledger.conftest import valkey
from tests.support.postgres import postgres

__all__ = ["postgres", "valkey"]
