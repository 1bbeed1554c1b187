"""The connection of a worker's request path: batches of verbs, each one call of a function of the server.

Each batch has a number. The server rejects a batch that arrives after a later one of the same sender. So a batch that
was delayed on the way can change nothing any more. Nothing is kept in the session, so a pooler may hand each batch to
another connection.

The event loop never waits for the server. A connection is made in a thread: to resolve a name, to derive a key from the
password and to try one host after the other takes from milliseconds to seconds.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import orjson
import psycopg
from psycopg import waiting

from usage_plugin.domain.ledger_batch import LedgerTransport
from usage_plugin.encoding import encode_record
from usage_plugin.errors import LedgerBusyError, LedgerError, LedgerReplacedError, WorkerLostError
from usage_plugin.ledgers.postgres.batch import answer_of, text_of
from usage_plugin.ledgers.postgres.ledger_failures import FAILURES
from usage_plugin.postgres.failures import DRIVER_ERRORS
from usage_plugin.postgres.server import connect, location_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg.abc import RV, PQGen

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.ledger_batch import Answer, Verb
    from usage_plugin.postgres.address import Address

_WAKE_INTERVAL = 3_600.0
"""Seconds after which the driver looks at a silent connection by itself. The caller's deadline is far shorter."""
_UNFIT = frozenset({"22", "23", "54"})
"""Classes of errors of one verb: of its data, or of its size."""
_DID_NOTHING = frozenset({"0A", "25", "28", "40", "42", "53", "55"}) | _UNFIT
"""Classes of errors after which the transaction is known to be rolled back. Those of a server that is shutting down are
not among them: they may arrive after the commit."""


class _UnfitError(Exception):
    """Some verb of the batch can never be done."""


class _RequestConnection(psycopg.AsyncConnection[Any]):
    """A connection that is closed when its statement is cancelled. The driver would wait for the server instead."""

    def __init__(self, opened: psycopg.Connection[Any]) -> None:
        """Use a connection that was opened in a thread."""
        super().__init__(opened.pgconn)
        # The driver warns of a connection that is deleted before it is closed.
        self._opened = opened
        self.prepare_threshold = None

    async def wait(self, gen: PQGen[RV], *_: Any, **__: Any) -> RV:
        """Run a step of the driver until its end."""
        try:
            return await waiting.wait_async(gen, self.pgconn.socket, _WAKE_INTERVAL)
        except BaseException:
            # A late answer must not be taken for that of a later batch.
            self.pgconn.finish()
            raise


