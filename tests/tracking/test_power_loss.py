"""A power cut or a kill at any instant: ledger and store open, agree, and lose at most the last second.

A process works on a ledger and a store at full speed. It is stopped repeatedly, and its files are copied as they are at
that instant: the state after a kill. For a power cut, the copy of the ledger's log is cut at a random point after its
last sync. Only synced data is certain to survive.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tracking.test_tracking import configure
from usage_plugin.config import Config, load_config
from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.windows import ALWAYS
from usage_plugin.encoding import decode_event
from usage_plugin.runtime import Parts
from usage_plugin.tracking.maintenance.flusher import Flusher

LIMITS = "\n    - {name: all, per: global, window: lifetime, max_cost: unlimited}"
TIMES = 15
FRAME_HEADER, HEADER = 24, 32

WORK = """
import itertools, os, random, sys, threading
from pathlib import Path
from usage_plugin.config import load_config
from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.ledger import AccountKey, Charge, Hold
from usage_plugin.encoding import encode_event
from usage_plugin.ledgers.sqlite import wal
from usage_plugin.runtime import Parts
from usage_plugin.testing.builders import make_event
from usage_plugin.tracking.maintenance import keeper as keeper_module
from usage_plugin.tracking.ledger_retry import wait_while_busy
from usage_plugin.tracking.maintenance.keeper import Keeper

keeper_module.ROUND_EVERY = keeper_module.SHORTEN_EVERY = wal.COPY_EVERY = 0.02
# Begun anew often, so that some instant hits that.
wal.LONGEST_LOG = 2**19
config = load_config(Path(sys.argv[1]))
log = config.data_dir / "ledger.db-wal"
synced = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)

# What is on the disk for sure: the log's salt, by which its generations are told apart, and how many frames it had
# before the last time it was brought there.
bring = wal._bring_to_disk
def noting(handle):
    is_log = os.readlink(f"/proc/self/fd/{handle}") == str(log)
    salt = os.pread(handle, 8, 16) if is_log else b""
    frames = log.with_name("ledger.db-shm").read_bytes()[16:20]
    bring(handle)
    if len(salt) == 8:
        os.pwrite(synced, salt + frames, 0)
wal._bring_to_disk = noting

parts = Parts(config)
workers = parts.workers()
workers.join()
clock = SystemClock()
keeper = Keeper(parts.open_ledger, parts.open_store, workers, clock, unstorable=parts.unstorable(clock))
keeper.start()
ledger = parts.open_ledger().ledger
(limit,) = config.limit_set().limits
account = AccountKey(limit.key, 0, "")
end = limit.window_at(0).end
chance = random.Random(7)
print("works", flush=True)
for number in itertools.count():
    cost = chance.randint(1, 1000)
    event = make_event(cost=cost, started_at=clock.now())
    lost = encode_event(event._replace(status="recovered", cost=2 * cost))
    wait_while_busy(lambda: ledger.reserve(event.event_id, workers.name, event.started_at, [Hold(account, end, 2 * cost, None, 2 * cost)], lost), 60)
    if chance.random() < 0.98:
        wait_while_busy(lambda: ledger.settle(event.event_id, [Charge(account, end, cost)], encode_event(event)), 60)
"""


def frames_of(folder: Path) -> tuple[int, int]:
    """Return the log's number of frames, and the number that SQLite is copying or has copied, and so has synced."""
    index = (folder / "ledger.db-shm").read_bytes()
    (frames,) = struct.unpack_from("=I", index, 16)
    (attempted,) = struct.unpack_from("=I", index, 96 + 4 + 5 * 4 + 8)
    return frames, attempted


