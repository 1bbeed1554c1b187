"""Requests on routes for which LiteLLM calls no hook are held, metered or refused, through a real proxy."""

from __future__ import annotations

import secrets
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.proxy.conftest import Proxy, running
from tests.proxy.routes_setup import BROKE, NO_LIMIT, RICH, AnyProvider, provider, routes_config
from tests.support import plain_http

if TYPE_CHECKING:
    from collections.abc import Iterator

MESSAGES = [{"role": "user", "content": "hi"}]
RETRIEVAL = {"vector_store_id": "vs_1", "custom_llm_provider": "openai", "top_k": 3}
CHAT = {"model": "cheap", "messages": MESSAGES, "priority": 0}
RAG = {"model": "cheap", "messages": MESSAGES, "retrieval_config": RETRIEVAL}
BATCH = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
BACKGROUND = {"model": "gpt-5.1", "input": "hi", "background": True, "max_output_tokens": 300}
USAGE = {
    "input_tokens": 1_000, "input_tokens_details": {"cached_tokens": 400}, "output_tokens": 300,
    "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 1_300,
}  # fmt: skip
FLAT = Decimal("0.25")


@pytest.fixture(scope="module")
def fake() -> Iterator[AnyProvider]:
    yield from provider()


@pytest.fixture(scope="module")
def proxy(fake: AnyProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy with two workers that charges a flat amount for requests that cannot be metered."""
    config = routes_config(fake, on_unmetered=str(FLAT))
    with running(tmp_path_factory.mktemp("gate"), config, workers=2, environment=fake.environment()) as started:
        yield started


@pytest.fixture
def books(proxy: Proxy, fake: AnyProvider) -> Books:
    fake.reset()
    return Books(proxy)


class Books:
    """Requests of one new user for each test, and that user's books."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.suffix = secrets.token_hex(4)

    def ask(self, user: str, path: str, body: dict[str, Any] | None = None, *, method: str = "POST") -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.proxy.key}", "x-litellm-end-user-id": f"{user}-{self.suffix}"}
        return plain_http.request(method, f"{self.proxy.url}{path}", json=body, headers=headers, timeout=60)

    def events(self, user: str, *, held: int = 0) -> list[dict[str, Any]]:
        self.proxy.settled(but=held)
        return self.proxy.events(f"{user}-{self.suffix}")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("path", "body"), [("/v1/rag/query", RAG), ("/queue/chat/completions", CHAT)])
def test_a_completion_without_a_hook_is_held(
    books: Books, fake: AnyProvider, path: str, body: dict[str, Any], *, stream: bool
) -> None:
    """The request is held at its worst case, bounded by the plugin's output limit, and settled once, at its cost."""
    response = books.ask(RICH, path, {**body, "stream": stream})
    assert response.status_code == 200, response.text
    assert response.headers["x-usage-limit"] == "plenty"
    (sent,) = [request["body"] for request in fake.received() if request["path"].endswith("/chat/completions")]
    assert sent["max_tokens"] == 4096
    (event,) = books.events(RICH)
    assert (event["status"], event["model"], event["call_type"]) == ("success", "cheap", "acompletion")
    assert (event["cost_source"], event["output_tokens"]) == ("computed", 1_000)
    assert Decimal(event["cost"]) == event["input_tokens"] * Decimal("0.000001") + Decimal("0.01")
    most = Decimal("0.1") if path.endswith("query") else Decimal("0.0001")
    assert Decimal("0.04096") < Decimal(event["reserved"]) <= Decimal("0.04096") + most


@pytest.mark.parametrize(("query", "queries"), [("hi", 1), (["hi", "there"], 2)])
def test_a_search_of_the_web_is_held_at_its_price(books: Books, query: object, queries: int) -> None:
    """A web search names a tool, whose provider has a price per query: the most expensive way to search is held."""
    response = books.ask(RICH, "/v1/search/web", {"query": query})
    assert response.status_code == 200, response.text
    (event,) = books.events(RICH)
    assert Decimal(event["reserved"]) == queries * Decimal("0.016")
    assert event["cost_source"] == "litellm"
    assert Decimal(event["cost"]) <= Decimal(event["reserved"])


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/rag/query", RAG, 402),
        ("/rag/query", {**RAG, "stream": True}, 402),
        ("/v1/rag/query", {**RAG, "rerank": {"enabled": True, "model": "rank"}}, 400),
        ("/queue/chat/completions", CHAT, 402),
        ("/queue/chat/completions?model=gpt-5.1", CHAT, 400),
        ("/v1/batches", BATCH, 400),
        ("/openai/v1/batches", BATCH, 400),
        ("/v1/responses", BACKGROUND, 400),
        ("/v1/rag/ingest", {"ingest_options": {}}, 402),
        ("/v1/threads/t/runs", {"assistant_id": "a"}, 402),
        ("/vllm/chat/completions", {"model": "local", "messages": MESSAGES}, 402),
        ("/azure/openai/deployments/az/chat/completions", {"model": "az", "messages": MESSAGES}, 402),
        ("/v1/realtime/client_secrets", {"model": "cheap"}, 400),
        ("/v1/search/web", {"query": "hi"}, 402),
        ("/v1/search/none", {"query": "hi"}, 400),
        ("/no/such/route", {}, 404),
    ],
)
def test_who_may_spend_nothing_reaches_no_provider(
    books: Books, fake: AnyProvider, path: str, body: dict[str, Any], status: int
) -> None:
    """The refusal is the same as on other routes, and nothing is recorded."""
    response = books.ask(BROKE, path, body)
    assert response.status_code == status, response.text
    if status != 404:
        assert response.json()["error"]["code"] == str(status)
        assert response.headers["x-should-retry"] == "false"
    assert not fake.received()
    assert not books.events(BROKE)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        # This provider's streams report no usage.
        ("/vllm/chat/completions", {"model": "local", "messages": MESSAGES, "stream": True}),
        ("/openai/v1/chat/completions", {"model": "x", "messages": MESSAGES}),
        ("/v1/threads/t/runs", {"assistant_id": "a"}),
        ("/mine", {"x": 1}),
        ("/v1/vector_stores/vs_1/search", {"query": "hi"}),
    ],
)
def test_a_metered_route_costs_the_flat_amount(
    books: Books, fake: AnyProvider, path: str, body: dict[str, Any]
) -> None:
    """The flat amount is held for the user, and charged once at the end, because nothing reports the cost."""
    response = books.ask(RICH, path, body)
    assert fake.received()
    assert response.headers["x-usage-limit"] == "plenty"
    (event,) = books.events(RICH)
    assert Decimal(event["reserved"]) == FLAT
    assert (Decimal(event["cost"]), event["estimated"]) == (FLAT, True)


