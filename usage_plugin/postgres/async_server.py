"""Connections to the server for one event loop: transactions, streams and copies, without blocking the loop.

Nothing is kept in the session, neither settings nor prepared statements nor cursors, so a pooler may hand each
transaction to another connection. Each transaction sets its own limits on waiting. A step that is cancelled or gets no
answer closes its connection, since an answer may still be under way; the server then rolls back.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import waiting
from psycopg.adapt import Loader

from usage_plugin.postgres.failures import DRIVER_ERRORS, LOST_A_RACE
from usage_plugin.postgres.server import connection_parameters

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence

    from psycopg.abc import RV, Buffer, PQGen

    from usage_plugin.postgres.address import Address
    from usage_plugin.postgres.failures import Failures

ResultT = TypeVar("ResultT")
Row = tuple[Any, ...]

PATIENCE = 60.0
"""Seconds until a server that does not answer a step of a transaction counts as lost."""
READING = 600.0
"""The same for a query, which may sum millions of rows."""
_TRIES = 4
_INTERVAL = 1.0
"""Seconds between two looks of the driver at a socket that stays silent."""
# The server gives up first: then nothing of ours is left there. An idle transaction would hold back its vacuum.
_WRITE = (
    "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '{lock_timeout}';"
    " SET LOCAL statement_timeout = '50s';"
    # A role or a database may have it off, and the records leave the outbox after the commit.
    " SET LOCAL synchronous_commit = 'on'; SET LOCAL idle_in_transaction_session_timeout = '60s'"
)
_READ = (
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = '590s';"
    " SET LOCAL idle_in_transaction_session_timeout = '60s'"
)


class _WholeNumber(Loader):
    """Load `numeric` as int: all of our sums are whole."""

    def load(self, data: Buffer) -> int:
        """Convert the server's text."""
        return int(bytes(data))


class _Connection(psycopg.AsyncConnection[Row]):
    """A connection that does not wait for ever: a stopped server accepts everything, and answers nothing."""

    patience = PATIENCE

    async def wait(self, gen: PQGen[RV], *_: Any, **__: Any) -> RV:
        """Run a step of the driver until its end, or until the server counts as lost."""
        step = waiting.wait_async(gen, self.pgconn.socket, interval=_INTERVAL)
        try:
            return await asyncio.wait_for(step, self.patience)
        except asyncio.TimeoutError:
            self.pgconn.finish()
            raise psycopg.OperationalError(f"no answer within {self.patience:g} s") from None
        except asyncio.CancelledError:
            self.pgconn.finish()
            raise


class Session:
    """One transaction. In its statements, `{schema}` stands for the schema of our tables."""

    def __init__(self, connection: _Connection, server: AsyncServer) -> None:
        """Use a connection within a transaction."""
        self._connection = connection
        self._server = server

    async def run(self, statement: str, values: Sequence[object] | None = None) -> list[Row]:
        """Execute a statement, or several without values, and return the rows of the last one."""
        cursor = await self._execute(statement, values)
        with self._server.translated():
            return await cursor.fetchall() if cursor.description else []

    async def change(self, statement: str, values: Sequence[object] | None = None) -> int:
        """Execute a statement, and return the number of rows that it changed."""
        return (await self._execute(statement, values)).rowcount

    async def _execute(self, statement: str, values: Sequence[object] | None) -> psycopg.AsyncCursor[Row]:
        with self._server.translated():
            return await execute(self._connection, self._server.filled(statement), values)

    async def copy(self, statement: str, rows: Iterable[Row]) -> None:
        """Send rows to `COPY … FROM STDIN`."""
        with self._server.translated():
            await copy(self._connection, self._server.filled(statement), rows)

    async def pages(self, statement: str, values: Sequence[object], size: int) -> AsyncIterator[list[Row]]:
        """Stream the rows of a query from a cursor on the server, at most `size` at a time; at least one page."""
        await self._execute(f"DECLARE rows_of_a_query NO SCROLL CURSOR FOR {statement}", values)
        while True:
            rows = await self.run(f"FETCH FORWARD {size:d} FROM rows_of_a_query")
            yield rows
            if len(rows) < size:
                break
        await self.run("CLOSE rows_of_a_query")


