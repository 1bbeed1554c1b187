"""The proxy as clients see it: answers with headers, refusals with reasons, and never a 500 from the plugin."""

from __future__ import annotations

import json
import re
import secrets
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.proxy.conftest import Proxy

pytestmark = pytest.mark.proxy


def chat(user: str | None, plan: dict[str, Any] | None = None, **body: Any) -> dict[str, Any]:
    text = json.dumps(plan or {"in": 0, "out": 1000})
    named = {} if user is None else {"user": user}
    return {"model": "cent", "max_tokens": 1000, **named, "messages": [{"role": "user", "content": text}], **body}


def unique(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(4)}"


CHAT = "/v1/chat/completions"


def test_answers_say_what_is_left(proxy: Proxy) -> None:
    """A whole answer reports its cost and the caller's most constrained limit; a stream reports only the latter."""
    user = unique("dollar")
    answer = proxy.post(CHAT, chat(user))
    assert answer.status_code == 200
    assert answer.headers["x-usage-cost"] == "0.01"
    assert answer.headers["x-usage-limit"] == "dollar"
    assert answer.headers["x-usage-remaining"] == "0.99"
    assert answer.headers["x-usage-unit"] == "usd"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", answer.headers["x-usage-resets-at"])
    stream = proxy.post(CHAT, chat(user, stream=True))
    assert stream.headers["x-usage-remaining"] == "0.98"
    assert "x-usage-cost" not in stream.headers


ROUTES = [
    pytest.param(CHAT, lambda u, m: chat(u, model=m), id="chat"),
    pytest.param(CHAT, lambda u, m: chat(u, model=m, stream=True), id="chat-stream"),
    pytest.param("/v1/completions", lambda u, m: {"model": m, "prompt": "hi", "user": u, "max_tokens": 5}, id="text"),
    pytest.param("/v1/embeddings", lambda u, m: {"model": m, "input": "hi", "user": u}, id="embeddings"),
    pytest.param("/v1/responses", lambda u, m: {"model": m, "input": "hi", "user": u}, id="responses"),
    pytest.param(
        "/v1/messages",
        lambda u, m: {
            "model": m,
            "max_tokens": 5,
            "metadata": {"user_id": u},
            "messages": [{"role": "user", "content": "hi"}],
        },
        id="messages",
    ),
]


@pytest.mark.parametrize(("route", "body"), ROUTES)
def test_a_refusal_is_the_same_on_every_route(proxy: Proxy, route: str, body: Any) -> None:
    """Status and headers are the contract on all routes; the refusal's fields are wherever LiteLLM keeps them."""
    model = "embed" if route == "/v1/embeddings" else "chat"
    answer = proxy.post(route, body(unique("blocked"), model))
    assert answer.status_code == 402, answer.text
    assert answer.headers["x-usage-refusal"] == "too_large"
    assert answer.headers["x-usage-limit"] == "blocked"
    assert answer.headers["x-should-retry"] == "false"
    error = answer.json()["error"]
    # LiteLLM 1.98 drops the fields on these two routes; the headers are the contract.
    if route not in ("/v1/completions", "/v1/messages") or "provider_specific_fields" in error:
        assert error["provider_specific_fields"]["reason"] == "too_large"
    assert "limit blocked" in error["message"]
    assert re.search(r"Ask #ai-platform for more\. Ref [0-9A-Z]{8}$", error["message"])
    if route != "/v1/messages":
        assert (error["type"], error["param"]) == ("request_exceeds_limit", "blocked")


def test_a_request_larger_than_the_limit_is_told_so(proxy: Proxy) -> None:
    """A request that no wait can make fit is refused as larger than the whole limit, per request and per day."""
    for user, tokens, limit in ((unique("single"), 2001, "single"), (unique("dollar"), 100_001, "dollar")):
        answer = proxy.post(CHAT, chat(user, max_tokens=tokens))
        assert (answer.status_code, answer.headers["x-usage-refusal"]) == (402, "too_large")
        assert answer.json()["error"]["type"] == "request_exceeds_limit"
        assert answer.headers["x-usage-limit"] == limit
    assert proxy.post(CHAT, chat(unique("single"), max_tokens=2000)).status_code == 200


