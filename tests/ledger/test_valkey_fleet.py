"""The fleet side of a ledger on a Valkey server keeps the contracts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.valkey import RunningServer, ValkeyOnSqlite, ValkeyOpening, valkey_opening
from usage_plugin.testing import FleetContract, LedgerTransportContract

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class OnValkey:
    backend = ValkeyOnSqlite()

    @pytest.fixture
    def opening(self, valkey: RunningServer, tmp_path: Path) -> ValkeyOpening:
        return valkey_opening(valkey, tmp_path / "data" / "usage")

    @pytest.fixture
    def replace_server(self, valkey: RunningServer) -> Callable[[], None]:
        return valkey.promote


class TestValkeyFleet(OnValkey, FleetContract):
    pass


class TestValkeyTransport(OnValkey, LedgerTransportContract):
    pass
