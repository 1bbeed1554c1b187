"""No event is lost or counted twice when the proxy ends, by SIGTERM or by SIGKILL."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.proxy.conftest import LIMITS, Proxy, proxy_config
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.proxy.conftest import Upstream

pytestmark = pytest.mark.proxy

USER = "dollar-restart"
SLOW = """
import asyncio

from litellm.integrations.custom_logger import CustomLogger


class Slow(CustomLogger):
    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        await asyncio.sleep(0.5)  # LiteLLM tells one callback after the other


callback = Slow()
"""


def body(tokens: int = 1000, **plan: Any) -> dict[str, Any]:
    text = json.dumps({"in": 0, "out": 1000, **plan})
    return {"model": "cent", "user": USER, "max_tokens": tokens, "messages": [{"role": "user", "content": text}]}


async def test_the_books_survive_sigterm_and_sigkill(tmp_path: Path, upstream: Upstream) -> None:
    """After SIGTERM and SIGKILL the limit holds, every event is recorded once, and the lost request is charged.

    At SIGTERM one stream is in flight, the ends of others are not logged yet, and a client has just left.
    """
    (tmp_path / "slow.py").write_text(SLOW)
    config = proxy_config(upstream, {"limits": LIMITS})
    config["litellm_settings"]["callbacks"].insert(0, "slow.callback")
    proxy = Proxy(tmp_path, config)
    proxy.start()
    try:
        await spend(proxy, 18)
        await end_while_busy(proxy, streams=20)
        check(proxy, spent="0.40", events=40)
        found = Counter((event["status"], event["cost_source"], event["estimated"]) for event in proxy.events(USER))
        assert found == {("success", "computed", False): 39, ("cancelled", "reserved", True): 1}

        proxy.start()
        await spend(proxy, 30)
        async with proxy.client() as client:
            lost = asyncio.create_task(client.chat.completions.create(**body(2000, delay=60)))
            await eventually(lambda: proxy.cli("status")["reservations"]["open"])
            proxy.stop(signal.SIGKILL)
            with pytest.raises(openai.APIConnectionError):
                await lost
        account = proxy.limit("dollar", user=USER)
        assert (account["spent"], account["reserved"]) == ("0.70", "0.02"), "the hold stays until it is recovered"

        proxy.start()
        proxy.settled()
        check(proxy, spent="0.72", events=71)
        (recovered,) = [event for event in proxy.events(USER) if event["status"] == "recovered"]
        assert (recovered["cost"], recovered["cost_source"], recovered["estimated"]) == ("0.02", "reserved", True)
        await spend(proxy, 28)
        refused = proxy.post("/v1/chat/completions", body())
        assert refused.status_code == 402
        check(proxy, spent="1.00", events=99)
    finally:
        proxy.stop(signal.SIGKILL)


async def spend(proxy: Proxy, times: int) -> None:
    """Send requests of a cent each, half of them streams, until the process ends."""

    async def one(client: openai.AsyncOpenAI, number: int) -> None:
        answer: Any = await client.chat.completions.create(**body(), stream=bool(number % 2))
        if number % 2:
            async for _ in answer:
                pass

    async with proxy.client() as client:
        await asyncio.gather(*(one(client, number) for number in range(times)))
    if proxy.cli("status")["reservations"]["open"]:
        proxy.settled()


async def end_while_busy(proxy: Proxy, *, streams: int) -> None:
    """Send SIGTERM at the last byte of many streams, in the middle of another, and just after a client has left."""
    async with proxy.client() as client:
        leaving = asyncio.create_task(client.chat.completions.create(**body(hold=30), stream=True))
        await eventually(lambda: proxy.cli("status")["reservations"]["open"])
        await asyncio.sleep(1)
        leaving.cancel()
        slow: Any = await client.chat.completions.create(**body(pause=0.7), stream=True)
        await anext(slow)

        async def fast() -> None:
            async for _ in await client.chat.completions.create(**body(), stream=True):
                pass

        await asyncio.gather(*(fast() for _ in range(streams)))
        ending = asyncio.create_task(asyncio.to_thread(proxy.stop, signal.SIGTERM))
        chunks = [chunk async for chunk in slow]
        assert chunks[-1].choices[0].finish_reason == "stop", "the server waits for what is under way"
        await ending


def check(proxy: Proxy, *, spent: str, events: int) -> None:
    account = proxy.limit("dollar", user=USER)
    assert (account["spent"], account["reserved"]) == (spent, "0.00")
    found = proxy.events(USER)
    assert len(found) == len({event["event_id"] for event in found}) == events
    assert sum(Decimal(event["cost"]) for event in found) == Decimal(spent)
    (row,) = proxy.cli("report", "--user", USER)["rows"]
    assert (row["requests"], row["cost"]) == (events, spent)
