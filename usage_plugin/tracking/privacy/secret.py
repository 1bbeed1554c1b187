"""The secret of a data folder, the key of its pseudonyms: one file, created once, readable by its owner only.

Without it, names cannot be mapped to their pseudonyms. Then accounts per key start again at zero, and those per person
too if persons have pseudonyms. So the ledger keeps a fingerprint of the secret, and a changed secret is reported.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.atomic_files import read_regular
from usage_plugin.domain.pseudonyms import SECRET_BYTES, Pseudonyms
from usage_plugin.domain.windows import to_datetime
from usage_plugin.errors import SecretError
from usage_plugin.log import get_logger
from usage_plugin.tracking.ledger_retry import wait_while_busy

if TYPE_CHECKING:
    from pathlib import Path

    from usage_plugin.domain.operations import OperationsLog

FILE = "secret"
NOTE = "secret"
_TOLD_FOR = 30 * 86_400_000_000
"""The time, in microseconds, for which a changed secret is reported: 30 days. By then most windows have ended."""

_MOST_BYTES = 1_000

log = get_logger()


class _Known(NamedTuple):
    """The ledger's record of the secret. `before` is the previous secret's fingerprint if it was changed at `since`."""

    fingerprint: str
    since: int
    before: str | None
    hides_persons: bool


def read_secret(path: Path) -> bytes | None:
    """Return the secret; None if there is no file.

    Raises:
        SecretError: the file cannot be read, or is not a valid secret.
    """
    try:
        text = read_regular(path, _MOST_BYTES).decode("ascii").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SecretError(f"{path} cannot be read: {error}.", hint="It must be readable for the proxy.") from error
    if not re.fullmatch(rf"[0-9a-f]{{{2 * SECRET_BYTES}}}", text):
        raise SecretError(
            f"{path} is not a valid secret: expected {2 * SECRET_BYTES} hexadecimal digits.",
            hint="Put it back from a backup. If there is none, move it away: a new one is made.",
        )
    return bytes.fromhex(text)


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


def note_secret(operations: OperationsLog, pseudonyms: Pseudonyms, path: Path, now: int) -> None:
    """Compare the secret with the ledger's record at the start. Log and record a change."""
    known = _known(operations)
    mine = _Known(pseudonyms.fingerprint, now, None, pseudonyms.hides_persons)
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
                file=str(path),
                effect="accounts per api key and per pseudonym begin at zero; restore the old secret if there is one",
            )
    if mine != known:
        wait_while_busy(lambda: operations.note(NOTE, json.dumps(mine._asdict())))


def secret_trouble(operations: OperationsLog, pseudonyms: Pseudonyms | None, path: Path, now: int) -> str | None:
    """Return the problem with the secret, for readers; None if there is none."""
    known = _known(operations)
    if pseudonyms is None:
        return f"{path} is missing; put it back before the next start, or a new one is made" if known else None
    if known is None:
        return None
    if known.fingerprint != pseudonyms.fingerprint:
        return f"{path} is another one than the proxy started with; put the old one back before the next start"
    if known.before is not None and now < known.since + _TOLD_FOR:
        at = f"{to_datetime(known.since):%Y-%m-%d %H:%M} UTC"
        return f"{path} is a new one since {at}: accounts per api key and per pseudonym began at zero then"
    return None


def _known(operations: OperationsLog) -> _Known | None:
    text = operations.notes(NOTE).get(NOTE)
    return None if text is None else _Known(**json.loads(text))
