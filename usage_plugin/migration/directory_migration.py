"""The migration of one directory, step by step; each step can be done again.

Read the sources into the staging; compare and plan; add the plan to the store, by numbers that the store knows; check
that the store has what was planned; put profiles into the ledger and limits into a file; and only then rename the
sources.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import date
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from usage_plugin.atomic_files import open_private_text
from usage_plugin.domain.money import format_usd
from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.errors import MigrationError
from usage_plugin.migration import legacy_limits
from usage_plugin.migration.import_lock import import_lock
from usage_plugin.migration.legacy_reader import BrokenSourceError, LegacyReader
from usage_plugin.migration.legacy_records import Finding
from usage_plugin.migration.legacy_sources import STATE_FILE, Source, find_sources, formats_of, identify, rename
from usage_plugin.migration.staging import StagingDatabase
from usage_plugin.tracking.flusher import until_free

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from zoneinfo import ZoneInfo

    from usage_plugin.domain.ledger import Ledger
    from usage_plugin.domain.store import UsageStore

_BATCH = 1_000
_READ_BATCH = 5_000
_PROFILES = 200
MOST_SHOWN = 20
_SAID = {
    "rejected": "rejected",
    "broken": "broken",
    "disagreement": "disagreements",
    "renamed": "renamed_users",
    "left_out": "left_out",
}


class Progress(Protocol):
    """Is told how far it is."""

    def begin(self, what: str, total: int | None) -> None:
        """Begin with something; `total` steps of it, if that is known."""

    def advance(self, steps: int) -> None:
        """So many steps more are done."""


@dataclass
class Outcome:
    """What a migration has done, or with `dry_run` would do. Sums are of everything that is right in the directory.

    Attributes:
        imported: how many sums went into the store this time; 0 if it had everything.
        checked: whether the store was found to have what it was given.
        findings: the first of them; all are in `report`.
        backups: what the sources are called now.
        not_renamed: sources that keep their names, and why.
    """

    directory: str
    dry_run: bool
    formats: list[int] = field(default_factory=list)
    users: int = 0
    days: int = 0
    months: int = 0
    totals: UsageTotals = field(default_factory=UsageTotals)
    imported: int = 0
    profiles: int = 0
    limits: int = 0
    limits_file: str | None = None
    rejected: int = 0
    broken: int = 0
    disagreements: int = 0
    renamed_users: int = 0
    left_out: int = 0
    checked: bool = False
    backups: list[str] = field(default_factory=list)
    not_renamed: dict[str, str] = field(default_factory=dict)
    findings: list[dict[str, str]] = field(default_factory=list)
    report: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether everything that can be imported was, and nothing waits for repair."""
        return not self.broken and (self.checked or self.dry_run)

    def plain(self) -> dict[str, Any]:
        """Write it for programs."""
        numbers = self.totals
        plain = asdict(self)
        plain["totals"] = {
            "requests": numbers.requests,
            "failed_requests": numbers.failed_requests,
            "input_tokens": numbers.input_tokens,
            "output_tokens": numbers.output_tokens,
            "cost": format_usd(numbers.cost),
        }
        return plain


@dataclass(frozen=True, kw_only=True)
class MigrationContext:
    """Where the migration writes, and how it reads times and names.

    Attributes:
        limits_file: where the old limits go.
        casefold: whether names are folded, as those of requests are.
        kept: gives the name under which a person is kept.
    """

    data_dir: Path
    limits_file: Path
    zone: ZoneInfo
    casefold: bool
    kept: Callable[[str], str]

    @property
    def staging_folder(self) -> Path:
        """The folder of the staging_folder."""
        return self.data_dir / "migration"

    @property
    def report(self) -> Path:
        """The file with everything that people must know of."""
        return self.data_dir / "migration_report.jsonl"


