"""Every route of the installed LiteLLM, called through a real proxy: no request that can cost something goes unseen.

The routes come from LiteLLM's own table, so the routes of a new version are tested as well.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import pytest
import websockets.sync.client
from websockets.exceptions import WebSocketException

from tests.proxy.conftest import ROOT, Proxy, clean_environment, running
from tests.proxy.routes_setup import BROKE, NO_LIMIT, AnyProvider, provider, routes_config
from tests.support import plain_http
from usage_plugin.proxy.routes import WEBSOCKET, rule_of

if TYPE_CHECKING:
    from collections.abc import Iterator

MESSAGES = [{"role": "user", "content": "hi"}]
PARTS = {
    "model": "cheap", "model_name": "gem", "provider": "openai", "endpoint": "v1/chat/completions",
    "search_tool_name": "web",
}  # fmt: skip
"""The values that replace the parameters of a route's path."""
ENDPOINTS = {
    "/azure/": "openai/deployments/az/chat/completions", "/anthropic/": "v1/messages", "/gemini/": "v1beta/models/gem:generateContent",
    "/cohere/": "v2/chat", "/bedrock/": "model/x/converse", "/vertex": "v1/projects/p/locations/l/publishers/google/models/m:generateContent",
}  # fmt: skip
BODY = {
    "model": "cheap", "messages": MESSAGES, "max_tokens": 5, "input": "hi", "prompt": "hi", "query": "hi", "text": "hi",
    "contents": [{"role": "user", "parts": [{"text": "hi"}]}], "documents": ["a", "b"], "voice": "alloy", "name": "x", "priority": 0,
    "input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h", "training_file": "file-1",
    "assistant_id": "asst_1", "file_id": "file-1", "guardrail_name": "x", "litellm_params": {"model": "openai/x"},
    "retrieval_config": {"vector_store_id": "vs_1", "custom_llm_provider": "openai", "top_k": 3},
    "ingest_options": {"vector_store": {"custom_llm_provider": "openai", "vector_store_id": "vs_1"}},
    "data_source_config": {"type": "logs"}, "testing_criteria": [], "data_source": {"type": "jsonl"}, "search_tool_name": "web",
    "jsonrpc": "2.0", "id": "1", "method": "tools/call", "params": {"name": "x", "arguments": {}},
}  # fmt: skip
MODELS = {"embeddings": "vector", "rerank": "rank", "vllm": "local", "v1/messages": "claude", "responses": "gpt-5.1"}
FORM = {"model": "cheap", "prompt": "hi", "purpose": "batch", "request": json.dumps(BODY)}
DISTURBING = re.compile(
    r"/(add|delete)/allowed_ip|/debug/|/config/|/cache/|/reload/|/schedule/|/update/|/session/logout"
)
"""Routes that change the proxy during other requests. Only the patterns classify them; none of them calls a
provider."""


class Asked(NamedTuple):
    """The outcome of a route: its requests, and the requests that the provider received."""

    method: str
    path: str
    user: str
    status: tuple[int, ...]
    received: tuple[str, ...]


