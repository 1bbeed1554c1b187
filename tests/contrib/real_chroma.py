"""Tests that require the real Chroma; `test_chroma.py` runs them where it is installed."""

from __future__ import annotations

import json
import multiprocessing
import random
import socket
import stat
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import chromadb
import pytest

from tests.contrib.conftest import LAST_WEEK, THIS_WEEK, Place, requests
from tests.support.soak import share_of
from usage_plugin.contrib.chroma import vector_store as module
from usage_plugin.contrib.chroma.vector_store import MOST_AT_ONCE, Vector, open_vectors
from usage_plugin.domain.behaviour import distance, vector_of, week_of_use
from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.domain.windows import local_date
from usage_plugin.errors import VectorsError
from usage_plugin.testing.builders import make_event

if TYPE_CHECKING:
    from pathlib import Path

NAME = "zoë.o'hara@corp"


def drawn(user: str, draw: random.Random, week: Any = LAST_WEEK) -> Vector:
    """Return the vector of a user of random models at random hours."""
    totals = UsageTotals(
        draw.randint(1, 5_000), 0, draw.randint(0, 10**8), draw.randint(0, 10**7), cost=draw.randint(0, 10**12)
    )
    shared = [(week + timedelta(days=draw.randrange(7)), f"model-{draw.randrange(9)}", None, totals) for _ in range(3)]
    use = week_of_use(shared, [draw.randrange(100) for _ in range(24)])
    return Vector(user, week, use.totals, vector_of(use))


def fill(folder: Path, count: int, *, weeks: int = 1) -> dict[str, Vector]:
    """Store the vectors of a number of users in each week, and return those of the last week."""
    draw = random.Random(7)
    for back in reversed(range(weeks)):
        made = [drawn(f"user-{n}", draw, LAST_WEEK - timedelta(weeks=back)) for n in range(count)]
        for at in range(0, count, MOST_AT_ONCE):
            with open_vectors(folder) as vectors:
                vectors.put(made[0].week, made[at : at + MOST_AT_ONCE])
    return {one.user: one for one in made}


def files_with(folder: Path, text: str) -> list[str]:
    forms = (text.encode(), json.dumps(text)[1:-1].encode())
    return [path.name for path in folder.rglob("*") if path.is_file() and any(f in path.read_bytes() for f in forms)]


def test_it_finds_what_a_comparison_with_everybody_finds(tmp_path: Path) -> None:
    """Chroma's index is approximate; as it is set up here, the nearest ten are the nearest ten."""
    everybody = fill(tmp_path, share_of(5_000, 1_000), weeks=2)
    with open_vectors(tmp_path) as vectors:
        for user in list(everybody)[::100]:
            one = everybody[user]
            found = [distance(one.numbers, other.numbers) for other in vectors.near(one, 10)]
            others = [distance(one.numbers, other.numbers) for other in everybody.values() if other.user != user]
            assert found == pytest.approx(sorted(others)[:10], abs=1e-5)
        pages = list(vectors.in_week(LAST_WEEK))
    assert max(map(len, pages)) == MOST_AT_ONCE
    assert {one.user for page in pages for one in page} == everybody.keys()


def test_forgetting_leaves_no_trace(tmp_path: Path) -> None:
    """No file has the name any more, and all other users' vectors remain."""
    before = fill(tmp_path, 700)
    draw = random.Random(1)
    with open_vectors(tmp_path) as vectors:
        vectors.put(LAST_WEEK, [drawn(NAME, draw)])
        vectors.put(THIS_WEEK, [drawn(NAME, draw, THIS_WEEK)])
        vectors.note_seen(LAST_WEEK, UsageTotals(1))
    assert files_with(tmp_path, NAME)
    with open_vectors(tmp_path) as vectors:
        assert vectors.forget(NAME) == 2
        assert vectors.newest_week(NAME) is None
        assert (vectors.seen(LAST_WEEK), vectors.seen(THIS_WEEK)) == (UsageTotals(1), None)
    assert files_with(tmp_path, NAME) == []
    with open_vectors(tmp_path) as vectors:
        assert vectors.forget(NAME) == 0
        kept = {one.user: one for page in vectors.in_week(LAST_WEEK) for one in page}
    assert kept.keys() == before.keys()
    assert kept["user-42"].numbers == pytest.approx(before["user-42"].numbers, abs=1e-6)


