"""When the store fails, hangs, disappears or refuses an event, history is late, but nothing is lost or duplicated."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.waiting import calls_of, eventually
from tests.tracking.test_tracking import CENT, admit, admitted, ask, configure, success
from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.store import UsageFilter, UsageStore
from usage_plugin.domain.usage import UsageEvent
from usage_plugin.domain.windows import ALWAYS, to_datetime
from usage_plugin.encoding import decode_event, encode_event
from usage_plugin.errors import LedgerError, StorageError, StorageUnavailableError
from usage_plugin.ledgers.sqlite.ledger import SqliteLedger
from usage_plugin.runtime import Parts, Runtime
from usage_plugin.testing.builders import make_event, record_new
from usage_plugin.testing.clock import FakeClock
from usage_plugin.tracking.admission.active_limits import NOTE
from usage_plugin.tracking.admission.decisions import Refusal
from usage_plugin.tracking.ledger_retry import wait_while_busy
from usage_plugin.tracking.maintenance import flusher as flusher_module
from usage_plugin.tracking.maintenance import keeper as keeper_module
from usage_plugin.tracking.maintenance import supervisor
from usage_plugin.tracking.maintenance.flusher import Flusher
from usage_plugin.tracking.maintenance.keeper import Keeper
from usage_plugin.tracking.notifications.health import problems

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from usage_plugin.domain.ledger import Ledger

CLOCK = SystemClock()


class Fragile(UsageStore):
    """The real store with injected faults between it and the flusher."""

    def __init__(self, store: UsageStore, trouble: Trouble) -> None:
        self._store = store
        self._trouble = trouble
        self.aggregate = store.aggregate
        self.events = store.events
        self.watermark = store.watermark

    async def append(self, writer: str, events: Sequence[tuple[int, UsageEvent]]) -> None:
        await self._trouble.meet([event for _, event in events])
        await self._store.append(writer, events)
        if self._trouble.after:
            raise self._trouble.after

    async def health(self) -> None:
        await self._trouble.meet([])

    aggregate: Any = None
    events: Any = None
    watermark: Any = None
    append_sums: Any = None
    daily: Any = None
    prune: Any = None
    forget: Any = None
    size: Any = None


class Trouble:
    def __init__(self) -> None:
        self.error: Exception | None = None
        self.after: Exception | None = None
        self.poisonous: set[str] = set()
        self.poison: Exception = StorageError("This event does not fit.")
        self.hanging: threading.Event | None = None
        self.hung = 0
        self.opened: list[float] = []
        """The times of all openings."""

    async def meet(self, events: Sequence[UsageEvent]) -> None:
        if self.hanging:
            self.hung += 1
            self.hanging.wait(60)
        if self.error:
            raise self.error
        if any(event.user in self.poisonous for event in events):
            raise self.poison


class Setting:
    """A keeper whose store can be made to fail, with its ledger."""

    def __init__(self, folder: Path) -> None:
        self.parts = Parts(configure(folder))
        self.trouble = Trouble()
        self.workers = self.parts.workers()
        self.opened = opened = self.parts.open_ledger()
        self.ledger, self.operations = opened.ledger, opened.operations

    @asynccontextmanager
    async def open_store(self) -> AsyncIterator[UsageStore]:
        self.trouble.opened.append(time.monotonic())
        async with self.parts.open_store() as store:
            yield Fragile(store, self.trouble)

    def start(self) -> None:
        self.workers.join()
        self.keeper = Keeper(
            self.parts.open_ledger, self.open_store, self.workers, CLOCK, unstorable=self.parts.unstorable(CLOCK)
        )
        self.keeper.start()

    def settle(self, *events: UsageEvent) -> None:
        for event in events:
            wait_while_busy(lambda event=event: record_new(self.ledger, [], encode_event(event)))

    async def stored(self) -> list[UsageEvent]:
        async with self.parts.open_store() as store:
            return [event async for event in store.events(ALWAYS, UsageFilter())]

    def problems(self) -> dict[str, str]:
        return {problem.name: problem.text for problem in problems(self.operations)}

    def counted(self, kind: str) -> int:
        return sum(found.times for found in self.operations.anomalies() if found.kind == kind)

    def set_aside(self) -> list[dict[str, Any]]:
        path = self.parts.config.data_dir / "unstorable.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setting]:
    monkeypatch.setattr(keeper_module, "ROUND_EVERY", 0.1)
    monkeypatch.setattr(keeper_module, "SHORTEN_EVERY", 0.05)
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.1)
    made = Setting(tmp_path)
    made.start()
    yield made
    made.keeper.stop(5)
    made.workers.leave()
    made.ledger.close()


def events_of(count: int, **fields: Any) -> list[UsageEvent]:
    return [make_event(started_at=CLOCK.now() + number, **fields) for number in range(count)]


def reserve_for_a_dead_worker(ledger: Ledger, **fields: Any) -> UsageEvent:
    lost = make_event(status="recovered", started_at=CLOCK.now(), **fields)
    wait_while_busy(lambda: ledger.reserve(lost.event_id, "999999-dead", lost.started_at, [], encode_event(lost)))
    return lost


async def test_housekeeping_goes_on_without_the_store(setting: Setting) -> None:
    """While the store fails, dead workers' reservations are recovered and counted, and the problem is reported."""
    setting.trouble.error = StorageUnavailableError("unplugged")
    setting.settle(*events_of(3))
    await eventually(lambda: setting.problems() == {"store": "unplugged"})
    lost = reserve_for_a_dead_worker(setting.ledger)
    await eventually(lambda: not setting.ledger.open_reservations())
    await eventually(lambda: setting.counted("recovered") == 1)
    (recovered,) = [found for found in setting.operations.anomalies() if found.kind == "recovered"]
    assert recovered.amount == lost.cost
    assert setting.ledger.acknowledged() == 0
    setting.trouble.error = None
    await eventually(lambda: setting.ledger.acknowledged() == 4)
    await eventually(lambda: not setting.problems())
    assert len(await setting.stored()) == 4


