"""Overshoot: the spend above a limit of $1.00, with the plugin and with LiteLLM's own budget.

Streams send requests of $0.01 each, one after the other, until a refusal says that the limit is used up. A busy request
is sent again after the time in the answer. Each cell has its own user, and so its own account. The figure is the
provider's bill for requests that were answered to the last byte: `over` must not occur with the plugin. The usable
share must be at least 98 % where a request costs its maximum, and where requests are clamped.

LiteLLM's budget is one on the key, set by custom_auth, without a database: its own way for that is
`custom_auth_run_common_checks` and `max_budget`. Small cells run concurrently.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import httpx
import yaml

from benchmarks import servers
from benchmarks.disk import temporary_folder
from benchmarks.figures import arguments, show_rows
from usage_plugin.cli.output import Column
from usage_plugin.config import load_config
from usage_plugin.domain.money import NANO_PER_USD
from usage_plugin.errors import ConfigError
from usage_plugin.runtime import open_reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from benchmarks.servers import Server

System = Literal["plugin", "LiteLLM"]

LIMIT = NANO_PER_USD
COST = NANO_PER_USD // 100
"""The cost of one answer: a thousand tokens, with free input."""
TOKENS = 1_000
LEAST_SHARE = 0.98
MODEL = "thousandth"
STREAMS = (1, 8, 32, 128)
WORKERS = (1, 2, 4)
QUICK_STREAMS = (8, 32)
QUICK_WORKERS = (2,)
BESIDE_EACH_OTHER = 160
"""The maximum number of concurrent streams: small cells wait for the provider, large ones for the machine."""
MOST_ANSWERED = 5 * LIMIT // COST
"""The maximum number of answers in a cell; a cell without an effective limit ends there."""
PARTS = 8
KILL_AFTER = 3.0
CELL_SECONDS = 2 * KILL_AFTER
TRY_AGAIN = 0.3


@dataclass(frozen=True)
class Situation:
    """The conditions of a cell's streams.

    Attributes:
        worst: how many times its cost a request may cost at most.
        exact: whether the whole limit must be usable.
        clamp: whether the proxy may shorten answers to the remaining budget.
        cut: the share of requests at which the client hangs up.
        fails: how often the provider fails before it answers, for the share of a quarter of the requests.
        kill: whether a worker is killed in the middle.
    """

    about: str
    worst: int = 1
    exact: bool = False
    clamp: bool = False
    cut: float = 0.0
    fails: int = 0
    kill: bool = False


SITUATIONS = {
    "exact": Situation("a request costs its maximum", exact=True),
    "10x": Situation("the maximum of a request is ten times its cost", worst=10),
    "clamp": Situation("the same, with on_short_budget: clamp", worst=10, exact=True, clamp=True),
    "cut": Situation("every third client hangs up in the middle of its stream", cut=1 / 3),
    "retries": Situation("the provider fails at first for every fourth request, and LiteLLM retries", fails=1),
    "kill": Situation("a worker is killed in the middle", kill=True),
}


@dataclass
class Cell:
    """One account with the outcomes of its requests."""

    system: System
    situation: str
    workers: int
    streams: int
    outcomes: Counter[str] = field(default_factory=Counter)
    answered: set[str] = field(default_factory=set)
    cost_answered: int = 0
    cost_handed_out: int = 0
    recorded: int | None = None
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """The user, and the key, of the cell's requests."""
        return f"{self.system}-{self.situation}-{self.workers}-{self.streams}"

    @property
    def over(self) -> int:
        """The spend above the limit in nano-dollars; negative for the remaining budget."""
        return self.cost_answered - LIMIT

    @property
    def share(self) -> float:
        """The share of the limit that was spent on answers."""
        return self.cost_answered / LIMIT

    @property
    def held(self) -> bool | None:
        """Whether everything required holds; nothing is required of LiteLLM."""
        if self.system != "plugin":
            return None
        if self.recorded is not None and self.recorded < self.cost_answered:
            return False
        return self.over <= 0 and (self.share >= LEAST_SHARE or not SITUATIONS[self.situation].exact)

    def cost(self, answers: dict[str, dict[str, Any]]) -> None:
        """Add up the provider's bill, from its own records."""
        self.cost_answered = self.cost_handed_out = 0
        for name, answer in answers.items():
            if name.startswith(f"{self.name}/"):
                cost = int(COST * answer.get("out", 0) / TOKENS * answer["share"])
                self.cost_handed_out += cost
                if name in self.answered:
                    self.cost_answered += cost

    def document(self) -> dict[str, Any]:
        """Return it for programs, in USD."""
        return {
            "system": self.system,
            "situation": self.situation,
            "workers": self.workers,
            "streams": self.streams,
            "answered_usd": self.cost_answered / NANO_PER_USD,
            "handed_out_usd": self.cost_handed_out / NANO_PER_USD,
            "recorded_usd": None if self.recorded is None else self.recorded / NANO_PER_USD,
            "over_usd": max(0, self.over) / NANO_PER_USD,
            "share": self.share,
            "outcomes": dict(self.outcomes),
            "seconds": round(self.seconds, 1),
            "held": self.held,
        }

    def words(self) -> str:
        """Return it for people."""
        share = f"{self.share:.0%}"
        return f"over by ${self.over / NANO_PER_USD:.2f} ({share})" if self.over > 0 else share


