"""Every way a request can end: one event, the right status, the right cost, and nothing reserved afterwards.

All rows are sent at once, each by a separate user; the tests read the recorded events. Rows that need other settings,
or hooks of other callbacks, go to a second proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import httpx
import pytest

from tests.proxy.conftest import PRICES, Proxy, proxy_config
from tests.support import plain_http
from tests.support.waiting import wait_until
from usage_plugin.ledgers.sqlite import open_sqlite_ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.proxy.conftest import Upstream

pytestmark = pytest.mark.proxy

Cost = Literal["full", "reserved", "part", "something", "flat", "nothing", "any"]
"""The cost of the one event, in order: the provider's usage; the held amount; a part of it, estimated; more than zero;
the operator's flat amount; zero; any cost."""

ROUTES = {
    "chat": ("/v1/chat/completions", "cent"),
    "messages": ("/v1/messages", "claude"),
    "bridged": ("/v1/messages", "cent"),  # Anthropic's format, answered by OpenAI's Responses API
    "responses": ("/v1/responses", "resp"),
    "text": ("/v1/completions", "text"),
    "embeddings": ("/v1/embeddings", "embed"),
    "images": ("/v1/images/generations", "image"),
    "speech": ("/v1/audio/speech", "speech"),
    "moderations": ("/v1/moderations", "moderation"),
    "rerank": ("/v1/rerank", "rerank"),
    "google": ("/v1beta/models/gem:generateContent", "gem"),
    "google-stream": ("/v1beta/models/gem:streamGenerateContent", "gem"),
    "raw": ("/raw", "anything"),
}


FLAT = Decimal("0.03")
GEM = {"input_cost_per_token": 0.000001, "output_cost_per_token": 0.000002}
BEGUN_OR_NOT = "begun or not"
"""LiteLLM may report the failure in the status, or in a stream that has begun."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A request, the behaviour of its client, and its expected record.

    Attributes:
        leave: When the client hangs up: once the upstream has the request, or at the first words of the answer.
        answers: The HTTP status, or its first digit; None if the client did not wait for it.
        status: The status of the event; None if no event is expected.
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
        """Return the body. A real provider counts at most one token per byte, so the text is padded."""
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
            body = {"model": self.asked, **{
                "embeddings": {"input": text, "user": user},
                "images": {"prompt": "a picture"},
                "speech": {"input": "hello", "voice": "alloy"},
                "moderations": {"input": "hello"},
                "rerank": {"query": "hello", "documents": ["hello", "bye"]},
                "google": {"contents": [{"role": "user", "parts": [{"text": text}]}]},
                "google-stream": {"contents": [{"role": "user", "parts": [{"text": text}]}]},
                "raw": {"messages": message},
            }[self.route]}  # fmt: skip
        return {name: value for name, value in {**body, **self.body}.items() if value is not None}


LITELLM_RACE = "dictionary changed size during iteration"
BOTH = (False, True)
THREE = ("chat", "messages", "responses")
FOUR = (*THREE, "bridged")


def rows(name: str, routes: Sequence[str] = THREE, streams: Sequence[bool] = BOTH, **how: Any) -> list[Row]:
    """Return a row for each route, streamed and not."""
    return [Row(name=name, route=route, stream=stream, **how) for route in routes for stream in streams]


STREAMED = (True,)
WHOLE = (False,)
FAILING = {"answers": BEGUN_OR_NOT, "status": "failure", "cost": "nothing"}
BROKEN = {"answers": BEGUN_OR_NOT, "status": "failure", "cost": "something"}
LEFT = {"answers": None, "status": "cancelled"}

ROWS = [
    *rows("success", (*FOUR, "text")),
    *rows("success", ("embeddings",), WHOLE),
    *rows("no-usage", plan={"silent": True}, cost="something"),
    *rows("left-midway", THREE, STREAMED, plan={"stall": 3}, leave="midway", cost="part", **LEFT),
    *rows("left-midway", ("bridged",), STREAMED, plan={"stall": 3}, leave="midway", cost="reserved", **LEFT),
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
    # In Anthropic's format LiteLLM passes the frame on, and treats it as a success.
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
    """The answers to each row, and the events and accounts recorded for it."""

    answers: dict[str, list[int | None]]
    bodies: dict[str, list[str]]
    events: dict[str, list[dict[str, Any]]]
    accounts: dict[str, dict[str, Any]]

    def check(self, row: Row) -> None:
        """Check that each request has one event with its status and cost, and that nothing is held."""
        # A thread of LiteLLM's sometimes changes data that another one reads: the 500 is also recorded as one event.
        raced = any(LITELLM_RACE in body for body in self.bodies[row.id])
        for answer in () if raced else self.answers[row.id]:
            assert row.answers in (answer, answer and answer // 100, BEGUN_OR_NOT), self.bodies[row.id]
        events = self.events.get(row.id, [])
        assert len(events) == (row.times if row.status else 0), (events, self.bodies[row.id])
        for event in () if raced else events:
            assert event["status"] == row.status, event
            assert event["error"] is None or row.status != "success"
            check_cost(event, row)
        if events and row.user == "dollar":
            account = self.accounts[row.id]
            assert Decimal(account["reserved"]) == 0
            assert Decimal(account["spent"]) == sum(Decimal(event["cost"] or 0) for event in events)


def check_cost(event: dict[str, Any], row: Row) -> None:
    """Compare an event's cost with the row's expectation."""
    cost, reserved = (Decimal(event[name]) if event[name] is not None else None for name in ("cost", "reserved"))
    assert reserved is not None
    if row.cost == "full":
        price = {**PRICES, "gem": GEM}[row.billed or row.asked]
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
    elif row.cost != "any":
        assert cost == (FLAT if row.cost == "flat" else 0), event
    if row.user == "dollar":
        assert Decimal(event["excess"]) == 0


async def send(http: httpx.AsyncClient, upstream: Upstream, row: Row, user: str) -> tuple[int | None, str]:
    """Send one request, and behave as the row describes."""
    route, body = ROUTES[row.route][0], row.request(user)
    headers = {"x-litellm-end-user-id": user, **row.headers}
    if row.leave is None:
        async with http.stream("POST", route, json=body, headers=headers) as answer:
            text = ""
            with contextlib.suppress(httpx.RemoteProtocolError):  # LiteLLM breaks a stream off when a hook raises
                async for chunk in answer.aiter_text():
                    text += chunk
        return answer.status_code, text
    if row.leave == "midway":
        async with http.stream("POST", route, json=body, headers=headers) as answer:
            text = ""
            async for chunk in answer.aiter_text():
                text += chunk
                if "hi " in text:
                    break
        return None, text
    waiting = asyncio.create_task(http.post(route, json=body, headers=headers))
    while user not in (await http.get(f"{upstream.url}/seen")).json():
        await asyncio.sleep(0.2)
    await asyncio.sleep(0.3)
    waiting.cancel()
    return None, ""


def fill(proxy: Proxy, upstream: Upstream, all_rows: Sequence[Row], *, seconds: float = 30) -> Books:
    """Send all rows at once, wait until all are settled, and return the books."""
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
        async with plain_http.AsyncClient(base_url=proxy.url, headers=headers, timeout=60, limits=limits) as http:
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


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_every_ending_is_one_event(books: Books, row: Row) -> None:
    """However a request ends, it has one event with the right status and cost, and nothing remains held."""
    books.check(row)


GUARD = """
import asyncio

