"""The `partitioned` backend: the history in files for people and programs, by user, month and day.

The layout is the previous system's. `partitioned_store` is the store, `archive` keeps the files consistent, and
`journal` makes a batch durable with one sync.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from usage_plugin.backends.partitioned.partitioned_store import open_store
from usage_plugin.plugins import hookimpl
from usage_plugin.plugins.interface import BackendContext, Options, StorageBackend

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from usage_plugin.domain.store import UsageStore


class PartitionedOptions(Options):
    """Options of the `partitioned` backend.

    Attributes:
        path: The folder that contains `partitioned/`; a relative one starts in the data folder.
    """

    path: Path = Path()


class PartitionedBackend(StorageBackend[PartitionedOptions]):
    """The backend that keeps the history in `partitioned/` in the data folder."""

    name = "partitioned"
    options_model = PartitionedOptions

    def open(self, options: PartitionedOptions, context: BackendContext) -> AbstractAsyncContextManager[UsageStore]:
        """Open the files; create the folder if it does not exist."""
        return open_store(context.data_dir / options.path, context.zone)


@hookimpl
def usage_register_storage_backends() -> list[StorageBackend[Any]]:
    """Register the partitioned backend."""
    return [PartitionedBackend()]