def test_a_metered_route_costs_the_reported_usage_where_the_model_has_a_price(books: Books) -> None:
    """The flat amount is held, and the usage in the provider's answer is charged at the model's own price."""
    assert books.ask(RICH, "/vllm/chat/completions", {"model": "local", "messages": MESSAGES}).status_code == 200
    (event,) = books.events(RICH)
    assert Decimal(event["reserved"]) == FLAT
    assert (Decimal(event["cost"]), event["cost_source"]) == (Decimal("0.010035"), "computed")


def test_a_health_check_is_charged_to_the_user_who_asks(books: Books) -> None:
    """Each model that a health check calls is an event of the requesting user, with its own cost."""
    assert books.ask(RICH, "/health?model=cheap", method="GET").status_code == 200
    (event,) = books.events(RICH)
    assert (event["call_type"], event["model"], event["cost_source"]) == ("health_check", "cheap", "computed")


def test_what_costs_nothing_passes(books: Books, fake: AnyProvider) -> None:
    """Files, threads and look-ups neither cost nor count, and a user who may spend nothing may use them."""
    assert books.ask(BROKE, "/v1/vector_stores/vs_1", {"name": "x"}).status_code == 200
    assert books.ask(BROKE, "/v1/responses/resp_1", method="GET").status_code != 402
    assert "/v1/vector_stores/vs_1" in fake.paths()
    assert not books.events(BROKE)


def test_a_background_response_is_charged_once_when_it_is_done(books: Books, fake: AnyProvider) -> None:
    """A background response is held until any user's look-up shows its usage, even after a restart; charged once."""
    open_before = books.proxy.cli("status")["reservations"]["open"]
    made = books.ask(NO_LIMIT, "/v1/responses", BACKGROUND).json()
    assert books.ask("another", f"/v1/responses/{made['id']}", method="GET").status_code in (200, 403)
    assert not books.events(NO_LIMIT, held=open_before + 1)
    books.proxy.stop()
    books.proxy.start()
    assert books.proxy.cli("status")["reservations"]["open"] == open_before + 1
    fake.finish("response", usage=USAGE)
    for _ in range(3):
        assert books.ask(NO_LIMIT, f"/v1/responses/{made['id']}", method="GET").json()["status"] == "completed"
    (event,) = books.events(NO_LIMIT, held=open_before)
    assert (event["cost"], event["cost_source"]) == ("0.0038", "computed")
    assert (event["input_tokens"], event["output_tokens"], event["cached_input_tokens"]) == (1_000, 300, 400)
    assert (event["call_type"], event["status"]) == ("aresponses", "success")


def test_a_batch_is_charged_once_when_it_is_done(books: Books, fake: AnyProvider) -> None:
    """The usage in a batch's output file is charged at batch prices, which LiteLLM knows."""
    open_before = books.proxy.cli("status")["reservations"]["open"]
    made = books.ask(NO_LIMIT, "/v1/batches", BATCH).json()
    assert not books.events(NO_LIMIT, held=open_before + 1)
    fake.finish("batch", output_file_id="file-9")
    for _ in range(3):
        assert books.ask(NO_LIMIT, f"/v1/batches/{made['id']}", method="GET").json()["status"] == "completed"
    (event,) = books.events(NO_LIMIT, held=open_before)
    # 1,000 tokens in and 300 out, at half of gpt-5.1's 1.25 and 10 dollars a million.
    assert (event["cost"], event["cost_source"]) == ("0.002125", "litellm")
    assert (event["input_tokens"], event["output_tokens"]) == (1_000, 300)
