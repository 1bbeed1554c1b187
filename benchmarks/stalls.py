"""The longest stall: the time for which one request blocks the event loop for all the others.

There are two requests. One is a prompt of 100,000 tokens whose bytes do not fit its limit, so that its tokens are
counted. One of 5 MB is refused by its bytes. The loop's clock ticks meanwhile. The figure is the longest delay of a
tick, as the median of the rounds. The first row shows the delay without a request: the machine's share.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
from typing import TYPE_CHECKING, Any

import litellm
import uvloop
from litellm.proxy import proxy_server
from litellm.proxy._types import ProxyException, UserAPIKeyAuth

from benchmarks.disk import temporary_folder
from benchmarks.figures import Figure, show, wants_json
from benchmarks.ticking import longest_stall
from usage_plugin.config import DATA_DIR_VARIABLE, load_config
from usage_plugin.proxy import handler, request_scope
from usage_plugin.proxy.price_book import PriceBook
from usage_plugin.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

MODEL = "gpt-4o"
ROUNDS = 15
MOST_MS = 20.0
SECTION = """
usage_plugin:
  data_dir: ./usage
  limits:
    - {name: tokens, per: user, window: day, max_input_tokens: 150000}
"""
WORDS = ("handle", "spade", "broke", "after", "two", "winters", "outside", "what", "wood", "is", "best")


def long_prompt(tokens: int) -> str:
    """Write a prompt of about the given number of tokens; English has one for each word."""
    rng = random.Random(tokens)
    return " ".join(rng.choice(WORDS) for _ in range(tokens))


async def measure(folder: Path) -> list[Figure]:
    """Start the plugin as the proxy would, and send large requests."""
    config = folder / "config.yaml"
    config.write_text(SECTION, encoding="utf-8")
    os.environ[DATA_DIR_VARIABLE] = str(folder / "usage")  # never the one of a proxy that is set up here
    parameters = {"model": f"openai/{MODEL}", "api_key": "none-needed"}
    proxy_server.llm_router = litellm.Router(model_list=[{"model_name": MODEL, "litellm_params": parameters}])
    runtime = Runtime(load_config(config))
    hooks = handler.UsageHandler_PROXY_(runtime, PriceBook())
    users = iter(range(10**9))

    async def ask(prompt: str, *, admitted: bool) -> None:
        request_scope.current.set(request_scope.RequestScope())
        user = f"user {next(users)}"
        data: dict[str, Any] = {
            "model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": 10, "metadata": {},
        }  # fmt: skip
        key = UserAPIKeyAuth(api_key=user, token=user, user_id=user)
        try:
            await hooks.async_pre_call_hook(user_api_key_dict=key, cache=None, data=data, call_type="acompletion")
        except ProxyException:
            if admitted:
                raise
        else:
            if not admitted:
                raise RuntimeError("A request of the benchmark was admitted that should not fit.")

    counted, large = long_prompt(100_000), "x" * 5_000_000
    await ask(counted, admitted=True)  # the tokenizer is loaded once, in a thread

    async def stalls(what: str, work: Callable[[], Awaitable[Any]], at_most: float | None = None) -> Figure:
        found = [await longest_stall(work) for _ in range(ROUNDS)]
        return Figure(what=what, measured=statistics.median(found), best=min(found), unit="ms", at_most=at_most)

    try:
        return [
            await stalls("nothing is asked", lambda: asyncio.sleep(0.1)),
            await stalls("a prompt of 100,000 tokens is counted", lambda: ask(counted, admitted=True), MOST_MS),
            await stalls("a prompt of 5 MB is refused", lambda: ask(large, admitted=False), MOST_MS),
        ]
    finally:
        await runtime.close()


def main() -> None:
    """Measure, and print."""
    as_json = wants_json("stalls", __doc__)
    with temporary_folder() as folder:
        figures = uvloop.run(measure(folder))
    show("stalls", figures, as_json=as_json)


if __name__ == "__main__":
    main()
