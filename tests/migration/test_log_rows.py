"""A file is imported, or rejected with the reason; it is never read as empty."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.migration.conftest import House
from tests.migration.test_spend_logs import ROW, as_csv, events, imported, jsonl, rows
from usage_plugin.errors import MigrationError

EXECUTABLE = Path(sys.executable).with_name("usage-plugin")


def array(path: Path, found: list[Any], **how: Any) -> Path:
    path.write_text(json.dumps(found, **how))
    return path


@pytest.mark.parametrize("how", [{}, {"indent": 2}, {"separators": (",", ":")}])
def test_an_array_gives_the_same_events_as_lines(house: House, tmp_path: Path, how: dict[str, Any]) -> None:
    """An array, however it is written, is the same rows as JSON Lines and CSV: imported once."""
    assert imported(house, array(tmp_path / "a", rows(1_200), **how)).events == 1_200
    assert imported(house, jsonl(tmp_path / "b", rows(1_200))).known == 1_200
    assert imported(house, as_csv(tmp_path / "c", rows(1_200))).known == 1_200
    assert len(events(house)) == 1_200


@pytest.mark.parametrize("bom", [codecs.BOM_UTF8, b""])
@pytest.mark.parametrize("write", [array, jsonl, as_csv])
def test_a_mark_of_utf8_and_blanks_before_the_rows_do_no_harm(
    house: House, tmp_path: Path, bom: bytes, write: Any
) -> None:
    """The byte order mark of Windows programs is skipped."""
    path = write(tmp_path / "a", rows(3))
    path.write_bytes(bom + (b"" if write is as_csv else b" \r\n\t") + path.read_bytes())
    done = imported(house, path)
    assert (done.events, done.rejected) == (3, 0)


def test_numbers_that_no_json_has_cost_one_row_of_an_array(house: House, tmp_path: Path) -> None:
    """NaN in one row rejects that row alone."""
    done = imported(house, array(tmp_path / "a", [*rows(2), {**ROW, "spend": float("nan")}, *rows(2, first=5)]))
    assert (done.events, done.rejected) == (4, 1)


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_an_array_that_is_broken_off_is_told(house: House, tmp_path: Path, cut: int) -> None:
    """Rows before the break are imported, and the break is a rejected row, so that the command ends with 1."""
    path = array(tmp_path / "a", rows(5))
    path.write_bytes(path.read_bytes()[:-cut])
    done = imported(house, path)
    assert (done.events, done.rejected) == (5 if cut == 1 else 4, 1)
    assert "Invalid JSON in the array" in done.findings[0]["text"]


@pytest.mark.parametrize("element", ["5", "null", '"text"', "[1]", "{}", '{"request_id": 5}'])
def test_elements_that_are_no_rows_are_told(house: House, tmp_path: Path, element: str) -> None:
    """Values that are not rows are rejected."""
    text = json.dumps(rows(2))[:-1]
    path = tmp_path / "a"
    path.write_text(f"{text}, {element}]")
    done = imported(house, path)
    assert (done.events, done.rejected) == (2, 1)


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("spend.json", "[]")
    return out.getvalue()


TEXT = json.dumps(rows(2))
REFUSED = {
    "empty": (b"", "is empty"),
    "blank": (b" \n\n\t ", "is empty"),
    "mark alone": (codecs.BOM_UTF8, "is empty"),
    "empty array": (b"[]", "has no rows"),
    "heading alone": (b"request_id,startTime,spend\n", "has no rows"),
    "array of numbers": (b"[1, 2, 3]", "no readable rows; item 1"),
    "array of arrays": (b"[[]]", "no readable rows; item 1"),
    "bracket": (b"[", "no readable rows; after item 0"),
    "brace": (b"{", "no readable rows; line 1"),
    "an answer with rows inside": (json.dumps({"data": rows(2), "total": 2}).encode(), "jq -c"),
    "the same over several lines": (json.dumps({"data": rows(2)}, indent=1).encode(), "no readable rows; line 1"),
    "another object": (b'{"a": 1}\n', "the rows of .* have no request_id"),
    "another array": (b'[{"a": 1}]', "the rows of .* have no request_id"),
    "another csv": (b"a,b\n1,2\n", "the rows of .* have no request_id"),
    "another heading": (b"a,b\n", "starts with 'a'"),
    "semicolons": (b"request_id;startTime;spend\na;b;c\n", "the rows of .* have no request_id"),
    "tabs": (b"request_id\tstartTime\tspend\na\tb\tc\n", "the rows of .* have no request_id"),
    "no heading": (b"chatcmpl-1,2026-10-01 10:00:00,1\nchatcmpl-2,2026-10-01 10:00:00,1\n", "the rows of .* have no request_id"),
    "a number": (b"5", "starts with '5'"),
    "null": (b"null", "starts with 'null'"),
    "html": (b"<!DOCTYPE html>\n<p>Sign in</p>\n", "the rows of .* have no request_id"),
    "gzip": (gzip.compress(TEXT.encode()), "compressed with gzip"),
    "zip": (zipped(), "a zip archive"),
    "parquet": (b"PAR1\0\0", "a Parquet file"),
    "sqlite": (b"SQLite format 3\0", "a SQLite database"),
    "dump": (b"PGDMP\x01\x0e", "a dump of pg_dump"),
    "utf-16": (TEXT.encode("utf-16"), "UTF-16"),
    "utf-16 without a mark": (TEXT.encode("utf-16-le"), "expected UTF-8"),
    "utf-32": (TEXT.encode("utf-32"), "UTF-16 or UTF-32"),
    "zeros": (bytes(1000), "binary"),
    "noise": (bytes(range(1, 256)) * 300, "SpendLogs|Cannot read|expected UTF-8|no readable rows|no rows"),
    "deep": (b"[" * 100_000, "no readable rows"),
    "deep lines": (b'{"a":' * 100_000 + b"\n", "no readable rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_another_file_is_refused_with_the_reason(house: House, tmp_path: Path, name: str) -> None:
    """A file of another kind, or without rows, is an error that names it and the reason; nothing is stored."""
    content, reason = REFUSED[name]
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(MigrationError, match=reason) as error:
        imported(house, path)
    assert str(path) in str(error.value)
    assert error.value.hint
    assert events(house) == []


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "zeros", "folder", "missing"])
def test_what_is_no_file_is_refused_at_once(house: House, tmp_path: Path, kind: str) -> None:
    """A pipe without a writer, a device without an end and a folder end the command within seconds, with a reason."""
    path = tmp_path / "other"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    elif kind in ("device", "zeros"):
        path = Path("/dev/null" if kind == "device" else "/dev/zero")
    done = subprocess.run(
        [EXECUTABLE, "--config", house.path, "import", "litellm-spend-logs", path],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_list_under_another_name_is_no_empty_list(house: House, tmp_path: Path) -> None:
    """The previous tracker's files whose list is missing are broken, not empty."""
    for name, content in (("user_profiles.json", "[]"), ("spending_limits.json", '{"limit": []}')):
        (tmp_path / name).write_text(content)
    (tmp_path / "daily_usage.json").write_text("{}")
    done = subprocess.run(
        [EXECUTABLE, "--config", house.path, "migrate", tmp_path, "--format", "json"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done
    assert done.stdout.count("expected an object with a list named") == 2