def listed() -> list[tuple[str, str]]:
    """Return the routes of the installed LiteLLM, from its own table.

    A child process imports the modules, because they cause too many warnings.
    """
    script = (
        "import json\nfrom usage_plugin.proxy.routes import listing\nfrom usage_plugin.proxy.routes_page import app_with_everything\n"
        "print(json.dumps([(route.method, route.path) for route in listing(app_with_everything())]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=180,
        env={**clean_environment(), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}, cwd=ROOT,
    )  # fmt: skip
    return [(method, path) for method, path in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture(scope="module")
def all_routes() -> list[tuple[str, str]]:
    return listed()


@pytest.fixture(scope="module")
def sweep_routes(all_routes: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the routes that change something, and those that read and may cost something all the same."""
    return [
        (method, path)
        for method, path in all_routes
        if method in ("POST", "PUT", "PATCH", WEBSOCKET)
        or (method == "GET" and rule_of(method, filled(path)).verdict != "free")
        if not DISTURBING.match(path)
    ]


@pytest.fixture(scope="module")
def fake() -> Iterator[AnyProvider]:
    yield from provider()


@pytest.fixture(scope="module")
def open_proxy(fake: AnyProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Run a proxy that admits and records requests that it cannot meter."""
    with running(tmp_path_factory.mktemp("open"), routes_config(fake), environment=fake.environment()) as proxy:
        yield proxy


def filled(path: str) -> str:
    """Return a route's path with its parameters filled in."""
    endpoint = next((there for begin, there in ENDPOINTS.items() if path.startswith(begin)), PARTS["endpoint"])
    parts = {**PARTS, "endpoint": endpoint}
    return re.sub(r"\{([a-z_]+)[^}]*\}", lambda match: parts.get(match[1], "x"), path)


def ask(proxy: Proxy, fake: AnyProvider, method: str, path: str, user: str) -> Asked:
    """Call a route as a user: with a JSON body, and with a form and a file."""
    fake.reset()
    there = filled(path)
    headers = {"Authorization": f"Bearer {proxy.key}", "x-litellm-end-user-id": user}
    if method == WEBSOCKET:
        return Asked(method, path, user, (shake_hands(proxy, there, headers),), tuple(fake.paths()))
    model = next((name for part, name in MODELS.items() if part in there), BODY["model"])
    body = {**BODY, "model": model}
    if "/generateContent" in there or "responses" in there:
        body.pop("messages")
    with plain_http.Client(base_url=proxy.url, headers=headers, timeout=30) as client:
        # An event stream does not end: its status is enough.
        with client.stream(method, there, json=body) as response:
            statuses = [response.status_code]
            if method != "GET":
                response.read()
        if method == "POST" and rule_of(method, there).verdict != "free":
            statuses.append(
                client.post(there, data=FORM, files={"file": ("a.wav", b"RIFF" * 20, "audio/wav")}).status_code
            )
    return Asked(method, path, user, tuple(statuses), tuple(fake.paths()))


def shake_hands(proxy: Proxy, path: str, headers: dict[str, str]) -> int:
    try:
        url = f"{proxy.url.replace('http', 'ws', 1)}{path}?model=cheap"
        with websockets.sync.client.connect(url, additional_headers=headers, open_timeout=20) as connection:
            connection.send(json.dumps({"type": "response.create", "model": "cheap", "input": "hi"}))
            connection.recv(timeout=5)
    except WebSocketException as error:
        response = getattr(error, "response", None)
        return int(response.status_code) if response is not None else 0
    except TimeoutError:
        return 0
    return 101


@pytest.fixture(scope="module")
def asked_by_the_broke(open_proxy: Proxy, fake: AnyProvider, sweep_routes: list[tuple[str, str]]) -> list[Asked]:
    return [ask(open_proxy, fake, *route, user=f"{BROKE}-{number}") for number, route in enumerate(sweep_routes)]


@pytest.fixture(scope="module")
def asked_by_all(open_proxy: Proxy, fake: AnyProvider, sweep_routes: list[tuple[str, str]]) -> list[Asked]:
    costly = [route for route in sweep_routes if verdict_of(*route) != "free"]
    return [ask(open_proxy, fake, *route, user=f"{NO_LIMIT}-{number}") for number, route in enumerate(costly)]


def verdict_of(method: str, path: str) -> str:
    return rule_of(method, filled(path)).verdict


SWEEP_SECONDS = 900
NO_HOOK = {
    "/v1/rag/query", "/v1/rag/ingest", "/queue/chat/completions", "/v1/threads/{thread_id}/runs", "/vllm/{endpoint:path}",
    "/azure/{endpoint:path}",
}  # fmt: skip
"""Routes on which LiteLLM calls no hook before it calls the provider."""
REACH_FOR_NOTHING = frozenset({
    "counts or estimates, and generates nothing", "stops work", "stores data that no model reads yet",
    "caches, exports and traces",
})  # fmt: skip
"""Reasons for which a request may reach a provider and cost nothing, as in `docs/routes.md`."""


@pytest.mark.timeout(SWEEP_SECONDS)
def test_nothing_reaches_a_provider_for_who_may_spend_nothing(asked_by_the_broke: list[Asked]) -> None:
    """A user with `max_cost: 0` reaches a provider only for free work, although metered requests are admitted."""
    reached = [asked for asked in asked_by_the_broke if asked.received]
    passed = [asked for asked in reached if rule_of(asked.method, filled(asked.path)).reason not in REACH_FOR_NOTHING]
    print(f"\n{len(passed)} of {len(asked_by_the_broke)} routes reach a provider; {len(reached)} do so for nothing")
    assert not passed
    assert len(asked_by_the_broke) > 400


def test_every_refusal_is_one_of_ours(asked_by_the_broke: list[Asked]) -> None:
    """A metered or refused route answers 400 or 402, unless LiteLLM refuses before authentication."""
    others = {401, 403, 404, 503}
    odd = [
        asked
        for asked in asked_by_the_broke
        if verdict_of(asked.method, asked.path) in ("metered", "refused")
        and not set(asked.status) <= {400, 402} | others
    ]
    assert not odd
    ours = [asked for asked in asked_by_the_broke if set(asked.status) <= {400, 402}]
    assert len(ours) > 200


@pytest.mark.soak
@pytest.mark.timeout(SWEEP_SECONDS)
def test_the_sweep_reaches_providers_where_it_may(asked_by_all: list[Asked]) -> None:
    """The same requests by a user without a limit reach the provider on routes of every kind: the sweep can fail."""
    reached = [asked for asked in asked_by_all if asked.received]
    kinds = Counter(verdict_of(asked.method, asked.path) for asked in reached)
    print(f"\n{len(reached)} of {len(asked_by_all)} routes that may cost something reach a provider: {dict(kinds)}")
    assert kinds["held"] > 20
    assert kinds["metered"] > 20
    assert {asked.path for asked in reached} >= NO_HOOK


@pytest.mark.soak
@pytest.mark.timeout(SWEEP_SECONDS)
def test_whatever_reaches_a_provider_is_on_the_books(open_proxy: Proxy, asked_by_all: list[Asked]) -> None:
    """Each request that reached the provider is an event of the requesting user; a batch is one after it completes."""
    reached = [asked for asked in asked_by_all if asked.received]
    later = [asked for asked in reached if asked.path.endswith("/batches")]
    open_proxy.settled(but=len(later))
    booked = Counter(event["user"] for event in open_proxy.cli("events", "--last", "100000")["events"])
    unseen = [asked for asked in reached if not booked[asked.user] and asked not in later]
    print(f"\n{len(unseen)} of {len(reached)} routes are unseen; {len(later)} wait for a result")
    assert not unseen
    assert not booked["(internal)"]
