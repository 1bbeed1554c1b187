"""A connection of the keeper: each transaction that may change something first checks the keeper's term."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg

from usage_plugin.errors import KeeperReplacedError, LedgerError
from usage_plugin.postgres.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from usage_plugin.postgres.address import Address
    from usage_plugin.postgres.failures import Failures

_OTHER_TERM = "UP001"
"""The code with which `usage_v1_check_term` fails."""


class KeeperServer(Server):
    """A connection on which only `read`, `one` and `reading` do without the term."""

    def __init__(self, address: Address, schema: str, failures: Failures, term: Callable[[], int]) -> None:
        """Connect.

        Args:
            address: the server, or several.
            schema: the schema of the ledger.
            failures: the errors to raise.
            term: the term of this keeper, asked before each change.
        """
        super().__init__(address, schema, failures)
        self._term = term

    def run(
        self, statement: str, values: Sequence[object] | None = None, *, patience: float | None = None
    ) -> psycopg.Cursor[Any]:
        """Execute a statement in a transaction."""
        if self._is_in_transaction:
            return super().run(statement, values, patience=patience)
        with self.writing():
            return super().run(statement, values, patience=patience)

    def run_alone(self, statement: str, *, patience: float) -> None:
        """Execute a statement after a check: it may change how the records are kept, and none of them."""
        with self.writing():
            pass
        super().run_alone(statement, patience=patience)

    def _answer(self, statement: str, values: Sequence[object]) -> Any:
        with self.writing():
            return super()._answer(statement, values)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Run several statements in one transaction.

        Raises:
            KeeperReplacedError: the term is not the present one.
        """
        try:
            with super().writing():
                yield
        except LedgerError as error:
            if isinstance(error.__cause__, psycopg.Error) and error.__cause__.sqlstate == _OTHER_TERM:
                raise KeeperReplacedError from error
            raise

    def _begin_writing(self) -> str:
        return f"{super()._begin_writing()}; SELECT {self.schema}.usage_v1_check_term({int(self._term())})"
