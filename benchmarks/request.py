"""One request, hook to hook: all of the plugin's work for it, from the pre-call hook to the settled event.

The real parts (handler, price book, runtime with its keeper, ledger file) process requests in LiteLLM's form, in one
event loop, one after the other. Blocks alternate with pauses for the keeper: about 300 requests a second, more than a
worker of LiteLLM serves. `Measured` is the median over the blocks, `Best block` the result on an otherwise idle
machine. The total is measured without any instrument. The split comes from a second pass with a stopwatch around each
part, so its parts add up to a little more. `of which` rows are included in the row above. The last rows show how much
slower any code runs in between LiteLLM's than back to back.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import statistics
import time
import uuid
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import litellm
import uvloop
from litellm.proxy import proxy_server
from litellm.proxy._types import UserAPIKeyAuth
from litellm.types.utils import PromptTokensDetailsWrapper, Usage

from benchmarks.disk import temporary_folder
from benchmarks.figures import Figure, Yardstick, percentile, show, wants_json
from benchmarks.three_limits import MODEL, SECTION
from usage_plugin.config import DATA_DIR_VARIABLE, load_config
from usage_plugin.proxy import charges, handler, request_scope, usage_parsing
from usage_plugin.proxy.price_book import PriceBook
from usage_plugin.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WARM_UP = 500
BLOCKS = 20
BLOCK = 250
PAUSE = 0.5
USERS = 500
MOST_US = 300.0

SYSTEM = "You are the assistant of a company that sells garden tools. Answer briefly, and name your sources. " * 8
TURN = (
    "The handle of my spade broke after two winters outside, and I would like to know which wood to replace it with. "
)
IDENTITY, ASKING, ADMISSION, RESERVE = "identity", "bounds and prices", "admission", "of which ledger.reserve"
READING, RECORDING, SETTLE = "reading the outcome", "recording", "of which ledger.settle"
REST = "the rest"


class Stopwatches:
    """Stopwatches around methods and functions; each adds up the microseconds of its part in `seen`."""

    def __init__(self) -> None:
        """Start with nothing wrapped."""
        self.seen: defaultdict[str, float] = defaultdict(float)

    def wrap(self, owner: object, name: str, part: str) -> None:
        """Put a stopwatch around an attribute of an object or module."""
        setattr(owner, name, self._timed(getattr(owner, name), part))

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def add(started: int) -> None:
            self.seen[part] += (time.perf_counter_ns() - started) / 1000

        async def timed_coroutine(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter_ns()
            try:
                return await function(*args, **kwargs)
            finally:
                add(started)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter_ns()
            try:
                return function(*args, **kwargs)
            finally:
                add(started)

        return timed_coroutine if inspect.iscoroutinefunction(function) else timed


class LoggingObject:
    """The part of LiteLLM's logging object that hooks may read."""

    def __init__(self, details: dict[str, Any]) -> None:
        """Store LiteLLM's notes."""
        self.model_call_details = details


class Client:
    """Makes requests and answers in the form in which LiteLLM passes them to hooks."""

    def __init__(self, deployment_id: str) -> None:
        """Take the id of the deployment that answers."""
        self._deployment_id = deployment_id
        self._random = random.Random(1)

    def request(self) -> tuple[UserAPIKeyAuth, dict[str, Any]]:
        """Make a chat of seven messages without an output limit, so that one is injected."""
        number = self._random.randrange(USERS)
        key_hash = f"{number:064x}"
        user = f"user-{number}@example.com"
        key = UserAPIKeyAuth(
            api_key=key_hash, token=key_hash, key_alias=f"key {number}", user_id=user, team_id="garden"
        )
        # As LiteLLM sets it for each virtual key.
        key.via_virtual_key = True
        headers = {"host": "proxy.example.com", "user-agent": "client/1.0", "content-type": "application/json"}
        turns = [{"role": ("user", "assistant")[at % 2], "content": TURN * (at + 1)} for at in range(6)]
        messages = [{"role": "system", "content": SYSTEM}, *turns]
        data: dict[str, Any] = {
            "model": MODEL,
            "messages": messages,
            "metadata": {
                "headers": headers,
                "user_api_key_hash": key_hash,
                "user_api_key_user_id": user,
                "tags": ["User-Agent: client/1.0", "shop"],
            },
            "proxy_server_request": {
                "url": "http://proxy.example.com/v1/chat/completions",
                "method": "POST",
                "headers": headers,
                "body": {"model": MODEL, "messages": messages},
            },
            "litellm_call_id": str(uuid.uuid4()),
        }
        return key, data

    def answer(self, data: dict[str, Any]) -> litellm.ModelResponse:
        """Answer, and write the router's notes into the request."""
        routing = {
            "model_group": MODEL,
            "deployment": f"openai/{MODEL}",
            "model_info": {"id": self._deployment_id},
        }
        data["metadata"].update(routing)
        data["litellm_logging_obj"] = LoggingObject(
            {
                "custom_llm_provider": "openai",
                "litellm_params": {"metadata": data["metadata"]},
            }
        )
        tokens_in, tokens_out = self._random.randrange(500, 1_500), self._random.randrange(10, 500)
        usage = Usage(
            prompt_tokens=tokens_in,
            completion_tokens=tokens_out,
            total_tokens=tokens_in + tokens_out,
            prompt_tokens_details=PromptTokensDetailsWrapper(cached_tokens=256),
        )
        answer = litellm.ModelResponse(model=MODEL, usage=usage)
        answer._hidden_params = {
            "model_id": self._deployment_id,
            # LiteLLM's own figure agrees, as it mostly does.
            "response_cost": (tokens_in - 256) * 2.5e-6 + 256 * 1.25e-6 + tokens_out * 1e-5,
            "custom_llm_provider": "openai",
        }
        return answer