class Load:
    """Sends the requests of a cell."""

    def __init__(self, cell: Cell, server: Server, client: httpx.AsyncClient) -> None:
        """Store the cell and the server."""
        self._cell = cell
        self._situation = SITUATIONS[cell.situation]
        self._server = server
        self._client = client
        self._random = random.Random(cell.name)
        self._sent = 0

    async def run(self) -> None:
        """Send until every stream was refused because the limit is used up."""
        started = time.monotonic()
        await asyncio.gather(*(self._stream() for _ in range(self._cell.streams)))
        self._cell.seconds = time.monotonic() - started

    async def _stream(self) -> None:
        while len(self._cell.answered) < MOST_ANSWERED:
            self._sent += 1
            name = f"{self._cell.name}/{self._sent}"
            try:
                outcome, wait = await self._send(name)
            except httpx.TransportError:
                self._server.check()
                outcome, wait = "lost", TRY_AGAIN
            self._cell.outcomes[outcome] += 1
            if outcome == "answered":
                self._cell.answered.add(name)
            elif outcome == "refused":
                return
            if wait:
                await asyncio.sleep(wait)

    async def _send(self, name: str) -> tuple[str, float]:
        """Send one request; return its outcome and the time to wait."""
        plan: dict[str, Any] = {"id": name, "in": 0, "out": TOKENS, "obeys": True, "delay": 0.02}
        cut = self._random.random() < self._situation.cut
        if self._situation.cut or self._situation.kill:
            # Every cell takes as long, so that a kill is in the middle of each; and hanging up is, in each stream.
            plan |= {"chunks": PARTS, "wordy": True, "pause": CELL_SECONDS * self._cell.streams * COST / LIMIT / PARTS}
        if self._situation.fails and self._random.random() < 1 / 4:
            plan |= {"mark": name, "fail_first": self._situation.fails}
        body = {
            "model": MODEL,
            "user": self._cell.name,
            "stream": True,
            "max_tokens": TOKENS * self._situation.worst,
            "messages": [{"role": "user", "content": json.dumps(plan)}],
        }
        key = self._server.key if self._cell.system == "plugin" else f"sk-{self._cell.name}"
        async with self._client.stream(
            "POST", f"{self._server.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}
        ) as response:
            if response.status_code != 200:
                await response.aread()
                return what_now(response)
            return await self._read(response, self._random.randint(1, PARTS - 1) if cut else None), 0.0

    @staticmethod
    async def _read(response: httpx.Response, parts: int | None) -> str:
        """Read a stream to its end, or the given number of parts."""
        seen = 0
        async for line in response.aiter_lines():
            if line.startswith("data: [DONE]"):
                return "answered"
            if line.startswith('data: {"error"'):
                return "broken"
            seen += line.startswith("data: ")
            if seen == parts:
                return "cut"
        return "broken"


