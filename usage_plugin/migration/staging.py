"""The staging database: the content of a directory, on the disk, until the store has it.

Sources come in any order, and with duplicates. The staging database decides which sum of a user and day is right,
which months have no days, and which sums the store already has. Each sum for the store gets a permanent number here, so
that a migration can be killed at any moment and resumed.
"""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import contextmanager
from datetime import date
from importlib import resources
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from usage_plugin.atomic_files import open_private
from usage_plugin.domain.money import format_usd
from usage_plugin.domain.profiles import UserProfile, decode_profile, encode_profile
from usage_plugin.domain.store import DailySum
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.errors import MigrationError
from usage_plugin.migration.legacy_records import ImportFinding, LegacyLimits, LegacySum
from usage_plugin.migration.user_names import new_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from usage_plugin.migration.legacy_reader import Item

_COLUMNS = ", ".join(LegacySum._fields)
_SUMS = ", ".join(LegacySum._fields[2:7])
_HALVES = ", ".join(
    f"coalesce(sum({name} >> 32), 0), coalesce(sum({name} & 4294967295), 0)" for name in LegacySum._fields[2:7]
)
"""Sums of any size in two halves: SQLite's own sum raises an error beyond 2^63."""
_COMPARED = -1
_MOST_COST = 4 * 10**18
"""The maximum sum, so that SQLite can add it to the sums in the store."""


class Numbered(NamedTuple):
    """A planned sum with its number."""

    number: int
    sum: DailySum


class Counts(NamedTuple):
    """The numbers of the right sums: each user, day and month counts once."""

    users: int
    days: int
    months: int
    totals: UsageTotals


