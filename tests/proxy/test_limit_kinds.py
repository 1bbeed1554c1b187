"""Every kind of limit, with every setting, end to end: with the real client and two workers.

The tests have a proxy of their own, because the YAML changes while it runs and requests may be clamped. Each test has
its own limits and users, by the prefix of their names.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import httpx
import openai
import pytest
import yaml

from tests.proxy.conftest import noon_zone, proxy_config, running
from tests.support.waiting import eventually
from usage_plugin.encoding import decode_event
from usage_plugin.ledgers.sqlite import open_sqlite_ledger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from tests.proxy.conftest import Proxy, Upstream

pytestmark = pytest.mark.proxy

WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
TODAY = datetime.now(ZoneInfo(noon_zone())).date()
TOMORROWS_WEEKDAY = WEEKDAYS[(TODAY.weekday() + 1) % 7]
DEAR = ["chat", "claude", "resp"]
GRACE = 10


def own(name: str, **limit: Any) -> dict[str, Any]:
    """Return a limit for each user whose name begins with the first word of the limit's name."""
    return {
        "name": name,
        "per": "user",
        "match": {"user": f"{name.split('-', maxsplit=1)[0]}-*"},
        "window": "day",
        **limit,
    }


LIMITS = [
    own("rolling", window={"rolling": "1h"}, max_cost="0.03"),
    own("session", per=["user", "session"], window="session", max_requests=2),
    own("weekly", window="week", week_starts=TOMORROWS_WEEKDAY, max_requests=10),
    own("weekly-plain", window="week", max_requests=10),
    {"name": "slots", "per": "user", "match": {"user": "slots-*"}, "max_parallel_requests": 2},
    own("slots-money", max_cost=1000),
    own("both-cost", max_cost=1),
    own("both-tokens", max_total_tokens=100_000),
    {"name": "both-slots", "per": "user", "match": {"user": "both-*"}, "max_parallel_requests": 5},
    own("both-rolling", window={"rolling": "1h"}, max_cost=1),
    own("both-once", max_requests=1),
    own("down", match={"user": "down-*", "model": DEAR}, max_cost="0.017", action="downgrade", downgrade_to="cent"),
    own("down-all", max_cost="0.0275"),
    own("same", max_cost="0.01", action="downgrade", downgrade_to="cent"),
    own("drydown", max_cost=0, action="downgrade", downgrade_to="cent", dry_run=True),
    own("clamp", max_cost="0.05"),
    own("clamptwo", max_cost="0.05"),
    own("clamptwo-tokens", max_output_tokens=3000),
    own("clampload", max_cost="0.50"),
    own("waits", max_cost="0.30"),
    own("raised", max_cost="0.01"),
    own("bounded", max_cost=1),
    own("unbounded", max_cost=1, on_unbounded="allow"),
    own("alert", max_cost="0.10", alert_at=[50, 100]),
    own("counted", max_input_tokens=10_000),
]
COUNTED = "gpt-4o"
"""A model whose tokenizer is known."""


@pytest.fixture(scope="module")
def config(upstream: Upstream) -> dict[str, Any]:
    admission = {"on_short_budget": "clamp", "max_wait": "2s", "orphan_grace": f"{GRACE}s"}
    made = proxy_config(upstream, {"limits": LIMITS, "admission": admission})
    base = {"api_base": f"{upstream.url}/v1", "api_key": "none"}
    made["model_list"].append({"model_name": COUNTED, "litellm_params": {"model": f"openai/{COUNTED}", **base}})
    return made


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any]) -> Iterator[Proxy]:
    with running(tmp_path_factory.mktemp("kinds"), config, workers=2) as proxy:
        yield proxy


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Answer:
    status: int
    headers: httpx.Headers
    text: str

    @property
    def message(self) -> str:
        return json.loads(self.text)["error"]["message"]

    @property
    def why(self) -> tuple[int, str | None, str | None]:
        return self.status, self.headers.get("x-usage-refusal"), self.headers.get("x-usage-limit")


ROUTES = {"chat": "/chat/completions", "messages": "/messages", "responses": "/responses"}
CELLS = [(route, stream) for route in ROUTES for stream in (False, True)]


def connection(proxy: Proxy) -> openai.AsyncOpenAI:
    # Without TLS there is nothing to verify; loading all certificates takes longer than the request.
    limits = httpx.Limits(max_connections=1)
    return proxy.client(http_client=httpx.AsyncClient(verify=False, limits=limits, timeout=60))