def what_now(response: httpx.Response) -> tuple[str, float]:
    """Return from a refusal whether and when to send again."""
    wait = response.headers.get("retry-after-ms")
    if response.status_code == 429 and wait is not None:
        return "busy", float(wait) / 1000
    # LiteLLM answers 422, or 429, when a budget is spent.
    return ("refused", 0.0) if 400 <= response.status_code < 500 else ("failed", TRY_AGAIN)


def config_of(system: System, upstream: str, *, clamp: bool = False) -> str:
    """Write the YAML of a proxy."""
    price = {"input_cost_per_token": 0, "output_cost_per_token": COST / TOKENS / NANO_PER_USD}
    # Two deployments: LiteLLM tries the other one at once where it would wait for a single one.
    models = [
        {
            "model_name": MODEL,
            "litellm_params": {
                "model": f"openai/{MODEL}-{n}",
                "api_base": f"{upstream}/v1",
                "api_key": "none",
                **price,
            },
        }
        for n in (1, 2)
    ]
    config: dict[str, Any] = {
        "model_list": models,
        "router_settings": {"num_retries": 2, "disable_cooldowns": True},
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
    }
    if system == "LiteLLM":
        config["general_settings"] |= {"custom_auth": "budgets.auth", "custom_auth_run_common_checks": True}
        return yaml.safe_dump(config)
    config["litellm_settings"] = {"callbacks": ["usage_plugin.proxy.callback"]}
    limits = [{"name": "dollar", "per": "user", "window": "lifetime", "max_cost": 1}]
    config["usage_plugin"] = {"data_dir": f"./usage-{'clamp' if clamp else 'plain'}", "limits": limits}
    if clamp:
        config["usage_plugin"]["admission"] = {"on_short_budget": "clamp"}
    return yaml.safe_dump(config)


BUDGETS = """
from litellm.proxy._types import UserAPIKeyAuth


async def auth(request, api_key):
    return UserAPIKeyAuth(api_key=api_key, user_id=api_key.removeprefix("sk-"), max_budget=1.0)
"""


def cells_of(
    systems: Sequence[System], workers: Iterable[int], streams: Sequence[int], situations: Iterable[str]
) -> list[Cell]:
    """Lay out the table."""
    return [
        Cell(system, situation, count, number)
        for count in workers
        for system in systems
        for situation in situations
        for number in streams
        # LiteLLM has nothing like clamping to switch on.
        if system == "plugin" or not SITUATIONS[situation].clamp
    ]


async def beside_each_other(cells: Sequence[Cell], run: Callable[[Cell], Any]) -> None:
    """Run cells, as many at once as their streams allow; a larger one alone."""
    free = BESIDE_EACH_OTHER
    changed = asyncio.Condition()

    async def one(cell: Cell) -> None:
        nonlocal free
        room = min(cell.streams, BESIDE_EACH_OTHER)
        async with changed:
            await changed.wait_for(lambda: free >= room)
            free -= room
        try:
            await run(cell)
        finally:
            async with changed:
                free += room
                changed.notify_all()

    await asyncio.gather(*(one(cell) for cell in cells))


