"""A move takes everything that the ports show, exactly, and may be interrupted anywhere."""

from __future__ import annotations

import uuid
from random import Random
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from redis.exceptions import ConnectionError as DriverConnectionError
from redis.exceptions import TimeoutError as DriverTimeoutError

from tests.moving.places import Place, fill, move_and_die, place
from tests.support import soak
from tests.support.postgres import new_schema
from usage_plugin.errors import LedgerMovedError, UsagePluginError
from usage_plugin.testing.child_processes import reports, start
from usage_plugin.testing.faults import Faults, growing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOST = psycopg.OperationalError("the connection is lost")
POINTS = {
    "usage_plugin.postgres.server.execute": LOST,
    "usage_plugin.postgres.async_server.execute": LOST,
    "usage_plugin.postgres.async_server.copy": LOST,
    "usage_plugin.ledgers.valkey.server.send": DriverConnectionError("the connection was cut"),
    "usage_plugin.ledgers.valkey.server.receive": DriverTimeoutError("no answer"),
}
WAYS = [("sqlite", "postgres"), ("postgres", "sqlite"), ("sqlite", "valkey"), ("postgres", "valkey")]
STORAGE = {"valkey": "sqlite"}
"""The storage of a ledger whose engine keeps no history."""


@pytest.fixture
def make_place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Place]:
    """Return a new place, whose ledger and history are of one engine if both exist."""

    def make(name: str, engine: str, storage: str | None = None) -> Place:
        options: dict[str, Any] = {}
        if "postgres" in (engine, storage):
            options = {"url": request.getfixturevalue("postgres").url, "schema": new_schema()}
        elif engine == "valkey":
            options = {"url": request.getfixturevalue("valkey").network_url, "prefix": uuid.uuid4().hex}
        return place(tmp_path / name, engine, storage or STORAGE.get(engine, engine), options)

    return make


@pytest.mark.parametrize(("one", "other"), WAYS)
def test_everything_is_moved_there_and_back(make_place: Callable[..., Place], one: str, other: str) -> None:
    """After a move the new place shows what the old one did; so after more spend and the way back."""
    rng = Random(f"{one} {other}")
    old, new = make_place("old", one), make_place("new", other)
    fill(old, rng, 60)
    before = old.read()
    outcome = old.move_to(new)
    assert outcome.is_moved
    after = new.read()
    assert old.read() == after, "the outbox was flushed, and nothing else was changed"
    for kind in before.keys() - {"waiting", "events", "sums", "watermarks"}:
        assert after[kind] == before[kind], kind
    assert after["waiting"] == 0
    assert {event.event_id for event in before["events"]} < {event.event_id for event in after["events"]}
    with pytest.raises(LedgerMovedError, match="was moved to"):
        old.parts.open_ledger()
    fill(new, rng, 30)
    later = new.read()
    assert later["waiting"]
    assert new.move_to(old).is_moved
    found = old.read()
    assert found == new.read()
    assert {kind: found[kind] for kind in ("accounts", "reservations", "audit", "alerts")} == {
        kind: later[kind] for kind in ("accounts", "reservations", "audit", "alerts")
    }
    old.parts.open_ledger().close()
    with pytest.raises(LedgerMovedError, match="was moved to"):
        new.parts.open_ledger()


@pytest.mark.parametrize("storage", ["hybrid", "partitioned", "postgres"])
def test_the_history_is_moved_between_all_kinds_of_storage(make_place: Callable[..., Place], storage: str) -> None:
    """The two storages need not be of one kind."""
    old, new = make_place("old", "sqlite"), make_place("new", "sqlite", storage)
    fill(old, Random(storage), 60)
    assert old.move_to(new).is_moved
    assert new.read() == old.read()
    assert new.move_to(old).is_moved


def test_a_ledger_moves_beside_its_history(make_place: Callable[..., Place], tmp_path: Path) -> None:
    """If both YAMLs name one storage in one folder, only the ledger is moved."""
    old, new = make_place("old", "sqlite"), make_place("new", "postgres", "sqlite")
    new.path.write_text(new.path.read_text().replace("./data", str(tmp_path / "old" / "data")))
    fill(old, Random(1))
    assert old.move_to(new).is_moved
    assert new.read() == old.read()


@pytest.mark.parametrize(("one", "other"), WAYS)
def test_a_failing_call_is_made_good_by_a_repetition(make_place: Callable[..., Place], one: str, other: str) -> None:
    """If low-level calls fail anywhere, the errors are ours, and the next runs complete the move exactly."""
    rng = Random(f"{one} {other}")
    faults = Faults(POINTS)
    failed = 0
    with faults.installed():
        old, new = make_place("old", one), make_place("new", other)
        fill(old, rng, 12)
        for number in growing():
            with faults.at(number * 11):
                try:
                    done = old.move_to(new)
                except (UsagePluginError, OSError):
                    failed += 1
                    continue
            assert done.is_moved
            break
    assert failed > 3
    assert new.read() == old.read()


@pytest.mark.parametrize(("one", "other"), [("sqlite", "sqlite"), ("postgres", "valkey")])
def test_a_killed_move_is_resumed(make_place: Callable[..., Place], one: str, other: str) -> None:
    """A move that is killed again and again, a little later each time, gives the result of one run."""
    old, new = make_place("old", one), make_place("new", other)
    fill(old, Random(7), 12)
    kills = 0
    number = 40
    while "survived" not in reports(*start(move_and_die, old.path, new.path, tuple(POINTS), number)):
        kills += 1
        number = number * 3 // 2
    assert kills > 3
    assert new.read() == old.read()
    new.parts.open_ledger().close()


@pytest.mark.soak
@pytest.mark.parametrize(("one", "other"), [WAYS[0], *(pytest.param(*way, marks=soak.REPETITIONS) for way in WAYS[1:])])
def test_a_move_that_dies_at_any_call_is_resumed(make_place: Callable[..., Place], one: str, other: str) -> None:
    """From every point at which the first run can die, the second one completes the move exactly."""
    for number in growing():
        old, new = make_place(f"old {number}", one), make_place(f"new {number}", other)
        fill(old, Random(number), 8)
        told = reports(*start(move_and_die, old.path, new.path, tuple(POINTS), number))
        assert old.move_to(new).is_moved
        assert new.read() == old.read()
        if "survived" in told:
            break
