"""The whole proxy: requests a second with the plugin, against the same proxy with a callback that does nothing.

Real LiteLLM proxies, one worker each, answer from the fake provider of the tests. One client loads them in turn, in
short rounds, since the machine's speed changes from one second to the next. The order rotates, too. The relevant figure
is the median of the ratios of all pairs: 1 means that the plugin costs nothing. The processor time of the main thread
for each request separates work from noise: it contains no waiting.

Two more proxies explain the difference (`benchmarks.callbacks`). One has all of the plugin's hooks, which return at
once. Its ratio is LiteLLM's cost of calling them, and shows the accuracy of the figures. The other does nothing but the
ledger's two transactions for each request: the best that the plugin could reach with this ledger.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from benchmarks import servers
from benchmarks.disk import temporary_folder
from benchmarks.figures import Figure, show, wants_json
from benchmarks.three_limits import MODEL, SECTION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.servers import Server

PAIRS = 40
ROUND = 48
CONCURRENCY = 16
WARM_UP = 200
LEAST_RATIO = 0.97
COST_HEADER = "x-usage-cost"
"""A header of the plugin only: it proves that the right proxy answered, and that it records."""

CONFIG = """
model_list:
  - model_name: {model}
    litellm_params:
      model: openai/{model}
      api_base: {upstream}/v1
      api_key: none-needed
      input_cost_per_token: 0.0000025
      output_cost_per_token: 0.00001
litellm_settings:
  callbacks: ["{callback}"]
general_settings:
  master_key: os.environ/LITELLM_MASTER_KEY
"""

CONTENDERS = {
    "the plugin": "usage_plugin.proxy.callback",
    "a callback that does nothing": "benchmarks.callbacks.nothing",
    "hooks that return at once": "benchmarks.callbacks.returning",
    "the ledger alone": "benchmarks.callbacks.ledger",
}
PLUGIN, NOTHING, *_ = CONTENDERS


class Proxy:
    """One of the proxies, as the client sees it."""

    def __init__(self, server: Server, *, with_plugin: bool) -> None:
        """Open a client that keeps its connections."""
        self._server = server
        self._with_plugin = with_plugin
        self._number = 0
        self.rates: list[float] = []
        self.cpu: list[float] = []
        """Microseconds of the main thread for each request, by round; empty where the system does not report them."""
        self.client = httpx.AsyncClient(
            base_url=server.url,
            headers={"Authorization": f"Bearer {server.key}"},
            # Let go of idle connections before the server does, or the next request may meet its closing.
            limits=httpx.Limits(max_connections=CONCURRENCY, keepalive_expiry=3.0),
            timeout=60.0,
            trust_env=False,
        )

    async def round(self) -> None:
        """Load it once, and note how fast it was and how much it worked."""
        before = main_thread_ns(self._server.pid)
        self.rates.append(await self.load(ROUND))
        after = main_thread_ns(self._server.pid)
        if before is not None and after is not None:
            self.cpu.append((after - before) / 1000 / ROUND)

    async def load(self, requests: int) -> float:
        """Send the given number of requests, some at a time; return the requests a second."""
        waiting = iter(range(requests))

        async def send_until_none_waits() -> None:
            for _ in waiting:
                await self._send()

        started = time.perf_counter()
        await asyncio.gather(*(send_until_none_waits() for _ in range(CONCURRENCY)))
        return requests / (time.perf_counter() - started)

    async def _send(self) -> None:
        self._number += 1
        body = {
            "model": MODEL,
            "user": f"user-{self._number % 50}@example.com",
            "messages": [{"role": "user", "content": "Which wood makes a good handle for a spade?"}],
        }
        response = await self.client.post("/v1/chat/completions", json=body)
        if response.status_code != 200 or (COST_HEADER in response.headers) != self._with_plugin:
            raise RuntimeError(f"Unexpected answer {response.status_code}: {response.text[:500]}")


def main_thread_ns(pid: int) -> int | None:
    """Read how long the main thread of a process was on a processor; None where the system does not report it."""
    try:
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text(encoding="ascii").split()[0])
    except OSError:
        return None


async def measure(folder: Path) -> tuple[list[Figure], dict[str, Proxy]]:
    """Start everything, load the proxies in turn, and compare."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(servers.running(servers.provider(folder)))
        proxies = {}
        for name, callback in CONTENDERS.items():
            config = CONFIG.format(model=MODEL, upstream=upstream.url, callback=callback)
            config += SECTION if name == PLUGIN else ""
            server = servers.proxy(name.replace(" ", "_"), config, folder)
            await stack.enter_async_context(servers.running(server))
            proxies[name] = Proxy(server, with_plugin=name == PLUGIN)
            await stack.enter_async_context(proxies[name].client)
        await take_turns(list(proxies.values()))
        return compare(proxies), proxies


async def take_turns(proxies: Sequence[Proxy]) -> None:
    """Load them in turn; each comes first, and each comes last, equally often."""
    for proxy in proxies:
        await proxy.load(WARM_UP)
    for turn in range(PAIRS):
        first = turn // 2 % len(proxies)
        order = [*proxies[first:], *proxies[:first]]
        for proxy in reversed(order) if turn % 2 else order:
            await proxy.round()


def compare(proxies: Mapping[str, Proxy]) -> list[Figure]:
    """Compare all of them with the one whose callback does nothing."""
    nothing = proxies[NOTHING]
    figures = [
        Figure(
            what=f"with {name}, median of {PAIRS} rounds",
            measured=statistics.median(proxy.rates),
            best=max(proxy.rates),
            unit="/s",
        )
        for name, proxy in proxies.items()
    ]
    for name, proxy in proxies.items():
        if proxy is not nothing:
            at_least = LEAST_RATIO if name == PLUGIN else None
            figures += against(f"ratio of {name}", proxy.rates, nothing.rates, at_least=at_least)
    if not nothing.cpu:
        return figures
    figures += [
        Figure(
            what=f"CPU of the main thread for each request, with {name}",
            measured=statistics.median(proxy.cpu),
            best=min(proxy.cpu),
            unit="µs",
        )
        for name, proxy in proxies.items()
    ]
    for name, proxy in proxies.items():
        if proxy is not nothing:
            figures += against(f"ratio of CPU of {name}", nothing.cpu, proxy.cpu)
    return figures


def against(what: str, mine: Sequence[float], others: Sequence[float], at_least: float | None = None) -> list[Figure]:
    """Compare pair by pair: the median of the ratios, with its confidence."""
    ratios = [one / other for one, other in zip(mine, others, strict=True)]
    low, high = interval(ratios)
    return [
        Figure(what=f"{what}, median of the pairs", measured=statistics.median(ratios), unit="", at_least=at_least),
        Figure(what=f"the lowest that this {what} may be (95 % sure)", measured=low, unit=""),
        Figure(what=f"the highest that this {what} may be (95 % sure)", measured=high, unit=""),
    ]


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Return the confidence interval of the median, with 95 % certainty on each side."""
    ordered = sorted(ratios)
    off = math.ceil(1.645 * math.sqrt(len(ordered)) / 2)
    middle = len(ordered) // 2
    return ordered[max(0, middle - off)], ordered[min(len(ordered) - 1, middle + off)]


def main() -> None:
    """Measure, and print."""
    as_json = wants_json("proxy", __doc__)
    with temporary_folder() as folder:
        figures, proxies = asyncio.run(measure(folder))
    rounds = {name: {"rates": proxy.rates, "cpu_us": proxy.cpu} for name, proxy in proxies.items()}
    show("proxy", figures, as_json=as_json, rounds=rounds)


if __name__ == "__main__":
    main()
