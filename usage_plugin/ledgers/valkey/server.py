"""The connection to a Valkey server, and the check whether the server can keep a ledger.

One command is sent and its answer read. Nothing is repeated here, and the driver repeats nothing either. After any
error the connection is closed, so that a late answer is never taken for that of a later command.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from redis.connection import Connection, parse_url
from redis.exceptions import (
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from usage_plugin.errors import KeeperReplacedError, LedgerError, LedgerReplacedError
from usage_plugin.ledgers.valkey.batch import Header

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from usage_plugin.ledgers.valkey.batch import Reply

KEY_NAMES = (
    "meta", "accounts", "index", "reservations", "drafts", "ended", "ended-before", "abandoned", "outbox", "senders",
    "members", "fleet",
)  # fmt: skip
"""In the order of KEYS in the script."""

OLDEST = (6, 2)
"""The first version with all commands that the script needs, by its Redis number."""

SCHEMES = {"valkey": "redis", "valkeys": "rediss", "redis": "redis", "rediss": "rediss", "unix": "unix"}
"""Our schemes, with the driver's names for them."""

_CONNECT_TIMEOUT = 1.0
_ANSWER_TIMEOUT = 10.0
CONFIRM_TIMEOUT_MS = 500
_SYNC_TIMEOUT_MS = 5_000


class Script(NamedTuple):
    """A script, and the name by which a server that has it runs it."""

    text: bytes
    name: str


@cache
def script() -> Script:
    """Return the script of the ledger."""
    files = resources.files(__package__)
    text = b"".join((files / name).read_bytes() for name in ("fence.lua", "ledger.lua", "fleet.lua", "batch.lua"))
    return Script(text, hashlib.sha1(text).hexdigest())  # noqa: S324  # the server's name for it


def send(connection: Any, command: Sequence[bytes | str | int]) -> None:
    """Send a command; connect first where there is no connection."""
    connection.send_command(*command)


def receive(connection: Any) -> Reply:
    """Read the answer to the command that was sent."""
    return connection.read_response()


def connection_options(url: str) -> dict[str, Any]:
    """Return the driver's options for a URL: its own repetitions are off."""
    scheme = urlsplit(url).scheme
    return {
        "socket_connect_timeout": _CONNECT_TIMEOUT,
        "socket_timeout": _ANSWER_TIMEOUT,
        **parse_url(SCHEMES[scheme] + url[len(scheme) :]),  # type: ignore[no-untyped-call]
        "protocol": 2,
        "retry_on_error": [],
        "retry_on_timeout": False,
        "decode_responses": False,
    }


