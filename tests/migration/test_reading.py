"""Old files are read as streams: memory is bounded for any content, and no number stops the parser."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import ijson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_plugin.migration.json_stream import Watched, _Numbers, readable

MOST_GROWTH = 64 * 2**20

values = st.recursive(
    st.none() | st.integers(-5, 5) | st.sampled_from([math.nan, math.inf, -math.inf, 1.5]) | st.text('aN\\"I-', max_size=5)
    | st.sampled_from(["NaN", '": NaN, ', "-Infinity", "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('aN"\\', max_size=3) | st.just("NaN"), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


def named(value: Any) -> Any:
    """The events of a parser for a value, with texts for Python's `NaN` and `Infinity`."""
    if isinstance(value, dict):
        return {key: named(item) for key, item in value.items()}
    if isinstance(value, list):
        return [named(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    return value


@given(values, st.integers(1, 9))
def test_what_python_writes_for_no_number_is_read_as_a_text(value: Any, size: int) -> None:
    """For any division of the file into blocks, and any content of strings."""
    file = Watched(io.BytesIO(json.dumps(value).encode()), lambda _: None)
    (found,) = ijson.items(_Numbers(file), "", buf_size=size, use_float=True)
    assert found == named(value)


def test_the_words_are_looked_for_over_the_borders_of_pieces() -> None:
    """A file of several megabytes in which they stand at the worst place is not taken for one without."""
    for offset in range(2**20 - 12, 2**20 + 2):
        file = Watched(io.BytesIO(b" " * offset + b"-Infinity"), lambda _: None)
        assert isinstance(readable(file), _Numbers)
    assert not isinstance(readable(Watched(io.BytesIO(b" " * 3 * 2**20), lambda _: None)), _Numbers)


MEASURE = """
import asyncio, resource, sys
from pathlib import Path
from tests.migration.conftest import House
house = House(Path(sys.argv[1]))
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
small, large = Path(sys.argv[2]), Path(sys.argv[3])
house.migrate(small)
before = peak()
outcome = house.migrate(large)
print(peak() - before, outcome.days, outcome.totals.requests, outcome.rejected)
"""


def write_single_user(path: Path, size: int) -> int:
    """Write a file that one user fills: days with many sessions each, over and over; give the number of records."""
    sessions = json.dumps([f"session-{number:032d}" for number in range(100)])
    written = records = 0
    with path.open("w") as file:
        file.write('{"ann": {')
        while written < size:
            day = f"{1990 + records // 336 % 200}-{records // 28 % 12 + 1:02d}-{records % 28 + 1:02d}"
            written += file.write(
                f'{", " if records else ""}"{day}": {{"total_requests": 1, "total_cost": 0.1, "models_used": {{"gpt": 1}},'
                f' "unique_sessions": {sessions}}}'
            )
            records += 1
        file.write("}}")
    return records


def grown(tmp_path: Path, size: int) -> tuple[int, int]:
    """Return the memory growth of a process that migrates a file, beyond that of a small file."""
    config = tmp_path / "config.yaml"
    config.write_text("usage_plugin: {data_dir: data}\n")
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    large.mkdir()
    (small / "daily_usage.json").write_text('{"eva": {"2026-01-01": {"total_requests": 1}}}')
    records = write_single_user(large / "daily_usage.json", size)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, config, small, large],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    growth, days, _, rejected = map(int, done.stdout.split())
    assert days == min(records, 200 * 336)
    assert rejected == 0
    return growth, records


def test_a_user_who_fills_the_file_does_not_fill_the_memory(tmp_path: Path) -> None:
    """30 MB of one user grow the process by far less."""
    growth, _ = grown(tmp_path, 30 * 10**6)
    assert growth < MOST_GROWTH / 2


@pytest.mark.soak
def test_a_gigabyte_takes_less_than_64_megabytes(tmp_path: Path) -> None:
    """Also when one user fills all of it."""
    growth, records = grown(tmp_path, 10**9)
    print(f"{records:,} records, {growth / 2**20:.1f} MiB")
    assert growth < MOST_GROWTH