def test_its_files_are_for_the_owner_only(tmp_path: Path) -> None:
    """Also Chroma's own files, and the rewritten ones."""
    folder = tmp_path / "chroma"
    fill(folder, 10)
    with open_vectors(folder) as vectors:
        vectors.forget("user-1")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()} == {0o600}


def _put(folder: Path, worker: int) -> None:
    draw = random.Random(worker)
    for number in range(20):
        with open_vectors(folder) as vectors:
            vectors.put(LAST_WEEK, [drawn(f"{worker}-{number}-{n}", draw) for n in range(60)])


def test_processes_take_turns(tmp_path: Path) -> None:
    """Three concurrent writers lose nothing, beyond the size that Chroma keeps in memory, too."""
    spawning = multiprocessing.get_context("spawn")
    processes = [spawning.Process(target=_put, args=(tmp_path, worker)) for worker in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    with open_vectors(tmp_path) as vectors:
        found = [one for page in vectors.in_week(LAST_WEEK) for one in page]
        assert len({one.user for one in found}) == len(found) == 3 * 20 * 60
        assert len(vectors.near(found[0], 50)) == 50


def test_files_that_are_damaged_are_named(tmp_path: Path) -> None:
    """The error has a remedy."""
    fill(tmp_path, 10)
    (database,) = tmp_path.rglob("chroma.sqlite3")
    database.write_bytes(b"this is no database" * 1_000)
    with pytest.raises(VectorsError, match=r"Move .* away"), open_vectors(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A file in its place is an error of ours, too."""
    (tmp_path / "file").touch()
    with pytest.raises(VectorsError, match="Cannot use the folder"), open_vectors(tmp_path / "file"):
        pass


def test_other_features_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors that cannot be compared with the current ones are deleted, with the recorded totals of the history."""
    fill(tmp_path, 10)
    with open_vectors(tmp_path) as vectors:
        vectors.note_seen(LAST_WEEK, UsageTotals(1))
    monkeypatch.setattr(module, "VERSION", 99)
    with open_vectors(tmp_path) as vectors:
        assert list(vectors.in_week(LAST_WEEK)) == []
        assert vectors.seen(LAST_WEEK) is None
        vectors.put(LAST_WEEK, [drawn("ann", random.Random(1))._replace(numbers=[1.0, 2.0])])


def test_nothing_is_sent_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Telemetry is off, and no model is fetched."""

    def refuse(*where: object) -> None:
        raise AssertionError(where)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    fill(tmp_path, 10)
    with open_vectors(tmp_path) as vectors:
        assert vectors._client.get_settings().anonymized_telemetry is False
        assert len(vectors.near(drawn("ann", random.Random(1)), 3)) == 3


def test_what_the_proxy_starts_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that the plugin receives becomes a vector, by the real command in a process of its own."""
    monkeypatch.undo()
    place = Place(tmp_path, "UTC", "plain")
    event = make_event(started_at=SystemClock().now())
    place.record_now([event, *requests("bo", LAST_WEEK, 1)])
    plugin = place.plugin
    plugin.usage_event_recorded()
    assert plugin._process
    assert plugin._process.wait(120) == 0, plugin._last_words()
    today = local_date(event.started_at, place.config.timezone)
    assert place.vectors(today - timedelta(days=today.weekday())).keys() >= {"ann"}


def test_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Print the time of each step; no time is asserted."""
    users = share_of(2_500, 500)
    began = time.perf_counter()
    everybody = fill(tmp_path, users, weeks=4)
    filled = time.perf_counter()
    with open_vectors(tmp_path) as vectors:
        opened = time.perf_counter()
        vectors.near(everybody["user-1"], 10)
        asked = time.perf_counter()
        vectors.forget("user-2")
        forgotten = time.perf_counter()
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    with capsys.disabled():
        print(
            f"\nChroma {chromadb.__version__}, {4 * users:,} vectors: written in {filled - began:.1f} s, {size / 1e6:.0f} MB;"
            f" opened in {1000 * (opened - filled):.0f} ms, asked in {1000 * (asked - opened):.0f} ms,"
            f" one user forgotten in {forgotten - asked:.1f} s"
        )
    assert size < 100e6
