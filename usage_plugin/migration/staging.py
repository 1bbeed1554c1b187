"""The draft: what was read of a directory, on the disk, until the store has it.

It makes order of sources that come in any order and say things twice: which of several sums of a user and day is
right, which months have no days, what is in the store already. What goes into the store gets numbers here that never
change, so that a migration can be killed at any moment and goes on where it was.
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
from usage_plugin.migration.legacy_records import Finding, LegacyLimits, LegacySum
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
"""Sums of any size: SQLite's own raises beyond 2^63."""
_COMPARED = -1
_MOST_COST = 4 * 10**18
"""Sums must stay below what SQLite can add up, beside what is in the store already."""


class Numbered(NamedTuple):
    """A sum of the plan with its number."""

    number: int
    sum: DailySum


class Counts(NamedTuple):
    """What a draft holds: the sums that are right, each user, day and month once."""

    users: int
    days: int
    months: int
    totals: UsageTotals


class StagingDatabase:
    """One file for each directory. Everything it says of sums is in nano-dollars."""

    def __init__(self, path: Path, *, casefold: bool, kept: Callable[[str], str]) -> None:
        """Open the file, or begin it.

        Args:
            path: where; only its owner may read it.
            casefold: whether names are folded, as those of requests are.
            kept: gives the name under which a person is kept.

        Raises:
            MigrationError: it cannot be used.
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
                f"{path} cannot be used: {error}.",
                hint="It is a draft of a migration; its directory is still as it was.",
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

    # Reading.

    def has_read(self, source: int, look: str) -> bool:
        """Say whether a file was read to its end and has not changed since; of folders nobody can tell."""
        return bool(look) and self._execute("SELECT look FROM sources WHERE number = ?", (source,)).fetchone() == (
            look,
        )

    def forget(self, source: int) -> None:
        """Begin a source anew."""
        for table in ("sums", "limits", "profiles", "findings"):
            self._execute(f"DELETE FROM {table} WHERE source = ?", (source,))
        self._execute("DELETE FROM sources WHERE number = ?", (source,))

    def finish(self, source: int, look: str) -> None:
        """Note that a source was read to its end."""
        self._execute("INSERT OR REPLACE INTO sources (number, look) VALUES (?, ?)", (source, look))

    def add(self, source: int, items: Iterable[Item]) -> None:
        """Keep what was read, in one transaction."""
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
        self._tell_difference("It stands there twice", right, [other, one], source)
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
            self.tell(Finding("rejected", table, row[0], "", f"It holds what is no text: {error}."), row[1])

    def tell(self, finding: Finding, source: int = _COMPARED) -> None:
        """Keep a finding."""
        self._execute("INSERT INTO findings (source, finding) VALUES (?, ?)", (source, json.dumps(finding.plain())))

    def _tell_difference(
        self, what: str, right: LegacySum, all_of_them: Sequence[LegacySum], source: int = _COMPARED
    ) -> None:
        told = ", ".join(f"{_words(one.sums)}" for one in all_of_them)
        self.tell(
            Finding("disagreement", "", right.user, right.date, f"{what}: {told}; the most requests count."), source
        )

    def findings(self) -> Iterator[dict[str, str]]:
        """List what people must know of, as JSON objects."""
        for (finding,) in self._execute("SELECT finding FROM findings ORDER BY source < 0, number"):
            yield json.loads(finding)

    def is_broken(self, source: int) -> bool:
        """Say whether a source could not be read to its end, or a file of it."""
        row = self._execute(
            "SELECT 1 FROM findings WHERE source = ? AND json_extract(finding, '$.kind') = 'broken' LIMIT 1", (source,)
        ).fetchone()
        return row is not None

    # Deciding.

    def compare(self, names: Mapping[int, str]) -> Counts:
        """Decide what is right, tell what disagrees, and plan what the store does not have.

        Args:
            names: of the sources, to tell.

        Raises:
            MigrationError: the sums are too large to be added up.
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
                        Finding("renamed", "", old_user, "", f"No request can have this name: {name} is it here.")
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
                f"The sums come to {format_usd(totals.cost)} USD, more than can be added up.",
                hint="Something in that directory is wrong; usage-plugin migrate --dry-run lists its findings.",
            )
        return Counts(users, days, months, totals)

    def _right(self, rows: list[tuple[int | str, ...]], names: Mapping[int, str]) -> LegacySum:
        """Choose among what several sources say of a user and date: the most requests count, then the first."""
        sums = [LegacySum(*row[1:]) for row in rows]  # type: ignore[arg-type]
        right = max(sums, key=lambda one: one.requests)
        if any(one.sums != right.sums for one in sums):
            where = " and ".join(names.get(int(row[0]), "an earlier source") for row in rows)
            self._tell_difference(f"{where} disagree", right, sums)
        return right

    def _compare_month(self, month: LegacySum, days: Sequence[LegacySum]) -> None:
        added = tuple(map(sum, zip(*(day.sums for day in days), strict=True)))
        if added != month.sums:
            text = f"The month says {_words(month.sums)}, its days {_words(added)}; the days count."
            self.tell(Finding("disagreement", "", month.user, month.date, text))

    def _plan(self, one: LegacySum, name: str, month: Sequence[LegacySum]) -> None:
        """Plan what is not planned yet of a sum: all of it, or what was added since an earlier migration."""
        # What was planned of a month's days counts for the month: they may be gone since.
        known = self._planned(one.user, one.date, f"{one.date}-99" if one in month else one.date)
        if month and one not in month and not any(known) and any(self._planned(one.user, month[0].date, month[0].date)):
            text = "Its month was imported as one sum before; it is not imported again."
            self.tell(Finding("disagreement", "", one.user, one.date, text))
            return
        more = tuple(new - old for new, old in zip(one.sums, known, strict=True))
        if min(more) < 0:
            text = f"It has less now than when it was imported ({_words(known)})."
            self.tell(Finding("disagreement", "", one.user, one.date, text))
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

    # The plan.

    @property
    def planned(self) -> int:
        """The number of the last sum of the plan."""
        return int(self._execute("SELECT coalesce(max(number), 0) FROM plan").fetchone()[0])

    @property
    def checked(self) -> int:
        """The number up to which the store was found to have the plan."""
        return int(self.fact("checked") or 0)

    def unchecked_days(self) -> tuple[date, date] | None:
        """Give the first and the last day of the plan that is not checked; None if there is nothing."""
        first, last = self._execute(
            "SELECT min(date), max(date) FROM plan WHERE number > ?", (self.checked,)
        ).fetchone()
        return (_day(first), _day(last)) if first else None

    def unchecked_totals(self) -> dict[date, UsageTotals]:
        """Add up the plan that is not checked, by day."""
        found: dict[date, UsageTotals] = {}
        for when, *row in self._execute(
            f"SELECT date, {_HALVES} FROM plan WHERE number > ? GROUP BY date", (self.checked,)
        ):
            found[_day(when)] = found.get(_day(when), UsageTotals()).plus(_totals(_whole(row)))
        return found

    def plan_after(self, number: int, most: int) -> list[Numbered]:
        """Read the next sums of the plan, as the store takes them."""
        rows = self._execute(
            f"SELECT number, date, name, model, provider, {_SUMS} FROM plan WHERE number > ? ORDER BY number LIMIT ?",
            (number, most),
        )
        return [
            Numbered(found, DailySum(_day(when), name, None, None, None, None, model, provider, _totals(sums)))
            for found, when, name, model, provider, *sums in rows
        ]

    def keep_before(self, days: Mapping[date, UsageTotals], watermarks: Mapping[str, int]) -> None:
        """Keep what the store has before the plan, to be compared with what it has after it."""
        self._execute("DELETE FROM before")
        self._connection.executemany(
            "INSERT INTO before (day, totals) VALUES (?, ?)",
            [(day.isoformat(), json.dumps(totals)) for day, totals in days.items()],
        )
        self.keep_fact("watermarks", json.dumps(dict(watermarks)))

    def before(self) -> tuple[dict[date, UsageTotals], dict[str, int]]:
        """Give what the store had, by day, and the watermarks of its writers then."""
        days = {
            date.fromisoformat(day): UsageTotals(*json.loads(totals))
            for day, totals in self._execute("SELECT day, totals FROM before")
        }
        return days, json.loads(self.fact("watermarks") or "{}")

    # The rest.

    def profiles(self) -> Iterator[UserProfile]:
        """List the profiles under their new names; of several of one user the ledger takes the newest."""
        for (text,) in self._execute("SELECT profile FROM profiles ORDER BY user, source"):
            profile = decode_profile(text)
            name, is_made = new_name(profile.user, casefold=self._casefold)
            user = self._kept(name)
            if is_made and user == name:
                profile = profile._replace(metadata={**profile.metadata, "imported_user_id": profile.user})
            yield profile._replace(user=user)

    def limits(self) -> Iterator[tuple[str, LegacyLimits]]:
        """List the limits with the new names of their users, the newest of each first."""
        for (text,) in self._execute("SELECT limits FROM limits ORDER BY user, updated_at DESC, source"):
            record = json.loads(text)
            limits = LegacyLimits(**{**record, "thresholds": record["thresholds"] and tuple(record["thresholds"])})
            yield new_name(limits.user, casefold=self._casefold)[0], limits

    def fact(self, name: str) -> str | None:
        """Read what was kept under a name."""
        row = self._execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def keep_fact(self, name: str, value: str) -> None:
        """Keep something under a name."""
        self._execute("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", (name, value))

    def copy_to(self, path: Path) -> None:
        """Write the same draft to another file."""
        self._execute("VACUUM INTO ?", (str(path),))

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def delete(self) -> None:
        """Let go of the file and of what it holds: who used what is the store's to know."""
        self.close()
        for ending in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + ending).unlink(missing_ok=True)


def _day(when: str) -> date:
    return date.fromisoformat(when if len(when) == 10 else f"{when}-01")


def _words(sums: Sequence[int]) -> str:
    return f"{sums[0]} requests, {sums[2] + sums[3]} tokens, {format_usd(sums[4])} USD"


def _whole(halves: Sequence[int]) -> tuple[int, ...]:
    """Put the halves of sums together."""
    return tuple((high << 32) + low for high, low in zip(halves[::2], halves[1::2], strict=True))


def _totals(sums: Sequence[int]) -> UsageTotals:
    requests, failed, inputs, outputs, cost = sums
    return UsageTotals(requests=requests, failed_requests=failed, input_tokens=inputs, output_tokens=outputs, cost=cost)