from fastapi import HTTPException
from litellm.integrations.custom_guardrail import CustomGuardrail
from litellm.integrations.custom_logger import CustomLogger


class Keeping(CustomGuardrail):
    async def async_post_call_success_hook(self, data, user_api_key_dict, response):
        if "refused-by-a-guardrail" in (user_api_key_dict.end_user_id or ""):
            raise HTTPException(400, "kept from you")


class Guard(CustomLogger):
    def __init__(self, place):
        super().__init__()
        self.place = place

    def judge(self, key, when):
        if f"{when}-{self.place}" in (key.end_user_id or ""):
            raise HTTPException(400, "kept from you")

    async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
        self.judge(user_api_key_dict, "before")

    async def async_moderation_hook(self, data, user_api_key_dict, call_type):
        if "beside" in (user_api_key_dict.end_user_id or ""):
            await asyncio.sleep(1)
        self.judge(user_api_key_dict, "beside")

    async def async_post_call_success_hook(self, data, user_api_key_dict, response):
        self.judge(user_api_key_dict, "after")
        return response

    async def async_post_call_streaming_iterator_hook(self, user_api_key_dict, response, request_data):
        number = 0
        async for item in response:
            yield item
            number += 1
            if number == 2:
                self.judge(user_api_key_dict, "amid")


