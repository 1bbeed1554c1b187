"""Read the previous tracker's files as streams: memory depends neither on their size nor on any user's data.

JSON is parsed event by event, and only the needed fields of a record are kept. The records before the damaged part of a
file are read.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from contextlib import closing, suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote

import ijson

from usage_plugin.atomic_files import open_regular
from usage_plugin.domain.profiles import UserProfile
from usage_plugin.errors import BrokenSourceError, RejectedError
from usage_plugin.migration.json_stream import BROKEN, BUFFER, Watched, one_line, readable
from usage_plugin.migration.legacy_records import (
    NAMED,
    WANTED,
    ImportFinding,
    LegacyLimits,
    LegacySum,
    parse_limits,
    parse_profile,
    parse_sum,
)
from usage_plugin.migration.legacy_sources import files_below

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from zoneinfo import ZoneInfo

    from usage_plugin.migration.legacy_sources import LegacySource

Item: TypeAlias = LegacySum | UserProfile | LegacyLimits | ImportFinding
_Event: TypeAlias = tuple[str, Any]

_LONGEST_LINE = 1 << 20
_LARGEST_FILE = 1 << 20
_PAGE = 1_000
_DEEPEST = 100


class LegacyReader:
    """A reader of all kinds of sources."""

    def __init__(self, zone: ZoneInfo, scratch: Path, advance: Callable[[int], None]) -> None:
        """Prepare to read.

        Args:
            zone: The time zone of times without one.
            scratch: A folder for copies.
            advance: Receives the progress in bytes, or in files for folders.
        """
        self._zone = zone
        self._scratch = scratch
        self._advance = advance

    def read(self, source: LegacySource) -> Iterator[Item]:
        """Yield the items of a source, in its own order.

        Raises:
            BrokenSourceError: The rest cannot be read; raised after the last item.
        """
        readers: dict[str, Callable[[LegacySource], Iterator[Item]]] = {
            "days": self._sums,
            "months": self._sums,
            "tree": self._tree,
            "database": self._database,
            "profiles": self._profiles,
            "profile_lines": self._profile_lines,
            "limits": self._limits,
            "limit_files": self._limit_files,
        }
        try:
            yield from readers[source.kind](source)
        except BROKEN as error:
            raise BrokenSourceError(one_line(error)) from error
        except sqlite3.Error as error:
            raise BrokenSourceError(f"SQLite: {error}") from error

    def _open(self, path: Path) -> Watched:
        return Watched(open_regular(path, follow_links=False), self._advance)

    def _sums(self, source: LegacySource) -> Iterator[Item]:
        """Read `{user: {date: record}}`."""
        with closing(self._open(source.path)) as file:
            events = _events(file)
            if next(events)[0] != "start_map":
                raise BrokenSourceError("expected an object.")
            for user in _keys(events):
                event, _ = next(events)
                if event != "start_map":
                    _skip(event, events)
                    yield ImportFinding("rejected", source.name, user, "", "expected an object of days.")
                    continue
                for when in _keys(events):
                    event, _ = next(events)
                    if event != "start_map":
                        _skip(event, events)
                        yield ImportFinding("rejected", source.name, user, when, "expected a record.")
                        continue
                    yield _sum(source.name, user, when, _record(events), is_month=source.kind == "months")
            # Nothing may follow.
            for _ in events:
                pass

    def _tree(self, source: LegacySource) -> Iterator[Item]:
        """Read `…/daily_2026-01-31.json` and `…/monthly_2026-01.json` at any depth below the folder."""
        for path, is_plain in files_below(source.path):
            found = re.fullmatch(r"(daily|monthly)_(.{1,20})\.json", path.name)
            if found is None:
                continue
            where = str(path.relative_to(source.path.parent))
            if not is_plain:
                yield ImportFinding("rejected", where, "", found[2], "expected a regular file; links are not followed.")
                continue
            is_month = found[1] == "monthly"
            try:
                with closing(open_regular(path, follow_links=False)) as file:
                    events = _events(Watched(file, lambda _: None))
                    event, _ = next(events)
                    fields = _record(events) if event == "start_map" else None
                    for _ in events:
                        pass
            except BROKEN as error:
                yield ImportFinding("broken", where, "", found[2], one_line(error))
                continue
            finally:
                self._advance(1)
            if fields is None:
                yield ImportFinding("rejected", where, "", found[2], "expected a record.")
                continue
            parts = path.relative_to(source.path).parts[1 : -1 if is_month else -2]
            user = fields.get("user_id", "/".join(parts))
            when = fields.get("month" if is_month else "date", found[2])
            if when != found[2]:
                yield ImportFinding(
                    "disagreement",
                    where,
                    str(user),
                    str(when),
                    f"Its name has {found[2]}; the date inside counts.",
                )
            yield _sum(where, user, when, fields, is_month=is_month)

    def _database(self, source: LegacySource) -> Iterator[Item]:
        """Read the two tables, from a copy if the database has a WAL or a journal."""
        with closing(self._connect(source.path)) as connection:
            connection.text_factory = lambda data: data.decode("utf-8", "backslashreplace")
            for table, column in (("daily_aggregations", "date"), ("monthly_aggregations", "month")):
                names = [
                    row[1]
                    for row in connection.execute(f"PRAGMA table_info({table})")
                    if connection.execute(
                        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)
                    ).fetchone()
                ]
                if not {"user_id", column} <= set(names):
                    yield ImportFinding(
                        "rejected", source.name, "", "", f"expected a table {table} with {column} and user_id."
                    )
                    continue
                wanted = [name for name in names if name in WANTED | set(NAMED)]
                # Texts are truncated: a hostile one could have any length.
                columns = ", ".join(f"substr({name}, 1, {_LARGEST_FILE})" if name in NAMED else name for name in wanted)
                rows = connection.execute(f"SELECT {columns} FROM {table}")
                while page := rows.fetchmany(_PAGE):
                    for row in page:
                        fields = dict(zip(wanted, row, strict=True))
                        fields.update((name, _names_in(fields.get(name))) for name in NAMED)
                        user, when = fields["user_id"], fields[column]
                        yield _sum(source.name, user, when, fields, is_month=column == "month")
        self._advance(source.path.lstat().st_size)

    def _connect(self, path: Path) -> sqlite3.Connection:
        unfinished = [
            extra
            for suffix in ("-wal", "-journal")
            if (extra := path.with_name(path.name + suffix)).is_file() and extra.lstat().st_size
        ]
        if not unfinished:
            # Immutable: SQLite writes no file, so a read-only directory works too.
            return sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)
        for one in (path, *unfinished):
            with closing(open_regular(one, follow_links=False)) as file, (self._scratch / one.name).open("wb") as copy:
                shutil.copyfileobj(file, copy, BUFFER)
        return sqlite3.connect(self._scratch / path.name)

    def _profiles(self, source: LegacySource) -> Iterator[Item]:
        with closing(self._open(source.path)) as file:
            for record in _items_of(file, "users", use_float=True):
                yield self._profile(record, source.name)

    def _profile_lines(self, source: LegacySource) -> Iterator[Item]:
        with closing(self._open(source.path)) as file:
            for number, line in enumerate(_lines(file), 1):
                if line is None:
                    yield ImportFinding(
                        "rejected", source.name, "", "", f"Line {number}: expected at most {_LONGEST_LINE} bytes."
                    )
                    continue
                try:
                    record = json.loads(line, parse_constant=str) if line.strip() else None
                except (ValueError, RecursionError) as error:
                    yield ImportFinding("rejected", source.name, "", "", f"Line {number}: {error}.")
                    continue
                if record is not None:
                    yield self._profile(record, f"{source.name} line {number}")

    def _profile(self, record: object, where: str) -> Item:
        try:
            return parse_profile(record, self._zone)
        except RejectedError as error:
            return ImportFinding("rejected", where, "", "", f"A profile: {error}.")

    def _limits(self, source: LegacySource) -> Iterator[Item]:
        with closing(self._open(source.path)) as file:
            for record in _items_of(file, "limits"):
                yield from self._limit(record, source.name)

    def _limit_files(self, source: LegacySource) -> Iterator[Item]:
        for path, is_plain in files_below(source.path):
            if not re.fullmatch(r"user_.*\.json", path.name):
                continue
            where = str(path.relative_to(source.path.parent))
            self._advance(1)
            if not is_plain or path.lstat().st_size > _LARGEST_FILE:
                yield ImportFinding(
                    "rejected", where, "", "", f"expected a regular file of at most {_LARGEST_FILE} bytes."
                )
                continue
            try:
                with closing(open_regular(path, follow_links=False)) as file:
                    record = json.loads(file.read(_LARGEST_FILE), parse_float=Decimal, parse_constant=str)
            except (*BROKEN, ValueError) as error:
                yield ImportFinding("broken", where, "", "", one_line(error))
                continue
            yield from self._limit(record, where)

    def _limit(self, record: object, where: str) -> Iterator[Item]:
        try:
            limits, wrong = parse_limits(record, self._zone)
        except RejectedError as error:
            yield ImportFinding("rejected", where, "", "", f"Limits: {error}.")
            return
        yield limits
        for text in wrong:
            yield ImportFinding("rejected", where, limits.user, "", f"A limit: {text}.")


def _sum(where: str, user: object, when: object, fields: dict[str, Any], *, is_month: bool) -> Item:
    try:
        return parse_sum(user, when, fields, is_month=is_month)
    except RejectedError as error:
        return ImportFinding("rejected", where, str(user), str(when), f"{error}.")


def _keys(events: Iterator[_Event]) -> Iterator[str]:
    """Yield the keys of an object that has begun; the caller reads the value after each."""
    for event, value in events:
        if event == "end_map":
            return
        yield value


def _record(events: Iterator[_Event]) -> dict[str, Any]:
    """Return the known fields of an object that has begun."""
    fields: dict[str, Any] = {}
    for key in _keys(events):
        event, value = next(events)
        if event == "start_map" and key in NAMED:
            names: list[str] = []
            for name in _keys(events):
                _skip(next(events)[0], events)
                if len(names) < 2:
                    names.append(name)
            fields[key] = names
        elif event in ("start_map", "start_array"):
            _skip(event, events)
        elif key in WANTED:
            fields[key] = value
    return fields


def _skip(event: str, events: Iterator[_Event]) -> None:
    """Skip a value that has begun."""
    depth = int(event in ("start_map", "start_array"))
    while depth:
        event, _ = next(events)
        if event in ("start_map", "start_array"):
            depth += 1
        elif event in ("end_map", "end_array"):
            depth -= 1


def _names_in(text: object) -> list[str]:
    with suppress(ValueError, RecursionError):
        found = json.loads(text) if isinstance(text, str) else None
        if isinstance(found, dict):
            return list(found)[:2]
    return []


def _lines(file: Watched) -> Iterator[bytes | None]:
    """Yield lines; None for one above the maximum length."""
    rest = b""
    too_long = False
    while data := file.read(BUFFER):
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            yield None if too_long or len(line) > _LONGEST_LINE else line
            too_long = False
        if len(rest) > _LONGEST_LINE:
            too_long, rest = True, b""
    if rest or too_long:
        yield None if too_long else rest


def _items_of(file: Watched, key: str, *, use_float: bool = False) -> Iterator[Any]:
    """Yield the items of the list under a key of an object.

    ijson can do this itself, by recursion in C: 100,000 brackets crash the process.

    Raises:
        BrokenSourceError: The list is missing, or an item nests too deep.
    """
    events = ijson.basic_parse(readable(file), buf_size=BUFFER, use_float=use_float)
    has_list = False
    if next(events)[0] == "start_map":
        for name in _keys(events):
            event, _ = next(events)
            if name == key and event == "start_array":
                has_list = True
                yield from _elements(events)
            else:
                _skip(event, events)
    if not has_list:
        # An empty list has nothing to import; a file of another shape must not look like one.
        raise BrokenSourceError(f"expected an object with a list named {key}.")
    for _ in events:
        pass  # Nothing may follow.


def _elements(events: Iterator[_Event]) -> Iterator[Any]:
    """Yield the values of a list that has begun."""
    for event, value in events:
        if event == "end_array":
            return
        builder = ijson.ObjectBuilder()
        builder.event(event, value)
        depth = int(event in ("start_map", "start_array"))
        while depth:
            inner, value_of_inner = next(events)
            builder.event(inner, value_of_inner)
            depth += (inner in ("start_map", "start_array")) - (inner in ("end_map", "end_array"))
            if depth > _DEEPEST:
                raise BrokenSourceError(f"expected at most {_DEEPEST} levels.")
        yield builder.value


def _events(file: Watched) -> Iterator[_Event]:
    events: Iterator[_Event] = ijson.basic_parse(readable(file), buf_size=BUFFER)
    return events
