"""The connection to a Valkey server, and the check whether the server can keep a ledger.

One command is sent and its answer read. Nothing is repeated here, and the driver repeats nothing either. After any
error the connection is closed, so that a late answer is never taken for that of a later command. Each new connection
leads to the present primary, and its server is checked again: it may be another one.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import (
    AuthenticationError,
    MasterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from usage_plugin.errors import KeeperReplacedError, LedgerError, LedgerReplacedError
from usage_plugin.ledgers.valkey.address import Address
from usage_plugin.ledgers.valkey.batch import Header
from usage_plugin.ledgers.valkey.connections import ANSWER_TIMEOUT, blocking_connection, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from usage_plugin.ledgers.valkey.batch import Reply

KEY_NAMES = (
    "meta", "accounts", "index", "reservations", "drafts", "ended", "ended-before", "abandoned", "outbox", "senders",
    "members", "fleet",
)  # fmt: skip
"""In the order of KEYS in `ledger.lua`."""

RECORD_KEY_NAMES = (
    "counters", "adjustments", "adjustments-ended", "adjustment-times", "alerts", "alert-keys", "alert-times",
    "alert-subjects", "acknowledgements", "refusal-counts", "refusal-minutes", "refusals", "refusal-order", "anomalies",
    "anomaly-times", "notes", "audit", "profiles", "profile-users", "profile-changes", "fleet",
)  # fmt: skip
"""In the order of KEYS in `records.lua`."""

LEDGER_SCRIPT = ("fence.lua", "ledger.lua", "fleet.lua", "batch.lua")
RECORDS_SCRIPT = ("fence.lua", "records.lua")

OLDEST = (6, 2)
"""The first version with all commands that the script needs, by its Redis number."""

CONFIRM_TIMEOUT_MS = 500
"""How long replicas may take to have a change."""

_SYNC_TIMEOUT_MS = 5_000

_CODE = re.compile(r"(?:^|[ -])([A-Z]{3,}) ")
"""The code of an error. Servers before 7.0 have it in the middle of the text if a script had the error."""

_CODES: dict[type[RedisError], str] = {
    AuthenticationError: "WRONGPASS",
    NoPermissionError: "NOPERM",
    OutOfMemoryError: "OOM",
    MasterDownError: "MASTERDOWN",
    ReadOnlyError: "READONLY",
}
"""Of the errors from whose text the driver takes the code."""

_EXPLAINED = {
    "OOM": (
        "has no memory left",
        "Raise `maxmemory`, or free memory. The outbox shrinks once the store takes its events.",
    ),
    "READONLY": ("is a replica", "Name the primary in the URL."),
    "MASTERDOWN": ("is a replica", "Name the primary in the URL."),
    "WRONGPASS": ("rejected the login", "Check the user and the password in the URL."),
    "NOPERM": (
        "does not permit a command",
        "Permit this user the keys of the ledger, and all commands but dangerous ones, with INFO.",
    ),
}
"""What an error means, and its remedy, by code."""


class Script(NamedTuple):
    """A script, and the name by which a server that has it runs it."""

    text: bytes
    name: str


@cache
def script(files: tuple[str, ...] = LEDGER_SCRIPT) -> Script:
    """Return a script, whose text is in several files."""
    text = b"".join((resources.files(__package__) / name).read_bytes() for name in files)
    return Script(text, hashlib.sha1(text).hexdigest())  # noqa: S324  # the server's name for it


def send(connection: Any, command: Sequence[bytes | str | int]) -> None:
    """Send a command; connect first where there is no connection."""
    connection.send_command(*command)


def receive(connection: Any) -> Reply:
    """Read the answer to the command that was sent."""
    return connection.read_response()


def keys_of(prefix: str, names: Sequence[str] = KEY_NAMES) -> list[str]:
    """Return keys of a ledger. The hash tag puts them in one slot."""
    return [f"{{{prefix}}}:{name}" for name in names]


class ValkeyServer:
    """A server as one thread sees it.

    Attributes:
        location: The URL without credentials.
        keys: The keys of the core.
        record_keys: The keys of the other records, by their names.
    """

    def __init__(
        self,
        url: str,
        prefix: str,
        *,
        replicas: int = 0,
        term: Callable[[], int] | None = None,
        answer_timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        """Prepare a connection; the first command connects.

        Args:
            url: See `Address`.
            prefix: The hash tag of all keys.
            replicas: The number of replicas that must have a change before it counts as done.
            term: The term of a keeper, without which nothing is changed; None for all others.
            answer_timeout: Seconds until a server counts as unreachable.

        Raises:
            ConfigError: The URL is invalid.
        """
        self._address = Address(url)
        self.location = self._address.location
        self.keys = keys_of(prefix)
        self.record_keys = dict(zip(RECORD_KEY_NAMES, keys_of(prefix, RECORD_KEY_NAMES), strict=True))
        self._replicas = replicas
        self._term = term
        self._connection: Any = blocking_connection(self._address, answer_timeout)

    def command(self, *command: bytes | str | int) -> Reply:
        """Do one command.

        Raises:
            LedgerError: the server does not answer, rejects it, or cannot keep a ledger.
        """
        try:
            self._drop_closed()
            return self._exchange(command)
        except RedisError as error:
            raise translate(error, self.location) from error

    def read(self, *arguments: bytes) -> Reply:
        """Do a verb of the core that only reads, and return its answer.

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

    def read_records(self, *arguments: bytes) -> Reply:
        """Do a verb of the other records that only reads, and return its answer.

        Raises:
            LedgerError: the server does not answer, or rejects it.
        """
        return self._run(script(RECORDS_SCRIPT), list(self.record_keys.values()), *Header()[:2], *arguments)

    def write_records(self, *arguments: bytes) -> Reply:
        """Do a verb of the other records that writes, and return its answer once the replicas have it.

        Raises:
            KeeperReplacedError: another worker is the keeper. Nothing was done.
            LedgerError: the server does not answer, or rejects it. In the first case it may have been done.
        """
        header = Header(term=self._present_term())[:2]
        reply = self._run(script(RECORDS_SCRIPT), list(self.record_keys.values()), *header, *arguments)
        if self._replicas:
            self.confirm()
        return reply

    def _present_term(self) -> str:
        return "" if self._term is None else str(self._term())

    def script(self, header: Header, arguments: Sequence[bytes]) -> Reply:
        """Run the core's script with one verb, and return its answer; None without a verb."""
        _, *answers = self._run(script(), self.keys, *header, *arguments)
        return answers[0] if answers else None

    def _run(self, code: Script, keys: Sequence[str], *arguments: bytes | str) -> Reply:
        rest: tuple[bytes | str | int, ...] = (len(keys), *keys, *arguments)
        try:
            self._drop_closed()
            try:
                return self._exchange(("EVALSHA", code.name, *rest))
            except NoScriptError:
                # A new server: nothing was done.
                return self._exchange(("EVAL", code.text, *rest))
        except RedisError as error:
            raise translate(error, self.location) from error

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
            if not self._connection.is_connected:
                self._connect()
            send(self._connection, command)
            return receive(self._connection)
        except ResponseError as error:
            if is_from_replica(error):
                # It was the primary before: the next connection leads to the present one.
                self._connection.disconnect()
            raise
        except BaseException:
            self._connection.disconnect()
            raise

    def _connect(self) -> None:
        """Connect, and check the server.

        Raises:
            LedgerError: it cannot keep a ledger.
        """
        connect(self._address, self._connection)
        try:
            send(self._connection, ["INFO"])
            check_suitable(information_in(receive(self._connection)), self.location)
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


