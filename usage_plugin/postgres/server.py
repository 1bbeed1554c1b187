"""One connection to the server, with its transactions and errors.

Each part of the ledger is a class over one `Server`, and the store migrates its schema with one. Nothing is kept in the
session, neither settings nor prepared statements, so a pooler may hand each transaction to another connection. The
server's functions limit the wait for locks; where this class writes out a transaction, it does so itself.
"""

from __future__ import annotations

import selectors
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.waiting import Ready

from usage_plugin.errors import ConfigError
from usage_plugin.postgres.failures import DRIVER_ERRORS, LOST_A_RACE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from psycopg.abc import RV, PQGen

    from usage_plugin.postgres.address import Address
    from usage_plugin.postgres.failures import Failures

_TRIES = 4
_PATIENCE = 60.0
"""Seconds until a server that does not answer counts as lost."""
_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '2s'"
_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_PARAMETERS: dict[str, Any] = {
    "client_encoding": "UTF8",
    "fallback_application_name": "usage_plugin",
    # A host that is cut off is noticed in 20 s, instead of the system's quarter of an hour.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,
}


class _Connection(psycopg.Connection[Any]):
    """A connection that does not wait for ever: a stopped server accepts everything, and answers nothing."""

    patience = _PATIENCE

    def wait(self, gen: PQGen[RV], *_: Any, **__: Any) -> RV:
        """Run a step of the driver until its end, or until the server counts as lost."""
        deadline = time.monotonic() + self.patience
        with selectors.DefaultSelector() as selector:
            try:
                selector.register(self.pgconn.socket, next(gen))
                while True:
                    found = selector.select(deadline - time.monotonic())
                    if not found:
                        raise psycopg.OperationalError(f"no answer within {self.patience:g} s")
                    selector.modify(self.pgconn.socket, gen.send(Ready(found[0][1])))
            except StopIteration as ended:
                result: RV = ended.value
                return result


class Server:
    """A connection, opened again at the first use after it was lost. An object serves one thread.

    Attributes:
        schema: the schema of our tables and functions, quoted for statements.
        location: the hosts, the database and the schema, for people.
        failures: the errors that its methods raise.
    """

    def __init__(self, address: Address, schema: str, failures: Failures, *, patience: float | None = None) -> None:
        """Connect.

        Args:
            address: the server, or several.
            schema: the schema, which may not exist.
            failures: the errors to raise.
            patience: seconds until a server that does not answer counts as lost; None for a minute.

        Raises:
            failures.unavailable: the server cannot be reached.
        """
        self.failures = failures
        self.schema = f'"{schema}"'
        self.location = location_of(address, schema)
        self._address = address
        self._patience = patience
        self._is_in_transaction = False
        self._connection: _Connection | None = None
        self._usable()

    def _connect(self) -> _Connection:
        with self._translated():
            return connect(self._address)

    def read(self, statement: str, values: Sequence[object] | None = None) -> psycopg.Cursor[Any]:
        """Execute a statement that changes nothing, or one within a transaction."""
        return self._execute(statement, values)

    def one(self, statement: str, values: Sequence[object] | None = None) -> Any:
        """Return the only row of a statement for `read`, or None."""
        return self._execute(statement, values).fetchone()

    def run(
        self, statement: str, values: Sequence[object] | None = None, *, patience: float | None = None
    ) -> psycopg.Cursor[Any]:
        """Execute a statement that changes something, or several without values.

        `patience` is in seconds, for a slow one.
        """
        return self._execute(statement, values, patience)

    def run_alone(self, statement: str, *, patience: float) -> None:
        """Execute a slow statement that no transaction may contain."""
        self._execute(statement, None, patience)

    def _execute(
        self, statement: str, values: Sequence[object] | None, patience: float | None = None
    ) -> psycopg.Cursor[Any]:
        with self._translated():
            connection = self._usable()
            connection.patience = patience or self._patience or _PATIENCE
            return execute(connection, statement, values)

    def call(self, statement: str, *values: object) -> Any:
        """Return the answer of an idempotent function that changes something; repeat a call that lost a race.

        Raises:
            failures.busy: it lost several races, or waited too long for a lock; nothing was done.
        """
        for _ in range(_TRIES - 1):
            try:
                return self._answer(statement, values)
            except self.failures.busy as busy:
                if not isinstance(busy.__cause__, LOST_A_RACE):
                    raise
        return self._answer(statement, values)

    def _answer(self, statement: str, values: Sequence[object]) -> Any:
        (answer,) = self.one(statement, values)
        return answer

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Run several statements in one transaction."""
        with self._transaction(self._begin_writing()):
            yield

    def _begin_writing(self) -> str:
        return _WRITE

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Run several statements that see one instant."""
        with self._transaction(_READ):
            yield

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        self._usable()
        self._is_in_transaction = True
        try:
            self._execute(begin, None)
            yield
            self._execute("COMMIT", None)
        except BaseException:
            with suppress(self.failures.unavailable):
                self._execute("ROLLBACK", None)
            raise
        finally:
            self._is_in_transaction = False

    def delete_older(self, table: str, column: str, before: int, slice_size: int) -> None:
        """Delete a slice of the rows older than `before`; the column has an index."""
        self.run(
            f"DELETE FROM {self.schema}.{table} WHERE ctid IN"
            f" (SELECT ctid FROM {self.schema}.{table} WHERE {column} < %s ORDER BY {column} LIMIT %s)",
            (before, slice_size),
        )

    def _usable(self) -> _Connection:
        # The rest of a transaction whose connection is lost must not run on another one.
        if self._connection is None or (self._connection.closed and not self._is_in_transaction):
            self._connection = self._connect()
        return self._connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Convert the driver's errors."""
        try:
            yield
        except DRIVER_ERRORS as error:
            if self._connection and self._connection.info.transaction_status is TransactionStatus.ACTIVE:
                # An answer is still to come, and would be taken for that of the next statement.
                self._connection.close()
            raise self.failures.translate(error, self.location) from error

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


def connection_parameters(address: Address) -> dict[str, Any]:
    """Return our parameters of a connection, except those that the URL has."""
    named = psycopg.conninfo.conninfo_to_dict(address.conninfo)
    ours = {**_PARAMETERS, "connect_timeout": address.connect_timeout}
    return {name: value for name, value in ours.items() if name not in named}


def connect(address: Address) -> _Connection:
    """Connect; raise the driver's error."""
    return _Connection.connect(
        address.conninfo, autocommit=True, prepare_threshold=None, **connection_parameters(address)
    )


def location_of(address: Address, schema: str) -> str:
    """Return the hosts, the database and the schema, for people."""
    return f"{address.location}, schema {schema}"


def check_parameters(address: Address) -> None:
    """Check that the driver knows all parameters of the URL.

    Raises:
        ConfigError: it does not know one of them.
    """
    try:
        psycopg.conninfo.conninfo_to_dict(address.conninfo)
    except psycopg.ProgrammingError as error:
        raise ConfigError(f"{address.where}: {str(error).strip()}.", hint="Remove it, or correct its name.") from None


def execute(
    connection: psycopg.Connection[Any], statement: str, values: Sequence[object] | None
) -> psycopg.Cursor[Any]:
    """Execute a statement: the only way to the server, which tests cut."""
    return connection.execute(statement.encode(), values)
