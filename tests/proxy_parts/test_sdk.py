"""The LiteLLM SDK without its proxy, against a fake provider: each call becomes one event, priced and attributed."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import litellm
import pytest

from tests.proxy.conftest import fake_provider
from usage_plugin.api import BudgetExceededError, UsageEvent, UsageTracker, open_tracker, to_decimal
from usage_plugin.proxy.sdk import recorded_calls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

# LiteLLM and its lazily built models emit warnings.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

LIMITS = [{"name": "daily", "per": "user", "window": "day", "max_cost": 1}]
COST = Decimal("0.00045")
"""The cost of 100 tokens in and 20 out on gpt-4o, by LiteLLM's map."""


@pytest.fixture(scope="module")
def provider() -> Iterator[dict[str, Any]]:
    with fake_provider("tests.proxy.fake_upstream", "/handed_out") as url:
        yield {"api_base": f"{url}/v1", "api_key": "none-needed", "max_retries": 0}


@pytest.fixture
async def tracker(tmp_path: Path) -> AsyncIterator[UsageTracker]:
    async with open_tracker({"data_dir": str(tmp_path), "limits": LIMITS}) as opened:
        yield opened


@pytest.fixture
def _own_price_map(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remove the prices of a call after the test, because LiteLLM keeps them in its map."""
    with monkeypatch.context() as patched:
        patched.setattr(litellm, "model_cost", copy.deepcopy(litellm.model_cost))
        yield
    litellm.utils._invalidate_model_cost_lowercase_map()


def chat(provider: dict[str, Any], model: str = "openai/gpt-4o", **plan: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": json.dumps({"in": 100, "out": 20, **plan})}]
    return {**provider, "model": model, "messages": messages, "user": "ann"}


async def events_of(tracker: UsageTracker) -> list[UsageEvent]:
    return [event async for event in tracker.events()]


async def test_each_way_to_call_is_one_event(tracker: UsageTracker, provider: dict[str, Any]) -> None:
    """Async, sync, streamed, embeddings: each is one event, with its tokens and the price of LiteLLM's map."""

    def stream() -> None:
        for _ in litellm.completion(**chat(provider), stream=True, stream_options={"include_usage": True}):
            pass

    embedding = {**provider, "model": "openai/text-embedding-3-small", "input": ['{"in": 50}'], "user": "ann"}
    async with recorded_calls(tracker):
        await litellm.acompletion(**chat(provider))
        async for _ in await litellm.acompletion(**chat(provider), stream=True, stream_options={"include_usage": True}):
            pass
        await asyncio.to_thread(litellm.completion, **chat(provider))
        await asyncio.to_thread(stream)
        await litellm.aembedding(**embedding)
        await asyncio.to_thread(litellm.embedding, **embedding)
    events = await events_of(tracker)
    assert Counter((e.call_type, e.status, e.user, e.provider, e.input_tokens, e.output_tokens) for e in events) == {
        ("acompletion", "success", "ann", "openai", 100, 20): 4,
        ("aembedding", "success", "ann", "openai", 50, 0): 2,
    }
    assert {(to_decimal(e.cost or 0), e.cost_source) for e in events} == {
        (COST, "computed"),
        (Decimal("0.000001"), "computed"),
    }
    assert await tracker.get_user_daily_usage("ann") == 4 * COST + Decimal("0.000002")
    assert all(0 <= event.duration_us < 60_000_000 for event in events)
    assert not [one for one in litellm.callbacks + litellm.success_callback if "SdkRecorder" in type(one).__name__]


async def test_metadata_says_whose_it_is(tracker: UsageTracker, provider: dict[str, Any]) -> None:
    """`user`, else `user_id`, names the user; session, team and tags are in the metadata; invalid names are omitted."""
    anonymous = {name: value for name, value in chat(provider).items() if name != "user"}
    async with recorded_calls(tracker):
        metadata = {"session_id": "s1", "team": "garden", "tags": ["a", "b"], "user_id": "kim"}
        await litellm.acompletion(**chat(provider), metadata=metadata)
        await litellm.acompletion(**anonymous, metadata=metadata)
        await litellm.acompletion(**anonymous, metadata={"user_id": "a\nb"})
        await litellm.acompletion(**chat(provider), **{"no-log": True})
    events = await events_of(tracker)
    assert Counter((event.user, event.session, event.team, event.tags) for event in events) == {
        ("ann", "s1", "garden", ("a", "b")): 1,
        ("kim", "s1", "garden", ("a", "b")): 1,
        ("(anonymous)", None, None, ()): 1,
        ("ann", None, None, ()): 1,
    }
    assert await tracker.get_user_session_usage("ann", "s1") == COST


@pytest.mark.usefixtures("_own_price_map")
async def test_prices_of_the_call_itself_count_first(tracker: UsageTracker, provider: dict[str, Any]) -> None:
    """A call's own prices override the map, and only for that call; a model without any is recorded as unpriced."""
    own = {"input_cost_per_token": 0.001, "output_cost_per_token": 0.002}
    async with recorded_calls(tracker):
        await litellm.acompletion(**chat(provider, "openai/gpt-4.1-nano"), **own)
        await litellm.acompletion(**chat(provider, "openai/gpt-4.1-nano"))
        await litellm.acompletion(**chat(provider, "openai/mine"), **own)
        await litellm.acompletion(**chat(provider, "openai/nobodys"))
    costs = {(event.model, event.cost, event.cost_source) for event in await events_of(tracker)}
    assert costs == {
        ("gpt-4.1-nano", 140_000_000, "computed"), ("gpt-4.1-nano", 18_000, "computed"), ("mine", 140_000_000, "computed"), ("nobodys", None, "unpriced"),
    }  # fmt: skip


async def test_failures_and_retries(tracker: UsageTracker, provider: dict[str, Any]) -> None:
    """A call that fails is one failure at no cost; a call that a retry saves is one success."""

    def sync_failure() -> None:
        with pytest.raises(litellm.exceptions.InternalServerError):
            litellm.completion(**chat(provider, status=500))

    async with recorded_calls(tracker):
        with pytest.raises(litellm.exceptions.InternalServerError):
            await litellm.acompletion(**chat(provider, status=500))
        await asyncio.to_thread(sync_failure)
        await litellm.acompletion(**chat(provider, fail_first=1, mark="sdk"), num_retries=2)
    events = await events_of(tracker)
    assert Counter((event.status, event.error, event.cost) for event in events) == {
        ("failure", "InternalServerError", 0): 2,
        ("success", None, 450_000): 1,
    }


async def test_a_router_s_attempts_are_told_one_by_one(tracker: UsageTracker, provider: dict[str, Any]) -> None:
    """The failed attempt and the fallback's answer are recorded separately, by their names in the router."""
    models = [
        {"model_name": name, "litellm_params": {**provider, "model": model}}
        for name, model in (("first", "openai/broken"), ("second", "openai/gpt-4o"))
    ]
    router = litellm.Router(model_list=models, fallbacks=[{"first": ["second"]}], num_retries=0)
    call = {name: value for name, value in chat(provider).items() if name in ("messages", "user")}
    async with recorded_calls(tracker):
        await router.acompletion(model="first", **call)
    events = await events_of(tracker)
    assert Counter((event.model, event.status, event.cost) for event in events) == {
        ("first", "failure", 0): 1,
        ("second", "success", 450_000): 1,
    }


async def test_a_stream_that_is_not_read_to_its_end_is_said_to_be_missing(
    tracker: UsageTracker, provider: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An abandoned stream is not reported, so it has no event; the log counts it, and a reservation can charge it."""
    monkeypatch.setattr("usage_plugin.proxy.sdk.LAST_WORDS_SECONDS", 0.1)
    monkeypatch.setattr(logging.getLogger("usage_plugin"), "propagate", True)
    async with recorded_calls(tracker) as recorder:
        stream = await litellm.acompletion(**chat(provider, chunks=50, pause=0.01), stream=True)
        async for _ in stream:
            break
        await recorder.wait(0.1)
    assert await events_of(tracker) == []
    assert "sdk.calls_not_told" in caplog.text


async def test_a_reservation_keeps_to_the_limit(tracker: UsageTracker, provider: dict[str, Any]) -> None:
    """The SDK has no gate: a reservation around the calls enforces the limit."""
    async with tracker.reserve_budget("ann", "0.90", model="gpt-4o") as held:
        answer = await litellm.acompletion(**chat(provider))
        held.settle(litellm.completion_cost(answer), input_tokens=answer.usage.prompt_tokens)
        with pytest.raises(BudgetExceededError):
            async with tracker.reserve_budget("ann", "0.9999"):
                raise AssertionError("It does not fit.")
    assert await tracker.get_user_daily_usage("ann") == COST


async def test_persons_with_pseudonyms_have_them_here_too(tmp_path: Path, provider: dict[str, Any]) -> None:
    """The stored user is a pseudonym, and the limits of the name count."""
    section = {"data_dir": str(tmp_path), "limits": LIMITS, "privacy": {"user": "pseudonym"}}
    async with open_tracker(section) as tracker:
        async with recorded_calls(tracker):
            await litellm.acompletion(**chat(provider))
        (event,) = await events_of(tracker)
        assert event.user.startswith("p-")
        assert await tracker.get_user_daily_usage("ann") == COST


async def test_names_are_folded_as_the_proxy_folds_them(tmp_path: Path, provider: dict[str, Any]) -> None:
    """With `identity.casefold`, users and teams that differ only by case share limits here too."""
    section = {"data_dir": str(tmp_path), "limits": LIMITS, "identity": {"casefold": True}}
    async with open_tracker(section) as tracker:
        async with recorded_calls(tracker):
            await litellm.acompletion(**{**chat(provider), "user": "ANN"}, metadata={"team": "Blue"})
        (event,) = await events_of(tracker)
        assert (event.user, event.team) == ("ann", "blue")
