"""The whole proxy: requests a second with the plugin, against the same proxy with a callback that does nothing.

Two real LiteLLM proxies, one worker each, answer from the fake provider of the tests. One client loads them in turn, in
short rounds, since the machine's speed changes from one second to the next; who begins a pair of rounds alternates too.
The figure that counts is the median of the ratios of all pairs: 1 means that the plugin costs nothing. The time the
main thread was really on a processor, for each request, tells work from noise: waiting for others is not in it.
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
    from collections.abc import Sequence

    from benchmarks.servers import Server

PAIRS = 40
ROUND = 48
CONCURRENCY = 16
WARM_UP = 200
LEAST_RATIO = 0.97
COST_HEADER = "x-usage-cost"
"""Only the plugin sends it: it shows that the right proxy was asked, and that it records."""

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

NOTHING = """
from litellm.integrations.custom_logger import CustomLogger


class Nothing(CustomLogger):
    async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
        return None

    async def async_post_call_success_hook(self, data, user_api_key_dict, response):
        return response

    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        pass

    async def async_log_failure_event(self, kwargs, response_obj, start_time, end_time):
        pass

    async def async_post_call_failure_hook(
        self, request_data, original_exception, user_api_key_dict, traceback_str=None
    ):
        pass


callback = Nothing()
"""


class Proxy:
    """One of the two proxies, as the client sees it."""

    def __init__(self, server: Server, *, with_plugin: bool) -> None:
        """Open a client that keeps its connections."""
        self._server = server
        self._with_plugin = with_plugin
        self._number = 0
        self.rates: list[float] = []
        self.cpu: list[float] = []
        """Microseconds of the main thread for each request, by round; empty where the system does not tell."""
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
        """Send so many requests, some at a time; give the requests a second."""
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
    """Read how long the main thread of a process was on a processor; None where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text(encoding="ascii").split()[0])
    except OSError:
        return None


async def measure(folder: Path) -> tuple[list[Figure], Proxy, Proxy]:
    """Start everything, load both proxies in turn, and compare."""
    (folder / "doing_nothing.py").write_text(NOTHING, encoding="utf-8")
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(servers.running(servers.provider(folder)))
        made = {}
        for name, callback, section in (
            ("ours", "usage_plugin.proxy.callback", SECTION),
            ("nothing", "doing_nothing.callback", ""),
        ):
            config = CONFIG.format(model=MODEL, upstream=upstream.url, callback=callback) + section
            made[name] = await stack.enter_async_context(servers.running(servers.proxy(name, config, folder)))
        ours, nothing = Proxy(made["ours"], with_plugin=True), Proxy(made["nothing"], with_plugin=False)
        return await compare(ours, nothing), ours, nothing


async def compare(ours: Proxy, nothing: Proxy) -> list[Figure]:
    """Load the two in turn."""
    async with ours.client, nothing.client:
        for proxy in (ours, nothing):
            await proxy.load(WARM_UP)
        for pair in range(PAIRS):
            for proxy in (ours, nothing) if pair % 2 else (nothing, ours):
                await proxy.round()
    named = (("with the plugin", ours), ("with a callback that does nothing", nothing))
    figures = [
        Figure(
            what=f"{name}, median of {PAIRS} rounds",
            measured=statistics.median(proxy.rates),
            best=max(proxy.rates),
            unit="/s",
        )
        for name, proxy in named
    ]
    figures += against("ratio", ours.rates, nothing.rates, at_least=LEAST_RATIO)
    if ours.cpu and nothing.cpu:
        figures += [
            Figure(
                what=f"CPU of the main thread for each request, {name}",
                measured=statistics.median(proxy.cpu),
                best=min(proxy.cpu),
                unit="µs",
            )
            for name, proxy in named
        ]
        figures += against("ratio of CPU", nothing.cpu, ours.cpu)
    return figures


def against(what: str, mine: Sequence[float], others: Sequence[float], at_least: float | None = None) -> list[Figure]:
    """Compare pair by pair: the median of the ratios, and how sure it is."""
    ratios = [one / other for one, other in zip(mine, others, strict=True)]
    low, high = interval(ratios)
    return [
        Figure(what=f"{what}, median of the pairs", measured=statistics.median(ratios), unit="", at_least=at_least),
        Figure(what=f"the lowest that this {what} may be (95 % sure)", measured=low, unit=""),
        Figure(what=f"the highest that this {what} may be (95 % sure)", measured=high, unit=""),
    ]


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Say between which of the values their true median lies; on each side it is so with 95 % certainty."""
    ordered = sorted(ratios)
    off = math.ceil(1.645 * math.sqrt(len(ordered)) / 2)
    middle = len(ordered) // 2
    return ordered[max(0, middle - off)], ordered[min(len(ordered) - 1, middle + off)]


def main() -> None:
    """Measure, and print."""
    as_json = wants_json("proxy", __doc__)
    with temporary_folder() as folder:
        figures, ours, nothing = asyncio.run(measure(folder))
    rounds = {
        name: {"rates": proxy.rates, "cpu_us": proxy.cpu} for name, proxy in (("ours", ours), ("nothing", nothing))
    }
    show("proxy", figures, as_json=as_json, rounds=rounds)


if __name__ == "__main__":
    main()
