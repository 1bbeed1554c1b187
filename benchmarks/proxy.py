"""The whole proxy: requests a second with the plugin, against the same proxy with a callback that does nothing.

Two real LiteLLM proxies, one worker each, answer from the fake provider of the tests. One client loads them in turn, in
short rounds, since the machine's speed changes from one second to the next; who begins a pair of rounds alternates too.
The figure that counts is the median of the ratios of all pairs: 1 means that the plugin costs nothing.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import socket
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from benchmarks.disk import temporary_folder
from benchmarks.figures import Figure, show, wants_json
from benchmarks.three_limits import MODEL, SECTION

if TYPE_CHECKING:
    from collections.abc import Iterator

PAIRS = 80
ROUND = 48
CONCURRENCY = 16
WARM_UP = 200
LEAST_RATIO = 0.97
START_SECONDS = 180.0
COST_HEADER = "x-usage-cost"
"""Only the plugin sends it: it shows that the right proxy was asked, and that it records."""

_REPOSITORY = Path(__file__).resolve().parent.parent
_LITELLM = Path(sys.executable).parent / "litellm"

CONFIG = """
model_list:
  - model_name: {model}
    litellm_params:
      model: openai/{model}
      api_base: http://127.0.0.1:{upstream}/v1
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


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running(
    command: list[str], *, cwd: Path, environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server as long as the block lasts."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server answers.

    Raises:
        RuntimeError: it has ended, or does not answer in time.
    """
    deadline = time.monotonic() + START_SECONDS
    async with httpx.AsyncClient(trust_env=False) as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                await client.get(url)
            except httpx.TransportError:
                await asyncio.sleep(0.25)
            else:
                return
    raise RuntimeError(f"A server did not start. Its last words:\n{log.read_text(errors='replace')[-3000:]}")


class Proxy:
    """One of the two proxies, as the client sees it."""

    def __init__(self, port: int, master_key: str, *, with_plugin: bool) -> None:
        """Open a client that keeps its connections."""
        self._with_plugin = with_plugin
        self._number = 0
        self.rates: list[float] = []
        self.client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            headers={"Authorization": f"Bearer {master_key}"},
            # Let go of idle connections before the server does, or the next request may meet its closing.
            limits=httpx.Limits(max_connections=CONCURRENCY, keepalive_expiry=3.0),
            timeout=60.0,
            trust_env=False,
        )

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


async def measure(folder: Path) -> tuple[list[Figure], list[float], list[float]]:
    """Start everything, load both proxies in turn, and compare."""
    master_key = f"sk-{secrets.token_urlsafe(32)}"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("USAGE_PLUGIN_", "LITELLM_"))
    }
    environment |= {"LITELLM_MASTER_KEY": master_key, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    upstream, ours, nothing = free_port(), free_port(), free_port()
    (folder / "doing_nothing.py").write_text(NOTHING, encoding="utf-8")
    with ExitStack() as stack:

        def start(name: str, command: list[str], cwd: Path) -> tuple[subprocess.Popen[bytes], Path]:
            log = folder / f"{name}.log"
            return stack.enter_context(running(command, cwd=cwd, environment=environment, log=log)), log

        provider = start("provider", [sys.executable, "-m", "tests.proxy.fake_upstream", str(upstream)], _REPOSITORY)
        await wait_until_up(f"http://127.0.0.1:{upstream}/handed_out", *provider)
        started = {}
        for name, port, callback, section in (
            ("ours", ours, "usage_plugin.proxy.callback", SECTION),
            ("nothing", nothing, "doing_nothing.callback", ""),
        ):
            config = folder / f"{name}.yaml"
            config.write_text(
                CONFIG.format(model=MODEL, upstream=upstream, callback=callback) + section, encoding="utf-8"
            )
            command = [str(_LITELLM), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
            started[port] = start(name, [*command, "--timeout_worker_healthcheck", "120"], folder)
        for port, server in started.items():
            await wait_until_up(f"http://127.0.0.1:{port}/health/liveliness", *server)
        return await compare(Proxy(ours, master_key, with_plugin=True), Proxy(nothing, master_key, with_plugin=False))


async def compare(ours: Proxy, nothing: Proxy) -> tuple[list[Figure], list[float], list[float]]:
    """Load the two in turn."""
    async with ours.client, nothing.client:
        for proxy in (ours, nothing):
            await proxy.load(WARM_UP)
        for pair in range(PAIRS):
            for proxy in (ours, nothing) if pair % 2 else (nothing, ours):
                proxy.rates.append(await proxy.load(ROUND))
    ratios = [mine / other for mine, other in zip(ours.rates, nothing.rates, strict=True)]
    low, high = interval(ratios)
    figures = [
        *(
            Figure(
                what=f"{name}, median of {PAIRS} rounds",
                measured=statistics.median(proxy.rates),
                best=max(proxy.rates),
                unit="/s",
            )
            for name, proxy in (("with the plugin", ours), ("with a callback that does nothing", nothing))
        ),
        Figure(what="ratio, median of the pairs", measured=statistics.median(ratios), unit="", at_least=LEAST_RATIO),
        Figure(what="the lowest that this ratio may be (95 % sure)", measured=low, unit=""),
        Figure(what="the highest that this ratio may be (95 % sure)", measured=high, unit=""),
    ]
    return figures, ours.rates, nothing.rates


def interval(ratios: list[float]) -> tuple[float, float]:
    """Say between which of the values their true median lies; on each side it is so with 95 % certainty."""
    ordered = sorted(ratios)
    off = math.ceil(1.645 * math.sqrt(len(ordered)) / 2)
    middle = len(ordered) // 2
    return ordered[middle - off], ordered[min(len(ordered) - 1, middle + off)]


def main() -> None:
    """Measure, and print."""
    as_json = wants_json("proxy", __doc__)
    with temporary_folder() as folder:
        figures, ours, nothing = asyncio.run(measure(folder))
    show("proxy", figures, as_json=as_json, rates={"ours": ours, "nothing": nothing})


if __name__ == "__main__":
    main()