def test_a_rate_limit_says_when_to_come_back(proxy: Proxy) -> None:
    """A limit whose window ends within a minute answers 429 with the seconds to wait."""
    user = unique("rate")
    statuses = [proxy.post(CHAT, chat(user)).status_code for _ in range(8)]
    assert statuses.count(200) in range(3, 7), "three a minute; the minute may have changed once"
    answer = next(a for a in (proxy.post(CHAT, chat(user)) for _ in range(8)) if a.status_code != 200)
    assert answer.status_code == 429
    assert answer.json()["error"]["type"] == "rate_limit_exceeded"
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert 1 <= int(answer.headers["retry-after-ms"]) <= 60_000
    assert "x-should-retry" not in answer.headers


def test_token_limits_hold_bound_and_settle_actual(proxy: Proxy) -> None:
    """A token limit reserves the bound and charges the actual usage."""
    user = unique("tokens")
    assert proxy.post(CHAT, chat(user, {"in": 10, "out": 90})).status_code == 200
    account = proxy.limit("tokens", user=user)
    assert (account["unit"], account["limit"], account["spent"], account["reserved"]) == ("total_tokens", 5000, 100, 0)


def test_free_models_are_never_refused_by_cost(proxy: Proxy) -> None:
    """A request that costs nothing passes a cost limit of zero; a request with a price does not."""
    user = unique("blocked")
    assert proxy.post(CHAT, chat(user, model="free")).status_code == 200
    assert proxy.post(CHAT, chat(user)).status_code == 402


@pytest.mark.parametrize("model", ["unpriced", "nan"])
def test_models_without_a_price_are_refused_under_a_cost_limit(proxy: Proxy, model: str) -> None:
    """A model whose price is missing or not a number is a 400 under a cost limit, else recorded without a cost."""
    user = unique("dollar")
    answer = proxy.post(CHAT, chat(user, model=model))
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "model_unpriced"
    assert answer.headers["x-usage-refusal"] == "unpriced"
    assert proxy.events(user) == []


def test_unpriced_models_can_be_allowed(proxy: Proxy) -> None:
    """`allow_unpriced` admits a model without a price under one limit; the company-wide one still refuses it."""
    answer = proxy.post(CHAT, chat(unique("local"), model="unpriced"))
    assert answer.status_code == 400
    assert answer.headers["x-usage-limit"] == "everything"


def test_everybodys_limit_shows_no_amounts(proxy: Proxy) -> None:
    """Amounts are shown for the caller's own limits; for shared limits, only the name and the reset."""
    user = unique("shared")
    answers = [proxy.post(CHAT, chat(user)) for _ in range(2)]
    refused = answers[-1]
    assert refused.status_code == 402
    assert refused.headers["x-usage-limit"] == "team-wide"
    fields = refused.json()["error"]["provider_specific_fields"]
    assert set(fields) == {"reason", "limit", "resets_at", "ref"}
    assert "0.0" not in refused.json()["error"]["message"]


def test_dry_runs_and_warnings_are_not_felt(proxy: Proxy) -> None:
    """A dry run is counted and a warning logged; neither refuses."""
    for prefix in ("dry", "warned"):
        user = unique(prefix)
        assert proxy.post(CHAT, chat(user)).status_code == 200
        assert proxy.post(CHAT, chat(user)).status_code == 200
        account = proxy.limit("dry" if prefix == "dry" else "warned", user=user)
        assert Decimal(account["spent"]) == Decimal("0.02")


