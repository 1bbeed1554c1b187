"""The gate on its own runtime: unknown routes, further calls of a request, and refusals that LiteLLM ignores."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from tests.proxy_parts.test_settlement import Plugin
from usage_plugin.config import load_config
from usage_plugin.proxy import request_scope
from usage_plugin.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

YAML = """
usage_plugin:
  data_dir: ./data
  limits:
    - {name: money, per: user, match: {user: limited}, window: day, max_cost: 1}
    - {name: pace, per: user, match: {user: paced}, window: minute, max_requests: 5}
    - {name: lenient, per: user, match: {user: lenient}, window: day, max_cost: 1, on_unbounded: allow}
    - {name: warned, per: user, match: {user: warned}, window: day, max_cost: 1, action: warn}
"""


@pytest.fixture
async def plugin(tmp_path: Path, key: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Plugin]:
    monkeypatch.setattr("usage_plugin.proxy.price_book._router", lambda: None)  # no price is known
    path = tmp_path / "config.yaml"
    path.write_text(YAML)
    runtime = Runtime(load_config(path))
    yield Plugin(runtime, key)
    await runtime.close()


async def arrive(plugin: Plugin, user: str, path: str, method: str = "POST") -> request_scope.RequestScope:
    """Have LiteLLM authenticate a request, and return the scope with its outcome."""
    scope = request_scope.RequestScope(path, (), method)
    token = request_scope.current.set(scope)
    request = SimpleNamespace(scope={}, headers={}, query_params={})
    try:
        await plugin.hooks.authenticated(plugin.key(user_id=user), request, {}, path)
    finally:
        request_scope.current.reset(token)
    return scope


async def test_the_routers_names_do_not_reach_a_route_without_a_hook(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LiteLLM reads the body of the request again there, so the names are removed from it too."""
    monkeypatch.setattr("usage_plugin.proxy.gate._default_model", lambda: False)  # asks a running proxy
    body = {"model": "m", "messages": [], "metadata": {"model_group": "cheap", "tags": ["a"]}}
    scope = request_scope.RequestScope("/queue/chat/completions")
    request = SimpleNamespace(scope={}, headers={}, query_params={}, _body=orjson.dumps(body))
    token = request_scope.current.set(scope)
    try:
        await plugin.hooks.authenticated(plugin.key(user_id="nobody"), request, body, scope.path)
    finally:
        request_scope.current.reset(token)
    assert len(scope.requests) == 1
    assert orjson.loads(request._body)["metadata"] == {"tags": ["a"]}


@pytest.mark.parametrize(
    ("user", "path", "is_refused"),
    [
        ("limited", "/v1/new/thing", True),
        ("paced", "/v1/new/thing", True),
        ("lenient", "/v1/new/thing", False),
        ("warned", "/v1/new/thing", False),
        ("nobody", "/v1/new/thing", False),
        ("limited", "/v1/batches", True),
        ("paced", "/v1/batches", False),
        ("lenient", "/v1/batches", False),
        ("limited", "/key/generate", False),
        ("limited", "/v1/chat/completions", False),
    ],
)
async def test_a_route_is_refused_for_who_has_a_limit(
    plugin: Plugin, user: str, path: str, *, is_refused: bool
) -> None:
    """An unclassified route is refused under any limit that can stop it, a refused one under cost or token limits."""
    if is_refused:
        with pytest.raises(Exception, match=f"Nothing bounds what POST {path} may use"):
            await arrive(plugin, user, path)
    else:
        scope = await arrive(plugin, user, path)
        assert bool(scope.requests) == ("new" in path), "what nobody has classified is recorded"


async def test_a_refusal_is_raised_again(plugin: Plugin) -> None:
    """If LiteLLM continues despite a refusal, its hooks stop the request, and so does a second authentication."""
    scope = request_scope.RequestScope("/v1/new/thing")
    token = request_scope.current.set(scope)
    request = SimpleNamespace(scope={}, headers={}, query_params={})
    key = plugin.key(user_id="limited")
    try:
        with pytest.raises(Exception, match="Nothing bounds") as first:
            await plugin.hooks.authenticated(key, request, {}, scope.path)
        for again in (
            plugin.hooks.authenticated(key, request, {}, scope.path),
            plugin.hooks.async_pre_call_hook(key, None, {}, "call_mcp_tool"),
            plugin.hooks.async_pre_call_deployment_hook({}, None),
        ):
            with pytest.raises(Exception, match="Nothing bounds") as other:
                await again
            assert other.value is first.value
    finally:
        request_scope.current.reset(token)


async def test_a_further_call_belongs_to_the_same_user(plugin: Plugin) -> None:
    """A guardrail's call within a request is a separate event of the same user, not of the proxy."""
    scope = request_scope.RequestScope("/v1/chat/completions")
    token = request_scope.current.set(scope)
    try:
        data = await plugin.admit("ann")
        await plugin.log({}, tokens=9)
        await plugin.answer(data)
    finally:
        request_scope.current.reset(token)
    assert [(event.user, event.input_tokens) for event in plugin.events] == [("ann", 9), ("ann", 7)]
