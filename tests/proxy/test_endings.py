"""Every way a request can end: one event, the right status, the right cost, and nothing reserved afterwards.

All rows are sent at once, each under a user of its own; the tests read what was recorded. The rows that need other
settings, or somebody else's hooks, go to a second proxy.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import httpx
import pytest

from tests.proxy.conftest import PRICES, Proxy, proxy_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.proxy.conftest import Upstream

pytestmark = pytest.mark.proxy

Cost = Literal["full", "reserved", "part", "nothing", "unknown", "something"]
"""What the one event costs: what the provider's usage says; what was held; some of it, estimated; zero; nobody knows;
whatever it is, more than zero."""

ROUTES = {
    "chat": ("/v1/chat/completions", "cent"),
    "messages": ("/v1/messages", "claude"),
    "bridged": ("/v1/messages", "cent"),  # Anthropic's format, answered by OpenAI's Responses API
    "responses": ("/v1/responses", "resp"),
    "text": ("/v1/completions", "text"),
    "embeddings": ("/v1/embeddings", "embed"),
}


BEGUN_OR_NOT = "begun or not"
"""LiteLLM may tell of the failure in the status, or in a stream that has begun."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A request, how its client behaves, and what is to be recorded of it.

    Attributes:
        leave: the client hangs up once the upstream has the request, or at the first words of the answer.
        answers: the HTTP status, or its first figure; None if the client did not wait for it.
        status: of the event; None if there is to be none.
    """

    name: str
    route: str = "chat"
    stream: bool = False
    model: str | None = None
    plan: dict[str, Any] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    leave: Literal["waiting", "midway"] | None = None
    answers: int | str | None = 200
    status: str | None = "success"
    cost: Cost = "full"
    billed: str | None = None
    user: str = "dollar"
    times: int = 1

    @property
    def id(self) -> str:
        return f"{self.name}-{self.route}-{'stream' if self.stream else 'whole'}"

    @property
    def asked(self) -> str:
        return self.model or ROUTES[self.route][1]

    @property
    def full_plan(self) -> dict[str, Any]:
        return {"in": 100, "out": 20, "cached": 0, "chunks": 6, **self.plan}

    def request(self, user: str) -> dict[str, Any]:
        """Make the body. A real provider counts at most one token for each byte, so the text is long enough."""
        plan = {**self.full_plan, "mark": user, "padding": "x" * self.full_plan["in"]}
        text = json.dumps(plan)
        message = [{"role": "user", "content": text}]
        body: dict[str, Any] = {"model": self.asked, "user": user, "stream": self.stream}
        if self.route == "chat":
            body |= {"messages": message, "max_tokens": 200}
        elif self.route in ("messages", "bridged"):
            del body["user"]
            body |= {"messages": message, "max_tokens": 200, "metadata": {"user_id": user}}
        elif self.route == "responses":
            body |= {"input": text, "max_output_tokens": 200}
        elif self.route == "text":
            body |= {"prompt": text, "max_tokens": 200}
        else:
            body |= {"input": text}
            del body["stream"]
        return {name: value for name, value in {**body, **self.body}.items() if value is not None}


BOTH = (False, True)
THREE = ("chat", "messages", "responses")
FOUR = (*THREE, "bridged")


def rows(name: str, routes: Sequence[str] = THREE, streams: Sequence[bool] = BOTH, **how: Any) -> list[Row]:
    """Make a row for each route, streamed and not."""
    return [Row(name=name, route=route, stream=stream, **how) for route in routes for stream in streams]


STREAMED = (True,)
WHOLE = (False,)
FAILING = {"answers": 500, "status": "failure", "cost": "nothing"}
BROKEN = {"answers": BEGUN_OR_NOT, "status": "failure", "cost": "something"}
LEFT = {"answers": None, "status": "cancelled"}

ROWS = [
    *rows("success", (*FOUR, "text")),
    *rows("success", ("embeddings",), WHOLE),
    *rows("no-usage", plan={"silent": True}, cost="something"),
    *rows("left-midway", THREE, STREAMED, plan={"pause": 0.5}, leave="midway", cost="part", **LEFT),
    *rows("left-midway", ("bridged",), STREAMED, plan={"pause": 0.5}, leave="midway", cost="reserved", **LEFT),
    *rows("left-before-the-headers", FOUR, STREAMED, plan={"delay": 4}, leave="waiting", cost="something", **LEFT),
    *rows("left-before-the-first-chunk", FOUR, STREAMED, plan={"hold": 6}, leave="waiting", cost="reserved", **LEFT),
    *rows("left-whole", FOUR, WHOLE, plan={"delay": 5}, leave="waiting", answers=None),
    *rows("upstream-500", FOUR, plan={"status": 500}, **FAILING),
    *rows("upstream-429", plan={"status": 429}, answers=429, status="failure", cost="nothing"),
    *rows("upstream-500-retried", plan={"status": 500}, body={"num_retries": 1}, **FAILING),
    *rows("impatient-client", plan={"delay": 6}, body={"timeout": 1}, answers=408, status="failure", cost="reserved"),
    *rows("retry-then-success", plan={"fail_first": 1}, body={"num_retries": 2}),
    *rows("dearer-fallback", ("chat", "responses"), model="broken", billed="cent"),
    *rows("paid-fallback-of-a-free-model", ("chat", "responses"), model="broken-free", billed="cent"),
    *rows("fallback-too-dear", ("chat",), model="broken-dear", plan={"out": 10}, **FAILING),
    *rows("upstream-drops", FOUR, STREAMED, plan={"drop": 4, "pause": 0.1}, **BROKEN),
    *rows("upstream-error-frame", ("chat", "responses", "bridged"), STREAMED, plan={"error": 4, "pause": 0.1}, **BROKEN),
    # In Anthropic's format LiteLLM hands the frame through, and takes it for a success.
    *rows("upstream-error-frame", ("messages",), STREAMED, plan={"error": 4}, cost="something"),
    *rows("refused-by-us", (*FOUR, "text"), user="blocked", answers=402, status=None),
    *rows("unpriced-model", ("chat",), model="no-such-model", answers=400, status=None),
    *rows("comma-models", ("chat",), model="cent,free", answers=400, status=None),
    *rows("no-messages", ("chat",), body={"messages": None}, answers=400, status="failure", cost="nothing"),
    *rows("bad-key", headers={"Authorization": "Bearer sk-wrong"}, answers=4, status=None),
    *rows("no-log", FOUR, body={"no-log": True}),
    *rows("shared-call-id", FOUR, headers={"x-litellm-call-id": "chosen"}, plan={"delay": 0.5}, times=2),
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Books:
    """What was answered to each row, and what was recorded of it."""

    answers: dict[str, list[int | None]]
    bodies: dict[str, list[str]]
    events: dict[str, list[dict[str, Any]]]
    accounts: dict[str, dict[str, Any]]

    def check(self, row: Row) -> None:
        """One event for each request, its status, its cost; and nothing held."""
        for answer in self.answers[row.id]:
            assert row.answers in (answer, answer and answer // 100, BEGUN_OR_NOT), self.bodies[row.id]
        events = self.events.get(row.id, [])
        assert len(events) == (row.times if row.status else 0), (events, self.bodies[row.id])
        for event in events:
            assert event["status"] == row.status, event
            assert event["error"] is None or row.status != "success"
            check_cost(event, row)
        if events:
            account = self.accounts[row.id]
            assert Decimal(account["reserved"]) == 0
            assert Decimal(account["spent"]) == sum(Decimal(event["cost"] or 0) for event in events)


def check_cost(event: dict[str, Any], row: Row) -> None:
    """Compare an event's cost with what the row says."""
    cost, reserved = (Decimal(event[name]) if event[name] is not None else None for name in ("cost", "reserved"))
    assert reserved is not None
    if row.cost == "full":
        price = PRICES[row.billed or row.asked]
        tokens = (("in", "input_cost_per_token"), ("out", "output_cost_per_token"))
        plan = row.full_plan | ({"out": 0} if row.route == "embeddings" else {})
        expected = sum(plan[name] * Decimal(repr(price.get(key, 0))) for name, key in tokens)
        assert cost == expected, event
        assert (event["cost_source"], event["estimated"]) == ("computed", False), event
        assert event["model"] == (row.billed or row.asked)
    elif row.cost == "reserved":
        assert cost is not None
        assert cost == reserved > 0, event
        assert (event["cost_source"], event["estimated"]) == ("reserved", True)
    elif row.cost == "part":
        assert cost is not None
        assert 0 < cost < reserved, event
        assert event["estimated"], event
    elif row.cost == "something":
        assert cost is not None
        assert 0 < cost <= reserved, event
    else:
        assert cost == (0 if row.cost == "nothing" else None), event
    assert Decimal(event["excess"]) == 0


