"""The user of a request on the real proxy: session claims of agents, header identity on every route, `custom_auth`."""

from __future__ import annotations

import json
import secrets
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anthropic
import httpx
import pytest

from tests.proxy.conftest import Proxy, Upstream, proxy_config, running
from tests.support import plain_http

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.proxy

AUTH = """\
import os
from litellm.proxy._types import ProxyException, UserAPIKeyAuth

async def user_api_key_auth(request, api_key):
    master = os.environ["LITELLM_MASTER_KEY"]
    known = {
        master: {"user_role": "proxy_admin"}, "sk-eve": {"user_id": "eve"}, "sk-shared": {},
        "sk-admin": {"user_role": "proxy_admin"}, "plain-key": {},
    }
    if api_key not in known:
        raise ProxyException(message="unknown key", type="auth_error", param=None, code=401)
    return UserAPIKeyAuth(api_key=api_key, **known[api_key])
"""
LIMITS = [
    {"name": "thrice", "per": "user", "match": {"user": "thrice-*"}, "window": "day", "max_requests": 3},
    {"name": "once", "per": "user", "match": {"user": ["once-*", "renamed-*"]}, "window": "day", "max_requests": 1},
    {"name": "blocked", "per": "user", "match": {"user": "blocked-*"}, "window": "day", "max_cost": 0},
    {"name": "unpriced", "per": "user", "match": {"user": "priced-*"}, "window": "day", "max_cost": 1},
    {"name": "minute", "per": "user", "match": {"user": "minute-*"}, "window": {"rolling": "50s"}, "max_requests": 1},
]  # fmt: skip
PLAN = json.dumps({"in": 100, "out": 20})
MESSAGES: list[Any] = [{"role": "user", "content": PLAN}]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    """Run a proxy whose keys a `custom_auth` checks, with a header as the first source and pass-through routes."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "own_auth.py").write_text(AUTH)
    config = proxy_config(upstream, {"limits": LIMITS, "identity": {"user": ["header:X-U", "key", "end_user"]}})
    config["general_settings"] |= {
        "custom_auth": "own_auth.user_api_key_auth",
        "pass_through_endpoints": [
            {"path": "/raw", "target": f"{upstream.url}/raw"},
            {"path": "/mine", "target": upstream.url, "include_subpath": True},
        ],
    }
    config["litellm_settings"]["sse_keepalive_ping_interval_seconds"] = 30
    providers = {
        f"{name}_{what}": value
        for name in ("ANTHROPIC", "OPENAI", "GEMINI", "COHERE", "MISTRAL")
        for what, value in (("API_BASE", upstream.url), ("API_KEY", "none"))
    }
    with running(folder, config, environment=providers) as proxy:
        yield proxy


def claude_code(proxy: Proxy, user_id: Any, **headers: str) -> httpx.Response:
    """Send a request as Claude Code does."""
    body = {"model": "claude", "max_tokens": 512, "messages": MESSAGES, "metadata": {"user_id": user_id}}
    return proxy.post("/v1/messages?beta=true", body, **{
        "user-agent": "claude-cli/2.1.86 (external, cli)", "anthropic-beta": "claude-code-20250219", **headers,
    })  # fmt: skip


def json_form(device: str, session: str, account: str = "") -> str:
    return json.dumps({"device_id": device, "account_uuid": account, "session_id": session}, separators=(",", ":"))


def older_form(device: str, session: str, account: str = "") -> str:
    return f"user_{device}_account_{account}_session_{session}"


@contextmanager
def anthropic_client(proxy: Proxy, calls: list[Any], path: str = "", **options: Any) -> Iterator[anthropic.Anthropic]:
    """Yield Anthropic's own client, which appends each call to `calls`."""
    http_client = anthropic.DefaultHttpxClient(event_hooks={"request": [calls.append]})
    with http_client, anthropic.Anthropic(
        base_url=f"{proxy.url}{path}", auth_token=proxy.key, timeout=60, http_client=http_client, **options
    ) as client:  # fmt: skip
        yield client