def cut_power(folder: Path, synced: bytes, chance: random.Random) -> int:
    """Cut the copied log after its synced part, usually in the middle of a frame; return the number of lost bytes."""
    path = folder / "ledger.db-wal"
    log = path.read_bytes()
    frames, copied = frames_of(folder)
    frame = struct.unpack_from(">I", log, 8)[0] + FRAME_HEADER
    sure = struct.unpack("=I", synced[8:12])[0] if log[16:24] == synced[:8] else 0
    # While the log restarts, its index is outdated, and the file has only a part of the new frames.
    least, most = HEADER + max(sure, copied) * frame, min(HEADER + frames * frame, len(log))
    kept = chance.randint(min(least, most), most)
    torn = bytes(chance.randrange(256) for _ in range(min(len(log) - kept, chance.choice([0, 100, 3000]))))
    path.write_bytes(log[:kept] + torn)
    return most - kept


async def check(config: Config) -> tuple[int, int]:
    """Open the copies as the next keeper does, and check that each event is present once; return the counts of events.

    The first is of all events, the second of those that were in the store before.
    """
    parts = Parts(config)
    opened = parts.open_ledger()
    ledger = opened.ledger
    assert ledger.verify() == []
    known = {entry.seq: entry.event for entry in ledger.outbox(0, 1_000_000)}
    async with parts.open_store() as store:
        stored = await store.watermark(ledger.writer)
        newest = max([ledger.acknowledged(), *known])
        assert stored <= newest, "the store is ahead of its ledger"
        before = [event async for event in store.events(ALWAYS, UsageFilter())]
        assert len(before) == stored
        for reservation in ledger.open_reservations():
            assert ledger.recover(reservation.event_id)
        flusher = Flusher(ledger, opened.operations, store, parts.unstorable(SystemClock()))
        await flusher.begin()
        await flusher.flush_all()
        after = [event async for event in store.events(ALWAYS, UsageFilter())]
    assert len({event.event_id for event in after}) == len(after)
    ids = {event.event_id for event in after}
    assert all(decode_event(event).event_id in ids for event in known.values())
    assert {event.event_id for event in before} <= ids
    (limit,) = config.limit_set().limits
    # There is one account, or none if all writes are lost.
    balances = [account.balance for account in ledger.accounts(limit.key, 0)]
    assert len(balances) <= 1
    assert sum(balance.reserved for balance in balances) == 0
    spent = sum(balance.spent for balance in balances)
    assert spent == sum(event.cost or 0 for event in after), "accounts and history disagree"
    ledger.close()
    return len(after), stored


@pytest.mark.parametrize("how", ["kill", "power"])
def test_the_books_agree_whenever_it_ends(tmp_path: Path, how: str) -> None:
    """At any instant, each event of the ledger is present once, and the account equals the sum of its events."""
    config = configure(tmp_path, LIMITS)
    synced = tmp_path / "synced"
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, str(config.path), str(synced)], stdout=subprocess.PIPE, text=True
    )
    chance = random.Random(how)
    lost = 0
    seen = []
    try:
        assert process.stdout
        assert process.stdout.readline() == "works\n"
        deadline = time.monotonic() + 200
        number = 0
        # At least this many times, and until there was enough work, even on a slow machine.
        while number < TIMES or (not has_done_enough(seen, lost, how) and time.monotonic() < deadline):
            number += 1
            time.sleep(chance.random() * 0.06)
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            copy = tmp_path / f"copy-{number}"
            shutil.copytree(config.data_dir, copy / "data")
            if how == "power":
                lost += cut_power(copy / "data", synced.read_bytes().ljust(12, b"\0"), chance)
                (copy / "data" / "ledger.db-shm").unlink()
            shutil.copy(config.path, copy / "config.yaml")
            seen.append(asyncio.run(check(load_config(copy / "config.yaml"))))
            shutil.rmtree(copy)
            process.send_signal(signal.SIGCONT)
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
    assert has_done_enough(seen, lost, how)
    assert (lost > 100_000) is (how == "power")


def has_done_enough(seen: list[tuple[int, int]], lost: int, how: str) -> bool:
    """Whether there were enough events, flushes and, for power cuts, lost bytes."""
    events, stored = seen[-1][0], {stored for _, stored in seen}
    return events > 500 and len(stored) > 3 and (how == "kill" or lost > 100_000)
