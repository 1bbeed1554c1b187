"""The connection of a worker's request path to a Valkey server: batches of verbs, each one run of the script.

Each batch has a number. The server rejects a batch that arrives after a later one of the same sender. So a batch that
was delayed on the way can change nothing any more.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError, RedisError, ResponseError

from usage_plugin.errors import LedgerBusyError, LedgerError
from usage_plugin.ledgers.valkey import batch as wire
from usage_plugin.ledgers.valkey.address import Address
from usage_plugin.ledgers.valkey.connections import asynchronous_connection, connect_asynchronously
from usage_plugin.ledgers.valkey.server import (
    CONFIRM_TIMEOUT_MS,
    check_suitable,
    information_in,
    is_from_replica,
    is_of_the_script,
    keys_of,
    script,
    translate,
    unconfirmed,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usage_plugin.domain.ledger_batch import Answer, Verb


class ValkeyTransport:
    """One connection, used by one event loop; see `LedgerTransport`."""

    def __init__(self, url: str, prefix: str, *, replicas: int = 0) -> None:
        """Prepare a connection; the first batch connects.

        Args:
            url: the address of the server.
            prefix: the hash tag of all keys.
            replicas: the number of replicas that must have a batch before it is answered.
        """
        self._address = Address(url)
        self.location = self._address.location
        self._keys = keys_of(prefix)
        self._connection: Any = asynchronous_connection(self._address)
        self._replicas = replicas
        self._sender = uuid.uuid4().hex
        self._number = 0

    async def send(self, batch: Sequence[Verb]) -> Sequence[Answer]:
        """Do a batch in one run of the script."""
        arguments: list[bytes] = []
        errors: dict[int, LedgerError] = {}
        for number, verb in enumerate(batch):
            try:
                arguments += wire.arguments_of(verb)
            except LedgerError as error:
                errors[number] = error
        await self._connect()
        try:
            replies = await self._run(arguments)
            await self._confirm()
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

    async def _run(self, arguments: Sequence[bytes]) -> Any:
        self._number += 1
        head: tuple[bytes | str | int, ...] = (len(self._keys), *self._keys, self._sender, str(self._number))
        try:
            return await self._exchange("EVALSHA", script().name, *head, *arguments)
        except NoScriptError:
            # A new server: nothing was done.
            return await self._exchange("EVAL", script().text, *head, *arguments)

    async def _confirm(self) -> None:
        """Wait until replicas have the batch.

        Raises:
            LedgerError: too few have it. The batch is sent again then, and changes nothing more.
        """
        if not self._replicas:
            return
        confirmed = await self._exchange("WAIT", self._replicas, CONFIRM_TIMEOUT_MS)
        if confirmed < self._replicas:
            raise unconfirmed(self.location, confirmed, self._replicas)

    async def _connect(self) -> None:
        """Connect where there is no connection, and check the server again: it may be another one.

        Raises:
            LedgerBusyError: no connection, so nothing was done.
        """
        if self._connection.is_connected:
            return
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
        """Close the connection."""
        await self._connection.disconnect(nowait=True)