async def ask(
    proxy: Proxy,
    user: str,
    plan: dict[str, Any] | None = None,
    *,
    route: str = "chat",
    stream: bool = False,
    model: str = "cent",
    tokens: int | None = 1000,
    headers: dict[str, str] | None = None,
    client: openai.AsyncOpenAI | None = None,
    **more: Any,
) -> Answer:
    """Send one request to any worker, by default over its own connection. As planned it costs $0.01."""
    text = json.dumps({"in": 0, "out": 1000, **(plan or {})})
    bound = {} if tokens is None else {"max_output_tokens" if route == "responses" else "max_tokens": tokens}
    messages: Any = [{"role": "user", "content": text}]
    async with connection(proxy) if client is None else nullcontext(client) as client:
        try:
            if route == "chat":
                extra = {**bound, **more}
                raw = await client.chat.completions.with_raw_response.create(
                    model=model, user=user, messages=messages, stream=stream, extra_body=extra, extra_headers=headers
                )
            elif route == "responses":
                raw = await client.responses.with_raw_response.create(
                    model=model, user=user, input=text, stream=stream, extra_body={**bound, **more}
                )
            else:
                metadata = {"user_id": user}
                body = {"model": model, "messages": messages, "stream": stream, "metadata": metadata, **bound, **more}
                whole = await client.post("/messages", cast_to=httpx.Response, body=body)
                return Answer(whole.status_code, whole.headers, whole.text)
            if not stream:
                return Answer(raw.http_response.status_code, raw.headers, raw.http_response.text)
            return Answer(200, raw.headers, "".join([str(part) async for part in raw.parse()]))
        except openai.APIStatusError as error:
            return Answer(error.status_code, error.response.headers, error.response.text)


def unique(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(4)}"


def accounts(proxy: Proxy, user: str) -> dict[str, dict[str, Any]]:
    """Return a user's accounts at one moment, by the names of the limits."""
    return {row["name"]: row for row in proxy.cli("limits")["limits"] if row["subject"].get("user") == user}


def balance(account: dict[str, Any]) -> tuple[Decimal, Decimal]:
    return Decimal(account["spent"]), Decimal(account["reserved"])


class Books:
    """The accounts of some users at one moment, and their events if requested."""

    def __init__(self, proxy: Proxy, users: Iterable[str]) -> None:
        self.users = tuple(users)
        self._proxy = proxy
        rows = proxy.cli("limits")["limits"]
        self.accounts = {
            user: {row["name"]: row for row in rows if row["subject"].get("user") == user} for user in self.users
        }

    @cached_property
    def events(self) -> dict[str, list[dict[str, Any]]]:
        found = self._proxy.cli("events", "--last", "100000")["events"]
        return {user: [event for event in found if event["user"] == user] for user in self.users}

    @property
    def held(self) -> bool:
        return any(Decimal(row["reserved"]) for found in self.accounts.values() for row in found.values())


async def settled(proxy: Proxy, *users: str) -> Books:
    """Wait until none of these users has an open hold, and return the books."""

    def nothing_held() -> Books | None:
        books = Books(proxy, users)
        return None if books.held else books

    return await eventually(nothing_held, blocking=True)


def in_minutes(stamp: str) -> float:
    return (datetime.fromisoformat(stamp) - datetime.now(timezone.utc)) / timedelta(minutes=1)


# ── windows ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_rolling_limit_says_when_it_gives_way(kinds: Proxy) -> None:
    """Spend within the hour counts on every route; a refusal reports when enough of it expires."""
    user = unique("rolling")
    for route, left in (("chat", "0.02"), ("messages", "0.01"), ("responses", "0.00")):
        answer = await ask(kinds, user, route=route)
        assert answer.status == 200, answer.text
        assert (answer.headers["x-usage-limit"], answer.headers["x-usage-remaining"]) == ("rolling", left)
        assert 58 < in_minutes(answer.headers["x-usage-resets-at"]) < 62
    refused = await asyncio.gather(*(ask(kinds, user, route=route, stream=stream) for route, stream in CELLS))
    for answer in refused:
        assert answer.why == (402, "spent", "rolling"), answer.text
        assert 58 < in_minutes(answer.headers["x-usage-resets-at"]) < 62
        assert re.search(rf"{user} has used 0\.03 of 0\.03 USD in 60 min \(limit rolling\)", answer.message)
        assert re.search(r"There is room for it again in (59|60|61) min\.", answer.message)
    account = accounts(kinds, user)["rolling"]
    assert balance(account) == (Decimal("0.03"), 0)
    assert account["remaining"] == "0.00"


SESSIONS: list[tuple[str, Callable[[str], dict[str, Any]]]] = [
    ("chat", lambda name: {"litellm_session_id": name}),
    ("chat", lambda name: {"metadata": {"session_id": name}}),
    ("chat", lambda name: {"headers": {"x-litellm-session-id": name}}),
    ("messages", lambda name: {"litellm_session_id": name}),
    ("messages", lambda name: {"litellm_metadata": {"session_id": name}}),
    ("responses", lambda name: {"litellm_session_id": name}),
    ("responses", lambda name: {"litellm_metadata": {"session_id": name}}),
]