first = Guard("first")
last = Guard("last")
"""
ODD = {
    "image": {"model": "openai/dall-e-3", "mode": "image_generation"},
    "speech": {"model": "openai/tts-1", "mode": "audio_speech"},
    "moderation": {"model": "openai/omni-moderation-latest", "mode": "moderation"},
    "rerank": {"model": "jina_ai/jina-reranker-v2-base-multilingual", "mode": "rerank"},
    "gem": {"model": "gemini/gem-up", **GEM},
}


@pytest.fixture(scope="module")
def odd_proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    """Run a proxy with all that changes when hooks fire: guards before and after, the plugin twice, pings, …"""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "guard.py").write_text(GUARD)
    limits = [
        {"name": "dollar", "per": "user", "match": {"user": ["dollar-*", "single-*"]}, "window": "day", "max_cost": 1},
        {"name": "single", "per": "user", "match": {"user": "single-*"}, "max_parallel_requests": 1},
    ]
    admission = {"orphan_grace": "4s", "max_wait": "0s", "on_cut_stream": "reserved", "on_unmetered": str(FLAT)}
    config = proxy_config(upstream, {"limits": limits, "admission": admission})
    ours = "usage_plugin.proxy.callback"
    keeping = {"guardrail": "guard.Keeping", "mode": "post_call", "default_on": True}
    config["guardrails"] = [{"guardrail_name": "keeping", "litellm_params": keeping}]
    config["litellm_settings"] |= {
        "callbacks": ["guard.first", ours, ours, "guard.last"],
        "sse_keepalive_ping_interval_seconds": 0.2,
    }
    for name, facts in ODD.items():
        mode = facts.pop("mode", "chat")
        base = f"{upstream.url}/google" if name == "gem" else f"{upstream.url}/v1"
        parameters = {"api_base": base, "api_key": "none", **facts}
        config["model_list"].append({"model_name": name, "litellm_params": parameters, "model_info": {"mode": mode}})
    config["general_settings"] |= {
        "cancel_on_disconnect": True,
        "pass_through_endpoints": [{"path": "/raw", "target": f"{upstream.url}/raw"}],
    }
    proxy = Proxy(folder, config)
    proxy.start()
    yield proxy
    proxy.stop()


REFUSED = {"answers": 4, "status": "failure"}
ODD_ROWS = [
    *rows("success", (*FOUR, "text"), BOTH),
    *rows("refused-before-first", ("chat", "messages"), BOTH, answers=400, status=None),
    *rows("refused-before-last", ("chat", "messages"), BOTH, **REFUSED, cost="nothing"),
    # The provider had answered before the refusal; a call still in progress at the refusal is charged as held.
    *rows("refused-beside-last", THREE, WHOLE, **REFUSED),
    *rows("refused-beside-first", THREE, WHOLE, plan={"delay": 5}, **REFUSED, cost="reserved"),
    *rows("refused-beside-last", THREE, STREAMED, answers=BEGUN_OR_NOT, status="failure", cost="reserved"),
    *rows("refused-by-a-guardrail", THREE, WHOLE, **REFUSED),
    *rows("refused-after-first", THREE, WHOLE, **REFUSED),
    # A callback after the plugin refuses an answer that is settled as a success: it was paid for in either case.
    *rows("refused-after-last", THREE, WHOLE, answers=4),
    *rows("refused-amid-first", ("chat", "responses"), STREAMED, **BROKEN),
    *rows("left-whole", FOUR, WHOLE, plan={"delay": 5}, leave="waiting", cost="reserved", **LEFT),
    *rows("left-midway", THREE, STREAMED, plan={"stall": 3}, leave="midway", cost="reserved", **LEFT),
    *rows("left-before-the-first-chunk", FOUR, STREAMED, plan={"hold": 6}, leave="waiting", cost="reserved", **LEFT),
    *rows("upstream-500", FOUR, BOTH, plan={"status": 500}, **FAILING),
    *rows("upstream-500-late", FOUR, STREAMED, plan={"status": 500, "delay": 2}, **FAILING),
    *rows("unmetered", ("raw",), WHOLE, cost="flat"),
    *rows("unmetered-500", ("raw",), WHOLE, plan={"status": 500}, **FAILING),
    *rows("unknown-model", ("chat", "messages"), BOTH, user="nobody", model="no-such-model", **REFUSED, cost="nothing"),
    *rows("success", ("google", "google-stream"), WHOLE),
    *rows("success", ("images", "speech", "moderations", "rerank"), WHOLE, user="nobody", cost="any"),
]  # fmt: skip


@pytest.fixture(scope="module")
def odd_books(odd_proxy: Proxy, upstream: Upstream) -> Books:
    return fill(odd_proxy, upstream, ODD_ROWS)


@pytest.mark.parametrize("row", ODD_ROWS, ids=lambda row: row.id)
def test_every_odd_ending_is_one_event(odd_books: Books, row: Row) -> None:
    """The same holds with refusing guards, cancellation on disconnect, pings in streams, and a callback named twice."""
    odd_books.check(row)


@pytest.mark.usefixtures("odd_books")
def test_a_health_check_is_charged(odd_proxy: Proxy) -> None:
    """A health check costs as much as another request, and is charged to the user who requests it."""
    user = f"nobody-{secrets.token_hex(4)}"
    headers = {**bearer(odd_proxy), "x-litellm-end-user-id": user}
    assert plain_http.get(f"{odd_proxy.url}/health?model=text", headers=headers, timeout=60).status_code == 200
    (event,) = wait_until(lambda: odd_proxy.events(user))
    assert (event["status"], event["input_tokens"], event["output_tokens"]) == ("success", 10, 5)
    assert Decimal(event["cost"]) == 10 * Decimal("0.0000015") + 5 * Decimal("0.000002")
    assert (Decimal(event["reserved"]), event["call_type"]) == (FLAT, "health_check"), "the route is metered"


def test_what_costs_nothing_is_not_recorded(proxies: Callable[[int], Proxy]) -> None:
    """Lists, token counts and look-ups of earlier answers are not requests to a model, and are not recorded."""
    proxy = proxies(1)
    user = f"dollar-{secrets.token_hex(4)}"
    headers = {**bearer(proxy), "x-litellm-end-user-id": user}
    message = [{"role": "user", "content": "hi"}]
    with plain_http.Client(base_url=proxy.url, headers=headers, timeout=60) as http:
        assert http.get("/v1/models").status_code == 200
        assert http.post("/v1/messages/count_tokens", json={"model": "claude", "messages": message}).status_code == 200
        assert http.post("/utils/token_counter", json={"model": "cent", "messages": message}).status_code == 200
        http.get("/v1/responses/resp_1")
        http.get("/v1/files")
    proxy.settled()
    assert proxy.events(user) == []


@pytest.mark.parametrize("stream", BOTH, ids=["whole", "stream"])
def test_a_cache_hit_costs_nothing(proxies: Callable[[int], Proxy], stream: bool) -> None:
    """An answer from LiteLLM's cache is a success that costs nothing and has no tokens."""
    proxy = proxies(1)
    user = f"dollar-{secrets.token_hex(4)}"
    row = Row(name="cached", stream=stream, body={"cache": {"use-cache": True}})
    for _ in range(2):
        assert proxy.post("/v1/chat/completions", row.request(user)).status_code == 200
        proxy.settled()
    hit, paid = sorted(proxy.events(user), key=lambda event: Decimal(event["cost"]))
    assert (paid["cost"], paid["cache_hit"], paid["status"]) == ("0.0002", False, "success")
    assert (hit["cost"], hit["cache_hit"], hit["status"], hit["output_tokens"]) == ("0.00", True, "success", 0)
    account = proxy.limit("dollar", user=user)
    assert (account["spent"], account["reserved"]) == ("0.0002", "0.00")


