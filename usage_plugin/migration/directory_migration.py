"""Migrate one directory, in steps that can be repeated.

1. Read the sources into the staging database.
2. Compare them, and plan the sums to import.
3. Append the plan to the store, by numbers that the store knows, and check that it has the plan.
4. Write profiles to the ledger, and limits to a file.
5. Rename the sources.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from usage_plugin.atomic_files import open_private_text
from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.errors import BrokenSourceError, MigrationError
from usage_plugin.migration import limit_conversion
from usage_plugin.migration.import_lock import import_lock
from usage_plugin.migration.legacy_reader import LegacyReader
from usage_plugin.migration.legacy_records import ImportFinding
from usage_plugin.migration.legacy_sources import STATE_FILE, LegacySource, find_sources, formats_of, identify, rename
from usage_plugin.migration.outcome import Outcome, Progress
from usage_plugin.migration.staging import StagingDatabase
from usage_plugin.tracking.ledger_retry import wait_while_busy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.profiles import ProfileStore
    from usage_plugin.domain.store import UsageStore

_BATCH = 1_000
_READ_BATCH = 5_000
_PROFILES = 200
MOST_SHOWN = 20
_COUNTERS = {
    "rejected": "rejected",
    "broken": "broken",
    "disagreement": "disagreements",
    "renamed": "renamed_users",
    "left_out": "left_out",
}


@dataclass(frozen=True, kw_only=True)
class MigrationContext:
    """The target of a migration, and the interpretation of times and names.

    Attributes:
        data_dir: The data folder.
        limits_file: The file for the old limits.
        zone: The time zone of times without one.
        casefold: Whether names are folded, as those of requests are.
        kept: Returns the name under which a person is kept.
    """

    data_dir: Path
    limits_file: Path
    zone: ZoneInfo
    casefold: bool
    kept: Callable[[str], str]

    @property
    def staging_folder(self) -> Path:
        """The folder of the staging databases."""
        return self.data_dir / "migration"

    @property
    def report(self) -> Path:
        """The file with all findings."""
        return self.data_dir / "migration_report.jsonl"


def preview(directory: Path, context: MigrationContext, progress: Progress) -> Outcome:
    """Return the outcome that the migration of a (resolved) directory would have; change nothing.

    Raises:
        MigrationError: The directory has no sources, or cannot be read.
    """
    _check(directory)
    name = identify(directory, context.staging_folder, remember=False)
    with tempfile.TemporaryDirectory(prefix="usage-plugin-") as scratch:
        path = Path(scratch) / "staging.db"
        existing = context.staging_folder / f"{name}.db"
        if existing.exists():
            known = _open(existing, context)
            known.copy_to(path)
            known.close()
        migration = _Migration(directory, context, progress, Path(scratch), path)
        try:
            return migration.preview()
        finally:
            migration.close()


async def migrate(
    directory: Path, context: MigrationContext, progress: Progress, profiles: ProfileStore, store: UsageStore
) -> Outcome:
    """Import a (resolved) directory. After a StorageError or LedgerError, another run resumes the import.

    Raises:
        MigrationError: The directory has no sources, cannot be read, or is being imported by another process.
        StorageError: The store does not accept the sums at the moment.
        LedgerError: The ledger does not accept the profiles at the moment.
    """
    _check(directory)
    with ExitStack() as stack:
        stack.enter_context(import_lock(context.staging_folder))
        name = identify(directory, context.staging_folder, remember=True)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=context.staging_folder)))
        migration = _Migration(directory, context, progress, scratch, context.staging_folder / f"{name}.db")
        stack.callback(migration.close)
        return await migration.run(f"migrate:{name}", profiles, store)


def _check(directory: Path) -> None:
    if not directory.is_dir():
        raise MigrationError(
            f"expected a directory; found {directory}.", hint="Name the data directory of the previous tracker."
        )
    if not find_sources(directory)[0] and not (directory / STATE_FILE).exists():
        raise MigrationError(
            f"Nothing to import in {directory}.",
            hint="The known sources are daily_usage.json, monthly_usage.json, usage_aggregations.db, partitioned/,"
            " user_profiles.json(l) and spending_limits; *.legacy_backup was imported before.",
        )


def _open(path: Path, context: MigrationContext) -> StagingDatabase:
    return StagingDatabase(path, casefold=context.casefold, kept=context.kept)


class _Migration:
    """One run over one directory, with an open staging database."""

    def __init__(
        self, directory: Path, context: MigrationContext, progress: Progress, scratch: Path, staging: Path
    ) -> None:
        self._directory = directory
        self._context = context
        self._progress = progress
        self._scratch = scratch
        self._staging = _open(staging, context)
        self._outcome = Outcome(str(directory), dry_run=False)

    def close(self) -> None:
        self._staging.close()

    def preview(self) -> Outcome:
        """Read and compare the sources."""
        outcome = self._outcome
        outcome.dry_run = True
        sources = self._sources()
        planned = self._staging.planned
        self._read(sources)
        with self._staging.transaction():
            self._compare(sources)
        outcome.imported = self._staging.planned - planned
        outcome.profiles = sum(1 for _ in self._staging.profiles())
        with self._staging.transaction():
            for _ in self._limit_lines():
                pass
        self._tell(write=False)
        return outcome

    async def run(self, writer: str, profiles: ProfileStore, store: UsageStore) -> Outcome:
        staging = self._staging
        stored = await store.watermark(writer)
        is_new = staging.fact("began") is None
        if not is_new and staging.planned > staging.checked:
            # An earlier run was killed: its plan comes first, unchanged.
            await self._add(writer, store)
        sources = self._sources()
        if not sources:
            # All sources were imported and renamed before.
            staging.delete()
            self._outcome.checked = True
            return self._outcome
        self._read(sources)
        with staging.transaction():
            self._compare(sources)
            if is_new and stored == staging.planned:
                staging.keep_fact("checked", str(stored))
            elif stored > staging.planned or (is_new and stored):
                self._refuse(stored)
            await self._remember_before(writer, store)
            staging.keep_fact("began", "yes")
        await self._add(writer, store)
        self._put_profiles(profiles)
        with staging.transaction():
            self._write_limits()
        self._tell(write=True)
        self._rename(sources)
        return self._outcome

    def _sources(self) -> list[LegacySource]:
        sources, strange = find_sources(self._directory)
        self._outcome.formats = formats_of(sources)
        self._staging.forget(_OF_DIRECTORY)
        for path in strange:
            text = "expected a regular file or folder; links are not followed."
            self._staging.tell(ImportFinding("rejected", path.name, "", "", text), _OF_DIRECTORY)
        return sources

    def _read(self, sources: list[LegacySource]) -> None:
        reader = LegacyReader(self._context.zone, self._scratch, self._progress.advance)
        for source in sources:
            look = source.look()
            if self._staging.has_read(source.number, look):
                continue
            self._progress.begin(f"Reading {source.name}", source.size())
            with self._staging.transaction():
                self._staging.forget(source.number)
            items = reader.read(source)
            while True:
                batch = []
                try:
                    for item in islice(items, _READ_BATCH):
                        batch.append(item)  # noqa: PERF402  # items before an error count
                except BrokenSourceError as error:
                    batch.append(ImportFinding("broken", source.name, "", "", str(error)))
                    self._staging.add(source.number, batch)
                    break
                self._staging.add(source.number, batch)
                if len(batch) < _READ_BATCH:
                    self._staging.finish(source.number, look)
                    break

    def _compare(self, sources: list[LegacySource]) -> None:
        self._progress.begin("Comparing", None)
        counts = self._staging.compare({source.number: source.name for source in sources})
        outcome = self._outcome
        outcome.users, outcome.days, outcome.months, outcome.totals = counts

    def _refuse(self, stored: int) -> None:
        raise MigrationError(
            f"The store has {stored} sums of {self._directory} that its staging database does not know.",
            hint=f"The missing sums cannot be determined. Restore {self._context.staging_folder} from a backup,"
            " or import into a new store.",
        )

    async def _remember_before(self, writer: str, store: UsageStore) -> None:
        days = self._staging.unchecked_days()
        if days:
            aggregate = await store.aggregate(("day",), *days, UsageFilter())
            before = {_day(group): totals for group, totals in aggregate.groups.items()}
            self._staging.keep_before(before, _without(aggregate.watermarks, writer))

    async def _add(self, writer: str, store: UsageStore) -> None:
        """Append the part of the plan that the store lacks, and check that it has all of the plan."""
        staging = self._staging
        number = await store.watermark(writer)
        self._progress.begin("Importing", max(0, staging.planned - number))
        while page := staging.plan_after(number, _BATCH):
            await store.append_sums(writer, page)
            number = page[-1].number
            self._outcome.imported += len(page)
            self._progress.advance(len(page))
        days = staging.unchecked_days()
        if days:
            self._progress.begin("Checking", None)
            aggregate = await store.aggregate(("day",), *days, UsageFilter())
            self._check(
                {_day(group): totals for group, totals in aggregate.groups.items()},
                _without(aggregate.watermarks, writer),
            )
            staging.keep_fact("checked", str(staging.planned))
        self._outcome.checked = True

    def _check(self, after: Mapping[date, UsageTotals], watermarks: Mapping[str, int]) -> None:
        """Check that the store's totals have increased by the imported sums, day by day.

        Raises:
            MigrationError: They have not.
        """
        before, watermarks_before = self._staging.before()
        others_wrote = dict(watermarks) != watermarks_before
        for day, given in self._staging.unchecked_totals().items():
            had, has = before.get(day, UsageTotals()), after.get(day, UsageTotals())
            more = tuple(new - old for new, old in zip(has, had, strict=True))
            # The increase includes events of other writers.
            right = all(a >= b for a, b in zip(more, given, strict=True)) if others_wrote else more == tuple(given)
            if not right:
                raise MigrationError(
                    f"On {day}, expected an increase of {tuple(given)}; found {more}"
                    f" ({', '.join(UsageTotals._fields)}).",
                    hint="The directory is unchanged. Please report this; the staging database is in"
                    f" {self._context.staging_folder}.",
                )

    def _put_profiles(self, kept: ProfileStore) -> None:
        self._progress.begin("Profiles", None)
        profiles = self._staging.profiles()
        while page := list(islice(profiles, _PROFILES)):
            wait_while_busy(lambda page=page: kept.put(page))  # type: ignore[misc]
            self._outcome.profiles += len(page)
            self._progress.advance(len(page))

    def _limit_lines(self) -> Iterator[str]:
        for line in limit_conversion.lines_of(self._staging.limits, self._staging.tell, str(self._directory)):
            self._outcome.limits += line.count("max_cost: unlimited")
            yield line

    def _write_limits(self) -> None:
        """Write the file of limits, unless it was edited since, or belongs to another directory."""
        target = self._context.limits_file
        written = self._staging.fact("limits")
        new = target.with_name(f".{target.name}.new")
        digest = hashlib.blake2b(digest_size=16)
        with open_private_text(new) as file:
            for line in self._limit_lines():
                digest.update(line.encode())
                file.write(line)
            file.flush()
            os.fsync(file.fileno())
        if not self._outcome.limits:
            new.unlink()
            return
        self._outcome.limits_file = str(target)
        if written == digest.hexdigest():
            new.unlink()
        elif target.exists() and _digest_of(target) not in (written, digest.hexdigest()):
            new.unlink()
            text = f"All limits: {target} belongs to another directory or was edited. Move it away and migrate again."
            self._staging.tell(ImportFinding("broken", "limits", "", "", text))
        else:
            new.replace(target)
            self._staging.keep_fact("limits", digest.hexdigest())

    def _tell(self, *, write: bool) -> None:
        """Count the findings, keep the first for the outcome, and write all to a file."""
        outcome = self._outcome
        with ExitStack() as stack:
            file = None
            if write:
                path = self._context.report
                file = stack.enter_context(open_private_text(path))
                outcome.report = str(path)
            for finding in self._staging.findings():
                name = _COUNTERS[finding["kind"]]
                setattr(outcome, name, getattr(outcome, name) + 1)
                if len(outcome.findings) < MOST_SHOWN:
                    outcome.findings.append(finding)
                if file:
                    file.write(json.dumps(finding, ensure_ascii=False) + "\n")

    def _rename(self, sources: list[LegacySource]) -> None:
        """Rename the completely imported sources; delete the staging database once all are renamed."""
        outcome, staging = self._outcome, self._staging
        for source in sources:
            try:
                if staging.is_broken(source.number):
                    why = "It could not be read to its end; repair it and migrate again."
                elif source.kind in ("limits", "limit_files") and staging.is_broken(_COMPARED):
                    why = "Its limits were not written; see the findings."
                elif source.look() and not staging.has_read(source.number, source.look()):
                    why = "It changed during the migration; migrate again."
                else:
                    outcome.backups += map(str, rename(source))
                    continue
            except OSError as error:
                why = f"Cannot rename it: {error.strerror}."
            outcome.not_renamed[source.name] = why
        if not outcome.not_renamed:
            staging.delete()


_COMPARED = -1
_OF_DIRECTORY = -2


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.blake2b(digest_size=16)
        while data := file.read(1 << 16):
            digest.update(data)
    return digest.hexdigest()


def _day(group: tuple[str | None, ...]) -> date:
    return date.fromisoformat(str(group[0]))


def _without(watermarks: Mapping[str, int], writer: str) -> dict[str, int]:
    return {name: number for name, number in watermarks.items() if name != writer}
