"""The arithmetic of the benchmarks; `make soak` runs the short form of the one that tests promises."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from benchmarks import overshoot, previous, proxy
from benchmarks.overshoot import COST, LIMIT, Cell
from tests.support.guarding import python_path
from usage_plugin.config import load_config

ROOT = Path(__file__).parents[1]


def run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *arguments],
        capture_output=True, text=True, cwd=ROOT, check=False, env={**os.environ, "PYTHONPATH": python_path(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def answers_of(cell: Cell, count: int, **answer: Any) -> dict[str, dict[str, Any]]:
    return {f"{cell.name}/{number}": {"out": 1000, "share": 1.0, **answer} for number in range(count)}


def test_a_cell_counts_what_was_handed_out_to_answered_requests_only() -> None:
    cell = Cell("plugin", "exact", 2, 8)
    answers = answers_of(cell, 100) | {f"{cell.name}x/1": {"out": 1000, "share": 1.0}}
    cell.answered = set(list(answers)[:90])
    cell.cost(answers)
    assert (cell.cost_answered, cell.cost_handed_out) == (90 * COST, 100 * COST)
    assert (cell.over, cell.share) == (-10 * COST, 0.9)


def test_a_cut_or_failed_answer_costs_what_was_sent_of_it() -> None:
    cell = Cell("plugin", "cut", 2, 8)
    answers = answers_of(cell, 2, share=0.5) | {f"{cell.name}/9": {"share": 0.0, "calls": 3}}
    cell.cost(answers)
    assert (cell.cost_answered, cell.cost_handed_out) == (0, COST)


@pytest.mark.parametrize(
    ("system", "situation", "cost", "recorded", "held", "words"),
    [
        ("plugin", "exact", LIMIT, LIMIT, True, "100%"),
        ("plugin", "exact", LIMIT + COST, LIMIT + COST, False, "over by $0.01 (101%)"),
        ("plugin", "exact", LIMIT - 3 * COST, LIMIT, False, "97%"),
        ("plugin", "10x", LIMIT - 9 * COST, LIMIT, True, "91%"),
        ("plugin", "kill", LIMIT // 2, LIMIT // 2 - 1, False, "50%"),
        ("LiteLLM", "exact", 2 * LIMIT, None, None, "over by $1.00 (200%)"),
    ],
)
def test_a_cell_is_held_against_what_is_required(
    system: Any, situation: str, cost: int, recorded: int | None, held: bool | None, words: str
) -> None:
    cell = Cell(system, situation, 2, 8, cost_answered=cost, recorded=recorded)
    assert (cell.held, cell.words()) == (held, words)
    assert cell.document()["held"] is held


def test_the_table_has_a_row_for_each_situation_system_and_number_of_workers() -> None:
    cells = overshoot.cells_of(("plugin", "LiteLLM"), (1, 2), (1, 8), ("exact", "clamp"))
    rows = overshoot.rows_of(cells, (1, 8))
    assert [row[:3] for row in rows] == [
        ("exact", "1", "plugin"),
        ("exact", "1", "LiteLLM"),
        ("exact", "2", "plugin"),
        ("exact", "2", "LiteLLM"),
        ("clamp", "1", "plugin"),
        ("clamp", "2", "plugin"),
    ]
    assert {row[-1] for row in rows} == {"MISSED", ""}, "nothing was used"
    assert len({cell.name for cell in cells}) == len(cells) == 12
    assert [(*key, len(mine)) for *key, mine in overshoot.by_proxy(cells)] == [
        ("plugin", False, 1, 2), ("plugin", True, 1, 2), ("LiteLLM", False, 1, 2),
        ("plugin", False, 2, 2), ("plugin", True, 2, 2), ("LiteLLM", False, 2, 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "headers", "told"),
    [
        (429, {"retry-after-ms": "1500"}, ("busy", 1.5)),
        (429, {}, ("refused", 0.0)),
        (402, {"x-usage-refusal": "spent"}, ("refused", 0.0)),
        (422, {}, ("refused", 0.0)),
        (500, {}, ("failed", overshoot.TRY_AGAIN)),
    ],
)
def test_only_what_names_a_time_is_sent_again_after_it(status: int, headers: dict[str, str], told: Any) -> None:
    assert overshoot.what_now(httpx.Response(status, headers=headers)) == told


async def test_cells_run_beside_each_other_as_long_as_there_is_room() -> None:
    running, most = 0, 0

    async def one(cell: Any) -> None:
        nonlocal running, most
        running += cell.streams
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= cell.streams

    cells: Any = [SimpleNamespace(streams=number) for number in (1, 8, 32, 128, 128, 32, 8, 1)]
    await overshoot.beside_each_other(cells, one)
    assert 1 + 8 + 32 <= most <= overshoot.BESIDE_EACH_OTHER
    await asyncio.wait_for(overshoot.beside_each_other([SimpleNamespace(streams=500)], one), 5)


def test_the_proxies_yaml_is_one_the_plugin_takes(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(overshoot.config_of("plugin", "http://127.0.0.1:1"))
    (limit,) = load_config(path).limit_set().limits
    assert limit.amount == LIMIT


def test_the_interval_holds_the_median_and_narrows_with_more_pairs() -> None:
    few, many = ([float(number) for number in range(count)] for count in (11, 101))
    assert proxy.interval(few) == (2.0, 8.0)
    low, high = proxy.interval(many)
    assert low < 50 < high
    assert (high - low) / 101 < 6 / 11


def test_two_series_are_compared_pair_by_pair() -> None:
    figures = proxy.against("ratio", [1.0, 20.0, 3.0], [2.0, 20.0, 4.0], at_least=0.97)
    assert [figure.measured for figure in figures] == [0.75, 0.5, 1.0]
    assert [figure.held for figure in figures] == [False, None, None]


async def test_each_proxy_is_loaded_as_often_at_each_place() -> None:
    """Each proxy runs equally often in each position, since the machine's state may change during a round."""

    class Stand:
        def __init__(self, name: str) -> None:
            self.name = name

        async def load(self, requests: int) -> None:
            pass

        async def round(self) -> None:
            turns.append(self.name)

    turns: list[str] = []
    names = list(proxy.CONTENDERS)
    await proxy.take_turns([Stand(name) for name in names])  # type: ignore[misc]
    assert {turns[place :: len(names)].count(name) for place in range(len(names)) for name in names} == {
        proxy.PAIRS // len(names)
    }