class Drive:
    """Takes requests through the hooks."""

    def __init__(self, hooks: handler.UsageHandler_PROXY_, client: Client) -> None:
        """Take the two sides."""
        self._hooks = hooks
        self._client = client
        self.yardstick = Yardstick()

    async def one(self) -> float:
        """Take one request through both hooks; return the time spent in them, in microseconds."""
        key, data = self._client.request()
        request_scope.current.set(request_scope.RequestScope())
        started = time.perf_counter_ns()
        await self._hooks.async_pre_call_hook(user_api_key_dict=key, cache=None, data=data, call_type="acompletion")
        admitted = time.perf_counter_ns()
        answer = self._client.answer(data)
        answered = time.perf_counter_ns()
        await self._hooks.async_post_call_success_hook(data=data, user_api_key_dict=key, response=answer)
        ended = time.perf_counter_ns()
        self.yardstick.measure()
        await asyncio.sleep(0)  # yield to the loop, as in a proxy
        here = request_scope.current.get()
        if here is None or not here.requests or not here.requests[-1].settled:
            raise RuntimeError("A request of the benchmark was not settled.")
        return ((ended - answered) + (admitted - started)) / 1000


async def measure(folder: Path) -> list[Figure]:
    """Start the plugin as the proxy would, measure the total, then the parts."""
    config = folder / "config.yaml"
    config.write_text(SECTION, encoding="utf-8")
    os.environ[DATA_DIR_VARIABLE] = str(folder / "usage")  # never the one of a proxy that is set up here
    router = litellm.Router(
        model_list=[
            {
                "model_name": MODEL,
                "litellm_params": {
                    "model": f"openai/{MODEL}",
                    "api_key": "none-needed",
                    "input_cost_per_token": 0.0000025,
                    "output_cost_per_token": 0.00001,
                    "cache_read_input_token_cost": 0.00000125,
                },
            }
        ]
    )
    proxy_server.llm_router = router
    runtime = Runtime(load_config(config))
    try:
        hooks = handler.UsageHandler_PROXY_(runtime, PriceBook())
        drive = Drive(hooks, Client(router.get_model_ids()[0]))
        for _ in range(WARM_UP):
            await drive.one()
        totals = []
        for _ in range(BLOCKS):
            await asyncio.sleep(PAUSE)
            totals.append([await drive.one() for _ in range(BLOCK)])
        return [
            over_blocks("everything", totals, 0.50, at_most=MOST_US),
            over_blocks("everything", totals, 0.99),
            *await split(drive, hooks, runtime),
            *drive.yardstick.figures(),
        ]
    finally:
        await runtime.close()


async def split(drive: Drive, hooks: handler.UsageHandler_PROXY_, runtime: Runtime) -> list[Figure]:
    """Measure again with stopwatches around the parts."""
    watches = Stopwatches()
    watches.wrap(hooks._identification, "subjects_of", IDENTITY)
    watches.wrap(hooks._admission.planner, "plan", ASKING)
    watches.wrap(runtime.admission, "admit", ADMISSION)
    watches.wrap(runtime.ledger, "reserve", RESERVE)
    watches.wrap(usage_parsing, "read_answer", READING)
    watches.wrap(charges, "read_outcome", READING)
    watches.wrap(runtime.recorder, "record", RECORDING)
    watches.wrap(runtime.ledger, "settle", SETTLE)
    blocks: dict[str, list[list[float]]] = {
        part: [] for part in (IDENTITY, ASKING, ADMISSION, RESERVE, READING, RECORDING, SETTLE, REST)
    }
    for _ in range(BLOCKS):
        await asyncio.sleep(PAUSE)
        for of_part in blocks.values():
            of_part.append([])
        for _ in range(BLOCK):
            watches.seen.clear()
            total = await drive.one()
            watches.seen[REST] = total - sum(
                watches.seen[part] for part in (IDENTITY, ASKING, ADMISSION, READING, RECORDING)
            )
            for part, of_part in blocks.items():
                of_part[-1].append(watches.seen[part])
    return [over_blocks(part, of_part, 0.50) for part, of_part in blocks.items()]


def over_blocks(what: str, blocks: list[list[float]], share: float, at_most: float | None = None) -> Figure:
    """Take the median over the blocks, and the best one."""
    values = [percentile(block, share) for block in blocks]
    return Figure(
        what=f"{what}, p{share * 100:g}",
        measured=statistics.median(values),
        best=min(values),
        unit="µs",
        at_most=at_most,
    )


def main() -> None:
    """Measure, and print."""
    as_json = wants_json("request", __doc__)
    with temporary_folder() as folder:
        figures = uvloop.run(measure(folder))
    show("request", figures, as_json=as_json)


if __name__ == "__main__":
    main()