async def test_a_hung_store_is_left_behind(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that hangs is abandoned for a new connection; if it returns later, nothing is duplicated."""
    setting.trouble.hanging = waking = threading.Event()
    setting.settle(*events_of(700))
    await eventually(lambda: setting.trouble.hung >= 1)
    monkeypatch.setattr(supervisor, "STEP_TIMEOUT", 0.5)
    await eventually(lambda: "no answer" in setting.problems().get("store", ""))
    lost = reserve_for_a_dead_worker(setting.ledger)
    await eventually(lambda: not setting.ledger.open_reservations())
    setting.trouble.hanging = None
    # A disk that is slow for a while must not count as hanging.
    monkeypatch.setattr(supervisor, "STEP_TIMEOUT", 5)
    await eventually(lambda: setting.ledger.acknowledged() == 701)
    assert len(setting.trouble.opened) >= 2
    waking.set()
    setting.settle(*events_of(5))
    await eventually(lambda: setting.ledger.acknowledged() == 706)
    stored = await setting.stored()
    assert len(stored) == len({event.event_id for event in stored}) == 706
    assert lost.event_id in {event.event_id for event in stored}


async def test_hung_threads_are_bounded(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that hangs for ever occupies a few threads, not one more for each attempt."""
    monkeypatch.setattr(supervisor, "MOST_LEFT_BEHIND", 2)
    setting.trouble.hanging = waking = threading.Event()
    setting.settle(*events_of(1))
    await eventually(lambda: setting.trouble.hung == 1)
    monkeypatch.setattr(supervisor, "STEP_TIMEOUT", 0.5)
    await eventually(lambda: setting.trouble.hung == 2)
    await eventually(lambda: caplog.text.count("background.interrupted") == 2)
    begun = calls_of(monkeypatch, supervisor.SupervisedWork, "_begin")
    watched = calls_of(monkeypatch, supervisor.SupervisedWork, "watch")
    pause_ends = time.monotonic() + supervisor.FIRST_PAUSE * 2
    await eventually(lambda: len([at for at in watched if at > pause_ends]) > 1)
    assert not begun
    assert setting.trouble.hung == 2
    monkeypatch.setattr(supervisor, "STEP_TIMEOUT", 5)
    setting.trouble.hanging = None
    waking.set()
    await eventually(lambda: setting.ledger.acknowledged() == 1)
    assert len(await setting.stored()) == 1


async def test_pauses_grow_and_end_at_once_when_it_works(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Retries of a failing store become less frequent, down to one every half minute."""
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE", 0.4)
    await eventually(lambda: setting.trouble.opened)
    setting.trouble.error = StorageUnavailableError("unplugged")
    setting.settle(*events_of(1))
    before = len(setting.trouble.opened)
    await eventually(lambda: len(setting.trouble.opened) >= before + 5)
    pauses = [float(pause) for pause in re.findall("background.interrupted.*again_in_seconds=([0-9.]+)", caplog.text)]
    assert pauses[:5] == [0.1, 0.2, 0.4, 0.4, 0.4]
    opened = setting.trouble.opened[before - 1 :]
    assert all(after - at >= pause for at, after, pause in zip(opened, opened[1:], pauses, strict=False))
    setting.trouble.error = None
    await eventually(lambda: setting.ledger.acknowledged() == 1)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StorageError("This event does not fit."), "This event does not fit."),
        (KeyError("a name"), "KeyError: 'a name'"),
    ],
    ids=["refused", "a bug"],
)
async def test_an_event_that_never_fits_is_set_aside(
    setting: Setting,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    reason: str,
) -> None:
    """An event that the store always refuses, or fails on, goes to a private file, is counted, and delays no other."""
    monkeypatch.setattr(flusher_module, "STUMBLES_FOR", 0.3)
    setting.trouble.poisonous, setting.trouble.poison = {"eve"}, error
    good, bad = events_of(900), events_of(2, user="eve", cost=70)
    setting.settle(*good[:300], bad[0], *good[300:], bad[1])
    await eventually(lambda: setting.ledger.acknowledged() == 902)
    assert sorted(event.event_id for event in await setting.stored()) == sorted(event.event_id for event in good)
    lines = setting.set_aside()
    assert [decode_event(json.dumps(line["event"])) for line in lines] == bad
    assert {line["reason"] for line in lines} == {reason}
    path = setting.parts.config.data_dir / "unstorable.jsonl"
    assert path.stat().st_mode & 0o077 == 0
    (found,) = [found for found in setting.operations.anomalies() if found.kind == "unstorable"]
    assert (found.times, found.amount) == (2, 140)
    assert "event.unstorable" in caplog.text


async def test_a_bug_that_passes_sets_nothing_aside(setting: Setting) -> None:
    """If single events fail only for a while, even during the search for them, all of them are stored."""
    setting.trouble.poisonous, setting.trouble.poison = {"eve"}, RuntimeError("a moment")
    setting.settle(*events_of(5), *events_of(3, user="eve"), *events_of(5))
    await eventually(lambda: "RuntimeError: a moment" in setting.problems().get("store", ""))
    assert setting.ledger.acknowledged() <= 5
    setting.trouble.poisonous = set()
    await eventually(lambda: setting.ledger.acknowledged() == 13)
    assert len(await setting.stored()) == 13
    assert setting.set_aside() == []
    assert setting.counted("unstorable") == 0


async def test_what_was_set_aside_is_not_set_aside_again(tmp_path: Path) -> None:
    """If the last event of the outbox was set aside, a restart finds it in the file and does not add it again."""
    setting = Setting(tmp_path)
    setting.trouble.poisonous = {"eve"}
    setting.settle(*events_of(2), *events_of(1, user="eve"))
    for _ in range(2):
        async with setting.open_store() as store:
            flusher = Flusher(setting.ledger, setting.operations, store, setting.parts.unstorable(CLOCK))
            await flusher.begin()
            await flusher.flush_all()
        assert setting.ledger.acknowledged() == 3
    assert len(setting.set_aside()) == 1
    assert setting.counted("unstorable") == 1
    setting.ledger.close()


async def test_an_entry_that_cannot_be_read_holds_up_nothing(setting: Setting) -> None:
    """Damaged text in the outbox is kept unchanged in the file next to the store, and delays no other event."""
    (first,) = events_of(1)
    setting.trouble.error = StorageUnavailableError("wait")
    setting.settle(first)
    settled = wait_while_busy(lambda: record_new(setting.ledger, [], '{"v": 1, "user": '))
    setting.settle(*events_of(1))
    setting.trouble.error = None
    await eventually(lambda: setting.ledger.acknowledged() == 3)
    (line,) = setting.set_aside()
    assert (line["seq"], line["event"]) == (settled.seq, '{"v": 1, "user": ')
    assert len(await setting.stored()) == 2


async def test_a_store_that_refuses_everything_is_not_believed(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken store does not move the outbox into the file: after a few refusals in a row it counts as unavailable."""
    monkeypatch.setattr(flusher_module, "MOST_IN_A_ROW", 3)
    setting.trouble.poisonous = {"ann"}
    setting.settle(*events_of(10))
    await eventually(lambda: "one event after the other" in setting.problems().get("store", ""))
    # At the end of an attempt: within one, events refused by a working store would be set aside.
    taken_back = calls_of(monkeypatch, flusher_module.Unstorable, "take_back")
    await eventually(lambda: len(taken_back) > 1)
    setting.trouble.poisonous = set()
    await eventually(lambda: setting.ledger.acknowledged() == 10)
    assert len(await setting.stored()) == 10
    assert setting.set_aside() == []
    assert setting.counted("unstorable") == 0


async def test_a_lost_answer_doubles_nothing(setting: Setting) -> None:
    """If the store has added a batch but reports an error, the retry adds nothing."""
    setting.trouble.after = StorageUnavailableError("connection lost")
    setting.settle(*events_of(10))
    await eventually(lambda: bool(setting.problems()))
    setting.trouble.after = None
    await eventually(lambda: setting.ledger.acknowledged() >= 10 and not setting.problems())
    assert len(await setting.stored()) == 10


async def test_moving_comes_to_an_end_under_more_than_the_store_can_take(tmp_path: Path) -> None:
    """If events arrive faster than the store accepts them, the keeper still does its other work."""
    setting = Setting(tmp_path)
    batches = 0

    class Slow(Fragile):
        async def append(self, writer: str, events: Sequence[tuple[int, UsageEvent]]) -> None:
            nonlocal batches
            batches += 1
            if batches < 10:
                setting.settle(*events_of(flusher_module.BATCH))
            await super().append(writer, events)

    setting.settle(*events_of(flusher_module.BATCH + 1))
    async with setting.parts.open_store() as store:
        slow = Slow(store, setting.trouble)
        await Flusher(setting.ledger, setting.operations, slow, setting.parts.unstorable(CLOCK)).flush_all()
    assert batches == 2
    assert setting.ledger.acknowledged() == 2 * flusher_module.BATCH
    setting.ledger.close()


@pytest.mark.parametrize("how", ["deleted", "replaced", "damaged"])
async def test_the_file_goes_away_under_us(setting: Setting, how: str) -> None:
    """If the store's file is deleted, replaced or damaged, no event is written to the old file."""
    path = setting.parts.config.data_dir / "usage.db"
    setting.settle(*events_of(5))
    await eventually(lambda: setting.ledger.acknowledged() == 5)
    away = path.with_name("away")
    away.mkdir()
    names = [path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))]
    for name in names:
        if name.exists():
            if how == "damaged":
                shutil.copy(name, away / name.name)
            else:
                name.rename(away / name.name)
    if how == "replaced":
        (setting.parts.config.data_dir / "else").mkdir()
        async with Parts(setting.parts.config.model_copy(update={"data_dir": path.parent / "else"})).open_store():
            pass
        (path.parent / "else" / "usage.db").rename(path)
    if how == "damaged":
        path.unlink()
        path.write_bytes(b"this is no database, and never was one" * 1000)
    setting.settle(*events_of(5))
    if how == "damaged":
        await eventually(lambda: "damaged" in setting.problems().get("store", ""))
        path.unlink()
        for name in names:
            if (away / name.name).exists():
                (away / name.name).rename(name)
    await eventually(lambda: setting.ledger.acknowledged() == 10 and not setting.problems())
    await eventually(lambda: len(asyncio_run(setting.stored)) == 10)


