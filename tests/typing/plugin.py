"""A plugin that resolves identities and receives events, alerts and refusals."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from typing_extensions import assert_type

from usage_plugin import plugins
from usage_plugin.plugins import (
    Alert,
    BackendContext,
    Claim,
    ConfigError,
    IdentityResolver,
    LedgerBackend,
    LedgerBusyError,
    LedgerError,
    PluginError,
    RefusedRequest,
    StorageBackend,
    StorageError,
    StorageUnavailableError,
    Unit,
    UsageEvent,
    UsagePluginError,
    decode_event,
    encode_event,
    format_usd,
    hookimpl,
    to_datetime,
    to_decimal,
)


class Options(plugins.Options):
    file: Path


class NoOptions(plugins.NoOptions):
    pass


class Resolver(IdentityResolver):
    name = "third_party"

    def user_of(self, claim: Claim) -> str | None:
        assert_type(claim.team, str | None)
        return claim.headers.get("x-user")

    def groups_of(self, user: str) -> Iterable[str]:
        return [f"{user}s"]

    def refresh(self) -> str:
        return "1"


class Plugin:
    def __init__(self, options: Options, context: BackendContext) -> None:
        self.path = context.config_dir / options.file
        assert_type(context.data_dir, Path)
        if not options.file.name:
            raise ConfigError("expected a file", hint="Name one.")

    @hookimpl
    def usage_register_identity_resolvers(self) -> list[IdentityResolver]:
        return [Resolver()]

    @hookimpl
    def usage_register_storage_backends(self) -> list[StorageBackend[Any]]:
        return []

    @hookimpl
    def usage_register_ledgers(self) -> list[LedgerBackend[Any]]:
        return []

    @hookimpl
    def usage_event_recorded(self, event: UsageEvent) -> None:
        assert_type(encode_event(event), str)
        assert_type(decode_event(encode_event(event)), UsageEvent)
        assert_type(to_decimal(event.reserved), Decimal)

    @hookimpl
    def usage_threshold_crossed(self, alert: Alert) -> None:
        unit: Unit = alert.unit
        assert_type(format_usd(alert.amount) if unit == "usd" else str(alert.amount), str)

    @hookimpl
    def usage_request_refused(self, refusal: RefusedRequest) -> None:
        assert_type(to_datetime(refusal.at), datetime)
        assert_type(refusal.subject, dict[str, str])

    @hookimpl
    def usage_user_forgotten(self, user: str) -> None:
        raise PluginError(f"{user} cannot be forgotten now")


RETRY: tuple[type[UsagePluginError], ...] = (LedgerBusyError, StorageUnavailableError)
NEVER: tuple[type[UsagePluginError], ...] = (LedgerError, StorageError)