def test_every_proxy_is_held_against_the_one_that_does_nothing() -> None:
    """Only the plugin has a bound; the other proxies show the cost of its parts."""
    rates = {proxy.PLUGIN: [9.0], proxy.NOTHING: [10.0], "the ledger alone": [9.5]}
    proxies: Any = {name: SimpleNamespace(rates=rate, cpu=[]) for name, rate in rates.items()}
    figures = {figure.what: figure for figure in proxy.compare(proxies)}
    ratio = "ratio of {}, median of the pairs".format
    assert (figures[ratio(proxy.PLUGIN)].measured, figures[ratio(proxy.PLUGIN)].held) == (0.9, False)
    assert (figures[ratio("the ledger alone")].measured, figures[ratio("the ledger alone")].held) == (0.95, None)


def test_the_short_form_of_moving_in_imports_each_form() -> None:
    figures = json.loads(run("migration", "--quick", "--json"))["figures"]
    assert [figure["what"] for figure in figures[::3]] == [
        "daily_usage.json, 5,000 user-days",
        "usage_aggregations.db, 5,000 user-days",
        "partitioned/, 500 user-days",
    ]
    assert [figure["held"] for figure in figures[2::3]] == [True, True, True]


@pytest.mark.parametrize(
    "name", ["overshoot", "ledger", "recording", "memory", "migration", "partitioned", "queries", "patterns"]
)
def test_help_says_what_is_measured(name: str) -> None:
    assert "--json" in run(name, "--help")


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("recording", ["events a second", "events a second", "CPU for", "CPU for", "growth of CPU", "the previous"]),
        # Only Linux reports a process's peak memory.
        *(
            [pytest.param("memory", ["growth with", "growth of the previous"], marks=pytest.mark.soak)]
            if sys.platform == "linux"
            else []
        ),
    ],
)
def test_the_short_form_measures_everything(name: str, figures: list[str]) -> None:
    """The short form runs completely and has each figure; only the long form measures."""
    document = json.loads(run(name, "--quick", "--json"))
    assert document["benchmark"] == name
    for figure, what in zip(document["figures"], figures, strict=True):
        assert figure["what"].startswith(what)
        assert figure["measured"] > 0


@pytest.mark.soak
def test_the_short_form_of_the_queries_asks_everything() -> None:
    """DuckDB finds the same sums in the same rows, or the command ends with an error."""
    figures = json.loads(run("queries", "--quick", "--json"))["figures"]
    assert len(figures) > 20
    assert all(figure["measured"] > 0 for figure in figures if "growth" not in figure["what"])


def test_the_previous_tracker_wrote_everything_it_had_each_time(tmp_path: Path) -> None:
    """The re-creation writes like the original: a flush of 100 records writes a file and a row for each cached user."""
    tracker = previous.Rewriting(tmp_path, size=50)
    for number in range(previous.PENDING):
        tracker.record(f"user-{number}", "2026-11-23", number)
    tracker.close()
    files = list(tmp_path.glob("partitioned/??/user-*/2026-11/daily_2026-11-23.json"))
    with closing(sqlite3.connect(tmp_path / "usage_aggregations.db")) as connection:
        assert len(files) == len(connection.execute("SELECT * FROM daily_aggregations").fetchall()) == 50
    assert json.loads(files[0].read_text())["total_requests"] == 1


@pytest.mark.soak
@pytest.mark.proxy
@pytest.mark.timeout(600)
def test_no_answered_request_passes_a_limit() -> None:
    """With concurrent streams, retries, disconnects and a killed worker, the overspend is 0 and limits stay usable."""
    cells = json.loads(run("overshoot", "--quick", "--json"))["cells"]
    ours = [cell for cell in cells if cell["system"] == "plugin"]
    assert {cell["situation"] for cell in ours} >= {"exact", "10x", "cut", "retries", "kill"}
    assert not [cell for cell in ours if not cell["held"]]
