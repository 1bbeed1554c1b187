"""Connections to the server, for blocking and for asynchronous code, and the look-up of the primary by sentinels.

The sentinels are asked again for each new connection, so that it leads to the present primary after a failover.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor, as_completed
from concurrent.futures import TimeoutError as FuturesTimeoutError
from typing import TYPE_CHECKING, Any, NamedTuple

from redis import connection as blocking
from redis.asyncio import connection as asynchronous
from redis.exceptions import ConnectionError as DriverConnectionError
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from usage_plugin.ledgers.valkey.address import Address

ANSWER_TIMEOUT = 10.0
"""Seconds until a server counts as unreachable."""

_CONNECT_TIMEOUT = 1.0

SENTINEL_TIMEOUT = 0.5
"""Seconds for the answers of all sentinels: half of the time that a request waits for its ledger."""

# Nothing is repeated by the driver: only this package knows what may be.
_OPTIONS: dict[str, Any] = {
    "protocol": 2,
    "retry_on_error": [],
    "retry_on_timeout": False,
    "decode_responses": False,
}


# The driver's classes are typed in part.
_BLOCKING: dict[str, Any] = {
    "unix": blocking.UnixDomainSocketConnection,
    "tcp": blocking.Connection,
    "tls": blocking.SSLConnection,
}
_ASYNCHRONOUS: dict[str, Any] = {
    "unix": asynchronous.UnixDomainSocketConnection,
    "tcp": asynchronous.Connection,
    "tls": asynchronous.SSLConnection,
}


def blocking_connection(address: Address, answer_timeout: float = ANSWER_TIMEOUT) -> Any:
    """Return a connection that is not connected yet."""
    return _BLOCKING[_kind_of(address)](**_server_options(address), socket_timeout=answer_timeout)


def asynchronous_connection(address: Address) -> Any:
    """Return a connection for an event loop that is not connected yet. It waits for answers without a timeout."""
    return _ASYNCHRONOUS[_kind_of(address)](**_server_options(address), socket_timeout=None)


def _kind_of(address: Address) -> str:
    if address.path is not None:
        return "unix"
    return "tcp" if address.tls is None else "tls"


def _server_options(address: Address) -> dict[str, Any]:
    options = _OPTIONS | address.login._asdict() | (address.tls or {})
    options |= {"db": address.database, "socket_connect_timeout": _CONNECT_TIMEOUT}
    if address.path is not None:
        return options | {"path": address.path}
    if address.primary is not None:
        return options  # `connect` fills in the host and the port
    host, port = address.hosts[0]
    return options | {"host": host, "port": port}


def connect(address: Address, connection: Any) -> None:
    """Connect, to the present primary where sentinels know it.

    Raises:
        RedisError: no connection.
    """
    if address.primary is not None:
        connection.host, connection.port = find_primary(address)
    connection.connect()


async def connect_asynchronously(address: Address, connection: Any) -> None:
    """Do the same without blocking the event loop."""
    if address.primary is not None:
        connection.host, connection.port = await asyncio.to_thread(find_primary, address)
    if address.tls is not None:
        # It reads the files of certificates once.
        await asyncio.to_thread(connection.ssl_context.get)
    await connection.connect()


class _Known(NamedTuple):
    """The primary as one sentinel knows it; `epoch` counts failovers."""

    epoch: int
    host: str
    port: int


def find_primary(address: Address) -> tuple[str, int]:
    """Return the host and the port of the primary.

    All sentinels are asked at once, so that one that hangs delays nothing. A sentinel that was cut off may know an
    older primary. So the answers of a majority are compared, if there are as many in time: the last failover counts.

    Raises:
        RedisError: no sentinel knows it.
    """
    known: list[_Known] = []
    reasons: list[str] = []
    executor = ThreadPoolExecutor(len(address.hosts), thread_name_prefix="usage-sentinel")
    asked = {executor.submit(_ask, address, host, port): f"{host}:{port}" for host, port in address.hosts}
    try:
        for answered in as_completed(asked, timeout=SENTINEL_TIMEOUT):
            try:
                known.append(answered.result())
            except RedisError as error:
                reasons.append(f"{asked[answered]}: {str(error).rstrip('.')}")
            if len(known) > len(asked) / 2:
                break
    except FuturesTimeoutError:
        reasons += [f"{place}: no answer" for one, place in asked.items() if not one.done()]
    finally:
        executor.shutdown(wait=False)
    if not known:
        raise DriverConnectionError(f"no sentinel names a primary {address.primary!r} ({'; '.join(reasons)})")
    newest = max(known)
    return newest.host, newest.port


def _ask(address: Address, host: str, port: int) -> _Known:
    options = _OPTIONS | address.sentinel_login._asdict() | (address.tls or {})
    options |= {"socket_connect_timeout": SENTINEL_TIMEOUT, "socket_timeout": SENTINEL_TIMEOUT}
    connection = _BLOCKING[_kind_of(address)](**options, host=host, port=port)
    try:
        connection.send_command("SENTINEL", "MASTER", address.primary)
        parts = [part.decode() for part in connection.read_response()]
    finally:
        connection.disconnect()
    facts = dict(zip(parts[::2], parts[1::2], strict=True))
    return _Known(int(facts["config-epoch"]), facts["ip"], int(facts["port"]))