class _Lane:
    """A connection, opened again at the first use after it was lost; one transaction has it at a time."""

    def __init__(self, connect: Callable[[], Awaitable[_Connection]], patience: float) -> None:
        """Connect at the first use."""
        self._connect = connect
        self._patience = patience
        self._turn = asyncio.Lock()
        self._connection: _Connection | None = None

    @asynccontextmanager
    async def transaction(self, begin: str) -> AsyncIterator[_Connection]:
        """Commit at the end of the context, or roll back after an error."""
        async with self._turn:
            connection = await self._begun(begin)
            try:
                yield connection
                await execute(connection, "COMMIT", None)
            except BaseException as error:
                await self._abandon(connection, error)
                raise

    async def _begun(self, begin: str) -> _Connection:
        if self._connection is not None and not self._connection.closed:
            self._connection.patience = self._patience
            # An idle connection may have been cut by a restart of the server or a pooler.
            with suppress(psycopg.OperationalError):
                await execute(self._connection, begin, None)
                return self._connection
            await self.close()
        self._connection = await self._connect()
        self._connection.patience = self._patience
        try:
            await execute(self._connection, begin, None)
        except BaseException:
            await self.close()
            raise
        return self._connection

    async def _abandon(self, connection: _Connection, error: BaseException) -> None:
        """Roll back; without an answer, close the connection, which does so too."""
        if isinstance(error, Exception) and not connection.closed:
            with suppress(*DRIVER_ERRORS):
                await execute(connection, "ROLLBACK", None)
                return
        await self.close()

    async def use_alone(self, statement: str, patience: float) -> None:
        """Execute a statement that no transaction may contain."""
        async with self._turn:
            if self._connection is None or self._connection.closed:
                self._connection = await self._connect()
            self._connection.patience = patience
            await execute(self._connection, statement, None)

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.close()


class AsyncServer:
    """One connection that writes, one that reads, and further ones for long streams.

    Attributes:
        location: the hosts, the database and the schema, for people.
    """

    def __init__(self, address: Address, schema: str, failures: Failures) -> None:
        """Connect at the first use.

        Args:
            address: the server.
            schema: the schema of our tables.
            failures: the errors that all methods raise.
        """
        self.location = f"{address.location}, schema {schema}"
        self._schema = f'"{schema}"'
        self._address = address
        self._failures = failures
        self._writer = _Lane(self._connect, PATIENCE)
        self._reader = _Lane(self._connect, READING)

    async def _connect(self) -> _Connection:
        connection = await _Connection.connect(
            self._address.conninfo, autocommit=True, prepare_threshold=None, **connection_parameters(self._address)
        )
        connection.adapters.register_loader("numeric", _WholeNumber)
        return connection

    async def write(self, work: Callable[[Session], Awaitable[ResultT]], *, lock_timeout: str = "10s") -> ResultT:
        """Run work in a transaction; repeat it if it lost a race.

        Args:
            work: leaves no trace if its transaction is rolled back.
            lock_timeout: the maximum wait for each lock, as PostgreSQL writes it.
        """
        begin = _WRITE.replace("{lock_timeout}", lock_timeout)
        for left in reversed(range(_TRIES)):
            try:
                with self.translated():
                    async with self._writer.transaction(begin) as connection:
                        return await work(Session(connection, self))
            except self._failures.busy as busy:
                if not left or not isinstance(busy.__cause__, LOST_A_RACE):
                    raise
        raise AssertionError

    async def read(self, work: Callable[[Session], Awaitable[ResultT]]) -> ResultT:
        """Run queries that see one instant."""
        with self.translated():
            async with self._reader.transaction(_READ) as connection:
                return await work(Session(connection, self))

    @asynccontextmanager
    async def streaming(self) -> AsyncIterator[Session]:
        """Run queries that see one instant on a connection of their own, so that others need not wait for a reader."""
        lane = _Lane(self._connect, READING)
        try:
            with self.translated():
                async with lane.transaction(_READ) as connection:
                    yield Session(connection, self)
        finally:
            await lane.close()

    async def run_alone(self, statement: str, patience: float) -> None:
        """Execute a statement that no transaction may contain, for at most `patience` seconds."""
        with self.translated():
            await self._writer.use_alone(self.filled(statement), patience)

    def filled(self, statement: str) -> str:
        """Return a statement with the name of the schema."""
        return statement.replace("{schema}", self._schema)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Convert the driver's errors, and numbers and texts that it cannot send."""
        try:
            yield
        except (*DRIVER_ERRORS, OverflowError) as error:
            raise self._failures.translate(error, self.location) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._writer.close()
        await self._reader.close()


async def execute(
    connection: psycopg.AsyncConnection[Row], statement: str, values: Sequence[object] | None
) -> psycopg.AsyncCursor[Row]:
    """Execute a statement; with `copy`, the only way to the server, which tests cut."""
    return await connection.execute(statement.encode(), values)


async def copy(connection: psycopg.AsyncConnection[Row], statement: str, rows: Iterable[Row]) -> None:
    """Send rows to a `COPY`."""
    async with connection.cursor() as cursor, cursor.copy(statement.encode()) as sending:
        for row in rows:
            await sending.write_row(row)
