"""Requests of hostile clients that try to use more than their hold: each is bounded, refused, or billed in full."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from tests.proxy.conftest import Proxy

pytestmark = pytest.mark.proxy


def chat(model: str, user: str, plan: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    text = json.dumps({"in": 10, "out": 10, **(plan or {})})
    return {"model": model, "user": user, "max_tokens": 100, "messages": [{"role": "user", "content": text}], **more}


@pytest.mark.parametrize("where", ["body", "extra_body"])
def test_no_field_takes_the_bound_away(proxy: Proxy, where: str) -> None:
    """LiteLLM drops the parameters that a request names; a request that names its output limit there is refused."""
    drop = {"additional_drop_params": ["max_tokens"]}
    user = f"mixed-{secrets.token_hex(4)}"
    answer = proxy.post("/v1/chat/completions", chat("cent", user, **(drop if where == "body" else {where: drop})))
    assert answer.status_code == 400
    assert "additional_drop_params" in answer.text
    assert proxy.events(user) == []


def test_a_deployment_is_billed_by_its_own_name(proxy: Proxy) -> None:
    """Under its id, or under its provider's name, a model counts towards the limits of its `model_name`."""
    user = f"mixed-{secrets.token_hex(4)}"
    first = proxy.post("/v1/chat/completions", chat("cent", user))
    names = [first.headers["x-litellm-model-id"], "openai/cent-up"]
    answered = [proxy.post("/v1/chat/completions", chat(name, user)).status_code for name in names]
    assert answered == [200, 200]
    events = proxy.events(user)
    assert [(event["model"], event["cost"]) for event in events] == [("cent", "0.0001")] * 3
    assert {event["requested_model"] for event in events} == {"cent", *names}


@pytest.mark.parametrize("name", ["timeout", "request_timeout", "stream_timeout"])
def test_who_gives_up_early_pays_what_was_held(proxy: Proxy, name: str, upstream: Any) -> None:
    """A request that times out early is attempted once and charged, because the provider is at work and bills it."""
    user = f"mixed-{secrets.token_hex(4)}"
    plan = {"delay": 1.5, "mark": user}
    body = chat("cent", user, plan, **{name: 0.3}, num_retries=3, stream=name == "stream_timeout")
    try:
        assert proxy.post("/v1/chat/completions", body).status_code in (408, 504, 500)
    except httpx.HTTPError:
        pytest.fail("the proxy did not answer")
    proxy.settled()
    (event,) = proxy.events(user)
    assert (event["status"], event["cost"], event["estimated"]) == ("failure", "0.001", True)
    assert upstream.seen()[user] == 1


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "function", "googleSearch": {}},
        {"type": "function", "function": {"name": "f"}, "urlContext": {}},
        {"type": "custom", "codeExecution": {}},
    ],
)
def test_what_the_provider_runs_is_not_taken_for_a_clients_tool(proxy: Proxy, tool: dict[str, Any]) -> None:
    """A tool that the provider runs is refused as unbounded, because LiteLLM reads such keys for any tool type."""
    user = f"mixed-{secrets.token_hex(4)}"
    answer = proxy.post("/v1/chat/completions", chat("cent", user, tools=[tool]))
    assert (answer.status_code, answer.headers.get("x-usage-refusal")) == (400, "unbounded")
