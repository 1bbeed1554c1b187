"""The way a contract opens the store or the ledger under test: in its own process or, pickled, in another."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from usage_plugin.plugins.interface import BackendContext, LedgerBackend, SharedLedgerBackend, StorageBackend
from usage_plugin.plugins.manager import Plugins
from usage_plugin.runtime import BUILTIN_PLUGINS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.fleet import FleetRegister
    from usage_plugin.domain.ledger_batch import LedgerTransport
    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.domain.store import UsageStore

BERLIN = ZoneInfo("Europe/Berlin")

_numbers = itertools.count()


@cache
def _builtin_backends() -> Mapping[str, StorageBackend[Any]]:
    return Plugins(BUILTIN_PLUGINS, entry_points=False).storage_backends


def _new_name() -> str:
    return f"another-{next(_numbers)}"


@dataclass(frozen=True, slots=True)
class StoreOpening:
    """The way to open a store, in this or another process."""

    backend: StorageBackend[Any]
    data_dir: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    zone: ZoneInfo = BERLIN

    @property
    def arguments(self) -> tuple[Any, BackendContext]:
        """The validated options and the context, as the backend gets them."""
        options = self.backend.options_model.model_validate(dict(self.options))
        return options, BackendContext(self.data_dir, self.zone, storage_backends=_builtin_backends())

    def open(self) -> AbstractAsyncContextManager[UsageStore]:
        """Open the store for the length of a context."""
        return self.backend.open(*self.arguments)

    def another(self) -> StoreOpening:
        """Return the opening of another, new store."""
        return replace(self, data_dir=self.data_dir / _new_name())


@dataclass(frozen=True, slots=True)
class LedgerOpening:
    """The way to open a ledger, in this or another process."""

    backend: LedgerBackend[Any]
    data_dir: Path
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def _arguments(self) -> tuple[Any, BackendContext]:
        return self.backend.options_model.model_validate(dict(self.options)), BackendContext(self.data_dir, BERLIN)

    def open(self) -> OpenLedger:
        """Open the ledger for the calling thread."""
        return self.backend.open(*self._arguments)

    def exists(self) -> bool:
        """Whether the ledger exists."""
        return self.backend.exists(*self._arguments)

    def another(self) -> LedgerOpening:
        """Return the opening of another, new ledger."""
        return replace(self, data_dir=self.data_dir / _new_name())


@dataclass(frozen=True, slots=True)
class SharedLedgerOpening(LedgerOpening):
    """The ways to open a ledger on a server, in this or another process."""

    backend: SharedLedgerBackend[Any]

    def transport(self, clock: Clock) -> LedgerTransport:
        """Return a connection for the request path."""
        return self.backend.transport(*self._arguments, clock)

    def register(self) -> FleetRegister:
        """Connect to the register of the fleet, for the calling thread."""
        return self.backend.register(*self._arguments)

    def open_as_keeper(self, term: Callable[[], int]) -> OpenLedger:
        """Open the ledger for the calling thread of a keeper."""
        return self.backend.open_as_keeper(*self._arguments, term)

    def trouble(self) -> list[str]:
        """Return the settings of the server that endanger the ledger."""
        return self.backend.trouble(*self._arguments)

    def another(self) -> SharedLedgerOpening:
        """Return the opening of another, new ledger; override it for a ledger outside of `data_dir`."""
        return replace(self, data_dir=self.data_dir / _new_name())

    def at_port(self, port: int) -> SharedLedgerOpening:
        """Return the opening of the same ledger over another port of the loopback, by the option `url`."""
        url = urlsplit(str(self.options["url"]))
        place = f"{url.netloc.rpartition('@')[0]}@" if "@" in url.netloc else ""
        return replace(self, options={**self.options, "url": url._replace(netloc=f"{place}127.0.0.1:{port}").geturl()})