class StagingDatabase:
    """One file for each directory. All costs in it are nano-dollars."""

    def __init__(self, path: Path, *, casefold: bool, kept: Callable[[str], str]) -> None:
        """Open the file; create it if it does not exist.

        Args:
            path: The file, which only its owner can read.
            casefold: Whether names are folded, as those of requests are.
            kept: Returns the name under which a person is kept.

        Raises:
            MigrationError: The file cannot be used.
        """
        self._path = path
        self._casefold = casefold
        self._kept = kept
        try:
            os.close(open_private(path, os.O_CREAT | os.O_RDWR, follow_links=False))
            self._connection = sqlite3.connect(path, isolation_level=None)
            self._execute = self._connection.execute
            self._execute("PRAGMA journal_mode = WAL")
            self._execute("PRAGMA synchronous = FULL")
            self._execute("PRAGMA cache_size = -8000")
            self._connection.executescript((resources.files(__package__) / "staging.sql").read_text(encoding="utf-8"))
        except (OSError, sqlite3.Error) as error:
            raise MigrationError(
                f"Cannot use {path}: {error}.",
                hint="It is the staging database of a migration; the imported directory is unchanged.",
            ) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all or nothing."""
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._execute("ROLLBACK")

    # Items.

    def has_read(self, source: int, look: str) -> bool:
        """Whether a file was read to its end and has not changed since; always False for folders."""
        return bool(look) and self._execute("SELECT look FROM sources WHERE number = ?", (source,)).fetchone() == (
            look,
        )

    def forget(self, source: int) -> None:
        """Delete the content of a source, to read it again."""
        for table in ("sums", "limits", "profiles", "findings"):
            self._execute(f"DELETE FROM {table} WHERE source = ?", (source,))
        self._execute("DELETE FROM sources WHERE number = ?", (source,))

    def finish(self, source: int, look: str) -> None:
        """Record that a source was read to its end."""
        self._execute("INSERT OR REPLACE INTO sources (number, look) VALUES (?, ?)", (source, look))

    def add(self, source: int, items: Iterable[Item]) -> None:
        """Store items of a source, in one transaction."""
        with self.transaction():
            for item in items:
                if isinstance(item, LegacySum):
                    self._add_sum(source, item)
                elif isinstance(item, LegacyLimits):
                    row = (item.user, source, item.updated_at, json.dumps(item._asdict()))
                    self._add_newest("limits", "limits", row)
                elif isinstance(item, UserProfile):
                    row = (item.user, source, item.updated_at, encode_profile(item))
                    self._add_newest("profiles", "profile", row)
                else:
                    self.tell(item, source)

    def _add_sum(self, source: int, one: LegacySum) -> None:
        added = self._execute(
            f"INSERT OR IGNORE INTO sums (source, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (source, *one)
        )
        if added.rowcount:
            return
        key = (one.user, one.date, source)
        row = self._execute(f"SELECT {_COLUMNS} FROM sums WHERE (user, date, source) = (?, ?, ?)", key).fetchone()
        other = LegacySum(*row)
        if other.sums == one.sums:
            return
        right = max(other, one, key=lambda each: each.requests)
        self._tell_difference("The source has it twice", right, [other, one], source)
        self._execute("DELETE FROM sums WHERE (user, date, source) = (?, ?, ?)", key)
        self._add_sum(source, right)

    def _add_newest(self, table: str, column: str, row: tuple[str, int, int, str]) -> None:
        try:
            self._execute(
                f"INSERT INTO {table} (user, source, updated_at, {column}) VALUES (?, ?, ?, ?)"
                f" ON CONFLICT DO UPDATE SET (updated_at, {column}) = (excluded.updated_at, excluded.{column})"
                " WHERE excluded.updated_at >= updated_at",
                row,
            )
        except UnicodeEncodeError as error:
            self.tell(ImportFinding("rejected", table, row[0], "", f"It contains invalid text: {error}."), row[1])

    def tell(self, finding: ImportFinding, source: int = _COMPARED) -> None:
        """Record a finding."""
        self._execute("INSERT INTO findings (source, finding) VALUES (?, ?)", (source, json.dumps(finding.plain())))

    def _tell_difference(
        self, what: str, right: LegacySum, all_of_them: Sequence[LegacySum], source: int = _COMPARED
    ) -> None:
        found = ", ".join(f"{_words(one.sums)}" for one in all_of_them)
        text = f"{what}: {found}; the sum with the most requests counts."
        self.tell(ImportFinding("disagreement", "", right.user, right.date, text), source)

    def findings(self) -> Iterator[dict[str, str]]:
        """Yield the findings as JSON objects."""
        for (finding,) in self._execute("SELECT finding FROM findings ORDER BY source < 0, number"):
            yield json.loads(finding)

    def is_broken(self, source: int) -> bool:
        """Whether a source, or a file of it, could not be read to its end."""
        row = self._execute(
            "SELECT 1 FROM findings WHERE source = ? AND json_extract(finding, '$.kind') = 'broken' LIMIT 1", (source,)
        ).fetchone()
        return row is not None

    # Comparison.

    def compare(self, names: Mapping[int, str]) -> Counts:
        """Choose the right sums, record disagreements, and plan the sums that the store does not have.

        Args:
            names: The names of the sources, for the findings.

        Raises:
            MigrationError: The sums are too large.
        """
        self._execute("DELETE FROM findings WHERE source = ?", (_COMPARED,))
        users = days = months = 0
        totals = UsageTotals()
        user = None
        rows = self._connection.cursor().execute(
            f"SELECT source, {_COLUMNS} FROM sums ORDER BY user, date, source"
        )  # by the primary key: nothing is sorted
        for (old_user, month), group in groupby(rows, key=lambda row: (row[1], row[2][:7])):
            right = [self._right(list(same), names) for _, same in groupby(group, key=lambda row: row[2])]
            if old_user != user:
                user = old_user
                users += 1
                name, is_made = new_name(old_user, casefold=self._casefold)
                if is_made:
                    self.tell(
                        ImportFinding(
                            "renamed", "", old_user, "", f"No request can have this name; its name here is {name}."
                        )
                    )
            of_month = [one for one in right if len(one.date) == len(month)]
            of_days = right[len(of_month) :]
            for one in of_days or of_month:
                self._plan(one, self._kept(name), of_month)
                totals = totals.plus(_totals(one.sums))
            days += len(of_days)
            months += 0 if of_days else 1
            if of_days and of_month:
                self._compare_month(of_month[0], of_days)
        if totals.cost > _MOST_COST:
            raise MigrationError(
                f"expected sums of at most {format_usd(_MOST_COST)} USD; found {format_usd(totals.cost)}.",
                hint="The directory is damaged; usage-plugin migrate --dry-run lists its findings.",
            )
        return Counts(users, days, months, totals)

    def _right(self, rows: list[tuple[int | str, ...]], names: Mapping[int, str]) -> LegacySum:
        """Return the right one of several sources' sums: the one with the most requests, then the first."""
        sums = [LegacySum(*row[1:]) for row in rows]  # type: ignore[arg-type]
        right = max(sums, key=lambda one: one.requests)
        if any(one.sums != right.sums for one in sums):
            where = " and ".join(names.get(int(row[0]), "an earlier source") for row in rows)
            self._tell_difference(f"{where} disagree", right, sums)
        return right

    def _compare_month(self, month: LegacySum, days: Sequence[LegacySum]) -> None:
        added = tuple(map(sum, zip(*(day.sums for day in days), strict=True)))
        if added != month.sums:
            text = f"The month has {_words(month.sums)}, its days {_words(added)}; the days count."
            self.tell(ImportFinding("disagreement", "", month.user, month.date, text))

    def _plan(self, one: LegacySum, name: str, month: Sequence[LegacySum]) -> None:
        """Plan the part of a sum that is not planned yet: all of it, or the increase since an earlier migration."""
        # Planned days of a month count for the month: the days may have been deleted since.
        known = self._planned(one.user, one.date, f"{one.date}-99" if one in month else one.date)
        if month and one not in month and not any(known) and any(self._planned(one.user, month[0].date, month[0].date)):
            text = "Its month was imported as one sum before; it is not imported again."
            self.tell(ImportFinding("disagreement", "", one.user, one.date, text))
            return
        more = tuple(new - old for new, old in zip(one.sums, known, strict=True))
        if min(more) < 0:
            text = f"Its sum is less than the imported one ({_words(known)})."
            self.tell(ImportFinding("disagreement", "", one.user, one.date, text))
        elif any(more):
            self._execute(
                f"INSERT INTO plan (user, date, name, {_SUMS}, model, provider) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (one.user, one.date, name, *more, one.model, one.provider),
            )

    def _planned(self, user: str, first: str, last: str) -> tuple[int, ...]:
        row = self._execute(
            f"SELECT {_HALVES} FROM plan WHERE user = ? AND date BETWEEN ? AND ?", (user, first, last)
        ).fetchone()
        return _whole(row)

    # Plan.

    @property
    def planned(self) -> int:
        """The number of the last planned sum."""
        return int(self._execute("SELECT coalesce(max(number), 0) FROM plan").fetchone()[0])

    @property
    def checked(self) -> int:
        """The number up to which the store is known to have the plan."""
        return int(self.fact("checked") or 0)

    def unchecked_days(self) -> tuple[date, date] | None:
        """Return the first and the last day of the unchecked plan; None if all is checked."""
        first, last = self._execute(
            "SELECT min(date), max(date) FROM plan WHERE number > ?", (self.checked,)
        ).fetchone()
        return (_day(first), _day(last)) if first else None

    def unchecked_totals(self) -> dict[date, UsageTotals]:
        """Return the totals of the unchecked plan by day."""
        found: dict[date, UsageTotals] = {}
        for when, *row in self._execute(
            f"SELECT date, {_HALVES} FROM plan WHERE number > ? GROUP BY date", (self.checked,)
        ):
            found[_day(when)] = found.get(_day(when), UsageTotals()).plus(_totals(_whole(row)))
        return found

    def plan_after(self, number: int, most: int) -> list[Numbered]:
        """Return the next sums of the plan, in the store's form."""
        rows = self._execute(
            f"SELECT number, date, name, model, provider, {_SUMS} FROM plan WHERE number > ? ORDER BY number LIMIT ?",
            (number, most),
        )
        return [
            Numbered(found, DailySum(_day(when), name, None, None, None, None, model, provider, _totals(sums)))
            for found, when, name, model, provider, *sums in rows
        ]

    def keep_before(self, days: Mapping[date, UsageTotals], watermarks: Mapping[str, int]) -> None:
        """Record the store's totals before the import, for the comparison after it."""
        self._execute("DELETE FROM before")
        self._connection.executemany(
            "INSERT INTO before (day, totals) VALUES (?, ?)",
            [(day.isoformat(), json.dumps(totals)) for day, totals in days.items()],
        )
        self.keep_fact("watermarks", json.dumps(dict(watermarks)))

    def before(self) -> tuple[dict[date, UsageTotals], dict[str, int]]:
        """Return the store's totals before the import by day, and its watermarks at that time."""
        days = {
            date.fromisoformat(day): UsageTotals(*json.loads(totals))
            for day, totals in self._execute("SELECT day, totals FROM before")
        }
        return days, json.loads(self.fact("watermarks") or "{}")

    # Profiles, limits and facts.

    def profiles(self) -> Iterator[UserProfile]:
        """Yield the profiles under their new names; of several of one user the ledger keeps the newest."""
        for (text,) in self._execute("SELECT profile FROM profiles ORDER BY user, source"):
            profile = decode_profile(text)
            name, is_made = new_name(profile.user, casefold=self._casefold)
            user = self._kept(name)
            if is_made and user == name:
                profile = profile._replace(metadata={**profile.metadata, "imported_user_id": profile.user})
            yield profile._replace(user=user)

    def limits(self) -> Iterator[tuple[str, LegacyLimits]]:
        """Yield the limits with the new names of their users, the newest of each first."""
        for (text,) in self._execute("SELECT limits FROM limits ORDER BY user, updated_at DESC, source"):
            record = json.loads(text)
            limits = LegacyLimits(**{**record, "thresholds": record["thresholds"] and tuple(record["thresholds"])})
            yield new_name(limits.user, casefold=self._casefold)[0], limits

    def fact(self, name: str) -> str | None:
        """Return the fact of a name; None if there is none."""
        row = self._execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def keep_fact(self, name: str, value: str) -> None:
        """Record a fact under a name."""
        self._execute("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", (name, value))

    def copy_to(self, path: Path) -> None:
        """Copy the database to another file."""
        self._execute("VACUUM INTO ?", (str(path),))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def delete(self) -> None:
        """Close and delete the file: the usage of users belongs in the store only."""
        self.close()
        for ending in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + ending).unlink(missing_ok=True)


def _day(when: str) -> date:
    return date.fromisoformat(when if len(when) == 10 else f"{when}-01")


def _words(sums: Sequence[int]) -> str:
    return f"{sums[0]} requests, {sums[2] + sums[3]} tokens, {format_usd(sums[4])} USD"


def _whole(halves: Sequence[int]) -> tuple[int, ...]:
    """Join the halves of sums."""
    return tuple((high << 32) + low for high, low in zip(halves[::2], halves[1::2], strict=True))


def _totals(sums: Sequence[int]) -> UsageTotals:
    requests, failed, inputs, outputs, cost = sums
    return UsageTotals(requests=requests, failed_requests=failed, input_tokens=inputs, output_tokens=outputs, cost=cost)
