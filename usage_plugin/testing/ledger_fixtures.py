"""Fixtures that the contracts of a ledger's parts share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from usage_plugin.testing.faults import Faults
from usage_plugin.testing.openings import LedgerOpening

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from usage_plugin.domain.open_ledger import OpenLedger
    from usage_plugin.plugins.interface import LedgerBackend


class OpensLedger:
    """Open the ledger under test.

    Attributes:
        backend: the backend of the ledger under test.
        options: the backend's options, as in the YAML.
        fault_points: see `StoreContract`.
    """

    backend: ClassVar[LedgerBackend[Any]]
    options: ClassVar[Mapping[str, Any]] = {}
    fault_points: ClassVar[Mapping[str, Exception]] = {}

    @pytest.fixture
    def opening(self, tmp_path: Path) -> LedgerOpening:
        """The way to open the ledger; override it for a ledger outside of `data_dir`."""
        return LedgerOpening(self.backend, tmp_path / "data" / "usage", self.options)

    @pytest.fixture
    def opened(self, opening: LedgerOpening) -> Iterator[OpenLedger]:
        """A new ledger, open; its records must be valid after the test too."""
        opened = opening.open()
        yield opened
        assert opened.ledger.verify() == []
        opened.close()

    @pytest.fixture
    def faults(self) -> Iterator[Faults]:
        """Fault injection for low-level calls."""
        faults = Faults(self.fault_points)
        with faults.installed():
            yield faults
