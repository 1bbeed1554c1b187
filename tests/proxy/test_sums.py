"""The upstream's usage, the events, the report and the limits all give the same sum."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from tests.proxy.conftest import PRICES
from tests.support import plain_http, soak

if TYPE_CHECKING:
    from tests.proxy.conftest import Proxy, Upstream

pytestmark = pytest.mark.proxy

REQUESTS = {1: 500, 4: 1000}
"""Requests by the number of workers: several workers have more failure modes, and are faster."""
MODELS = ("chat", "text", "embed", "resp", "claude")
AT_ONCE = 32


def price(model: str, key: str) -> Decimal:
    return Decimal(repr(PRICES[model].get(key, 0)))


def cost_of(model: str, sums: dict[str, int]) -> Decimal:
    cached = sums.get("cached", 0)
    dear = price(model, "input_cost_per_token")
    cached_rate = (
        price(model, "cache_read_input_token_cost") if "cache_read_input_token_cost" in PRICES[model] else dear
    )
    return (
        (sums.get("in", 0) - cached) * dear
        + cached * cached_rate
        + sums.get("out", 0) * price(model, "output_cost_per_token")
    )


async def drain(answer: Any) -> None:
    async for _ in answer:
        pass


async def send(
    kind: str, client: openai.AsyncOpenAI, http: httpx.AsyncClient, user: str, plan: dict[str, Any], *, stream: bool
) -> None:
    # A real provider counts at most one token per byte it receives.
    text = json.dumps({**plan, "padding": "x" * plan["in"]})
    if kind in ("chat", "cached"):
        extra = {"cache": {"use-cache": True}} if kind == "cached" else {}
        answer: Any = await client.chat.completions.create(
            model="chat",
            user=user,
            stream=stream,
            messages=[{"role": "user", "content": text}],
            extra_body=extra,
            max_tokens=500,
        )
    elif kind == "text":
        answer = await client.completions.create(model="text", user=user, stream=stream, prompt=text, max_tokens=500)
    elif kind == "embed":
        await client.embeddings.create(model="embed", user=user, input=text, encoding_format="float")
        return
    elif kind == "resp":
        answer = await client.responses.create(
            model="resp", user=user, stream=stream, input=text, max_output_tokens=500
        )
    else:
        body = {"model": "claude", "max_tokens": 500, "stream": stream, "metadata": {"user_id": user}}
        body["messages"] = [{"role": "user", "content": text}]
        response = await http.post("/v1/messages", json=body)
        if response.status_code != 200 or (stream and "message_stop" not in response.text):
            raise httpx.HTTPStatusError(response.text, request=response.request, response=response)
        return
    if stream:
        await drain(answer)


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=soak.REPETITIONS)])
async def test_all_books_agree_to_the_nano_dollar(one_or_many: Proxy, upstream: Upstream, times: int) -> None:
    """Over 1,000 mixed requests (500 with one worker) on five routes, with failures and cache hits, all sums agree."""
    upstream.reset()
    mark = secrets.token_hex(3)
    users = [f"mixed-{mark}-{name}" for name in ("ann", "bo", "eva", "zoë", "../../x")]
    rng = random.Random(1)
    jobs = []
    requests = times * REQUESTS[one_or_many.workers]
    for number in range(requests):
        kind = rng.choice(["chat", "chat", "text", "embed", "resp", "claude", "cached"])
        plan = {"in": rng.randint(1, 900), "out": rng.randint(0, 500), "delay": rng.choice([0, 0.01])}
        plan["cached"] = rng.randint(0, plan["in"]) if kind in ("chat", "resp", "claude") else 0
        plan["reasoning"] = rng.randint(0, plan["out"]) if kind in ("chat", "resp") else 0
        if kind == "cached":
            plan = {"in": 50, "out": number % 10, "cached": 0, "mark": mark}
        elif rng.random() < 0.05:
            plan["status"] = rng.choice([500, 429, 400])
        jobs.append((kind, rng.choice(users), plan, rng.random() < 0.5))
    gate = asyncio.Semaphore(AT_ONCE)
    results: Counter[str] = Counter()

    async def one(job: Any, client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
        kind, user, plan, stream = job
        async with gate:
            try:
                await send(kind, client, http, user, plan, stream=stream)
                results["answered"] += 1
            except (openai.APIError, httpx.HTTPStatusError) as error:
                assert plan.get("status", 200) != 200, f"only planned failures fail, not this {kind}: {error}"
                results["failed"] += 1

    headers = {"Authorization": f"Bearer {one_or_many.key}"}
    async with (
        one_or_many.client() as client,
        plain_http.AsyncClient(base_url=one_or_many.url, headers=headers, timeout=60) as http,
    ):
        await asyncio.gather(*(one(job, client, http) for job in jobs))
    one_or_many.settled()

    planned = sum(plan.get("status", 200) != 200 for _, _, plan, _ in jobs)
    assert results == {"answered": requests - planned, "failed": planned}
    # Requests that other tests left running may also have been answered meanwhile.
    handed = {name: sums for name, sums in upstream.handed_out().items() if name.removesuffix("-up") in MODELS}
    expected = sum((cost_of(model.removesuffix("-up"), sums) for model, sums in handed.items()), Decimal())
    events = [event for user in users for event in one_or_many.events(user)]
    assert len(events) == requests
    assert len({event["event_id"] for event in events}) == requests
    assert not [event for event in events if event["cost_source"] not in ("computed", "none")]
    assert Counter(event["status"] for event in events) == {"success": requests - planned, "failure": planned}
    assert not [event for event in events if Decimal(event["excess"])]
    hits = [event for event in events if event["cache_hit"]]
    assert hits
    assert all(Decimal(event["cost"]) == 0 and event["input_tokens"] == 0 for event in hits)
    by_events = sum(Decimal(event["cost"]) for event in events)
    report = one_or_many.cli("report", "--by", "user,model", "--since", "2d")
    ours = [row for row in report["rows"] if row["user"] in users]
    by_report = sum(Decimal(row["cost"]) for row in ours)
    accounts = [one_or_many.limit("mixed", user=user) for user in users]
    by_limits = sum(Decimal(account["spent"]) for account in accounts)
    assert by_events == by_report == by_limits == expected
    assert all(Decimal(account["reserved"]) == 0 for account in accounts)
    for key, column in (("in", "input_tokens"), ("out", "output_tokens")):
        assert sum(event[column] for event in events) == sum(sums.get(key, 0) for sums in handed.values())
        assert sum(row[column] for row in ours) == sum(sums.get(key, 0) for sums in handed.values())
    assert sum(event["cached_input_tokens"] for event in events) == sum(
        sums.get("cached", 0) for sums in handed.values()
    )
    assert sum(row["failed_requests"] for row in ours) == planned