def preview(directory: Path, context: MigrationContext, progress: Progress) -> Outcome:
    """Say what the migration of a (resolved) directory would do, and change nothing: not even a staging is left.

    Raises:
        MigrationError: there is nothing to import, or it cannot be read.
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
    directory: Path, context: MigrationContext, progress: Progress, ledger: Ledger, store: UsageStore
) -> Outcome:
    """Import a (resolved) directory.

    Raises:
        MigrationError: there is nothing to import, it cannot be read, or another process is at it.
        StorageError: the store does not take it now; run again, it goes on where it was. As after a LedgerError.
    """
    _check(directory)
    with ExitStack() as stack:
        stack.enter_context(import_lock(context.staging_folder))
        name = identify(directory, context.staging_folder, remember=True)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=context.staging_folder)))
        migration = _Migration(directory, context, progress, scratch, context.staging_folder / f"{name}.db")
        stack.callback(migration.close)
        return await migration.run(f"migrate:{name}", ledger, store)


def _check(directory: Path) -> None:
    if not directory.is_dir():
        raise MigrationError(f"{directory} is no directory.", hint="Name the data directory of the previous tracker.")
    if not find_sources(directory)[0] and not (directory / STATE_FILE).exists():
        raise MigrationError(
            f"There is nothing to import in {directory}.",
            hint="Known are daily_usage.json, monthly_usage.json, usage_aggregations.db, partitioned/,"
            " user_profiles.json(l) and spending_limits; *.legacy_backup was imported before.",
        )


def _open(path: Path, context: MigrationContext) -> StagingDatabase:
    return StagingDatabase(path, casefold=context.casefold, kept=context.kept)


class _Migration:
    """One run over one directory, with an open staging."""

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
        """Read and compare."""
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

    async def run(self, writer: str, ledger: Ledger, store: UsageStore) -> Outcome:
        staging = self._staging
        stored = await store.watermark(writer)
        is_new = staging.fact("began") is None
        if not is_new and staging.planned > staging.checked:
            # An earlier run was killed: what it had planned comes first, as it was planned.
            await self._add(writer, store)
        sources = self._sources()
        if not sources:
            # All of it was imported and renamed before.
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
        self._put_profiles(ledger)
        with staging.transaction():
            self._write_limits()
        self._tell(write=True)
        self._rename(sources)
        return self._outcome

    def _sources(self) -> list[Source]:
        sources, strange = find_sources(self._directory)
        self._outcome.formats = formats_of(sources)
        self._staging.forget(_OF_DIRECTORY)
        for path in strange:
            text = "It is a link, or no plain file or folder; links are not followed."
            self._staging.tell(Finding("rejected", path.name, "", "", text), _OF_DIRECTORY)
        return sources

    def _read(self, sources: list[Source]) -> None:
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
                        batch.append(item)  # noqa: PERF402  # what came before an error counts
                except BrokenSourceError as error:
                    batch.append(Finding("broken", source.name, "", "", str(error)))
                    self._staging.add(source.number, batch)
                    break
                self._staging.add(source.number, batch)
                if len(batch) < _READ_BATCH:
                    self._staging.finish(source.number, look)
                    break

    def _compare(self, sources: list[Source]) -> None:
        self._progress.begin("Comparing", None)
        counts = self._staging.compare({source.number: source.name for source in sources})
        outcome = self._outcome
        outcome.users, outcome.days, outcome.months, outcome.totals = counts

    def _refuse(self, stored: int) -> None:
        raise MigrationError(
            f"The store has {stored} sums of {self._directory} that its staging database does not know.",
            hint=f"What is missing cannot be told from what is there. Bring {self._context.staging_folder} back,"
            " or import into a new store.",
        )

    async def _remember_before(self, writer: str, store: UsageStore) -> None:
        days = self._staging.unchecked_days()
        if days:
            aggregate = await store.aggregate(("day",), *days, UsageFilter())
            before = {_day(group): totals for group, totals in aggregate.groups.items()}
            self._staging.keep_before(before, _without(aggregate.watermarks, writer))

    async def _add(self, writer: str, store: UsageStore) -> None:
        """Add what the store does not have of the plan, and check that it has all of it then."""
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
        """Compare what the store has more than before with what it was given, day by day.

        Raises:
            MigrationError: it is not the same.
        """
        before, watermarks_before = self._staging.before()
        others_wrote = dict(watermarks) != watermarks_before
        for day, given in self._staging.unchecked_totals().items():
            had, has = before.get(day, UsageTotals()), after.get(day, UsageTotals())
            more = tuple(new - old for new, old in zip(has, had, strict=True))
            # Events that came in meanwhile are in there too.
            right = all(a >= b for a, b in zip(more, given, strict=True)) if others_wrote else more == tuple(given)
            if not right:
                raise MigrationError(
                    f"On {day} the store has {more} more than before, but was given {tuple(given)}"
                    f" ({', '.join(UsageTotals._fields)}).",
                    hint="The directory was left as it is. Please report this; the staging database is in"
                    f" {self._context.staging_folder}.",
                )

    def _put_profiles(self, ledger: Ledger) -> None:
        self._progress.begin("Profiles", None)
        profiles = self._staging.profiles()
        while page := list(islice(profiles, _PROFILES)):
            until_free(lambda page=page: ledger.put_profiles(page))  # type: ignore[misc]
            self._outcome.profiles += len(page)
            self._progress.advance(len(page))

    def _limit_lines(self) -> Iterator[str]:
        for line in legacy_limits.lines_of(self._staging.limits, self._staging.tell, str(self._directory)):
            self._outcome.limits += line.count("max_cost: unlimited")
            yield line

    def _write_limits(self) -> None:
        """Write the file with limits, unless somebody has changed it since, or it is another directory's."""
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
            text = f"All of them: {target} is another directory's or was changed. Move it away and migrate again."
            self._staging.tell(Finding("broken", "limits", "", "", text))
        else:
            new.replace(target)
            self._staging.keep_fact("limits", digest.hexdigest())

    def _tell(self, *, write: bool) -> None:
        """Count the findings, show the first, and write all of them to a file."""
        outcome = self._outcome
        with ExitStack() as stack:
            file = None
            if write:
                path = self._context.report
                file = stack.enter_context(open_private_text(path))
                outcome.report = str(path)
            for finding in self._staging.findings():
                name = _SAID[finding["kind"]]
                setattr(outcome, name, getattr(outcome, name) + 1)
                if len(outcome.findings) < MOST_SHOWN:
                    outcome.findings.append(finding)
                if file:
                    file.write(json.dumps(finding, ensure_ascii=False) + "\n")

    def _rename(self, sources: list[Source]) -> None:
        """Rename what was imported completely; when nothing is left to do, the staging database goes too."""
        outcome, staging = self._outcome, self._staging
        for source in sources:
            try:
                if staging.is_broken(source.number):
                    why = "It could not be read completely; repair it and migrate again."
                elif source.kind in ("limits", "limit_files") and staging.is_broken(_COMPARED):
                    why = "Its limits were not written; see the findings."
                elif source.look() and not staging.has_read(source.number, source.look()):
                    why = "It has changed meanwhile; migrate again."
                else:
                    outcome.backups += map(str, rename(source))
                    continue
            except OSError as error:
                why = f"It cannot be renamed: {error.strerror}."
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