async def fill(server: Server, cells: Sequence[Cell], upstream: str) -> None:
    """Run all cells of one proxy: those in which a worker is killed last, together, since they share the victim."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=60.0)
    async with httpx.AsyncClient(timeout=120.0, limits=limits, trust_env=False) as client:
        calm = [cell for cell in cells if not SITUATIONS[cell.situation].kill]
        await beside_each_other(calm, lambda cell: Load(cell, server, client).run())
        if deadly := [cell for cell in cells if SITUATIONS[cell.situation].kill]:
            loads = asyncio.gather(*(Load(cell, server, client).run() for cell in deadly))
            await asyncio.sleep(KILL_AFTER)
            await server.kill_a_worker()
            await loads
        answers = (await client.get(f"{upstream}/answers")).json()
    for cell in cells:
        cell.cost(answers)


async def read_books(path: Path, cells: Sequence[Cell]) -> None:
    """Look up the recorded spend on the account of each cell, once no reservation is open."""
    config = load_config(path)
    async with open_reader(config) as reader:
        deadline = time.monotonic() + 90
        while reader.ledger.open_reservations() and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        (limit,) = reader.limits.limits
        spent = {account.key.subject: account.balance.spent for account in reader.ledger.accounts(limit.key, 0)}
    for cell in cells:
        cell.recorded = spent.get(cell.name, 0)


def can_clamp(folder: Path) -> bool:
    """Whether this version of the plugin can shorten answers."""
    path = folder / "clamping.yaml"
    path.write_text(config_of("plugin", "", clamp=True), encoding="utf-8")
    with suppress(ConfigError):
        load_config(path)
        return True
    return False


async def measure(folder: Path, cells: Sequence[Cell]) -> None:
    """Start one proxy after the other, and fill its cells."""
    (folder / "budgets.py").write_text(BUDGETS, encoding="utf-8")
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(servers.running(servers.provider(folder)))
        for system, clamp, workers, mine in by_proxy(cells):
            name = f"{system}-{workers}{'-clamp' if clamp else ''}"
            server = servers.proxy(name, config_of(system, upstream.url, clamp=clamp), folder, workers=workers)
            async with servers.running(server):
                await fill(server, mine, upstream.url)
                if system == "plugin":
                    await read_books(folder / f"{name}.yaml", mine)


def by_proxy(cells: Sequence[Cell]) -> list[tuple[System, bool, int, list[Cell]]]:
    """Group cells by the proxy that serves them."""
    groups: dict[tuple[System, bool, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.system, SITUATIONS[cell.situation].clamp, cell.workers), []).append(cell)
    return [(*key, mine) for key, mine in groups.items()]


def rows_of(cells: Sequence[Cell], streams: Sequence[int]) -> list[tuple[str, ...]]:
    """Make the table: a row for each situation, number of workers and system, a column for each number of streams."""
    rows: dict[tuple[str, int, System], dict[int, Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.situation, cell.workers, cell.system), {})[cell.streams] = cell
    order = list(SITUATIONS)
    made = []
    for (situation, workers, system), found in sorted(
        rows.items(), key=lambda row: (order.index(row[0][0]), row[0][1])
    ):
        verdicts = {cell.held for cell in found.values()}
        verdict = "" if None in verdicts else "MISSED" if False in verdicts else "held"
        words = (found[number].words() if number in found else "" for number in streams)
        made.append((situation, str(workers), system, *words, verdict))
    return made


def main() -> None:
    """Measure, and print."""
    chosen = arguments("overshoot", __doc__, quick="two columns and one row of each kind, in less than two minutes")
    workers, streams = (QUICK_WORKERS, QUICK_STREAMS) if chosen.quick else (WORKERS, STREAMS)
    notes = [f"{name}: {situation.about}" for name, situation in SITUATIONS.items()]
    with temporary_folder() as folder:
        situations = list(SITUATIONS)
        if not can_clamp(folder):
            situations.remove("clamp")
            notes.append("clamp is left out: this version does not know admission.on_short_budget")
        cells = cells_of(("plugin", "LiteLLM"), workers, streams, situations)
        asyncio.run(measure(folder, cells))
    columns = (
        Column("Situation"),
        Column("Workers", number=True),
        Column("Limit by"),
        *(Column(f"{number} streams" if number > 1 else "1 stream", number=True) for number in streams),
        Column("Verdict"),
    )
    show_rows(
        "overshoot",
        columns,
        rows_of(cells, streams),
        as_json=chosen.json,
        notes=notes,
        cells=[cell.document() for cell in cells],
    )


if __name__ == "__main__":
    main()
