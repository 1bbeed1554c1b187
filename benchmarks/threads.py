"""Beside busy threads: how long `reserve` and `settle` take while other threads of the process run Python.

LiteLLM writes its logs in threads. Each statement of the ledger lets go of the interpreter, and whoever takes it keeps
it for as long as `sys.setswitchinterval` says, while the ledger is locked and no request moves. Blocks with Python's
own interval alternate with blocks with the one that the plugin sets in a worker (`lifecycle.share_the_interpreter`).
Here a few threads work in bursts of a few milliseconds, with pauses as long: more than LiteLLM's do.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from typing import TYPE_CHECKING

from benchmarks.disk import temporary_folder
from benchmarks.figures import Figure, percentile, show, wants_json
from benchmarks.ledger import Traffic, fill
from usage_plugin.ledgers.sqlite.ledger import SqliteLedger
from usage_plugin.proxy.lifecycle import SWITCH_SECONDS

if TYPE_CHECKING:
    from pathlib import Path

ACCOUNTS = 1_000
THREADS = 3
BURST_SECONDS = 0.004
ALTERNATIONS = 10
BLOCK = 200


def busy(stopping: threading.Event) -> None:
    """Write something down in bursts, as a logging thread does."""
    entry = {str(number): [number] * 20 for number in range(50)}
    while not stopping.wait(BURST_SECONDS):
        until = time.perf_counter() + BURST_SECONDS
        while time.perf_counter() < until:
            json.dumps(entry)


def one_block(ledger: SqliteLedger, traffic: Traffic) -> list[float]:
    """Take requests through the ledger; give how long each verb took, in microseconds."""
    times = []
    for _ in range(BLOCK):
        one = traffic.request()
        began = time.perf_counter_ns()
        ledger.reserve(one.event_id, "worker", one.started_at, one.holds, one.reserved)
        held = time.perf_counter_ns()
        ledger.settle(one.event_id, one.charges, one.settled)
        times += [(held - began) / 1000, (time.perf_counter_ns() - held) / 1000]
    return times


def measure(path: Path) -> list[Figure]:
    """Alternate between the intervals, and compare."""
    fill(path, ACCOUNTS)
    ledger, traffic = SqliteLedger(path), Traffic(ACCOUNTS, seed=1)
    stopping = threading.Event()
    threads = [threading.Thread(target=busy, args=(stopping,)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    usual = sys.getswitchinterval()
    blocks: list[tuple[list[float], list[float]]] = []
    try:
        for _ in range(ALTERNATIONS):
            sys.setswitchinterval(usual)
            before = one_block(ledger, traffic)
            sys.setswitchinterval(SWITCH_SECONDS)
            blocks.append((before, one_block(ledger, traffic)))
    finally:
        sys.setswitchinterval(usual)
        stopping.set()
        for thread in threads:
            thread.join()
        ledger.close()
    return [figure for share in (0.5, 0.9, 0.99) for figure in compare(blocks, share)]


def compare(blocks: list[tuple[list[float], list[float]]], share: float) -> list[Figure]:
    """Give the medians over the blocks, and the median of the ratios of neighbouring ones."""
    of_pairs = [(percentile(usual, share), percentile(ours, share)) for usual, ours in blocks]
    name = f"p{share * 100:g}"
    usual, ours = zip(*of_pairs, strict=True)
    ratio = statistics.median(before / after for before, after in of_pairs)
    return [
        Figure(what=f"reserve and settle, Python's interval, {name}", measured=statistics.median(usual), unit="µs"),
        Figure(what=f"reserve and settle, the plugin's interval, {name}", measured=statistics.median(ours), unit="µs"),
        Figure(what=f"so many times shorter, {name}", measured=ratio, unit="x"),
    ]


def main() -> None:
    """Measure, and print."""
    as_json = wants_json("threads", __doc__)
    with temporary_folder() as folder:
        figures = measure(folder / "ledger.db")
    show("threads", figures, as_json=as_json)


if __name__ == "__main__":
    main()