async def test_a_session_has_an_account_of_its_own(kinds: Proxy) -> None:
    """A session allows two requests, however the client names it; another session, or none, is not affected."""
    user = unique("session")

    async def one(route: str, named: Callable[[str], dict[str, Any]]) -> None:
        session = unique("s")
        for stream in (False, True):
            answer = await ask(kinds, user, route=route, stream=stream, **named(session))
            assert answer.status == 200, answer.text
            assert answer.headers["x-usage-limit"] == "session", (route, named(session))
        refused = await ask(kinds, user, route=route, **named(session))
        assert refused.why == (402, "spent", "session"), refused.text
        assert "2 of 2 requests in this session" in refused.message
        assert "x-usage-resets-at" not in refused.headers
        assert (await ask(kinds, user, route=route, **named(unique("s")))).status == 200

    await asyncio.gather(*(one(route, named) for route, named in SESSIONS))
    assert [(await ask(kinds, user)).status for _ in range(3)] == [200, 200, 200]
    rows = [row for row in kinds.cli("limits")["limits"] if row["subject"].get("user") == user]
    assert Counter(row["spent"] for row in rows) == {2: len(SESSIONS), 1: len(SESSIONS)}


async def test_a_week_begins_where_it_is_said(kinds: Proxy) -> None:
    """`week_starts` sets the first day of the week; by default a week begins on Monday."""
    user = unique("weekly")
    answer = await ask(kinds, user)
    assert answer.status == 200
    found = accounts(kinds, user)
    zone = ZoneInfo(noon_zone())
    began = {
        name: datetime.fromisoformat(account["window"]["start"]).astimezone(zone) for name, account in found.items()
    }
    assert all((start.hour, start.minute) == (0, 0) for start in began.values())
    assert began["weekly"].date() == TODAY - timedelta(days=6)
    assert began["weekly-plain"].date() == TODAY - timedelta(days=TODAY.weekday())
    assert [account["spent"] for account in found.values()] == [1, 1]


# ── concurrent requests ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_third_request_waits_for_a_slot(kinds: Proxy, upstream: Upstream) -> None:
    """Two requests run at once; a third is admitted as soon as one ends, or asked to retry if none ends in time."""

    async def three(user: str, delay: float) -> tuple[list[Answer], float]:
        first = [asyncio.create_task(ask(kinds, user, {"delay": delay, "mark": user})) for _ in range(2)]
        await eventually(lambda: upstream.seen().get(user) == 2, blocking=True)
        began = time.monotonic()
        third = await ask(kinds, user, stream=True)
        waited = time.monotonic() - began
        return [*await asyncio.gather(*first), third], waited

    soon, late = unique("slots"), unique("slots")
    (passed, _), (refused, waited) = await asyncio.gather(three(soon, 1.2), three(late, 5))
    assert [answer.status for answer in passed] == [200, 200, 200]
    assert [answer.status for answer in refused] == [200, 200, 429]
    last = refused[2]
    assert last.why == (429, "busy", "slots")
    assert json.loads(last.text)["error"]["type"] == "budget_busy"
    assert int(last.headers["retry-after"]) == 1
    assert "Try again in a moment." in last.message
    assert 1.8 < waited < 6
    books = await settled(kinds, soon, late)
    assert [books.accounts[user]["slots"]["spent"] for user in (soon, late)] == [0, 0]
    assert (await ask(kinds, late)).status == 200


ENDS: list[tuple[bool, dict[str, Any]]] = [
    (False, {}),
    (True, {}),
    (False, {"status": 500}),
    (True, {"status": 500}),
    (True, {"drop": 2, "pause": 0.05}),
    (True, {"error": 2, "pause": 0.05}),
]


