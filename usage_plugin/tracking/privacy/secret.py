"""The secret, the key of the pseudonyms: the configured one, or the data folder's own.

The data folder's is one file, created once, readable by its owner only. A configured secret serves several hosts that
share a ledger, so nothing is created for it.

Without the secret, names cannot be mapped to their pseudonyms. Then accounts per key start again at zero, and those per
person too if persons have pseudonyms. So the ledger keeps a fingerprint of the secret. A changed secret is reported; if
it is configured, it is rejected until `usage-plugin accept-secret` has recorded it.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.atomic_files import read_regular
from usage_plugin.domain.pseudonyms import SECRET_BYTES, SECRET_FORM, Pseudonyms, parse_secret
from usage_plugin.domain.windows import to_datetime
from usage_plugin.errors import SecretError
from usage_plugin.log import get_logger
from usage_plugin.tracking.ledger_retry import wait_while_busy

if TYPE_CHECKING:
    from pathlib import Path

    from usage_plugin.domain.operations import OperationsLog

FILE = "secret"
NOTE = "secret"
_CLAIM = "secret claimed/"
"""The notes of hosts that start with a new ledger, by fingerprint: of two different secrets, at most one begins."""
_TOLD_FOR = 30 * 86_400_000_000
"""The time, in microseconds, for which a changed secret is reported: 30 days. By then most windows have ended."""

_MOST_BYTES = 1_000
_KEY = "usage_plugin.privacy.secret"
_ACCEPT = (
    "Configure the ledger's secret, the same for all hosts and commands. If the change is wanted: stop all proxies, run"
    " `usage-plugin accept-secret` once, and start them. Accounts per api key and per pseudonym begin at zero then."
)

log = get_logger()


class _Known(NamedTuple):
    """The ledger's record of the secret. `before` is the previous secret's fingerprint if it was changed at `since`."""

    fingerprint: str
    since: int
    before: str | None
    hides_persons: bool


@dataclass(frozen=True, slots=True)
class SecretSource:
    """The place of the secret.

    Attributes:
        place: The file with the secret, or the secret itself from the configuration.
        is_configured: Whether the configuration names the secret. Otherwise it is the data folder's own.
    """

    place: Path | bytes = field(repr=False)
    is_configured: bool = False

    def __str__(self) -> str:
        """Return the place, for people."""
        if isinstance(self.place, bytes):
            return _KEY
        return f"{_KEY}_file ({self.place})" if self.is_configured else str(self.place)

    def read(self) -> bytes | None:
        """Return the secret; None if the data folder has none.

        Raises:
            SecretError: The secret is not valid, cannot be read, or the configured file is missing.
        """
        if isinstance(self.place, bytes):
            return self.place
        found = read_secret(self.place, str(self))
        if found is None and self.is_configured:
            raise SecretError(
                f"{self} was not found.",
                hint=f"Mount the file, or write a new secret into it: {SECRET_FORM}, as `openssl rand -hex 32` prints.",
            )
        return found

    def make(self) -> bytes:
        """Return the secret; create the data folder's if it is used and does not exist.

        Raises:
            SecretError: The secret is not valid, cannot be read or cannot be created.
        """
        return self.place if isinstance(self.place, bytes) else self.read() or make_secret(self.place)


def read_secret(path: Path, shown: str | None = None) -> bytes | None:
    """Return the secret in a file; None if there is no file.

    Args:
        path: The file. It may be a link, as the files of a Kubernetes secret are.
        shown: The name of the file for errors. Default: its path.

    Raises:
        SecretError: The file cannot be read, or is not a valid secret.
    """
    shown = shown or str(path)
    try:
        text = read_regular(path, _MOST_BYTES).decode("ascii")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        text = ""
    except OSError as error:
        raise SecretError(f"{shown} cannot be read: {error}.", hint="It must be readable for the proxy.") from error
    found = parse_secret(text)
    if found is None:
        raise SecretError(
            f"{shown} is not a valid secret: expected {SECRET_FORM}.",
            hint="Put it back from a backup. If there is none, move it away: a new one is made."
            if shown == str(path)
            else "Put it back from a backup. For a new ledger, `openssl rand -hex 32` makes one.",
        )
    return found


def make_secret(path: Path) -> bytes:
    """Return the secret, and create it if there is none. Of several processes that do so at once, only one creates it.

    Raises:
        SecretError: the file cannot be read or created.
    """
    found = read_secret(path)
    if found is not None:
        return found
    made = path.with_name(f"{path.name}-{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(handle, f"{secrets.token_hex(SECRET_BYTES)}\n".encode())
            os.fsync(handle)
        finally:
            os.close(handle)
        try:
            # Atomic: complete or not at all, and never replacing a secret that another process created.
            os.link(made, path)
        except FileExistsError:
            pass
        finally:
            made.unlink()
    except OSError as error:
        raise SecretError(f"{path} cannot be made: {error}.") from error
    found = read_secret(path)
    if found is None:
        raise SecretError(f"{path} was taken away while it was made.")
    return found


def note_secret(operations: OperationsLog, pseudonyms: Pseudonyms, source: SecretSource, now: int) -> None:
    """Compare the secret with the ledger's record at the start, and record it.

    A change of the data folder's own secret is logged and recorded.

    Raises:
        SecretError: The ledger was used with another secret than the configured one, or is about to be.
    """
    # Read once: a host that starts at the same time may record its own secret in between.
    known = _known(operations)
    _check(known, pseudonyms, source)
    mine = _Known(pseudonyms.fingerprint, now, None, pseudonyms.hides_persons)
    if known is None and source.is_configured:
        _claim(operations, pseudonyms, source, now)
    if known is not None:
        if known.hides_persons != mine.hides_persons:
            log.warning(
                "privacy.changed",
                user="pseudonym" if mine.hides_persons else "plain",
                effect="accounts per user and end user begin at zero; earlier records keep their names",
            )
        if known.fingerprint == mine.fingerprint:
            mine = mine._replace(since=known.since, before=known.before)
        elif known.before != mine.fingerprint:
            mine = mine._replace(before=known.fingerprint)
            log.error(
                "secret.changed",
                file=str(source),
                effect="accounts per api key and per pseudonym begin at zero; restore the old secret if there is one",
            )
    if mine != known:
        _record(operations, mine)


def check_secret(operations: OperationsLog, pseudonyms: Pseudonyms, source: SecretSource) -> None:
    """Check that a configured secret is the one that the ledger is used with.

    Raises:
        SecretError: It is another one.
    """
    _check(_known(operations), pseudonyms, source)


def _check(known: _Known | None, pseudonyms: Pseudonyms, source: SecretSource) -> None:
    if source.is_configured and known is not None and known.fingerprint != pseudonyms.fingerprint:
        raise SecretError(f"{_difference(known, pseudonyms, source)}.", hint=_ACCEPT)


def recorded_fingerprint(operations: OperationsLog) -> str | None:
    """Return the fingerprint of the secret that a ledger is used with; None if no proxy has started yet."""
    known = _known(operations)
    return None if known is None else known.fingerprint


def accept_secret(operations: OperationsLog, pseudonyms: Pseudonyms, now: int) -> bool:
    """Record a secret in place of the one that the ledger was used with. False: it is recorded already."""
    known = _known(operations)
    if known is not None and known.fingerprint == pseudonyms.fingerprint:
        return False
    before = None if known is None else known.fingerprint
    _record(operations, _Known(pseudonyms.fingerprint, now, before, pseudonyms.hides_persons))
    return True


def secret_trouble(
    operations: OperationsLog, pseudonyms: Pseudonyms | None, source: SecretSource, now: int
) -> str | None:
    """Return the problem with the secret, for readers; None if there is none."""
    known = _known(operations)
    if pseudonyms is None:
        return f"{source} is missing; put it back before the next start, or a new one is made" if known else None
    if known is None:
        return None
    if known.fingerprint != pseudonyms.fingerprint:
        if source.is_configured:
            return f"{_difference(known, pseudonyms, source)}: names and keys are not found, and no proxy can start"
        return f"{source} is another one than the proxy started with; put the old one back before the next start"
    if known.before is not None and now < known.since + _TOLD_FOR:
        at = f"{to_datetime(known.since):%Y-%m-%d %H:%M} UTC"
        return f"{source} is a new one since {at}: accounts per api key and per pseudonym began at zero then"
    return None


def _difference(known: _Known, pseudonyms: Pseudonyms, source: SecretSource) -> str:
    return (
        f"{source} has another secret (fingerprint {pseudonyms.fingerprint}) than this ledger is used with since"
        f" {to_datetime(known.since):%Y-%m-%d %H:%M} UTC (fingerprint {known.fingerprint})"
    )


def _claim(operations: OperationsLog, pseudonyms: Pseudonyms, source: SecretSource, now: int) -> None:
    """Claim a new ledger for a secret, before it is recorded.

    Of two hosts with different secrets, the one that reads later sees both claims, and withdraws.
    """
    mine = _CLAIM + pseudonyms.fingerprint
    wait_while_busy(lambda: operations.note(mine, str(now)))
    others = [name.removeprefix(_CLAIM) for name in operations.notes(_CLAIM) if name != mine]
    if others:
        wait_while_busy(lambda: operations.note(mine, None))
        raise SecretError(
            f"{source} has another secret (fingerprint {pseudonyms.fingerprint}) than a host that starts at the same"
            f" time (fingerprint {others[0]}).",
            hint="Configure the same secret for all hosts. If this is the right one, run `usage-plugin accept-secret`.",
        )


def _record(operations: OperationsLog, known: _Known) -> None:
    wait_while_busy(lambda: operations.note(NOTE, json.dumps(known._asdict())))


def _known(operations: OperationsLog) -> _Known | None:
    text = operations.notes(NOTE).get(NOTE)
    return None if text is None else _Known(**json.loads(text))