def test_a_refusal_can_be_looked_up(proxy: Proxy) -> None:
    """The ref of a refusal leads to its facts, and `status` counts the refusal."""
    user = unique("blocked")
    ref = proxy.post(CHAT, chat(user)).json()["error"]["provider_specific_fields"]["ref"]
    facts = wait_until(lambda: proxy.cli("explain", ref))
    assert (facts["limit"], facts["user"], facts["reason"]) == ("blocked", user, "too_large")
    status = proxy.cli("status")
    assert {"limit": "blocked", "subject": user, "refusals": 1} in status["blocked"]
    assert len(status["workers"]) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"{}",
        b'{"model": "cent"}',
        b'{"model": 5, "messages": []}',
        b'{"model": ["cent"], "messages": []}',
        b'{"model": "cent", "messages": "hi"}',
        b'{"model": "cent", "messages": [5, null, {"role": 7}]}',
        b'{"model": "cent", "messages": [{"role": "user", "content": {"deep": [[[]]]}}]}',
        b'{"model": "cent", "messages": [], "max_tokens": -5, "n": "many"}',
        b'{"model": "cent", "messages": [], "max_tokens": 1e400}',
        b'{"model": "cent", "messages": [], "user": {"a": 1}}',
        b'{"model": "cent", "messages": [], "metadata": "text", "tools": 5, "fallbacks": {"x": 1}}',
        b'{"model": "no-such-model", "messages": [{"role": "user", "content": "hi"}]}',
        b'{"model": "cent,free", "messages": [{"role": "user", "content": "hi"}]}',
        b'{"model": "cent", "messages": ' + b"[" * 500 + b"]" * 500 + b"}",
    ],
    ids=lambda body: body[:60].decode() or "empty",
)
def test_bad_bodies_are_never_a_500_of_ours(proxy: Proxy, body: bytes) -> None:
    """Any body gets LiteLLM's usual answer or the plugin's 400, and the plugin's log shows no bug."""
    before = proxy.log_path.read_text().count("admission.failed")
    answer = proxy.post(CHAT, body)
    assert "usage plugin failed" not in answer.text
    assert "x-usage-refusal" not in answer.headers or answer.status_code in (400, 402, 429)
    assert proxy.log_path.read_text().count("admission.failed") == before
    assert proxy.log_path.read_text().count("record.failed") == 0
    assert proxy.log_path.read_text().count("outcome.unreadable") == 0


def test_a_list_of_models_is_refused(proxy: Proxy) -> None:
    """LiteLLM would call every model of a comma-separated list and bill none."""
    answer = proxy.post(CHAT, chat(unique("any"), model="cent,free"))
    assert answer.status_code == 400
    assert "One model a request" in answer.json()["error"]["message"]


def test_five_megabytes_are_bounded_and_answered(proxy: Proxy) -> None:
    """A prompt of 5 MB is bounded by its bytes; with free input it is answered."""
    user = unique("dollar")
    body = chat(user)
    body["messages"].insert(0, {"role": "user", "content": "é" * 2_500_000})
    assert proxy.post(CHAT, body).status_code == 200
    refused = proxy.post(CHAT, {**body, "model": "chat"})
    assert (refused.status_code, refused.headers["x-usage-refusal"]) == (402, "too_large")


@pytest.mark.parametrize(
    "name",
    ["../../x", "a/b\\c", "zoë", "名前", "'; DROP TABLE accounts; --", "*", "[red]x[/red]", "a" * 256],
)
def test_hostile_names_are_only_names(proxy: Proxy, name: str) -> None:
    """A name that looks like a path, a glob, SQL or markup is recorded unchanged and has no other effect."""
    assert proxy.post(CHAT, chat(name)).status_code == 200
    assert {event["user"] for event in proxy.events(name, last=1)} == {name}


@pytest.mark.parametrize(
    ("name", "user"),
    [
        ("(anonymous)", "(anonymous)"), ('{"device_id": "x"}', "x"), ("a" * 257, f"renamed-{'a' * 32}-e8d95cc2b4bc198c"),
        ("a\x00b", "renamed-a-b-"), ("line\nbreak", "renamed-line-break-"), ("[1]", "renamed-1-"), ("a\u202eb", "renamed-a-b-"),
    ],
)  # fmt: skip
def test_invalid_names_get_a_substitute(proxy: Proxy, name: str, user: str) -> None:
    """A request with a name that is too long, unprintable or JSON is served, and recorded under a fixed substitute."""
    found = []
    for _ in range(2):
        body = chat(name, metadata={"tags": [mark := unique("tag")]})
        assert proxy.post(CHAT, body).status_code == 200
        found += [event["user"] for event in proxy.cli("events", "--last", "20")["events"] if mark in event["tags"]]
    assert len(found) == 2
    assert len(set(found)) == 1
    assert found[0].startswith(user)


