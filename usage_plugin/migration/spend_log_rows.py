"""The rows of an export of spend logs: CSV, JSON Lines or one JSON array, detected by the start of the file.

Each format is read as a stream. A file of another format is rejected with the reason, never read as empty.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO, TypeAlias

from usage_plugin.errors import MigrationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Row: TypeAlias = tuple[str, "dict[str, Any] | str"]

_HEAD = 1 << 16
_LONGEST_LINE = 1 << 26
_LONGEST_FIELD = 1 << 28
_MOST_LOOKED_AT = 20
_BLANKS = " \t\r\n"
_NO_VALUE = ("", "NULL", "null", "\\N", "None")
_FORMATS = "Expected CSV with a heading, JSON Lines (one object in each line), or one JSON array of objects."
_BINARY = (
    (b"\x1f\x8b", "compressed with gzip", "Decompress it first, with gunzip."),
    (b"BZh", "compressed with bzip2", "Decompress it first, with bunzip2."),
    (b"\xfd7zXZ", "compressed with xz", "Decompress it first, with unxz."),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "Decompress it first, with unzstd."),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "Unzip it, or save the sheet as CSV."),
    (b"PAR1", "a Parquet file", _FORMATS),
    (b"SQLite format 3", "a SQLite database", _FORMATS),
    (b"PGDMP", "a dump of pg_dump", "Export the table with \\copy \"LiteLLM_SpendLogs\" TO 'spend.csv' CSV HEADER."),
)
_WIDE = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class LogRows:
    """Rows with their positions; an error text in place of a row that cannot be read."""

    def __init__(self, raw: BinaryIO, path: Path) -> None:
        """Detect the format by the start of the file.

        Raises:
            MigrationError: The file is empty, or of another format.
        """
        self._raw = raw
        self._path = path
        head = raw.read(_HEAD)
        raw.seek(0)
        self._refuse_binary(head)
        start = head.removeprefix(codecs.BOM_UTF8).lstrip()
        if not start and len(head) < _HEAD:
            raise MigrationError(f"{path} is empty.", hint=_FORMATS)
        self._ahead: list[Row] = []
        self._file = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="backslashreplace", newline="")
        readers = {b"[": self._array, b"{": self._lines}
        self._rows = readers.get(start[:1], self._csv)()

    def peek(self) -> dict[str, Any]:
        """Return the first readable row.

        Raises:
            MigrationError: The file has no rows, or none of the first ones can be read.
        """
        reason = ""
        for row in self._rows:
            self._ahead.append(row)
            if isinstance(row[1], dict):
                return row[1]
            reason = reason or f"{row[0]}: {row[1]}"
            if len(self._ahead) >= _MOST_LOOKED_AT:
                break
        if not reason:
            raise MigrationError(f"{self._path} has no rows.", hint=_FORMATS)
        raise MigrationError(f"{self._path} has no readable rows; {reason}", hint=_FORMATS)

    def position(self) -> int:
        """Return the approximate number of bytes that were read."""
        return self._raw.tell()

    def __iter__(self) -> Iterator[Row]:
        """Iterate over all rows, including those that `peek` has read."""
        yield from self._ahead
        yield from self._rows

    def _refuse_binary(self, head: bytes) -> None:
        for magic, what, remedy in _BINARY:
            if head.startswith(magic):
                raise MigrationError(f"expected text; {self._path} is {what}.", hint=remedy)
        if head.startswith(_WIDE):
            raise MigrationError(
                f"expected UTF-8; {self._path} is UTF-16 or UTF-32.",
                hint="Convert it first, with iconv -f UTF-16 -t UTF-8 FILE.",
            )
        if b"\0" in head:
            raise MigrationError(f"expected UTF-8; {self._path} is binary or in another encoding.", hint=_FORMATS)

    def _csv(self) -> Iterator[Row]:
        csv.field_size_limit(_LONGEST_FIELD)
        # In pieces, so that a file without line ends is not read in one piece.
        reader = csv.DictReader(iter(lambda: self._file.readline(_LONGEST_LINE), ""))
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                yield f"line {reader.line_num}", f"{error}."
                continue
            if row is None:
                self._check_heading(reader)
                return
            where = f"line {reader.line_num}"
            if None in row or None in row.values():
                yield where, "expected as many columns as in the heading."
            else:
                yield where, {name: None if value in _NO_VALUE else value for name, value in row.items()}

    def _check_heading(self, reader: csv.DictReader[str]) -> None:
        """Check that a file without rows has the heading of a CSV.

        Raises:
            MigrationError: The file is text of another kind.
        """
        if not self._ahead and "request_id" not in (reader.fieldnames or ()):
            found = str(next(iter(reader.fieldnames or ()), ""))[:60]
            raise MigrationError(
                f"expected an export of LiteLLM_SpendLogs; {self._path} starts with {found!r}.", hint=_FORMATS
            )

    def _lines(self) -> Iterator[Row]:
        number = 0
        while line := self._file.readline(_LONGEST_LINE):
            number += 1
            if len(line) == _LONGEST_LINE and not line.endswith("\n"):
                while (rest := self._file.readline(_LONGEST_LINE)) and not rest.endswith("\n"):
                    pass
                yield f"line {number}", f"expected at most {_LONGEST_LINE >> 20} MiB."
                continue
            if not line.strip():
                continue
            try:
                row = json.loads(line, parse_float=Decimal, parse_constant=str)
            except (ValueError, RecursionError) as error:
                yield f"line {number}", f"Invalid JSON: {error}."
                continue
            yield f"line {number}", row if isinstance(row, dict) else "expected an object."

    def _array(self) -> Iterator[Row]:
        """Read item by item with Python's own decoder, which rejects deep nesting without a crash."""
        number, broken = 0, ""
        decoder = json.JSONDecoder(parse_float=Decimal, parse_constant=str)
        text = _Ahead(self._file)
        text.skip(1)
        while not broken and (mark := text.next_mark()) != "]":
            if number:
                if mark != ",":
                    broken = f"expected , or ]; found {mark!r}" if mark else "the final ] is missing"
                    break
                text.skip(1)
            try:
                element = text.decode(decoder)
            except (ValueError, RecursionError) as error:
                broken = str(error) if text.next_mark() else "the final ] is missing"
                break
            number += 1
            yield f"item {number}", element if isinstance(element, dict) else "expected an object."
        text.skip(1)
        if not broken and text.next_mark():
            broken = f"expected the end of the file; found {text.next_mark()!r}"
        if broken:
            yield f"after item {number}", f"Invalid JSON in the array: {broken}."


class _Ahead:
    """A text with a buffer that is read ahead."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._has_ended = False

    def next_mark(self) -> str:
        """Return the next character that is not blank, without consuming it; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _BLANKS:
                self._at += 1
            if self._at < len(self._text) or self._has_ended:
                return self._text[self._at : self._at + 1]
            self._read_more(_HEAD)

    def skip(self, count: int) -> None:
        """Consume characters."""
        self.next_mark()
        self._at += count

    def decode(self, decoder: json.JSONDecoder) -> Any:  # JSON's values are anything
        """Consume and return the next value.

        Raises:
            ValueError: The value is not JSON, or longer than a line may be.
        """
        self.next_mark()
        size = _HEAD
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
            except ValueError:
                # It may be incomplete. The buffer doubles, so that a long value is decoded few times.
                if self._has_ended or len(self._text) - self._at > _LONGEST_LINE:
                    raise
            else:
                if end < len(self._text) or self._has_ended:  # otherwise a number may go on
                    self._at = end
                    return value
            self._read_more(size)
            size *= 2

    def _read_more(self, size: int) -> None:
        more = self._file.read(size)
        self._has_ended = not more
        self._text, self._at = self._text[self._at :] + more, 0
