"""The shared ledger: a limit that all requests of a fleet count on, the wait of one request, and a million accounts.

Requests reserve and settle on three accounts: user, team, and one for the whole fleet. Four processes with 16 requests
in flight each make them on a PostgreSQL server with synchronous commits, and on a Valkey server with an append-only
file: first as the proxy does, in batches, then with one call for each verb, in turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from typing import Any
from zoneinfo import ZoneInfo

import psycopg

from benchmarks.disk import temporary_folder
from benchmarks.figures import Figure, arguments, show
from benchmarks.fleet_load import DAY
from tests.support.postgres import PostgresServer, binaries
from tests.support.valkey import valkey_server
from usage_plugin.domain.ledger import AccountKey, Charge
from usage_plugin.plugins.interface import BackendContext
from usage_plugin.plugins.manager import Plugins
from usage_plugin.runtime import BUILTIN_PLUGINS

PROCESSES, IN_FLIGHT = 4, 16
TURNS, SECONDS = 3, 5.0
QUICK_TURNS, QUICK_SECONDS = 1, 2.0
FEW_ACCOUNTS, MANY_ACCOUNTS = 1_000, 1_000_000
_ROOT = Path(__file__).resolve().parents[1]
_TICKS = os.sysconf("SC_CLK_TCK")


class Engine:
    """A server of one kind, with a new ledger for each measurement."""

    def __init__(self, backend: str, url: str, process: int, **options: Any) -> None:
        self.backend, self._url, self._process, self._options = backend, url, process, options

    def task(self, **more: Any) -> dict[str, Any]:
        """Return a task for `benchmarks.fleet_load` on a new ledger."""
        name = {"postgres": "schema", "valkey": "prefix"}[self.backend]
        options = {"url": self._url, name: f"bench_{uuid.uuid4().hex[:12]}", **self._options}
        return {"backend": self.backend, "options": options, **more}

    def cpu(self) -> float:
        """Return the seconds of processor time that the server and its processes have used, including ended ones."""
        children = Path(f"/proc/{self._process}/task/{self._process}/children").read_text(encoding="ascii").split()
        used = 0
        for process in (self._process, *map(int, children)):
            try:
                fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
            except OSError:
                continue
            used += int(fields[11]) + int(fields[12])
            if process == self._process:
                used += int(fields[13]) + int(fields[14])
        return used / _TICKS


def _together(engine: Engine, task: dict[str, Any], processes: int) -> dict[str, float]:
    """Run the load in several processes, and return the sums over them."""
    before = engine.cpu()
    began = time.perf_counter()
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fleet_load", json.dumps(task)], cwd=_ROOT, stdout=subprocess.PIPE
        )
        for _ in range(processes)
    ]
    found = [json.loads(process.communicate()[0]) for process in running]
    requests = sum(one["requests"] for one in found)
    return {
        "rate": sum(one["requests"] / one["seconds"] for one in found),
        "server_us": (engine.cpu() - before) / requests * 1e6,
        "client_us": sum(one["cpu"] for one in found) / requests * 1e6,
        "loop_us": sum(one["loop_cpu"] for one in found) / requests * 1e6,
        "p50_ms": median(one["p50"] for one in found) * 1e3,
        "took": time.perf_counter() - began,
    }


def _alone(task: dict[str, Any]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fleet_load", json.dumps(task)], cwd=_ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    found = json.loads(done.stdout)
    return {"p50_ms": found["p50"] * 1e3, "loop_us": found["loop_cpu"] / found["requests"] * 1e6, **found}


def _fsync_ms(folder: Path) -> float:
    """Return the median time of an fdatasync of 4 KB on the disk of the servers, in milliseconds."""
    times = []
    with (folder / "fsync").open("wb", buffering=0) as file:
        for _ in range(50):
            file.write(b"x" * 4096)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return median(times) * 1e3


def _ratios(turns: list[tuple[dict[str, float], dict[str, float]]], name: str) -> float:
    return median(batches[name] / calls[name] for batches, calls in turns)


def hot_row(engine: Engine, at_least: float, turns: int, seconds: float) -> list[Figure]:
    """Compare batches with a call for each verb, in turns."""
    pairs = []
    for _ in range(turns):
        both = [
            _together(engine, engine.task(how=how, in_flight=IN_FLIGHT, seconds=seconds), PROCESSES)
            for how in ("batches", "calls")
        ]
        pairs.append((both[0], both[1]))
    batches = {name: median(pair[0][name] for pair in pairs) for name in pairs[0][0]}
    calls = {name: median(pair[1][name] for pair in pairs) for name in pairs[0][1]}
    name = engine.backend
    return [
        Figure(what=f"{name}: requests a second, in batches", measured=batches["rate"], unit="/s"),
        Figure(what=f"{name}: requests a second, a call a verb", measured=calls["rate"], unit="/s"),
        Figure(what=f"{name}: batches ÷ calls", measured=_ratios(pairs, "rate"), unit="×", at_least=at_least),
        Figure(what=f"{name}: server CPU a request, in batches", measured=batches["server_us"], unit="µs"),
        Figure(
            what=f"{name}: server CPU, batches ÷ calls",
            measured=_ratios(pairs, "server_us"),
            unit="×",
            at_most=0.2 if name == "postgres" else None,
        ),
        Figure(what=f"{name}: client CPU a request, in batches", measured=batches["client_us"], unit="µs"),
    ]


def one_at_a_time(engines: dict[str, tuple[Engine, float | None]], turns: int, seconds: float) -> list[Figure]:
    """Measure how long a single request waits for its reservation, in turns."""
    found: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(turns):
        for name, (engine, _bound) in engines.items():
            found[name].append(_alone(engine.task(how="batches", in_flight=1, seconds=seconds))["p50_ms"])
    return [
        Figure(
            what=f"{name}: p50 of a reservation, one at a time",
            measured=median(times),
            unit="ms",
            at_most=engines[name][1],
        )
        for name, times in found.items()
    ]


def loop_cpu(engines: dict[str, Engine], folder: Path, turns: int, seconds: float) -> list[Figure]:
    """Compare the processor time of the event loop for each request with that on the SQLite ledger, in turns."""
    found: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(turns):
        path = str(folder / f"ledger-{turn}.db")
        file = {"backend": "sqlite", "options": {"path": path}, "in_flight": IN_FLIGHT, "seconds": seconds}
        sqlite = _alone(file)["loop_us"]
        for name, engine in engines.items():
            shared = _alone(engine.task(how="batches", in_flight=IN_FLIGHT, seconds=seconds))["loop_us"]
            found[name].append(shared / sqlite)
    return [
        Figure(what=f"{name}: loop CPU a request ÷ SQLite", measured=median(ratios), unit="×", at_most=1.5)
        for name, ratios in found.items()
    ]


def growth(engine: Engine, turns: int, seconds: float, many: int) -> Figure:
    """Compare a ledger of many accounts with one of few, in turns."""
    few_task = engine.task(how="batches", in_flight=IN_FLIGHT, seconds=seconds, users=FEW_ACCOUNTS)
    many_task = engine.task(how="batches", in_flight=IN_FLIGHT, seconds=seconds, users=many)
    _fill(few_task, FEW_ACCOUNTS)
    _fill(many_task, many)
    ratios = []
    for _ in range(turns):
        few, more = _together(engine, few_task, 1), _together(engine, many_task, 1)
        ratios.append(few["rate"] / more["rate"])
    return Figure(
        what=f"{engine.backend}: {many:,} accounts ÷ {FEW_ACCOUNTS:,}", measured=median(ratios), unit="×", at_most=1.5
    )


def _fill(task: dict[str, Any], users: int) -> None:
    backend = Plugins(BUILTIN_PLUGINS, entry_points=False).ledger_backends[task["backend"]]
    options = backend.options_model.model_validate(task["options"])
    day = time.time_ns() // 1000 // DAY * DAY
    with closing(backend.open(options, BackendContext(Path(), ZoneInfo("UTC")))) as opened:
        for first in range(0, users, 1000):
            charges = [
                Charge(AccountKey(1, day, f"user{n}"), day + DAY, 1) for n in range(first, min(users, first + 1000))
            ]
            opened.ledger.correct(f"fill-{first}", charges)


def run(*, quick: bool) -> list[Figure]:
    """Measure everything."""
    turns, seconds = (QUICK_TURNS, QUICK_SECONDS) if quick else (TURNS, SECONDS)
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        folder.chmod(0o755)
        place = folder / "postgres"
        place.mkdir()
        server = PostgresServer(binaries(), place)
        stack.callback(server.stop)
        server.start(fsync="on", synchronous_commit="on", max_connections="200", shared_buffers="256MB")
        # A socket's path is short.
        short = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="v")))
        valkey_process = stack.enter_context(valkey_server(short))
        postgres = Engine("postgres", server.url, server.main_process)
        late = Engine("postgres", f"{server.url}?options=-csynchronous_commit%3Doff", server.main_process)
        valkey = Engine("valkey", valkey_process.url, valkey_process.pid)
        many = MANY_ACCOUNTS // 10 if quick else MANY_ACCOUNTS
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CHECKPOINT")
        return [
            *hot_row(postgres, 5.0, turns, seconds),
            *hot_row(valkey, 3.0, turns, seconds),
            *one_at_a_time(
                {
                    "valkey": (valkey, 1.0),
                    "postgres, synchronous_commit off": (late, 3.0),
                    "postgres, synchronous_commit on": (postgres, None),
                },
                turns,
                seconds,
            ),
            Figure(what="an fdatasync of the servers' disk", measured=_fsync_ms(folder), unit="ms"),
            *loop_cpu({"postgres": postgres, "valkey": valkey}, folder, turns, seconds),
            growth(postgres, turns, seconds, many),
            growth(valkey, turns, seconds, many),
        ]


def main() -> None:
    """Print the figures."""
    asked = arguments("fleet", __doc__, quick="one turn, and a tenth of the accounts")
    show("fleet", run(quick=asked.quick), as_json=asked.json)


if __name__ == "__main__":
    main()