# ── agents that claim a session ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", [json_form, older_form])
@pytest.mark.parametrize("account", ["", "a1b2c3d4-0000-4000-8000-"])
def test_claude_code_is_one_user_over_its_sessions(
    proxies: Callable[[int], Proxy], form: Callable[..., str], account: str
) -> None:
    """Claude Code works with the callback line alone: its account or device is the user; its sessions are sessions."""
    proxy, device = proxies(1), secrets.token_hex(32)
    account = account and account + secrets.token_hex(6)
    sessions = [str(uuid.uuid4()) for _ in range(3)]
    for session in sessions:
        assert claude_code(proxy, form(device, session, account)).status_code == 200
    events = proxy.events(account or device)
    assert [event["session"] for event in events] == sessions
    assert {event["end_user"] for event in events} == {account or device}
    other = secrets.token_hex(32)
    assert claude_code(proxy, form(other, sessions[0])).status_code == 200
    assert len(proxy.events(other)) == 1


def test_an_updated_claude_code_is_the_same_user(proxies: Callable[[int], Proxy]) -> None:
    """The older form and the JSON form of one device are one user, on every route and in every field."""
    proxy, device = proxies(1), secrets.token_hex(32)
    for form in (json_form, older_form):
        assert claude_code(proxy, form(device, str(uuid.uuid4()))).status_code == 200
        body = {"model": "chat", "messages": MESSAGES, "user": form(device, str(uuid.uuid4()))}
        assert proxy.post("/v1/chat/completions", body).status_code == 200
        assert proxy.post("/v1/responses", {"model": "resp", "input": PLAN, "user": body["user"]}).status_code == 200
    events = proxy.events(device)
    assert (len({event["session"] for event in events}), len(events)) == (4, 6)


def test_the_agent_of_a_session_is_kept(proxies: Callable[[int], Proxy]) -> None:
    """The costs of a session and its subagents are reported separately, because the headers name both."""
    proxy, device, session = proxies(1), secrets.token_hex(32), str(uuid.uuid4())
    for agent in ({}, {"x-claude-code-agent-id": "explorer"}, {"x-claude-code-agent-id": "explorer"}):
        claim = json_form(device, str(uuid.uuid4()))
        assert claude_code(proxy, claim, **{"x-claude-code-session-id": session, **agent}).status_code == 200
    rows = proxy.cli("report", "--by", "session,agent", "--user", device)["rows"]
    assert {(row["session"], row["agent"], row["requests"]) for row in rows} == {
        (session, None, 1), (session, "explorer", 2),
    }  # fmt: skip
    assert len(proxy.cli("events", "--user", device, "--agent", "explorer")["events"]) == 2


def test_limits_hold_over_all_sessions_of_an_agent(guarded: Proxy) -> None:
    """A new session, an update of the client and a pass-through route do not give a fresh limit."""
    device = f"thrice-{secrets.token_hex(16)}"
    statuses = [
        claude_code(guarded, json_form(device, str(uuid.uuid4()))).status_code,
        claude_code(guarded, older_form(device, str(uuid.uuid4()))).status_code,
    ]
    body = {"model": "claude-sonnet-4-6", "max_tokens": 50, "messages": MESSAGES}
    for _ in range(2):
        body["metadata"] = {"user_id": json_form(device, str(uuid.uuid4()))}
        statuses.append(guarded.post("/anthropic/v1/messages", body).status_code)
    statuses.append(claude_code(guarded, json_form(device, str(uuid.uuid4()))).status_code)
    assert statuses == [200, 200, 200, 402, 402]
    assert len({event["session"] for event in guarded.events(device)}) == 3


