"""The cost of an event follows from the price list and the provider's usage, regardless of the cost LiteLLM logs."""

from __future__ import annotations

import json
import secrets
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from tests.proxy.conftest import PRICES

if TYPE_CHECKING:
    from tests.proxy.conftest import Proxy

pytestmark = pytest.mark.proxy

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"


def user_of(what: str) -> str:
    return f"costs-{what}-{secrets.token_hex(4)}"


def request(route: str, model: str, user: str, plan: dict[str, Any], **body: Any) -> dict[str, Any]:
    """Return a body that carries a plan, for any of the three routes."""
    text = json.dumps(plan)
    if route == RESPONSES:
        return {"model": model, "user": user, "input": text, "max_output_tokens": 500, **body}
    named: dict[str, Any] = {"metadata": {"user_id": user}} if route == MESSAGES else {"user": user}
    return {"model": model, "max_tokens": 500, "messages": [{"role": "user", "content": text}], **named, **body}


def event_of(proxy: Proxy, route: str, user: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = proxy.post(route, body)
    assert answer.status_code == 200, answer.text
    return settled(proxy, user, 1)[0]


def settled(proxy: Proxy, user: str, count: int) -> list[dict[str, Any]]:
    """Wait for `count` events, and return them: streams are settled a moment after their last byte."""
    deadline = time.monotonic() + 60
    while len(events := proxy.events(user)) < count:
        assert time.monotonic() < deadline, events
        time.sleep(0.05)
    assert len(events) == count
    return events


def each(model: str, key: str, *otherwise: str) -> int:
    """Return the price in atto-dollars under the first key that the list has."""
    key = next(name for name in (key, *otherwise) if name in PRICES[model])
    return int(Decimal(repr(PRICES[model][key])).scaleb(18))


def cost_of(model: str, plan: dict[str, int], *, end: str = "") -> Decimal:
    """Return the cost in USD: integers of atto-dollars, rounded to the nano-dollar at the end.

    Args:
        model: The model in the price list.
        plan: The usage that the upstream reports.
        end: The suffix of the keys that apply, for a token tier or a service tier.
    """
    kinds = {name: plan.get(name, 0) for name in ("in", "out", "cached", "cache_write", "cache_write_1h", "audio_in", "audio_out")}  # fmt: skip
    price_in, price_out = "input_cost_per_token", "output_cost_per_token"
    written = "cache_creation_input_token_cost"
    atto = (
        (kinds["in"] - kinds["cached"] - kinds["cache_write"] - kinds["audio_in"]) * each(model, price_in + end)
        + kinds["cached"] * each(model, f"cache_read_input_token_cost{end}", price_in + end)
        + (kinds["cache_write"] - kinds["cache_write_1h"]) * each(model, written + end, written, price_in + end)
        + kinds["cache_write_1h"] * each(model, f"{written}_above_1hr", written, price_in + end)
        + kinds["audio_in"] * each(model, "input_cost_per_audio_token", price_in + end)
        + (kinds["out"] - kinds["audio_out"]) * each(model, price_out + end)
        + kinds["audio_out"] * each(model, "output_cost_per_audio_token", price_out + end)
    )
    return Decimal((atto + 500_000_000) // 10**9) / 10**9


FULL = {"in": 1001, "out": 77, "cached": 300, "reasoning": 20, "cache_write": 101}
SPOKEN = {"in": 400, "out": 90, "cached": 100, "audio_in": 150, "audio_out": 40}
KEPT = {"in": 1001, "out": 77, "cached": 300, "cache_write": 201, "cache_write_1h": 50}
LONG = {"in": 200_001, "out": 77, "cached": 1000}
SHORT = {"in": 200_000, "out": 77, "cached": 1000}
ABOVE = "_above_200k_tokens"

VECTORS = [
    pytest.param(CHAT, "tiered", FULL, "", id="chat-full"),
    pytest.param(CHAT, "tiered", SPOKEN, "", id="chat-audio"),
    pytest.param(CHAT, "tiered", LONG, ABOVE, id="chat-above-200k"),
    pytest.param(CHAT, "tiered", SHORT, "", id="chat-just-200k"),
    pytest.param(CHAT, "claude-kept", KEPT, "", id="chat-to-claude"),
    pytest.param(RESPONSES, "tiered", FULL, "", id="responses-full"),
    pytest.param(RESPONSES, "tiered", LONG, ABOVE, id="responses-above-200k"),
    pytest.param(MESSAGES, "claude-kept", KEPT, "", id="messages-cache-1h"),
    pytest.param(MESSAGES, "tiered", FULL, "", id="messages-to-openai"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("route", "model", "plan", "end"), VECTORS)
def test_every_kind_of_token_costs_its_own_price(
    proxy: Proxy, route: str, model: str, plan: dict[str, int], end: str, *, stream: bool
) -> None:
    """Cached, cache-write, audio and long prompts, whole and streamed, cost the exact integer sum (C4, C5, C6)."""
    user = user_of("vector")
    event = event_of(proxy, route, user, request(route, model, user, plan, stream=stream))
    assert (event["input_tokens"], event["output_tokens"]) == (plan["in"], plan["out"])
    assert event["cached_input_tokens"] == plan.get("cached", 0)
    assert (Decimal(event["cost"]), event["cost_source"]) == (cost_of(model, plan, end=end), "computed")
    assert not event["estimated"]


SERVICES = [
    pytest.param(CHAT, "tiered", id="chat"),
    pytest.param(RESPONSES, "tiered", id="responses"),
    pytest.param(MESSAGES, "claude-kept", id="messages"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("route", "model"), SERVICES)
@pytest.mark.parametrize(
    ("asked", "served", "end"), [("priority", "priority", "_priority"), ("priority", "default", "")]
)
def test_the_tier_of_service_that_was_served_is_billed(
    proxy: Proxy, route: str, model: str, asked: str, served: str, end: str, *, stream: bool
) -> None:
    """A request for the priority tier is held at its price, and billed at the tier that was served (C7)."""
    user = user_of("service")
    plan = {"in": 100, "out": 50, "service_tier": served}
    event = event_of(proxy, route, user, request(route, model, user, plan, stream=stream, service_tier=asked))
    assert Decimal(event["cost"]) == cost_of(model, plan, end=end)
    assert event["service_tier"] == ("priority" if end else None)
    assert not event["estimated"]
    assert Decimal(event["reserved"]) >= 500 * Decimal(repr(PRICES[model]["output_cost_per_token_priority"]))


def test_flex_is_cheaper(proxy: Proxy) -> None:
    """A request that is served as flex costs the flex price (C7)."""
    user = user_of("flex")
    plan = {"in": 100, "out": 50, "cached": 20, "service_tier": "flex"}
    event = event_of(proxy, CHAT, user, request(CHAT, "tiered", user, plan, service_tier="flex"))
    assert (Decimal(event["cost"]), event["service_tier"]) == (cost_of("tiered", plan, end="_flex"), "flex")


def test_a_service_of_unknown_price_is_refused(proxy: Proxy) -> None:
    """A more expensive service tier that the price list does not have is refused, because it has no worst case."""
    user = user_of("scale")
    for model, service in (("tiered", "scale"), ("chat", "priority")):
        answer = proxy.post(CHAT, request(CHAT, model, user, {}, service_tier=service))
        assert answer.headers.get("x-usage-refusal") == "unbounded", answer.text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_earlier_traffic_changes_no_price(proxy: Proxy, *, stream: bool) -> None:
    """A text completion changes no later price, though LiteLLM then logs 0 for messages and responses (B1, C8)."""
    before = proxy.post(
        "/v1/completions", {"model": "tiered", "user": user_of("text"), "prompt": "{}", "max_tokens": 9}
    )
    assert before.status_code == 200, before.text
    for route in (MESSAGES, RESPONSES):
        user = user_of("after")
        plan = {"in": 100, "out": 50, "cached": 20}
        event = event_of(proxy, route, user, request(route, "tiered", user, plan, stream=stream))
        assert (Decimal(event["cost"]), event["cost_source"]) == (cost_of("tiered", plan), "computed")


def test_two_deployments_of_one_model_keep_their_own_prices(proxy: Proxy) -> None:
    """A free deployment of a provider's model makes no other deployment free, before or after it is called (C8)."""
    plan = {"in": 100, "out": 50}
    for model in ("tiered", "twin", "tiered"):
        user = user_of("twin")
        event = event_of(proxy, CHAT, user, request(CHAT, model, user, plan))
        assert event["served_model"] == "openai/tiered-up"
        assert (Decimal(event["cost"]), event["cost_source"]) == (cost_of(model, plan), "computed")


@pytest.mark.parametrize("verb", ["generateContent", "streamGenerateContent"])
def test_geminis_native_route_costs_its_tokens(proxy: Proxy, verb: str) -> None:
    """Gemini's own format is held and billed like others, although LiteLLM logs its streams at no cost."""
    user = user_of("native")
    plan = {"in": 100, "out": 50, "cached": 20, "reasoning": 10}
    body = {"contents": [{"role": "user", "parts": [{"text": json.dumps(plan)}]}], "user": user, "generationConfig": {"maxOutputTokens": 200}}  # fmt: skip
    event = event_of(proxy, f"/v1beta/models/native:{verb}", user, body)
    assert (event["input_tokens"], event["output_tokens"], event["cached_input_tokens"]) == (100, 50, 20)
    assert (Decimal(event["cost"]), event["cost_source"]) == (cost_of("native", plan), "computed")
    assert Decimal(event["reserved"]) >= 200 * Decimal("0.000015")


def test_an_answer_out_of_the_cache_costs_nothing(proxy: Proxy) -> None:
    """A cache hit is a request that costs nothing, on a model with every kind of price (L11)."""
    user = user_of("cached")
    body = request(CHAT, "tiered", user, {"in": 50, "out": 5, "mark": user}, cache={"use-cache": True})
    for count in (1, 2):
        assert proxy.post(CHAT, body).status_code == 200
        found = sorted(settled(proxy, user, count), key=lambda event: event["cache_hit"])
    assert [event["cache_hit"] for event in found] == [False, True]
    assert Decimal(found[0]["cost"]) == cost_of("tiered", {"in": 50, "out": 5})
    assert (found[1]["cost"], found[1]["input_tokens"]) == ("0.00", 0)


def test_an_image_is_priced_by_the_image(proxy: Proxy) -> None:
    """Images are held and charged by their number."""
    user = user_of("image")
    body = {"model": "picture", "user": user, "prompt": "a cat", "n": 3}
    event = event_of(proxy, "/v1/images/generations", user, body)
    assert (event["cost"], event["cost_source"]) == ("0.12", "computed")
    assert (event["reserved"], event["excess"]) == ("0.12", "0.00")


def test_speech_is_priced_by_the_character(proxy: Proxy) -> None:
    """Text to be spoken is held and charged by its characters."""
    user = user_of("speech")
    text = "Grüße, 世界!" * 10
    event = event_of(proxy, "/v1/audio/speech", user, {"model": "voice", "user": user, "input": text, "voice": "alloy"})
    expected = len(text) * Decimal("0.000015")
    assert (Decimal(event["cost"]), event["cost_source"]) == (expected, "computed")
    assert (Decimal(event["reserved"]), event["excess"]) == (expected, "0.00")


def test_reranking_is_priced_by_the_query(proxy: Proxy) -> None:
    """A query with its documents is held and charged by the search unit."""
    user = user_of("rerank")
    body = {"model": "ranks", "user": user, "query": json.dumps({"queries": 2}), "documents": ["a"] * 150}
    event = event_of(proxy, "/v1/rerank", user, body)
    assert (event["cost"], event["cost_source"], event["reserved"]) == ("0.004", "computed", "0.004")


def test_moderation_is_free(proxy: Proxy) -> None:
    """A moderation costs nothing, although no list has a price for it."""
    user = user_of("moderation")
    event = event_of(proxy, "/v1/moderations", user, {"model": "judge", "user": user, "input": "hi"})
    assert (event["cost"], event["reserved"]) == ("0.00", "0.00")


def test_what_nothing_bounds_is_refused_under_a_limit(proxy: Proxy) -> None:
    """Images billed per token have no bound; models without any price are reported as unpriced (C1, C3)."""
    body = {"model": "gpt-image", "user": user_of("image"), "prompt": "a cat"}
    answer = proxy.post("/v1/images/generations", body)
    assert answer.headers["x-usage-refusal"] == "unbounded"
    answer = proxy.post("/v1/images/generations", {**body, "model": "chat"})
    assert answer.headers["x-usage-refusal"] == "unbounded"
    answer = proxy.post("/v1/images/generations", {**body, "model": "unpriced"})
    assert answer.headers["x-usage-refusal"] == "unpriced"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("route", [CHAT, RESPONSES])
def test_text_without_usage_is_estimated(proxy: Proxy, route: str, *, stream: bool) -> None:
    """An answer costs something even if its provider reports no usage (C2).

    A whole answer is charged as reserved, and marked as estimated. For a stream, LiteLLM counts the text itself,
    without saying so.
    """
    user = user_of("silent")
    event = event_of(proxy, route, user, request(route, "tiered", user, {"silent": True}, stream=stream))
    assert Decimal(event["cost"]) > 0
    if not stream:
        assert (event["cost"], event["cost_source"], event["estimated"]) == (event["reserved"], "reserved", True)