def test_nobody_named_is_the_shared_subject(proxy: Proxy) -> None:
    """A request without a user counts for the shared subject."""
    assert proxy.post(CHAT, chat(None, metadata={"tags": ["nightly"], "session_id": "s1"})).status_code == 200
    event = proxy.events("(anonymous)", last=1)[0]
    assert event["api_key"] == "litellm_proxy_master_key"
    assert event["tags"] == ["nightly"]
    assert (event["end_user"], event["session"]) == (None, "s1")


def test_no_secret_and_no_content_is_kept(proxy: Proxy) -> None:
    """Prompts, answers and keys never reach the plugin's files or log lines; only the owner can read the files."""
    secret = f"secret-{secrets.token_hex(8)}"
    body = chat(unique("dollar"))
    body["messages"].insert(0, {"role": "user", "content": secret})
    assert proxy.post(CHAT, body).status_code == 200
    assert proxy.post(CHAT, {**body, "model": "no-such"}).status_code == 400
    proxy.settled()
    for path in (proxy.folder / "data").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
        if path.is_file():
            content = path.read_bytes()
            for kept_out in (secret, proxy.key, "hello"):
                assert kept_out.encode() not in content, path
    ours = [line for line in proxy.log_path.read_text().splitlines() if "usage_plugin" in line]
    assert not [line for line in ours if secret in line or proxy.key in line]


def test_no_log_and_a_chosen_call_id_change_nothing(proxy: Proxy) -> None:
    """A client can neither disable recording nor merge two requests into one."""
    user = unique("dollar")
    for _ in range(2):
        body = chat(user, **{"no-log": True})
        assert proxy.post(CHAT, body, **{"x-litellm-call-id": "fixed"}).status_code == 200
    proxy.settled()
    events = proxy.events(user)
    assert [event["call_id"] for event in events] == ["fixed", "fixed"]
    assert Decimal(proxy.limit("dollar", user=user)["spent"]) == Decimal("0.02")


def test_the_output_bound_is_put_into_the_request(proxy: Proxy) -> None:
    """Without max_tokens, the configured default bounds the request, and the event records it."""
    user = unique("dollar")
    body = chat(user)
    del body["max_tokens"]
    assert proxy.post(CHAT, body).status_code == 200
    (event,) = proxy.events(user)
    assert event["injected_output_tokens"] == 4096
    assert Decimal(event["reserved"]) == Decimal("0.04096")


async def test_failures_cost_nothing_and_are_recorded(proxy: Proxy) -> None:
    """A request whose provider fails is one event with status failure; its hold is released."""
    user = unique("dollar")
    async with proxy.client() as client:
        for stream in (False, True):
            with pytest.raises(openai.APIStatusError):
                await client.chat.completions.create(**chat(user, {"status": 500}, stream=stream))
    events = proxy.events(user)
    assert [event["status"] for event in events] == ["failure", "failure"]
    assert all(event["error"] for event in events)
    account = proxy.limit("dollar", user=user)
    assert (account["spent"], account["reserved"]) == ("0.00", "0.00")


def test_the_event_has_every_field(proxy: Proxy) -> None:
    """An event records the user, the requested and the served model, the usage and the cost."""
    user = unique("mixed")
    proxy.post(
        CHAT,
        {"model": "chat", "user": user, "max_tokens": 50, "metadata": {"tags": ["a"]}, "messages": [
            {"role": "user", "content": json.dumps({"in": 100, "out": 20, "cached": 40, "reasoning": 5, "padding": "x" * 100})}]},
    )  # fmt: skip
    (event,) = proxy.events(user)
    assert (event["status"], event["call_type"], event["model"]) == ("success", "acompletion", "chat")
    assert (event["requested_model"], event["served_model"], event["provider"]) == ("chat", "openai/chat-up", "openai")
    tokens = ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens")
    assert [event[name] for name in tokens] == [100, 20, 40, 5]
    assert Decimal(event["cost"]) == 60 * Decimal("0.000003") + 40 * Decimal("0.0000003") + 20 * Decimal("0.000015")
    assert (event["cost_source"], event["excess"], event["cache_hit"]) == ("computed", "0.00", False)
    assert event["end_user"] == user
    assert event["deployment"]
    assert event["duration_ms"] > 0