@pytest.mark.parametrize(
    ("claim", "user"),
    [
        ('{"tenant": "t", "email": "%s@corp.example"}', "%s@corp.example"), ('{"sub": "%s", "iat": 17}', "%s"),
        ('{"user": {"id": "%s"}}', "%s"), ({"id": "%s"}, "%s"), ('{"device_id": "%s", "session_id": "cut o', "%s"),
    ],
)  # fmt: skip
def test_a_json_claim_is_recorded_under_its_best_field(proxies: Callable[[int], Proxy], claim: Any, user: str) -> None:
    """A JSON claim, whole or truncated, names a user even without configuration, and the request is served."""
    name = f"json-{secrets.token_hex(8)}"
    sent = json.loads(json.dumps(claim).replace("%s", name))
    proxy = proxies(1)
    assert proxy.post("/v1/chat/completions", {"model": "chat", "messages": MESSAGES, "user": sent}).status_code == 200
    assert len(proxy.events(user.replace("%s", name))) == 1


@pytest.mark.parametrize(
    "claim", ["x" * 400, "a\nb", "{", '["bo"]', "(anonymous)", '{"session_id": "s"}', ["bo"], True]
)
def test_no_claim_breaks_a_client(proxies: Callable[[int], Proxy], claim: object) -> None:
    """A request with a claim that is not a valid name is served as well."""
    body = {"model": "chat", "messages": MESSAGES, "user": claim}
    assert proxies(1).post("/v1/chat/completions", body).status_code == 200
    if isinstance(claim, str):
        assert claude_code(proxies(1), claim).status_code == 200


@pytest.mark.parametrize(
    "claim",
    ["bo\n%s", f"{'x' * 400}%s", '["%s"]', '{"name": "once-%s", "session_id": "#"}', '{"seat": "%s", "turn": "#"}'],
)
def test_no_claim_escapes_its_limit(guarded: Proxy, claim: str) -> None:
    """An invalid name, like a JSON claim, leads to the same user each time: its limits hold."""
    claim, statuses = claim.replace("%s", secrets.token_hex(4)), []
    for session in ("a", "b"):
        body = {"model": "chat", "messages": MESSAGES, "user": claim.replace("#", session)}
        statuses.append(guarded.post("/v1/chat/completions", body).status_code)
    assert statuses == [200, 402]


# ── headers, on every route ──────────────────────────────────────────────────────────────────────────────────────────

GEMINI = {"contents": [{"role": "user", "parts": [{"text": PLAN}]}]}
PASS_THROUGH: dict[str, tuple[str, dict[str, Any]]] = {
    "anthropic": ("/anthropic/v1/messages", {"model": "claude-sonnet-4-6", "max_tokens": 300, "messages": MESSAGES}),
    "anthropic-stream": (
        "/anthropic/v1/messages", {"model": "claude-sonnet-4-6", "max_tokens": 300, "messages": MESSAGES, "stream": True},
    ),
    "openai": ("/openai/v1/chat/completions", {"model": "gpt-4o-mini", "messages": MESSAGES}),
    "openai-stream": ("/openai/v1/chat/completions", {"model": "gpt-4o-mini", "messages": MESSAGES, "stream": True}),
    "openai-passthrough": ("/openai_passthrough/v1/responses", {"model": "gpt-4o-mini", "input": PLAN}),
    "gemini": ("/gemini/v1beta/models/gemini-2.5-flash:generateContent", GEMINI),
    "gemini-stream": ("/gemini/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse", GEMINI),
    "configured": ("/raw", {"model": "x", "messages": MESSAGES}),
    "configured-subpath": ("/mine/v1/chat/completions", {"model": "x", "messages": MESSAGES, "stream": True}),
}  # fmt: skip
ORDINARY: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"model": "chat", "messages": MESSAGES}),
    "chat-stream": ("/v1/chat/completions", {"model": "chat", "messages": MESSAGES, "stream": True}),
    "messages": ("/v1/messages", {"model": "claude", "max_tokens": 300, "messages": MESSAGES}),
    "responses": ("/v1/responses", {"model": "resp", "input": PLAN}),
    "embeddings": ("/v1/embeddings", {"model": "embed", "input": PLAN}),
    "completions": ("/v1/completions", {"model": "text", "prompt": PLAN}),
    "google": ("/v1beta/models/native:generateContent", GEMINI),
}