class PostgresTransport(LedgerTransport):
    """One connection, used by one event loop."""

    def __init__(self, address: Address, schema: str, clock: Clock) -> None:
        """Prepare a connection; the first batch connects.

        Args:
            address: the server, or several of which one is the primary.
            schema: the schema of the ledger.
            clock: the time that batches carry.
        """
        self.location = location_of(address, schema)
        self._address = address
        self._batch = f'SELECT "{schema}".usage_v1_batch(%s::jsonb, %s::jsonb, %s)::text'.encode()
        self._reasserted = f'SELECT "{schema}".usage_v1_reasserted(%s::text, %s::text)::text'.encode()
        self._clock = clock
        self._sender = str(uuid.uuid4())
        self._number = 0
        self._incarnation: str | None = None
        self._offered: str | None = None
        self._connection: _RequestConnection | None = None
        self._connecting: asyncio.Future[psycopg.Connection[Any]] | None = None

    async def send(self, batch: Sequence[Verb]) -> Sequence[Answer]:
        """Do a batch in one transaction."""
        errors: dict[int, LedgerError] = {}
        texts: list[str] = []
        for number, verb in enumerate(batch):
            try:
                texts.append(text_of(verb))
            except LedgerError as error:
                errors[number] = error
        verbs = f"[{','.join(texts)}]"
        try:
            answers = iter(await self._do(verbs, singly=False))
        except _UnfitError:
            answers = iter(await self._do(verbs, singly=True))
        return [
            errors[number] if number in errors else answer_of(verb, next(answers)) for number, verb in enumerate(batch)
        ]

    async def _do(self, verbs: str, *, singly: bool) -> list[Any]:
        connection = await self._connected()
        self._number += 1
        head = encode_record([self._sender, self._number, self._clock.now(), self._incarnation])
        try:
            reply = await _ask(connection, self._batch, (head, verbs, singly))
        except DRIVER_ERRORS as error:
            kind = ((isinstance(error, psycopg.Error) and error.sqlstate) or "")[:2]
            if kind in _UNFIT and not singly:
                raise _UnfitError from error
            translated = FAILURES.translate(error, self.location)
            if kind in _DID_NOTHING:
                raise LedgerBusyError(translated.message, hint=translated.hint) from error
            raise translated from error
        if "is_late" in reply:
            raise LedgerError(f"{self.location}: a later batch of this connection was done.")
        if "answers" not in reply:
            raise self._replaced(reply)
        self._incarnation = reply["incarnation"]
        answers: list[Any] = reply["answers"]
        return answers

    def _replaced(self, reply: dict[str, Any]) -> LedgerReplacedError:
        self._offered = reply["incarnation"]
        return LedgerReplacedError()

    def accept(self) -> None:
        """Carry the incarnation of the last `LedgerReplacedError` from now on."""
        self._incarnation = self._offered

    async def reasserted(self, worker: str) -> None:
        """State that a member has sent everything again."""
        if self._incarnation is None:
            await self.send([])
        connection = await self._connected()
        try:
            reply = await _ask(connection, self._reasserted, (worker, self._incarnation))
        except DRIVER_ERRORS as error:
            raise FAILURES.translate(error, self.location) from error
        if "is_replaced" in reply:
            raise self._replaced(reply)
        if not reply["is_member"]:
            raise WorkerLostError

    async def _connected(self) -> _RequestConnection:
        """Return the connection, or wait for a new one. A cancelled caller leaves the attempt for the next one.

        Raises:
            LedgerBusyError: no connection, so nothing was done.
        """
        if self._connection is not None and not self._connection.closed:
            return self._connection
        if self._connecting is None:
            self._connecting = self._connect()
        try:
            opened = await asyncio.shield(self._connecting)
        except DRIVER_ERRORS as error:
            translated = FAILURES.translate(error, self.location)
            raise LedgerBusyError(translated.message, hint=translated.hint) from error
        self._connecting = None
        self._connection = _RequestConnection(opened)
        await self._connection.set_autocommit(True)
        return self._connection

    def _connect(self) -> asyncio.Future[psycopg.Connection[Any]]:
        """Connect in a thread. One that hangs does not delay the end of the process."""
        loop = asyncio.get_running_loop()
        connecting: asyncio.Future[psycopg.Connection[Any]] = loop.create_future()

        def finish(opened: psycopg.Connection[Any] | None, error: BaseException | None) -> None:
            if connecting.done():
                if opened is not None:
                    opened.close()
            elif opened is not None:
                connecting.set_result(opened)
            elif error is not None:
                self._connecting = None
                connecting.set_exception(error)
                connecting.exception()  # there may be no caller left that retrieves it

        def work() -> None:
            opened, failed = None, None
            try:
                opened = connect(self._address)
            except Exception as error:  # noqa: BLE001  # the caller gets it
                failed = error
            try:
                loop.call_soon_threadsafe(finish, opened, failed)
            except RuntimeError:
                # The loop is closed.
                if opened is not None:
                    opened.close()

        threading.Thread(target=work, name="usage-plugin-connect", daemon=True).start()
        return connecting

    async def close(self) -> None:
        """Close the connection."""
        connecting, self._connecting = self._connecting, None
        if connecting is not None and not connecting.cancel():
            with suppress(*DRIVER_ERRORS):
                connecting.result().close()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.pgconn.finish()


async def _ask(connection: psycopg.AsyncConnection[Any], statement: bytes, values: Sequence[object]) -> dict[str, Any]:
    """Return the answer of a function, in one round trip."""
    cursor = await connection.execute(statement, values)
    row = await cursor.fetchone()
    assert row is not None  # noqa: S101  # a function has one answer
    reply: dict[str, Any] = orjson.loads(row[0])
    return reply
