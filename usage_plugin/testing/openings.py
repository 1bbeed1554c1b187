"""The way a contract opens the store or the ledger under test: in its own process or, pickled, in another."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from usage_plugin.plugins.interface import BackendContext, LedgerBackend, StorageBackend
from usage_plugin.plugins.manager import Plugins
from usage_plugin.runtime import BUILTIN_PLUGINS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

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