@pytest.mark.parametrize(
    ("route", "body"), [*PASS_THROUGH.values(), *ORDINARY.values()], ids=[*PASS_THROUGH, *ORDINARY]
)
def test_a_header_names_the_user_on_every_route(guarded: Proxy, route: str, body: dict[str, Any]) -> None:
    """The source of the user on an ordinary route names the same user on pass-through routes, and limits hold there."""
    user = f"once-{secrets.token_hex(8)}"
    # On a pass-through route the whole body is the client's: it must not add headers.
    body = {**body, "proxy_server_request": {"headers": {"x-u": "another"}}} if body in PASS_THROUGH.values() else body
    # Gemini's clients send their key in a separate header.
    headers = {"x-u": user, "x-goog-api-key": guarded.key}
    answers = [guarded.post(route, body, **headers) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 402, 402]
    guarded.settled()
    (event,) = guarded.events(user)
    assert event["status"] == "success"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_pass_through_stream_of_a_gateway_has_its_cost(guarded: Proxy, stream: bool) -> None:
    """The provider's reported usage is charged to the header's user, even if the host is not the provider's own."""
    user = f"ann-{secrets.token_hex(8)}"
    plan = {"in": 25_000, "out": 200, "cached": 20_000, "cache_write": 4_000, "cache_write_1h": 3_000}
    body = {"model": "claude-sonnet-4-5", "max_tokens": 300, "stream": stream}
    body["messages"] = [{"role": "user", "content": json.dumps(plan)}]
    assert guarded.post("/anthropic/v1/messages", body, **{"x-u": user}).status_code == 200
    guarded.settled()
    (event,) = guarded.events(user)
    # 1000 × 3 $ + 1000 × 3.75 $ + 3000 × 6 $ + 20000 × 0.30 $ + 200 × 15 $, per million.
    assert (event["cost"], event["input_tokens"], event["output_tokens"]) == ("0.03375", 25_000, 200)
    assert not event["estimated"]


