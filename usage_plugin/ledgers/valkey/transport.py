"""The connection of a worker's request path to a Valkey server: batches of verbs, each one run of the script.

Each batch has a number. The server rejects a batch that arrives after a later one of the same sender. So a batch that
was delayed on the way can change nothing any more.

Nothing here blocks the event loop. The driver resolves names in a thread and waits for the server with asyncio. It has
no timeout of its own: callers cancel a batch that takes too long, and a cancelled batch closes the connection.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as DriverConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError

from usage_plugin.domain.ledger_batch import LedgerTransport
from usage_plugin.errors import LedgerBusyError, LedgerError
from usage_plugin.ledgers.valkey import batch as wire
from usage_plugin.ledgers.valkey.address import Address
from usage_plugin.ledgers.valkey.connections import asynchronous_connection, connect_asynchronously
from usage_plugin.ledgers.valkey.server import (
    CONFIRM_TIMEOUT_MS,
    check_confirmed,
    check_suitable,
    information_in,
    is_from_replica,
    is_of_the_script,
    keys_of,
    script,
    translate,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.ledger_batch import Answer, Verb

_REPLACED = "REPLACED "
_ANSWER_TIMEOUT = 10.0


class ValkeyTransport(LedgerTransport):
    """One connection, used by one event loop."""

    def __init__(self, url: str, prefix: str, clock: Clock, *, replicas: int = 0) -> None:
        """Prepare a connection; the first batch connects.

        Args:
            url: The address of the server.
            prefix: The hash tag of all keys.
            clock: The time that batches carry.
            replicas: The number of replicas that must have a batch before it is answered.
        """
        self._address = Address(url)
        self.location = self._address.location
        self._keys = keys_of(prefix)
        self._connection: Any = asynchronous_connection(self._address)
        self._clock = clock
        self._replicas = replicas
        self._sender = uuid.uuid4().hex
        self._number = 0
        self._accepted = self._offered = wire.PRESENT

    async def send(self, batch: Sequence[Verb]) -> Sequence[Answer]:
        """Do a batch in one run of the script."""
        arguments: list[bytes] = []
        errors: dict[int, LedgerError] = {}
        for number, verb in enumerate(batch):
            try:
                arguments += wire.arguments_of(verb)
            except LedgerError as error:
                errors[number] = error
        try:
            replies = await self._run(arguments)
        except ResponseError as error:
            if not is_of_the_script(error):
                raise translate(error, self.location) from error
            if len(batch) == 1:
                return [translate(error, self.location)]
            # The script failed before it wrote anything. Find the verb, which would stop all others for ever.
            return [answer for verb in batch for answer in await self.send([verb])]
        except RedisError as error:
            raise translate(error, self.location) from error
        left = iter(replies)
        return [
            errors[number] if number in errors else wire.answer_of(verb, next(left))
            for number, verb in enumerate(batch)
        ]

    def accept(self) -> None:
        """Accept the incarnation that the server has named last."""
        self._accepted = self._offered

    async def reasserted(self, worker: str) -> None:
        """State it in a batch of its own."""
        try:
            (reply,) = await asyncio.wait_for(self._run(wire.encode("reasserted", worker)), _ANSWER_TIMEOUT)
        except RedisError as error:
            raise translate(error, self.location) from error
        except asyncio.TimeoutError as error:
            raise LedgerError(f"The Valkey server at {self.location} does not answer.") from error
        if reply:
            raise wire.lost(worker)

    async def _run(self, arguments: Sequence[bytes]) -> Sequence[Any]:
        """Run the script with the arguments of all verbs, and return an answer for each once the replicas have it."""
        await self._connect()
        self._number += 1
        header = wire.Header(
            accepted=self._accepted, sender=self._sender, number=str(self._number), sent_at=str(self._clock.now())
        )
        rest: tuple[bytes | str | int, ...] = (len(self._keys), *self._keys, *header, *arguments)
        replies: list[Any]
        try:
            try:
                incarnation, *replies = await self._exchange("EVALSHA", script().name, *rest)
            except NoScriptError:
                # A new server: nothing was done.
                incarnation, *replies = await self._exchange("EVAL", script().text, *rest)
        except ResponseError as error:
            if str(error).startswith(_REPLACED):
                self._offered = str(error)[len(_REPLACED) :]
            raise
        if self._replicas:
            # Each batch writes its number, so this waits also for a batch that was done before.
            confirmed = await self._exchange("WAIT", self._replicas, CONFIRM_TIMEOUT_MS)
            check_confirmed(confirmed, self._replicas, self.location)
        self._accepted = self._offered = incarnation.decode()
        return replies

    async def _connect(self) -> None:
        """Connect where there is no connection, and check the server again: it may be another one.

        Raises:
            LedgerBusyError: no connection, so nothing was done.
        """
        if self._connection.is_connected:
            if not await self._connection.can_read():
                return
            # The server has closed it since the last batch, for example because it ended.
            await self.close()
        try:
            await connect_asynchronously(self._address, self._connection)
            information = information_in(await self._exchange("INFO"))
            check_suitable(information, self.location)
        except RedisError as error:
            raise LedgerBusyError(translate(error, self.location).message) from error
        except LedgerError as error:
            await self.close()
            raise LedgerBusyError(error.message, hint=error.hint) from error

    async def _exchange(self, *command: bytes | str | int) -> Any:
        if not self._connection.is_connected:
            # The driver would connect again by itself. Nothing would check the server then, and WAIT wait for nothing.
            raise DriverConnectionError("the connection was closed")
        try:
            await self._connection.send_command(*command)
            return await self._connection.read_response()
        except ResponseError as error:
            if is_from_replica(error):
                # It was the primary before: the next connection leads to the present one.
                await self.close()
            raise
        except BaseException:
            # A late answer must not be taken for that of a later batch.
            await self.close()
            raise

    async def close(self) -> None:
        """Close the connection at once."""
        if self._connection.is_connected:
            # Closing it alone would keep what a hung server has not taken, for each batch that is sent again.
            self._connection._writer.transport.abort()  # noqa: SLF001  # the driver has no method for it
        await self._connection.disconnect(nowait=True)