async def test_a_slot_is_free_after_every_end(kinds: Proxy, upstream: Upstream) -> None:
    """With two requests at a time and every kind of end, no slot is lost or remains held along with the money."""

    async def one(user: str, route: str, gate: asyncio.Semaphore, stream: bool, plan: dict[str, Any]) -> None:
        async with gate:
            try:
                answer = await ask(kinds, user, {"chunks": 6, **plan}, route=route, stream=stream)
            except (openai.APIError, httpx.HTTPError):
                assert plan
            else:
                # A stream that breaks off before LiteLLM has passed on any of it is answered with an error.
                assert answer.status in (200, plan and plan.get("status", 500)), answer.text

    async def leave(user: str, route: str) -> None:
        mark = unique("mark")
        request = asyncio.create_task(ask(kinds, user, {"mark": mark, "hold": 30}, route=route, stream=True))
        await eventually(lambda: mark in upstream.seen() or request.done(), blocking=True)
        await asyncio.sleep(0.2)
        assert not request.done(), request.result()
        request.cancel()
        await asyncio.wait([request])

    def slots_free() -> Books | None:
        books = Books(kinds, users.values())
        return books if not any(found["slots"]["reserved"] for found in books.accounts.values()) else None

    users = {route: unique("slots") for route in ROUTES}
    gates = {route: asyncio.Semaphore(2) for route in ROUTES}
    await asyncio.gather(
        *(one(users[route], route, gates[route], stream, plan) for route in ROUTES for stream, plan in ENDS * 2)
    )
    await eventually(slots_free, GRACE, blocking=True)
    await asyncio.gather(*(leave(users[route], route) for route in (*ROUTES, *ROUTES)))
    free = await eventually(slots_free, GRACE, blocking=True)
    for found in free.accounts.values():
        assert Decimal(found["slots-money"]["reserved"]) > 0, "who left before the first chunk is not settled yet"
    again = await asyncio.gather(*(ask(kinds, user, {"delay": 0.5}) for user in users.values() for _ in range(2)))
    assert [answer.status for answer in again] == [200] * 6
    books = await settled(kinds, *users.values())
    for user in users.values():
        assert balance(books.accounts[user]["slots"]) == (0, 0)
        statuses = Counter(event["status"] for event in books.events[user])
        assert sum(statuses.values()) == 2 * len(ENDS) + 4, statuses
        assert statuses["cancelled"] == 2, statuses


# ── several limits ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_one_limit_refuses_holds_nothing_on_the_others(kinds: Proxy) -> None:
    """Of five limits that count a request the last refuses, and the other four do not change."""
    user = unique("both")
    assert (await ask(kinds, user)).status == 200
    before = (await settled(kinds, user)).accounts[user]
    assert set(before) == {"both-cost", "both-tokens", "both-slots", "both-rolling", "both-once"}
    refused = await asyncio.gather(
        *(ask(kinds, user, route=route, stream=stream) for route, stream in CELLS * 2),
        *(ask(kinds, user, model="broken") for _ in range(2)),
    )
    assert {answer.why for answer in refused} == {(402, "spent", "both-once")}
    books = Books(kinds, [user])
    after = books.accounts[user]
    for accounts in (before, after):
        # A rolling window moves on every minute.
        del accounts["both-rolling"]["window"]
    assert after == before
    assert len(books.events[user]) == 1


# ── bounds by the provider's tokenizer ───────────────────────────────────────────────────────────────────────────────


async def test_tokens_are_counted_where_bytes_do_not_fit(kinds: Proxy) -> None:
    """35,000 bytes of English are some 8,000 tokens: they fit once, on a model whose tokenizer is known."""
    user = unique("counted")
    words = " ".join(["Which wood makes a good handle for a spade?"] * 800)
    plan = {"in": 8_000, "out": 5, "words": words}
    unknown = await ask(kinds, user, plan, tokens=5)
    assert unknown.why == (402, "too_large", "counted"), unknown.text
    answer = await ask(kinds, user, plan, model=COUNTED, tokens=5)
    assert answer.status == 200, answer.text
    again = await ask(kinds, user, plan, model=COUNTED, tokens=5)
    assert again.why == (402, "spent", "counted"), again.text
    books = await settled(kinds, user)
    assert balance(books.accounts[user]["counted"]) == (8_000, 0)
    (event,) = books.events[user]
    assert event["input_tokens"] == 8_000