def asyncio_run(step: Any) -> Any:
    """Read the store in another thread's event loop."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(step())))
    thread.start()
    thread.join()
    return found[0]


async def test_a_store_that_lost_more_than_the_outbox_keeps_leaves_a_gap(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events that neither a deleted store nor the outbox has are counted as a gap."""
    setting.settle(*events_of(2_600))
    await eventually(lambda: setting.ledger.acknowledged() == 2_600)
    for path in setting.parts.config.data_dir.glob("usage.db*"):
        path.unlink()
    setting.settle(*events_of(1))
    await eventually(lambda: setting.ledger.acknowledged() == 2_601 and not setting.problems())
    stored = len(await setting.stored())
    assert stored >= 2_000
    assert stored + setting.counted("gap") == 2_601


async def test_the_words_of_the_dead_are_swept(setting: Setting) -> None:
    """The notes of a dead worker are deleted."""
    wait_while_busy(lambda: setting.operations.note(NOTE + "999999-dead", "digest"))
    wait_while_busy(lambda: setting.operations.note(NOTE + setting.workers.name, "digest"))
    await eventually(lambda: list(setting.operations.notes(NOTE)) == [NOTE + setting.workers.name])


async def test_a_keeper_outlives_a_broken_ledger(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the ledger interrupts the keeper only for a moment."""
    kind = type(setting.ledger)
    broken = threading.Event()
    maintain = kind.maintain

    def maintain_or_fail(self: Any, now: int) -> None:
        if not broken.is_set():
            broken.set()
            raise LedgerError("disk I/O error")
        maintain(self, now)

    monkeypatch.setattr(kind, "maintain", maintain_or_fail)
    await eventually(broken.is_set)
    setting.settle(*events_of(1))
    reserve_for_a_dead_worker(setting.ledger)
    await eventually(lambda: setting.ledger.acknowledged() == 2)


async def test_a_ledger_that_is_deleted_admits_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """New workers would use another file, so no reservation succeeds until it is back; open requests are kept."""
    monkeypatch.setattr(keeper_module, "ROUND_EVERY", 0.1)
    clock = FakeClock()
    limit = "\n    - {name: daily, per: user, window: day, max_cost: 1}"
    runtime = Runtime(configure(tmp_path, limit), clock=clock)
    data = runtime.config.data_dir
    runtime.recorder.record(await admitted(runtime, clock), success())
    await eventually(lambda: runtime.ledger.acknowledged() == 1)
    under_way = await admitted(runtime, clock)
    (data / "away").mkdir()
    for path in data.glob("ledger.db*"):
        path.rename(data / "away" / path.name)
    await eventually(lambda: runtime.faults.ledger_gone)
    refused = await admit(runtime, ask(clock))
    assert isinstance(refused, Refusal)
    assert refused.reason == "unavailable"
    assert caplog.text.count("ledger.gone") == 1
    for path in (data / "away").iterdir():
        path.rename(data / path.name)
    await eventually(lambda: not runtime.faults.ledger_gone)
    runtime.recorder.record(await admitted(runtime, clock), success())
    for path in data.glob("ledger.db*"):
        path.unlink()
    runtime.recorder.record(under_way, success())
    await runtime.close(60)

    runtime = Runtime(runtime.config, clock=clock)
    (daily,) = runtime.limits.limits
    await eventually(lambda: [a.balance.spent for a in runtime.ledger.accounts(daily.key, 0)] == [3 * CENT])
    await runtime.close()


async def test_a_clock_that_jumps_ahead_makes_no_limit_forget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the clock is ten days ahead for a while, today's spend still counts after its correction."""
    monkeypatch.setattr(keeper_module, "ROUND_EVERY", 0.05)
    maintained: list[int] = []
    maintain = SqliteLedger.maintain
    monkeypatch.setattr(SqliteLedger, "maintain", lambda ledger, now: (maintain(ledger, now), maintained.append(now)))
    clock = FakeClock()
    now = clock.now()
    runtime = Runtime(configure(tmp_path, "\n    - {name: daily, per: user, window: day, max_cost: 1}"), clock=clock)
    runtime.recorder.record(await admitted(runtime, clock, cost=60 * CENT), success(60 * CENT))
    clock.set(to_datetime(now) + timedelta(days=10))
    maintained.clear()
    await eventually(lambda: len(maintained) > 3)
    clock.set(to_datetime(now))
    assert isinstance(await admit(runtime, ask(clock, cost=41 * CENT)), Refusal)
    clock.advance(timedelta(days=10))
    (daily,) = runtime.limits.limits
    await eventually(lambda: not runtime.ledger.accounts(daily.key, 0))
    await runtime.close(60)


FULL_DISK = """
import asyncio, resource, sys, time
from pathlib import Path
from usage_plugin.config import load_config
from usage_plugin.domain.clock import SystemClock
from usage_plugin.runtime import Parts
from usage_plugin.tracking.maintenance import keeper as keeper_module, supervisor
from usage_plugin.tracking.maintenance.keeper import Keeper
keeper_module.ROUND_EVERY = 0.1
supervisor.FIRST_PAUSE = 0.2
supervisor.LONGEST_PAUSE = 0.5
parts = Parts(load_config(Path(sys.argv[1])))
workers = parts.workers()
workers.join()
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
clock = SystemClock()
keeper = Keeper(parts.open_ledger, parts.open_store, workers, clock, unstorable=parts.unstorable(clock))
keeper.start()
sys.stdin.readline()
resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
sys.stdin.readline()
keeper.stop(10)
"""


async def test_a_full_disk_delays_history(tmp_path: Path) -> None:
    """If the keeper cannot write to the store or the ledger, events wait, and drain when there is space."""
    setting = Setting(tmp_path)
    setting.settle(*events_of(3_000))
    log = tmp_path / "log"
    with log.open("w") as stderr:
        # The maximum file size, for the keeper's process only: other disks have space.
        process = subprocess.Popen(
            [sys.executable, "-c", FULL_DISK, str(setting.parts.config.path), "400000"],
            stdin=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip
    assert process.stdin
    try:
        await eventually(lambda: "background.interrupted" in log.read_text() or "keeper.interrupted" in log.read_text())
        setting.settle(*events_of(10))
        interrupted = log.read_text().count(".interrupted")
        await eventually(lambda: log.read_text().count(".interrupted") > interrupted + 1)
        assert setting.ledger.acknowledged() < 3_000
        print(file=process.stdin, flush=True)
        await eventually(lambda: setting.ledger.waiting().events == 0)
        print(file=process.stdin, flush=True)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
    stored = await setting.stored()
    assert len(stored) == len({event.event_id for event in stored}) == 3_010
    assert setting.set_aside() == []
    setting.ledger.close()


def test_a_power_cut_cannot_leave_the_store_ahead(tmp_path: Path) -> None:
    """The ledger syncs its events to disk before the store receives them."""
    setting = Setting(tmp_path)
    setting.settle(*events_of(3))
    done: list[str] = []
    sync, appended = setting.opened.file.sync, Fragile.append

    def synced() -> None:
        done.append("ledger")
        sync()

    async def append(self: Any, *what: Any) -> None:
        done.append("store")
        await appended(self, *what)

    async def move() -> None:
        async with setting.open_store() as store:
            flusher = Flusher(setting.ledger, setting.operations, store, setting.parts.unstorable(CLOCK))
            await flusher.begin()
            await flusher.flush_all()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setting.opened.file, "sync", synced)
        patch.setattr(Fragile, "append", append)
        asyncio.run(move())
    assert done == ["ledger", "store"]
    setting.ledger.close()


async def test_a_worker_stops_in_time_though_the_store_hangs(setting: Setting) -> None:
    """An orderly end does not wait for ever."""
    setting.trouble.hanging = waking = threading.Event()
    setting.settle(*events_of(1))
    await eventually(lambda: setting.trouble.hung >= 1)
    started = time.monotonic()
    await asyncio.to_thread(setting.keeper.stop, 1)
    assert time.monotonic() - started < 30
    waking.set()