def _code_of(error: RedisError) -> str:
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code
    found = _CODE.search(str(error))
    return found[1] if found else ""


def is_from_replica(error: ResponseError) -> bool:
    """Whether the server is a replica."""
    return _code_of(error) in ("READONLY", "MASTERDOWN")


def is_of_the_script(error: ResponseError) -> bool:
    """Whether a script failed by itself, before it wrote anything, and so would fail again.

    Errors of the commands in it have a code, such as OOM, READONLY, NOREPLICAS or MISCONF: these pass.
    """
    return "user_script" in str(error) and not _code_of(error)


def translate(error: RedisError, location: str) -> LedgerError:
    """Return our error for one of the driver."""
    because, code = str(error).rstrip("."), _code_of(error)
    if code == "KEEPER":
        return KeeperReplacedError("Another worker is the keeper now.")
    if code == "REPLACED":
        return LedgerReplacedError(f"The Valkey server at {location} restarted, or another one took over.")
    if code in _EXPLAINED:
        what, hint = _EXPLAINED[code]
    elif isinstance(error, ResponseError):
        what, hint = "rejected a command", None
    else:
        what, hint = "does not answer", "Check that it runs, and that this host reaches it."
    return LedgerError(f"The Valkey server at {location} {what}: {because}.", hint=hint)


def check_confirmed(confirmed: int, replicas: int, location: str) -> None:
    """Check that enough replicas have a write.

    Raises:
        LedgerError: too few have it. It is done, and idempotent.
    """
    if confirmed < replicas:
        raise LedgerError(
            f"The Valkey server at {location} has a change that {replicas - confirmed} of {replicas} replicas lack.",
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