# ── downgrades ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_spent_limit_sends_requests_to_a_cheaper_model(kinds: Proxy, upstream: Upstream) -> None:
    """The expensive model answers until its money is spent, then the cheap one, until another limit refuses."""

    users = {cell: unique("down") for cell in CELLS}
    models = {"chat": "chat", "messages": "claude", "responses": "resp"}
    cents_and_a_half = {"chat": 1000, "messages": 1000, "responses": 1875}

    async def one(route: str, stream: bool, out: int) -> Answer:
        user = users[route, stream]
        plan = {"out": out, "id": user}
        return await ask(kinds, user, plan, route=route, stream=stream, model=models[route], tokens=out)

    async def everyone(out: Mapping[str, int]) -> list[Answer]:
        return await asyncio.gather(*(one(route, stream, out[route]) for route, stream in users))

    first = await everyone(cents_and_a_half)
    assert [answer.status for answer in first] == [200] * 6
    assert not any("x-usage-downgraded-to" in answer.headers for answer in first)
    answered = upstream.answers()
    assert [answered[user]["model"] for user in users.values()] == [f"{models[route]}-up" for route, _ in users]
    await settled(kinds, *users.values())
    second = await everyone(dict.fromkeys(ROUTES, 1000))
    assert [answer.status for answer in second] == [200] * 6, [answer.text for answer in second]
    assert {answer.headers["x-usage-downgraded-to"] for answer in second} == {"cent"}
    answered = upstream.answers()
    assert {(answered[user]["model"], answered[user]["calls"]) for user in users.values()} == {("cent-up", 2)}
    await settled(kinds, *users.values())
    third = await everyone(dict.fromkeys(ROUTES, 1000))
    assert {answer.why for answer in third} == {(402, "spent", "down-all")}, [answer.text for answer in third]

    books = await settled(kinds, *users.values())
    for (route, _), user in users.items():
        dear, cheap = sorted(books.events[user], key=lambda event: event["model"] == "cent")
        assert (dear["requested_model"], dear["model"], dear["downgraded_by"]) == (models[route], models[route], None)
        assert (cheap["requested_model"], cheap["model"], cheap["downgraded_by"]) == (models[route], "cent", "down")
        assert (cheap["served_model"], cheap["cost"]) == ("openai/cent-up", "0.01")
        assert balance(books.accounts[user]["down"]) == (Decimal("0.015"), 0)
        assert balance(books.accounts[user]["down-all"]) == (Decimal("0.025"), 0)


async def test_who_asks_for_the_cheap_model_is_not_downgraded(kinds: Proxy) -> None:
    """A limit that also counts the cheap model reports no downgrade if the model stays the same."""
    user = unique("same")
    answers = [await ask(kinds, user) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200]
    assert not any("x-usage-downgraded-to" in answer.headers for answer in answers)
    assert [event["downgraded_by"] for event in kinds.events(user)] == [None, None]


async def test_a_dry_run_downgrades_nothing(kinds: Proxy) -> None:
    """A dry run counts the downgrades that would happen, and sends the request to the requested model."""
    user = unique("drydown")
    answer = await ask(kinds, user, model="chat")
    assert answer.status == 200
    assert "x-usage-downgraded-to" not in answer.headers
    (event,) = kinds.events(user)
    assert (event["model"], event["downgraded_by"]) == ("chat", None)

    def counted() -> Any:
        return [row for row in kinds.cli("status")["refusals"] if row["limit"] == "drydown"]

    (row,) = await eventually(counted, blocking=True)
    assert row["reason"].startswith("dry_run:")


# ── clamping ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_answer_is_cut_to_what_the_money_reaches_for(kinds: Proxy, upstream: Upstream) -> None:
    """With a bound of ten thousand tokens and money for less, the provider gets the lower bound, on every route."""

    models = {"chat": ("cent", "chat"), "messages": ("cent", "claude"), "responses": ("cent",)}
    cells = {unique("clamp"): (route, stream, model) for route, stream in CELLS for model in models[route]}

    async def one(user: str, route: str, stream: bool, model: str) -> int:
        plan = {"id": user, "out": 50_000, "obeys": True}
        answer = await ask(kinds, user, plan, route=route, stream=stream, model=model, tokens=10_000)
        assert answer.status == 200, answer.text
        return int(answer.headers["x-usage-clamped-to"])

    clamped = dict(zip(cells, await asyncio.gather(*(one(user, *cell) for user, cell in cells.items())), strict=True))
    answered = upstream.answers()
    books = await settled(kinds, *cells)
    for user, (_, _, model) in cells.items():
        assert clamped[user] == 5000 if model == "cent" else 3000 < clamped[user] < 3333
        assert set(answered[user]["bounds"]) == {clamped[user]}
        assert Decimal("0.049") <= Decimal(books.accounts[user]["clamp"]["spent"]) <= Decimal("0.05")
        (event,) = books.events[user]
        assert (event["clamped_to"], event["injected_output_tokens"]) == (clamped[user], None)
        assert event["excess"] == "0.00"


@pytest.mark.parametrize(("left", "clamped"), [(2000, 2000), (256, 256), (255, None)])
async def test_an_answer_is_cut_to_what_is_left_and_never_too_short(
    kinds: Proxy, left: int, clamped: int | None
) -> None:
    """If part of the limit is spent, the next request without a bound gets the rest, unless the rest is too small."""
    user = unique("clamp")
    spent = 5000 - left
    assert (await ask(kinds, user, {"out": spent}, tokens=spent)).status == 200
    answer = await ask(kinds, user, {"out": 50_000, "obeys": True}, tokens=None)
    if clamped is None:
        assert answer.why == (402, "spent", "clamp")
        return
    assert (answer.status, answer.headers["x-usage-clamped-to"]) == (200, str(clamped))
    books = Books(kinds, [user])
    cut, whole = sorted(books.events[user], key=lambda event: event["output_tokens"] != clamped)
    assert (cut["clamped_to"], cut["injected_output_tokens"], whole["clamped_to"]) == (clamped, None, None)
    assert balance(books.accounts[user]["clamp"]) == (Decimal("0.05"), 0)