def location_of(url: str) -> str:
    """Return the address without credentials and parameters."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def keys_of(prefix: str) -> list[str]:
    """Return all keys of a ledger. The hash tag puts them in one slot."""
    return [f"{{{prefix}}}:{name}" for name in KEY_NAMES]


class ValkeyServer:
    """A server as one thread sees it."""

    def __init__(
        self,
        url: str,
        prefix: str,
        *,
        replicas: int = 0,
        term: Callable[[], int] | None = None,
        answer_timeout: float = _ANSWER_TIMEOUT,
    ) -> None:
        """Prepare a connection; the first command connects.

        Args:
            url: The address.
            prefix: The hash tag of all keys.
            replicas: The number of replicas that must have what `run` has written.
            term: The term of a keeper, without which `run` writes nothing; None for all others.
            answer_timeout: Seconds until a server counts as unreachable.
        """
        self.location = location_of(url)
        self._replicas = replicas
        self._term = term
        self.keys = keys_of(prefix)
        options = connection_options(url) | {"socket_timeout": answer_timeout}
        self._connection: Any = options.pop("connection_class", Connection)(**options)

    def command(self, *command: bytes | str | int) -> Reply:
        """Do one command.

        Raises:
            LedgerError: the server does not answer, or rejects it.
        """
        try:
            self._drop_closed()
            return self._exchange(command)
        except RedisError as error:
            raise translate(error, self.location) from error

    def read(self, *arguments: bytes) -> Reply:
        """Do a verb that only reads, and return its answer.

        Raises:
            LedgerError: the server does not answer, or rejects it.
        """
        return self.script(Header(), arguments)

    def run(self, *arguments: bytes) -> Reply:
        """Do a verb that writes, and return its answer once the replicas have it.

        Raises:
            KeeperReplacedError: another worker is the keeper. Nothing was done.
            LedgerError: the server does not answer, or rejects it. In the first case it may have been done.
        """
        answer = self.script(Header(term=self._present_term()), arguments)
        if self._replicas:
            self.confirm()
        return answer

    def check_term(self) -> None:
        """Check that this thread is still the keeper's, for commands that change no records.

        Raises:
            KeeperReplacedError: another worker is the keeper.
        """
        self.script(Header(term=self._present_term()), ())

    def _present_term(self) -> str:
        return "" if self._term is None else str(self._term())

    def script(self, header: Header, arguments: Sequence[bytes]) -> Reply:
        """Run the script with one verb, and return its answer; None without a verb."""
        rest: tuple[bytes | str | int, ...] = (len(self.keys), *self.keys, *header, *arguments)
        try:
            self._drop_closed()
            try:
                _, *answers = self._exchange(("EVALSHA", script().name, *rest))
            except NoScriptError:
                # A new server: nothing was done.
                _, *answers = self._exchange(("EVAL", script().text, *rest))
        except RedisError as error:
            raise translate(error, self.location) from error
        return answers[0] if answers else None

    def confirm(self, *, on_disk: bool = False) -> None:
        """Wait until the replicas have everything that was written up to now.

        The server waits for the writes of a connection. So this makes one, which is behind all others. An idempotent
        verb writes nothing when it is repeated, although the replicas may still lack it.

        Args:
            on_disk: wait until the server has synced it to its disk, too. Servers before 7.2 cannot tell. There a power
                cut within a second can leave the store ahead, and `agree` repairs that.

        Raises:
            LedgerError: it is not confirmed in time.
        """
        try:
            # On one connection: that of `run`, if it was called just now. Another server may lack what was written.
            self._exchange(("HINCRBY", self.keys[0], "syncs", 1))
            if on_disk:
                self._confirm_on_disk()
            if self._replicas:
                check_confirmed(
                    self._exchange(("WAIT", self._replicas, CONFIRM_TIMEOUT_MS)), self._replicas, self.location
                )
        except RedisError as error:
            raise translate(error, self.location) from error

    def _confirm_on_disk(self) -> None:
        try:
            local, _ = self._exchange(("WAITAOF", 1, 0, _SYNC_TIMEOUT_MS))
        except ResponseError as error:
            if "unknown command" in str(error):
                return
            raise
        if not local:
            raise LedgerError(f"The Valkey server at {self.location} did not sync its file within 5 s.")

    def _exchange(self, command: Sequence[bytes | str | int]) -> Reply:
        try:
            send(self._connection, command)
            return receive(self._connection)
        except ResponseError:
            raise
        except BaseException:
            self._connection.disconnect()
            raise

    def _drop_closed(self) -> None:
        """Drop a connection that the server has closed since the last command: a restart must not fail the next one."""
        try:
            is_closed = self._connection.is_connected and self._connection.can_read(0)
        except RedisError:
            is_closed = True
        if is_closed:
            self._connection.disconnect()

    def information(self) -> dict[str, str]:
        """Return the fields of INFO."""
        return information_in(self.command("INFO"))

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()


def information_in(reply: bytes) -> dict[str, str]:
    """Return the fields of an answer to INFO."""
    return dict(line.split(":", 1) for line in reply.decode().splitlines() if ":" in line)


def translate(error: RedisError, location: str) -> LedgerError:
    """Return our error for one of the driver."""
    because = str(error).rstrip(".")
    if isinstance(error, OutOfMemoryError):
        return LedgerError(
            f"The Valkey server at {location} has no memory left: {because}.",
            hint="Raise `maxmemory`, or free memory. The outbox shrinks once the store takes its events.",
        )
    if isinstance(error, ReadOnlyError | MasterDownError):
        return LedgerError(f"The server at {location} is a replica: {because}.", hint="Name the primary in the URL.")
    if because.startswith("KEEPER "):
        return KeeperReplacedError("Another worker is the keeper now.")
    if because.startswith("REPLACED "):
        return LedgerReplacedError(f"The Valkey server at {location} restarted, or another one took over.")
    if isinstance(error, ResponseError):
        return LedgerError(f"The Valkey server at {location} rejected a command: {because}.")
    return LedgerError(
        f"The Valkey server at {location} does not answer: {because}.",
        hint="Check that it runs, and that this host reaches it.",
    )


def check_confirmed(confirmed: int, replicas: int, location: str) -> None:
    """Check that enough replicas have a write.

    Raises:
        LedgerError: too few have it. It is done, and idempotent.
    """
    if confirmed < replicas:
        raise LedgerError(
            f"The Valkey server at {location} has a batch that {replicas - confirmed} of {replicas} replicas lack.",
            hint="Check that the replicas run and follow this server.",
        )


def check_suitable(information: Mapping[str, str], location: str) -> None:
    """Check that a server loses no data of a ledger.

    Args:
        information: the answer to INFO, since managed servers forbid CONFIG.
        location: for the error.

    Raises:
        LedgerError: the reason, and the remedy.
    """
    version = information.get("redis_version", "0.0")
    policy = information.get("maxmemory_policy")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        reason, remedy = f"expected version 6.2 or later; found {version}", "Upgrade the server."
    elif information.get("cluster_enabled") != "0":
        reason = "it is a cluster, whose slots fail one by one"
        remedy = "Use one server, with replicas and Sentinel if it must survive a failure."
    elif information.get("role") != "master":
        reason, remedy = "it is a replica", "Name the primary in the URL."
    elif policy != "noeviction":
        reason = f"its eviction policy is {policy}, which would reset limits when memory is short"
        remedy = "Set `maxmemory-policy noeviction`. Use a server of its own if another program needs evictions."
    elif information.get("aof_enabled") != "1":
        reason = "it has no append-only file, so a restart would lose the spend since its last snapshot"
        remedy = "Set `appendonly yes`."
    else:
        return
    raise LedgerError(f"The Valkey server at {location} cannot keep a ledger: {reason}.", hint=remedy)