async def send(http: httpx.AsyncClient, upstream: Upstream, row: Row, user: str) -> tuple[int | None, str]:
    """Send one request, and behave as the row says."""
    route, body = ROUTES[row.route][0], row.request(user)
    if row.leave is None:
        answer = await http.post(route, json=body, headers=row.headers)
        return answer.status_code, answer.text
    if row.leave == "midway":
        async with http.stream("POST", route, json=body, headers=row.headers) as answer:
            text = ""
            async for chunk in answer.aiter_text():
                text += chunk
                if "hi " in text:
                    break
        return None, text
    waiting = asyncio.create_task(http.post(route, json=body, headers=row.headers))
    while user not in (await http.get(f"{upstream.url}/seen")).json():
        await asyncio.sleep(0.2)
    await asyncio.sleep(0.3)
    waiting.cancel()
    return None, ""


def fill(proxy: Proxy, upstream: Upstream, all_rows: Sequence[Row], *, seconds: float = 30) -> Books:
    """Send all rows at once, wait until all are settled, and read the books."""
    mark = secrets.token_hex(3)
    users = {f"{row.user}-{mark}-{row.id}": row for row in all_rows}
    answers: dict[str, list[int | None]] = {row.id: [] for row in all_rows}
    bodies: dict[str, list[str]] = {row.id: [] for row in all_rows}

    async def one(http: httpx.AsyncClient, user: str, row: Row) -> None:
        status, text = await send(http, upstream, row, user)
        answers[row.id].append(status)
        bodies[row.id].append(text[:500])

    async def everything() -> None:
        headers = {"Authorization": f"Bearer {proxy.key}"}
        limits = httpx.Limits(max_connections=1000)
        async with httpx.AsyncClient(base_url=proxy.url, headers=headers, timeout=60, limits=limits) as http:
            await asyncio.gather(*(one(http, user, row) for user, row in users.items() for _ in range(row.times)))

    asyncio.run(everything())
    proxy.settled(seconds=seconds)
    events: dict[str, list[dict[str, Any]]] = {}
    for event in proxy.cli("events", "--last", "100000")["events"]:
        if event["user"] in users:
            events.setdefault(users[event["user"]].id, []).append(event)
    accounts = {
        users[row["subject"]["user"]].id: row
        for row in proxy.cli("limits")["limits"]
        if row["name"] == "dollar" and row["subject"].get("user") in users
    }
    return Books(answers=answers, bodies=bodies, events=events, accounts=accounts)


@pytest.fixture(scope="module")
def books(proxies: Callable[[int], Proxy], upstream: Upstream) -> Books:
    return fill(proxies(1), upstream, ROWS)


def test_debug(books):
    for row in ROWS:
        if "upstream-" in row.id or "left" in row.id or "impat" in row.id:
            for e in books.events.get(row.id, [None]):
                print(row.id, books.answers[row.id], books.bodies[row.id][0][-150:], e and {k: e[k] for k in ("status","cost","cost_source","reserved","estimated","error","input_tokens","output_tokens","duration_ms")})
    assert 0

@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_every_ending_is_one_event(books: Books, row: Row) -> None:
    """However a request ends: one event, the right status, the right cost, nothing held any more."""
    books.check(row)