def test_a_pass_through_stream_of_openais_has_its_cost(guarded: Proxy) -> None:
    """A gateway to OpenAI is charged as well, if the client asks for usage."""
    user = f"bo-{secrets.token_hex(8)}"
    body = {"model": "gpt-4o-mini", "messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
    assert guarded.post("/openai/v1/chat/completions", body, **{"x-u": user}).status_code == 200
    guarded.settled()
    (event,) = guarded.events(user)
    # 100 × 0.15 $ + 20 × 0.60 $, per million.
    assert (event["cost"], event["input_tokens"], event["output_tokens"]) == ("0.000027", 100, 20)


def test_a_key_is_never_a_users_name(guarded: Proxy) -> None:
    """A key in a header is not stored, even if the YAML names that header."""
    found = guarded.cli("events", "--last", "100000")["events"]
    assert found
    assert guarded.key not in json.dumps(found)


# ── the master key behind a custom_auth ──────────────────────────────────────────────────────────────────────────────


def sent_with(proxy: Proxy, key: str, body: dict[str, Any], route: str = "/v1/chat/completions") -> dict[str, Any]:
    """Send a request with a key, and return its event."""
    tag = secrets.token_hex(8)
    headers = {"Authorization": f"Bearer {key}", "x-litellm-tags": tag}
    answer = plain_http.post(f"{proxy.url}{route}", json={**body, "messages": MESSAGES}, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    (event,) = [event for event in proxy.cli("events", "--last", "20")["events"] if tag in event["tags"]]
    return event


def test_the_master_key_behind_a_custom_auth_names_nobody(guarded: Proxy) -> None:
    """With the master key the request itself names the user, by any field that its route has."""
    claude = {"model": "claude", "max_tokens": 50}
    for body, route, user in (
        ({"model": "chat", "user": "carol"}, "/v1/chat/completions", "carol"),
        ({**claude, "metadata": {"user_id": "dave"}}, "/v1/messages", "dave"),
        ({"model": "chat", "safety_identifier": "sue"}, "/v1/chat/completions", "sue"),
        ({"model": "chat"}, "/v1/chat/completions", "(anonymous)"),
        (claude, "/v1/messages", "(anonymous)"),
    ):
        event = sent_with(guarded, guarded.key, body, route)
        assert (event["user"], event["api_key"]) == (user, "litellm_proxy_master_key")


def test_any_other_key_behind_a_custom_auth_names_itself(guarded: Proxy) -> None:
    """A key with a user names that user, not the request's; a key without one has its own name, even an admin's key."""
    body = {"model": "chat", "user": "carol"}
    eve = sent_with(guarded, "sk-eve", body)
    assert (eve["user"], eve["end_user"]) == ("eve", "carol")
    for key in ("sk-shared", "sk-admin", "plain-key"):
        event = sent_with(guarded, key, body)
        assert event["user"] == f"key-{event['api_key'].removeprefix('k-')[:16]}"
        assert key not in json.dumps(event)


# ── refusals in Anthropic's shape ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("path", "limit", "status", "kind", "reason"),
    [
        ("", "once", 402, "billing_error", "spent"), ("/anthropic", "once", 402, "billing_error", "spent"),
        ("", "minute", 429, "rate_limit_error", "busy"), ("/anthropic", "minute", 429, "rate_limit_error", "busy"),
        ("", "blocked", 402, "billing_error", "too_large"),
    ],
)  # fmt: skip
def test_a_refusal_has_anthropics_shape(
    guarded: Proxy, path: str, stream: bool, limit: str, status: int, kind: str, reason: str
) -> None:
    """Anthropic's own client gets the error that its API documents, with status, headers and facts, and obeys them."""
    user, made = f"{limit}-{secrets.token_hex(8)}", []
    model = "claude-sonnet-4-6" if path else "claude"
    asked: dict[str, Any] = {"model": model, "max_tokens": 50, "messages": MESSAGES}
    with anthropic_client(guarded, made, path, max_retries=0, default_headers={"x-u": user}) as client:
        if limit != "blocked":
            assert client.messages.create(**asked).usage.output_tokens == 20
        with pytest.raises(anthropic.APIStatusError) as refused:
            client.messages.create(**asked, stream=stream)
        if status == 402:
            made.clear()
            with pytest.raises(anthropic.APIStatusError):
                client.with_options(max_retries=2).messages.create(**asked)
            assert len(made) == 1, "it is not worth a retry"
    error, headers = refused.value, refused.value.response.headers
    assert error.status_code == status
    assert isinstance(error.body, dict)
    assert error.body.keys() == {"type", "error"}
    assert error.body["type"] == "error"
    detail = error.body["error"]
    assert detail["type"] == kind
    assert user in detail["message"]
    assert detail["provider_specific_fields"].items() >= {"reason": reason, "limit": limit}.items()
    assert (headers["x-usage-refusal"], headers["x-usage-limit"]) == (reason, limit)
    assert headers["content-type"] == "application/json"
    assert int(headers["content-length"]) == len(error.response.content)
    assert headers.get("x-should-retry") == ("false" if status == 402 else None)
    assert ("Retry-After" in headers) == (status == 429)


def test_a_wrong_request_is_refused_in_anthropics_shape(guarded: Proxy) -> None:
    """A request that is invalid, or has no price, is an `invalid_request_error`."""
    for user, model in (("ann", "claude,chat"), (f"priced-{secrets.token_hex(4)}", "unpriced")):
        body = {"model": model, "max_tokens": 50, "messages": MESSAGES}
        answer = guarded.post("/v1/messages", body, **{"x-u": user})
        assert answer.status_code == 400
        assert answer.json()["type"] == "error"
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_other_routes_keep_the_shape_of_openai(guarded: Proxy) -> None:
    """Only requests in Anthropic's format get refusals in Anthropic's format."""
    body = {"model": "chat", "messages": MESSAGES}
    error = guarded.post("/v1/chat/completions", body, **{"x-u": f"blocked-{secrets.token_hex(4)}"}).json()["error"]
    assert (error["type"], error["param"]) == ("request_exceeds_limit", "blocked")
