"""`usage-plugin accept-secret`: go on with another secret than the one that the ledger was used with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from usage_plugin.domain.clock import SystemClock
from usage_plugin.errors import NothingRecordedError, SecretError
from usage_plugin.runtime import Parts
from usage_plugin.tracking.privacy.secret import accept_secret

if TYPE_CHECKING:
    from usage_plugin.config import Config


def accept(config: Config, *, confirmed: bool) -> None:
    """Record the secret of the configuration as the ledger's.

    Raises:
        NothingRecordedError: There is no ledger.
        SecretError: There is no secret.
    """
    parts = Parts(config)
    pseudonyms = parts.pseudonyms()
    if pseudonyms is None:
        raise SecretError(f"Secret not found: {parts.secret}.", hint="Restore it from a backup, or start the proxy.")
    if not parts.has_ledger():
        raise NothingRecordedError("There is no ledger yet.", hint="Start the proxy: its first start takes any secret.")
    if not confirmed:
        click.confirm(
            f"Go on with the secret of {parts.secret} (fingerprint {pseudonyms.fingerprint})? Accounts per api key and"
            " per pseudonym begin at zero, and earlier records are not found by name. All proxies must be stopped.",
            abort=True,
            err=True,
        )
    opened = parts.open_ledger()
    try:
        is_new = accept_secret(opened.operations, pseudonyms, SystemClock().now())
    finally:
        opened.close()
    click.echo("Accepted. The next start uses it." if is_new else "The ledger is used with this secret already.")
