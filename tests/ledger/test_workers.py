"""File locks keep the contract of liveness detection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usage_plugin.ledgers.workers.file_locked_workers import FileLockedWorkers
from usage_plugin.testing import WorkersContract

if TYPE_CHECKING:
    from pathlib import Path

    from usage_plugin.domain.liveness import Workers


class TestFileLockedWorkers(WorkersContract):
    def see(self, place: Path) -> Workers:
        return FileLockedWorkers(place)
