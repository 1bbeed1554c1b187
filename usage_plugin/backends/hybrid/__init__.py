"""The `hybrid` backend: files as the source of truth, and a database derived from them that answers queries.

Both are registered backends, chosen by options. `hybrid_store` routes queries to one of the two, `replication` copies
new records from the files to the database, and `rebuild` derives a new database from the files.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import date
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ConfigDict, Field

from usage_plugin.backends.hybrid.database import Database
from usage_plugin.backends.hybrid.hybrid_store import HybridStore, WriterLock
from usage_plugin.backends.hybrid.replication import Files, fill
from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.store import HandsOut, KeepsCopies, UsageFilter
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.domain.windows import to_datetime
from usage_plugin.errors import ConfigError, StorageError, StorageUnavailableError
from usage_plugin.plugins import hookimpl
from usage_plugin.plugins.interface import (
    BackendContext,
    Options,
    Renewable,
    Restoration,
    StorageBackend,
    check_options,
    choose,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from usage_plugin.domain.store import UsageStore


class PartOptions(BaseModel):
    """The backend of a part, and its options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: str
    options: dict[str, Any] = Field(default_factory=dict)


class HybridOptions(Options):
    """Options of the `hybrid` backend.

    Attributes:
        files: The source of truth: a backend that mirrors profiles and limits, and can send all its records.
        database: The backend that answers queries; it must be able to build a new database next to the old one.
    """

    files: PartOptions = PartOptions(backend="partitioned")
    database: PartOptions = PartOptions(backend="sqlite")


class BackendPart:
    """A registered backend with its validated options."""

    def __init__(self, name: str, chosen: PartOptions, context: BackendContext) -> None:
        """Choose the backend and validate its options.

        Raises:
            ConfigError: The backend does not exist, or its options are invalid.
        """
        where = f"usage_plugin.storage.options.{name}"
        self.context = context
        self.backend: StorageBackend[Any] = choose(where, chosen.backend, context.storage_backends)
        self.options = check_options(f"{where}.options", self.backend.options_model, chosen.options)
        self.backend.check(self.options, context)

    def open(self) -> AbstractAsyncContextManager[UsageStore]:
        """Open the backend's store."""
        return self.backend.open(self.options, self.context)


def _unfit(options: HybridOptions) -> ConfigError:
    return ConfigError(
        "usage_plugin.storage.options.files.backend: expected a backend of files, such as partitioned; found"
        f" {options.files.backend}.",
        hint="Write partitioned, or leave files out.",
    )


@asynccontextmanager
async def _files(options: HybridOptions, context: BackendContext) -> AsyncIterator[Files]:
    """Open the files.

    Raises:
        ConfigError: The backend cannot send its records.
    """
    async with BackendPart("files", options.files, context).open() as files:
        if not isinstance(files, HandsOut) or not isinstance(files, KeepsCopies):
            raise _unfit(options)
        yield cast("Files", files)


class HybridBackend(StorageBackend[HybridOptions]):
    """The backend that keeps the history in files, and in a database that is replicated from them."""

    name = "hybrid"
    options_model = HybridOptions

    def check(self, options: HybridOptions, context: BackendContext) -> None:
        """Check both parts."""
        files = BackendPart("files", options.files, context)
        database = BackendPart("database", options.database, context)
        if files.backend.name == database.backend.name:
            raise _unfit(options)
        if not isinstance(database.backend, Renewable):
            raise ConfigError(
                "usage_plugin.storage.options.database.backend: expected a backend that can be rebuilt from files,"
                f" such as sqlite; found {options.database.backend}.",
                hint="Write sqlite, or leave database out.",
            )

    @asynccontextmanager
    async def open(self, options: HybridOptions, context: BackendContext) -> AsyncIterator[UsageStore]:
        """Open the files; the database is opened at its first use."""
        self.check(options, context)
        async with _files(options, context) as files:
            part = BackendPart("database", options.database, context)
            database = Database(part.open)

            async def renew(aside: str | None) -> None:
                await database.reopen()
                async for _ in rebuild(part, files, aside):
                    pass

            store = HybridStore(files, database, renew, _lock(context))
            try:
                yield store
            finally:
                await store.close()

    async def restore(
        self, options: HybridOptions, context: BackendContext, *, dry_run: bool
    ) -> AsyncIterator[Restoration]:
        """Restore the database from the files."""
        self.check(options, context)
        part = BackendPart("database", options.database, context)
        async with _files(options, context) as files:
            lock = _lock(context)
            if not lock.take():
                raise StorageUnavailableError(
                    "A worker of the proxy is writing to the database.",
                    hint="Stop the proxy first. While it runs, it repairs the database by itself.",
                )
            try:
                before = {"files": await _totals(files), "database": await _totals_if_there(part)}
                marks = await files.watermarks()
                most, records = sum(marks.values()), 0
                if dry_run:
                    async for _ in files.sent({}, marks):
                        records += 1
                        if records % 1_000 == 0:
                            yield Restoration(records, most, {})
                    yield Restoration(records, most, before)
                    return
                at = to_datetime(SystemClock().now())
                aside: Path | None = None
                async for step in rebuild(part, files, f"before-restore-{at:%Y%m%dT%H%M%S}"):
                    if isinstance(step, int):
                        records += step
                        yield Restoration(records, most, {})
                    else:
                        aside = step
                yield Restoration(records, most, before, aside, is_done=True)
            finally:
                lock.release()


async def rebuild(part: BackendPart, files: Files, aside: str | None) -> AsyncIterator[int | Path | None]:
    """Derive a new database from the files, compare the two, and replace the old database.

    Args:
        part: The database, which is not open in this process.
        files: The source of truth.
        aside: The suffix under which the old database is kept; None deletes it.

    Yields:
        The number of records that each step has stored, and at the end the path of the old database.

    Raises:
        StorageError: The files or the database cannot be used, or they disagree. The old database stays in place.
    """
    renewable = cast("Renewable", part.backend)
    marks = await files.watermarks()
    async with part.backend.open(renewable.beside(part.options, part.context), part.context) as store:
        async for count in fill(store, files.sent({}, marks), marks):
            yield count
        totals = await _totals(files)
        if await files.watermarks() == marks and await _totals(store) != totals:
            raise StorageError("The totals of the new database differ from those of the files it was derived from.")
    yield renewable.take_place(part.options, part.context, aside=aside)


async def _totals(store: UsageStore) -> UsageTotals:
    found = await store.aggregate((), date.min, date.max, UsageFilter())
    return found.groups.get((), UsageTotals())


async def _totals_if_there(part: BackendPart) -> UsageTotals | None:
    try:
        async with part.open() as store:
            return await _totals(store)
    except StorageError:
        return None


def _lock(context: BackendContext) -> WriterLock:
    return WriterLock(context.data_dir / "hybrid.lock")


@hookimpl
def usage_register_storage_backends() -> list[StorageBackend[Any]]:
    """Register the hybrid backend."""
    return [HybridBackend()]