FUNCTION = {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}}
WHOLE_ONLY: list[dict[str, Any]] = [
    {"tools": [{"type": "function", "function": FUNCTION}]},
    {"response_format": {"type": "json_object"}},
    {"extra_body": {"response_format": {"type": "json_object"}}},
    {"reasoning_effort": "high"},
    {"route": "messages", "model": "claude", "thinking": {"type": "enabled", "budget_tokens": 2000}},
    {"route": "messages", "model": "claude", "tools": [{"name": "look", "input_schema": {"type": "object"}}]},
    {"route": "responses", "reasoning": {"effort": "high"}},
    {"route": "responses", "text": {"format": {"type": "json_object"}}},
]


async def test_where_half_an_answer_is_useless_none_is_cut(kinds: Proxy) -> None:
    """Requests with tools, formats and thinking are answered in full or refused."""
    refused = await asyncio.gather(*(ask(kinds, unique("clamp"), tokens=10_000, **more) for more in WHOLE_ONLY))
    assert [answer.why for answer in refused] == [(402, "too_large", "clamp")] * len(WHOLE_ONLY)


async def test_the_shortest_of_several_limits_decides(kinds: Proxy) -> None:
    """A request that is clamped for one limit may be clamped further for another."""
    user = unique("clamptwo")
    answer = await ask(kinds, user, {"out": 50_000, "obeys": True}, tokens=10_000)
    assert (answer.status, answer.headers["x-usage-clamped-to"]) == (200, "3000")
    found = (await settled(kinds, user)).accounts[user]
    assert [balance(found[name])[0] for name in ("clamptwo", "clamptwo-tokens")] == [Decimal("0.03"), 3000]


async def test_a_cut_answer_waits_for_what_others_hold(kinds: Proxy, upstream: Upstream) -> None:
    """The first request holds all the money and uses a fifth of it: the second waits, and gets the rest."""
    user = unique("clamp")
    first = asyncio.ensure_future(ask(kinds, user, {"out": 1000, "delay": 1.0, "mark": user}, tokens=10_000))
    await eventually(lambda: upstream.seen().get(user), blocking=True)
    second = await ask(kinds, user, {"out": 50_000, "obeys": True}, tokens=10_000)
    assert (await first).headers["x-usage-clamped-to"] == "5000"
    assert (second.status, second.headers.get("x-usage-clamped-to")) == (200, "4000")


async def test_clamping_uses_the_limit_up(kinds: Proxy) -> None:
    """Of 40 concurrent requests of $0.03, 16 fit into $0.50, and a shorter answer uses the remainder."""
    user = unique("clampload")
    plan = {"out": 3000, "obeys": True}
    answers = await asyncio.gather(*(ask(kinds, user, plan, tokens=3000, stream=n % 2 == 0) for n in range(40)))
    assert Counter(answer.status for answer in answers)[200] >= 17
    assert {answer.headers["x-usage-refusal"] for answer in answers if answer.status != 200} <= {"spent", "busy"}
    spent = balance((await settled(kinds, user)).accounts[user]["clampload"])[0]
    assert Decimal("0.49") <= spent <= Decimal("0.50")


# ── waiting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_those_who_wait_get_exactly_what_is_left(kinds: Proxy) -> None:
    """Of 64 concurrent requests of exactly $0.01 against $0.30, 30 succeed without a retry; later ones do not wait."""
    user = unique("waits")
    answers = await asyncio.gather(*(ask(kinds, user, {"delay": 0.2}, stream=n % 2 == 0) for n in range(64)))
    assert Counter(answer.status == 200 for answer in answers) == {True: 30, False: 34}
    assert {answer.headers["x-usage-refusal"] for answer in answers if answer.status != 200} <= {"spent", "busy"}
    assert balance((await settled(kinds, user)).accounts[user]["waits"]) == (Decimal("0.30"), 0)
    took = []
    for route, stream in CELLS:
        began = time.monotonic()
        refused = await ask(kinds, user, route=route, stream=stream)
        took.append(time.monotonic() - began)
        assert refused.why == (402, "spent", "waits")
    assert min(took) < 1, took


# ── requests without a bound ─────────────────────────────────────────────────────────────────────────────────────────