@pytest.mark.parametrize(
    "hidden",
    [
        {"extra_body": {"max_tokens": 200_000}},
        {"max_completion_tokens": 200_000.0},
        {"max_completion_tokens": "200000"},
        {"n": 200},
        {"extra_body": {"n": 200}},
    ],
    ids=json.dumps,
)
def test_a_bound_cannot_be_hidden(proxy: Proxy, hidden: dict[str, Any]) -> None:
    """The reserved amount covers everything that a provider may read as a larger output or as more answers."""
    answer = proxy.post(CHAT, chat(unique("dollar"), **hidden))
    assert (answer.status_code, answer.headers["x-usage-refusal"]) == (402, "too_large")


@pytest.mark.parametrize(
    "odd", [{"max_completion_tokens": -1}, {"max_tokens": 0}, {"extra_body": {"max_tokens": None}, "max_tokens": None}]
)
def test_what_names_no_bound_gets_the_default(proxy: Proxy, odd: dict[str, Any]) -> None:
    """An invalid output limit of the client is replaced by the default, under every name."""
    user = unique("dollar")
    assert proxy.post(CHAT, chat(user, **odd)).status_code == 200
    (event,) = proxy.events(user)
    assert (event["injected_output_tokens"], event["reserved"]) == (4096, "0.04096")


def test_another_model_cannot_be_hidden(proxy: Proxy) -> None:
    """LiteLLM would send extra_body.model to the provider and bill the other model."""
    answer = proxy.post(CHAT, chat(unique("dollar"), extra_body={"model": "dear"}))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "extra_body.model"


def test_a_fallback_is_one_event_of_what_was_billed(proxy: Proxy) -> None:
    """A request that a fallback answers is billed to the fallback, once, and held for it from the start."""
    user = unique("dollar")
    assert proxy.post(CHAT, chat(user, model="broken")).status_code == 200
    (event,) = proxy.events(user)
    assert (event["requested_model"], event["model"], event["status"]) == ("broken", "cent", "success")
    assert (event["cost"], event["reserved"], event["excess"]) == ("0.01", "0.01", "0.00")


def test_a_fallback_that_does_not_fit_is_switched_off(proxy: Proxy) -> None:
    """If only the requested model fits, the request is admitted and never falls back to the expensive one."""
    user = unique("dollar")
    assert proxy.post(CHAT, chat(user, model="broken-dear")).status_code == 500
    (event,) = proxy.events(user)
    assert (event["status"], event["cost"], event["reserved"]) == ("failure", "0.00", "0.001")


@pytest.mark.parametrize(
    "fallbacks",
    [
        [{"model": "cent", "max_tokens": 90_000}],
        [{"broken": [{"model": "cent", "n": 9}]}],
    ],
    ids=json.dumps,
)
def test_fallbacks_cannot_bring_more_than_a_name(proxy: Proxy, fallbacks: list[Any]) -> None:
    """Only names are allowed as fallbacks: LiteLLM merges a fallback's parameters into the already bounded request."""
    answer = proxy.post(CHAT, chat(unique("dollar"), model="broken", fallbacks=fallbacks))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "fallbacks")
    named = chat(unique("dollar"), model="broken", fallbacks=["cent"])
    assert proxy.post(CHAT, named).status_code == 200


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_an_answer_without_usage_is_never_free(proxy: Proxy, stream: bool) -> None:
    """If neither provider nor LiteLLM reports usage, a paid answer costs the reserved amount or LiteLLM's own count."""
    user = unique("dollar")
    assert proxy.post(CHAT, chat(user, {"silent": True}, stream=stream)).status_code == 200
    proxy.settled()
    (event,) = proxy.events(user)
    assert Decimal(event["cost"]) > 0
    if not stream:
        assert (event["cost"], event["cost_source"], event["estimated"]) == ("0.01", "reserved", True)


def test_requests_without_a_model_have_no_price(proxy: Proxy) -> None:
    """A request without a model has an unknown cost, so a cost limit refuses it."""
    user = unique("rate")
    body = {name: value for name, value in chat(user).items() if name != "model"}
    answer = proxy.post(CHAT, body)
    assert (answer.status_code, answer.headers["x-usage-refusal"]) == (400, "unpriced")
    assert "a request that names no model" in answer.json()["error"]["message"]
