"""Limits hold to the nano-dollar under concurrency, with one worker and with several."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import openai
import pytest

if TYPE_CHECKING:
    from tests.proxy.conftest import Proxy

pytestmark = pytest.mark.proxy

AT_ONCE = 64
REQUESTS = 400


async def send(client: openai.AsyncOpenAI, user: str, *, stream: bool, worst_tokens: int) -> Any:
    """Send one request that costs exactly $0.01: 1,000 tokens of output, regardless of its bound."""
    plan = json.dumps({"in": 7, "out": 1000})
    answer = await client.chat.completions.create(
        model="cent", user=user, max_tokens=worst_tokens, stream=stream, messages=[{"role": "user", "content": plan}]
    )
    if stream:
        async for _ in answer:
            pass
    return answer


async def in_parallel(proxy: Proxy, one: Any) -> list[Any]:
    gate = asyncio.Semaphore(AT_ONCE)

    async def gated(client: openai.AsyncOpenAI) -> Any:
        async with gate:
            return await one(client)

    async with proxy.client() as client:
        return await asyncio.gather(*(gated(client) for _ in range(REQUESTS)))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_exactly_what_fits_is_admitted(any_proxy: Proxy, stream: bool) -> None:
    """Of 400 requests of $0.01 against $1.00, 64 at once, exactly 100 succeed and exactly $1 is spent."""
    user = f"dollar-{secrets.token_hex(4)}"
    refusals: list[openai.APIStatusError] = []

    async def one(client: openai.AsyncOpenAI) -> str:
        while True:
            try:
                await send(client, user, stream=stream, worst_tokens=1000)
            except openai.APIStatusError as error:
                refusals.append(error)
                if error.body["type"] == "budget_busy":
                    await asyncio.sleep(float(error.response.headers["retry-after-ms"]) / 1000)
                    continue
                return "refused"
            return "answered"

    outcomes = Counter(await in_parallel(any_proxy, one))
    any_proxy.settled()
    assert outcomes == {"answered": 100, "refused": 300}
    account = any_proxy.limit("dollar", user=user)
    assert (Decimal(account["spent"]), Decimal(account["reserved"])) == (Decimal("1.000000000"), 0)
    final = [error for error in refusals if error.body["type"] != "budget_busy"]
    assert len(final) == 300
    for error in final:
        assert error.status_code == 402
        assert error.body["type"] == "budget_exceeded"
        assert error.body["param"] == "dollar"
        assert error.response.headers["x-usage-refusal"] == "spent"
        assert error.response.headers["x-usage-limit"] == "dollar"
        assert error.response.headers["x-should-retry"] == "false"
        assert "retry-after" not in error.response.headers
        fields = error.body["provider_specific_fields"]
        assert (fields["reason"], fields["limit"], fields["unit"], fields["max"]) == ("spent", "dollar", "usd", "1.00")
        assert Decimal(fields["spent"]) + Decimal(fields["needed"]) > 1


async def test_a_wide_worst_case_neither_overspends_nor_wastes(any_proxy: Proxy) -> None:
    """With a worst case of five times the cost, and clients that wait as instructed, $0.95 to $1.00 is spent."""
    user = f"dollar-{secrets.token_hex(4)}"

    async def one(client: openai.AsyncOpenAI) -> str:
        while True:
            try:
                await send(client, user, stream=False, worst_tokens=5000)
            except openai.APIStatusError as error:
                if error.body["type"] == "budget_busy":
                    assert error.status_code == 429
                    assert 1 <= int(error.response.headers["retry-after"]) <= 60
                    await asyncio.sleep(float(error.response.headers["retry-after-ms"]) / 1000)
                    continue
                return "refused"
            return "answered"

    outcomes = Counter(await in_parallel(any_proxy, one))
    account = any_proxy.limit("dollar", user=user)
    assert Decimal("0.95") < Decimal(account["spent"]) <= 1
    assert Decimal(account["reserved"]) == 0
    assert Decimal(account["spent"]) == Decimal("0.01") * outcomes["answered"]
