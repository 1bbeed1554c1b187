"""The partitioned store: the cost of a flush to many users' days, and of a report.

Flushing: batches of 500 events, each of another user, so that each is a user-day. In the first round every file is new;
in the later ones all of them are extended. The counts are syncs of files before the acknowledgement, and files whose
content changed against written files. Once the journal has grown, the times include one sync of the file system.
`Measured` is the median over the rounds, `Best block` the result on an otherwise idle machine.

Reading: 1,000 users with 90 days each. Growth is the additional memory of the process at its peak while reading all.
"""

from __future__ import annotations

import os
import random
import resource
import statistics
import sys
import time
from contextlib import contextmanager
from datetime import date, timedelta
from typing import TYPE_CHECKING
from unittest import mock
from zoneinfo import ZoneInfo

from benchmarks.disk import temporary_folder
from benchmarks.figures import Figure, show, wants_json
from usage_plugin.backends.partitioned.archive import Archive
from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.usage import UsageTotals
from usage_plugin.domain.windows import Window, start_of_day
from usage_plugin.testing.builders import make_event, make_sum

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UTC = ZoneInfo("UTC")
BATCH = 500
USERS = 1_000
DAYS = 90
ROUNDS = 8
FIRST = date(2026, 8, 31)


def user_name(number: int) -> str:
    return f"user-{number:06}@example.com"


class Syncs:
    """Counts the syncs of files."""

    def __init__(self) -> None:
        """Start at zero."""
        self.count = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count while the context lasts."""
        fsync = os.fsync

        def counting(handle: int) -> None:
            self.count += 1
            fsync(handle)

        with mock.patch.object(os, "fsync", counting):
            yield


def stamps(root: Path) -> dict[str, tuple[int, int]]:
    """Return the identity and the time of writing of each user's file."""
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in root.glob("??/*/**/*") if path.is_file()
    }


def contents(root: Path) -> dict[str, int]:
    return {str(path): hash(path.read_bytes()) for path in root.glob("??/*/**/*") if path.is_file()}


def measure_flushing(folder: Path) -> list[Figure]:
    archive = Archive(folder, UTC)
    rng = random.Random(1)
    start = start_of_day(FIRST, UTC)
    seq = 0
    rounds: list[float] = []
    fsyncs: list[int] = []
    touched = changed = 0
    for number in range(ROUNDS + 1):
        users = rng.sample(range(USERS), USERS)
        before, held = stamps(archive.root), contents(archive.root)
        spent = 0.0
        for first in range(0, USERS, BATCH):
            events = [
                (seq + at, make_event(user=user_name(user), started_at=start + number, team=f"team-{user % 20}"))
                for at, user in enumerate(users[first : first + BATCH], 1)
            ]
            seq += BATCH
            syncs = Syncs()
            with syncs.counted():
                began = time.perf_counter()
                archive.append("w", events)
                spent += time.perf_counter() - began
            fsyncs.append(syncs.count)
        if number:
            rounds.append(USERS / spent)
            touched += sum(before.get(name) != stamp for name, stamp in stamps(archive.root).items())
            changed += sum(held.get(name) != content for name, content in contents(archive.root).items())
        else:
            new = USERS / spent
    archive.close()
    return [
        Figure(what="user-days flushed a second, new ones", measured=new, unit=""),
        Figure(
            what=f"user-days flushed a second, among {USERS:,}",
            measured=statistics.median(rounds),
            best=max(rounds),
            unit="",
            at_least=1_000,
        ),
        Figure(what="syncs for each batch, median", measured=statistics.median(fsyncs), unit="", at_most=1),
        Figure(what="files written for each that changed", measured=touched / changed, unit="", at_most=1),
    ]


def fill(archive: Archive) -> None:
    """Give a thousand users ninety days each, with two models."""
    seq = 0
    for day in range(DAYS):
        sums = [
            make_sum(day=FIRST + timedelta(days=day), user=user_name(user), model=model)
            for user in range(USERS)
            for model in ("gpt-4o", "o3")
        ]
        archive.append("old", list(enumerate(sums, seq + 1)))
        seq += len(sums)


def measure_reading(folder: Path) -> list[Figure]:
    archive = Archive(folder, UTC)
    fill(archive)
    last = FIRST + timedelta(days=DAYS - 1)
    month = (date(2026, 10, 1), date(2026, 10, 31))
    everything = UsageFilter()

    def timed(times: int, *what: object) -> float:
        spent = []
        for _ in range(times):
            began = time.perf_counter()
            groups = archive.aggregate(*what).groups  # type: ignore[arg-type]
            spent.append((time.perf_counter() - began) * 1000)
            if not groups:
                raise RuntimeError("The report is empty.")
        return statistics.median(spent)

    one = UsageFilter(user=user_name(7))
    figures = [
        Figure(what="a month by user", measured=timed(5, ("user",), *month, everything), unit="ms"),
        Figure(what=f"{DAYS} days by day", measured=timed(1, ("day",), FIRST, last, everything), unit="ms"),
        Figure(what="one user's day", measured=timed(200, (), month[0], month[0], one), unit="ms"),
        Figure(what="one user's month", measured=timed(200, (), *month, one), unit="ms"),
    ]
    before = _peak()
    total = UsageTotals()
    for daily in archive.daily(FIRST, last, everything):
        total = total.plus(daily.totals)
    figures.append(
        Figure(what=f"memory for all {USERS * DAYS:,} user-days", measured=_peak() - before, unit="MB", at_most=16)
    )
    if sum(1 for _ in archive.events(Window(0, 1), everything, None, newest_first=False)) or not total.requests:
        raise RuntimeError("There should be sums, and no events.")
    archive.close()
    return figures


def _peak() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    """Measure both, and print."""
    as_json = wants_json("partitioned", __doc__)
    with temporary_folder() as folder:
        figures = [*measure_flushing(folder / "flushing"), *measure_reading(folder / "reading")]
    show("partitioned", figures, as_json=as_json)


if __name__ == "__main__":
    main()