async def test_what_nothing_bounds_is_refused_unless_allowed(kinds: Proxy) -> None:
    """A tool that the provider runs has no cost bound: it is refused, or allowed and charged at its actual cost."""
    denied, allowed = unique("bounded"), unique("unbounded")
    tools = [{"type": "web_search_preview"}]
    answers = [await ask(kinds, user, route="responses", tools=tools) for user in (denied, allowed)]
    assert answers[0].why == (400, "unbounded", "bounded")
    assert answers[1].status == 200, answers[1].text
    books = await settled(kinds, denied, allowed)
    assert books.events[denied] == []
    (event,) = books.events[allowed]
    assert (event["cost"], event["cost_source"]) == ("0.01", "computed")
    assert balance(books.accounts[allowed]["unbounded"]) == (Decimal("0.01"), 0)


# ── adjustments ──────────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def doors_of(proxy: Proxy) -> AsyncIterator[list[openai.AsyncOpenAI]]:
    """Yield one connection to each worker, opening connections until all workers have one.

    A connection stays with its worker. Otherwise one worker might get all requests.
    """
    doors: dict[str, openai.AsyncOpenAI] = {}
    async with AsyncExitStack() as stack:
        for _ in range(20):
            clients = [await stack.enter_async_context(connection(proxy)) for _ in range(6)]
            users = [unique("door") for _ in clients]
            asked = [
                asyncio.create_task(ask(proxy, user, {"delay": 1}, client=client))
                for user, client in zip(users, clients, strict=True)
            ]
            held = await eventually(lambda users=users: held_by(proxy, users), blocking=True)
            await asyncio.gather(*asked)
            doors |= {held[user]: client for user, client in zip(users, clients, strict=True)}
            if len(doors) == proxy.workers:
                break
        assert len(doors) == proxy.workers
        yield list(doors.values())


def held_by(proxy: Proxy, users: list[str]) -> dict[str, str] | None:
    """Return the worker that holds the reservation of each user, or None until each user has one."""
    opened = open_sqlite_ledger(proxy.folder / "data" / "ledger.db")
    try:
        found = {decode_event(held.event).user: held.worker for held in opened.ledger.open_reservations()}
    finally:
        opened.close()
    return found if found.keys() >= set(users) else None


async def in_force(
    proxy: Proxy, doors: list[openai.AsyncOpenAI], user: str, status: int, *, seconds: float, out: int = 1
) -> float:
    """Send requests to each worker until all answer with this status; return the elapsed seconds."""
    began = time.monotonic()
    while True:
        asked = [ask(proxy, user, {"out": out}, tokens=out, client=door) for door in doors]
        answers = await asyncio.gather(*asked)
        took = time.monotonic() - began
        if {answer.status for answer in answers} == {status}:
            return took
        assert took < seconds, [answer.text for answer in answers if answer.status != status]
        await asyncio.sleep(0.1)


async def change(proxy: Proxy, command: str, user: str, *more: str) -> dict[str, Any]:
    arguments = [command, "raised", "--user", user, *more]
    return await asyncio.to_thread(proxy.cli, *arguments)


@pytest.fixture
async def doors(kinds: Proxy) -> AsyncIterator[list[openai.AsyncOpenAI]]:
    async with doors_of(kinds) as found:
        yield found


async def test_an_amount_is_raised_paused_and_put_back_while_the_proxy_runs(
    kinds: Proxy, doors: list[openai.AsyncOpenAI]
) -> None:
    """Each adjustment takes effect within seconds in both workers, ends by itself or by command, and is recorded."""
    user, other = unique("raised"), unique("raised")
    assert (await ask(kinds, user)).status == (await ask(kinds, other)).status == 200
    assert (await ask(kinds, user)).status == 402

    await change(kinds, "raise", user, "--to", "0.02", "--for", "1h", "--reason", "demo at noon")
    await in_force(kinds, doors, user, 200, seconds=20)
    assert (await ask(kinds, user, tokens=900, plan={"out": 900})).status == 200
    assert (await ask(kinds, user)).why == (402, "spent", "raised")
    assert (await ask(kinds, other)).why == (402, "spent", "raised"), "raised for one subject only"

    paused = time.monotonic()
    now = (await change(kinds, "pause", user, "--for", "15s", "--reason", "the demo goes on"))["now"]
    assert (now["limit"], now["amount_from"]) == (None, "adjustment")
    await in_force(kinds, doors, user, 200, seconds=6, out=1000)
    answers = await asyncio.gather(*(ask(kinds, user) for _ in range(3)))
    assert [answer.status for answer in answers] == [200] * 3
    await in_force(kinds, doors, user, 402, seconds=40)
    assert time.monotonic() - paused > 15, "the pause ends when it was said to, not before"
    spent = accounts(kinds, user)["raised"]["spent"]
    assert Decimal(spent) > Decimal("0.04"), "what is not refused is recorded all the same"

    await change(kinds, "raise", user, "--to", "5", "--for", "1h", "--reason", "more")
    await in_force(kinds, doors, user, 200, seconds=20)
    ended = (await change(kinds, "resume", user))["adjustments"]
    assert len(ended) == 2, "the first raise still ran"
    await in_force(kinds, doors, user, 402, seconds=20)
    assert accounts(kinds, user)["raised"]["limit"] == "0.01"

    kept = [row for row in kinds.cli("adjustments", "--all")["adjustments"] if row["subject"] == {"user": user}]
    assert [(row["before"], row["after"], row["reason"]) for row in sorted(kept, key=lambda row: row["number"])] == [
        ("0.01", "0.02", "demo at noon"),
        ("0.02", None, "the demo goes on"),
        ("0.02", "5.00", "more"),
    ]
    assert all(row["actor"] for row in kept)