@pytest.mark.usefixtures("odd_books")
async def test_who_left_frees_the_slot_and_keeps_the_money_held(odd_proxy: Proxy, upstream: Upstream) -> None:
    """If a client leaves before the first chunk, its slot is free at once, and its money after the grace period."""
    user = f"single-{secrets.token_hex(4)}"
    left = Row(name="left", stream=True, plan={"hold": 30}, leave="waiting")
    async with plain_http.AsyncClient(base_url=odd_proxy.url, headers=bearer(odd_proxy), timeout=60) as http:
        waiting = asyncio.create_task(send(http, upstream, left, user))
        while user not in (await http.get(f"{upstream.url}/seen")).json():
            await asyncio.sleep(0.1)
        assert (await send(http, upstream, Row(name="busy"), user))[0] == 429, "one at a time"
        await waiting
        await asyncio.sleep(0.5)
        assert (await send(http, upstream, Row(name="next"), user))[0] == 200
    account = odd_proxy.limit("dollar", user=user)
    assert Decimal(account["reserved"]) == Decimal("0.002"), "of 200 tokens"
    odd_proxy.settled()
    assert Decimal(odd_proxy.limit("dollar", user=user)["spent"]) == Decimal("0.002") + Decimal("0.0002")


@pytest.mark.usefixtures("odd_books")
def test_what_is_not_known_exactly_is_counted(odd_proxy: Proxy) -> None:
    """Orphans, estimates, unmetered and unpriced requests are counted by kind and by the model they concern."""

    def counted() -> dict[tuple[str, str], int]:
        found = anomalies(odd_proxy)
        assert {kind for kind, _ in found} >= {"orphaned", "estimated", "unmetered", "unpriced"}
        return found

    found = wait_until(counted)
    assert found["unmetered", "anything"] == 1
    assert found["orphaned", "cent"] >= 4
    assert found["unpriced", "image"] == 1


def anomalies(proxy: Proxy) -> dict[tuple[str, str], int]:
    """Return the anomalies that the ledger has counted."""
    opened = open_sqlite_ledger(proxy.folder / "data" / "ledger.db")
    try:
        return {(found.kind, found.concerns): found.times for found in opened.operations.anomalies()}
    finally:
        opened.close()


def bearer(proxy: Proxy) -> dict[str, str]:
    return {"Authorization": f"Bearer {proxy.key}"}