# ── the YAML ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def write(proxy: Proxy, config: dict[str, Any], *more: dict[str, Any]) -> None:
    section = {**config["usage_plugin"], "limits": [*LIMITS, *more]}
    proxy.config_path.write_text(yaml.safe_dump({**config, "usage_plugin": section}))


def our_lines(proxy: Proxy, *words: str) -> list[str]:
    return [line for line in proxy.log_path.read_text().splitlines() if all(word in line for word in words)]


def config_problems(proxy: Proxy, readable: Path) -> list[dict[str, Any]]:
    """Return the problems that the proxy reports about its YAML.

    The command line cannot read that YAML either, so it gets another file.
    """
    found = proxy.cli("status", "--config", str(readable))["problems"]
    return [problem for problem in found if problem["name"] == "config"]


async def test_the_yaml_is_read_again_when_it_changes(
    kinds: Proxy, config: dict[str, Any], doors: list[openai.AsyncOpenAI]
) -> None:
    """A new limit counts its window's past spend, or starts now; an invalid YAML has no effect until corrected."""
    late, now = unique("late"), unique("now")
    for user in (late, now):
        assert (await ask(kinds, user, {"out": 5000}, tokens=5000)).status == 200
    limits = [own("late", max_cost="0.05"), own("now", max_cost="0.05", count_from="now")]
    write(kinds, config, *limits)
    took = await in_force(kinds, doors, late, 402, seconds=15)
    print(f"in force in both workers after {took:.1f} s")
    answer = await ask(kinds, late)
    assert answer.why == (402, "spent", "late")
    assert Decimal(accounts(kinds, late)["late"]["spent"]) >= Decimal("0.05")
    answer = await ask(kinds, now)
    assert (answer.headers["x-usage-limit"], answer.headers["x-usage-remaining"]) == ("now", "0.04")

    good = kinds.folder / "good.yaml"
    good.write_text(kinds.config_path.read_text())
    assert config_problems(kinds, good) == []
    write(kinds, config, own("late", max_cost=-1))
    (problem,) = await eventually(lambda: config_problems(kinds, good), blocking=True)
    assert "max_cost" in problem["text"]
    assert len(our_lines(kinds, "config.refused", "max_cost")) == 1, "one worker tells, once"
    await in_force(kinds, doors, late, 402, seconds=10)

    write(kinds, config, own("late", max_cost=1), limits[1])
    await in_force(kinds, doors, late, 200, seconds=15)
    await eventually(lambda: not config_problems(kinds, good), blocking=True)


# ── alerts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_alert_is_told_once_over_workers_and_restarts(kinds: Proxy, config: dict[str, Any]) -> None:
    """Each threshold is logged once, whichever workers cross it, and also after a restart."""
    write(kinds, config)
    user, quiet = unique("alert"), unique("alert")

    async def spend(times: int) -> None:
        answers = await asyncio.gather(*(ask(kinds, user, stream=n % 2 == 0) for n in range(times)))
        assert [answer.status for answer in answers] == [200] * times

    await asyncio.gather(*(ask(kinds, quiet) for _ in range(4)))
    await spend(6)
    (line,) = await eventually(lambda: our_lines(kinds, "limit.threshold_crossed", user), blocking=True)
    assert "threshold=50" in line
    assert "limit='alert'" in line
    # A worker reports its pending alerts when it shuts down.
    kinds.stop()
    kinds.start()
    await spend(4)
    await eventually(lambda: our_lines(kinds, "limit.threshold_crossed", user, "threshold=100"), blocking=True)
    kinds.stop()
    told = our_lines(kinds, "limit.threshold_crossed")
    assert Counter(re.findall(r"threshold=(\d+)", line)[0] for line in told if user in line) == {"50": 1, "100": 1}
    assert not [line for line in told if quiet in line]
