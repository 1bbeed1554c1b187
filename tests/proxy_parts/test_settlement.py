"""Cases that cannot be produced at a real proxy: the plugin's own bugs, older LiteLLM versions, hooks out of order."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.support.waiting import eventually, set_forward
from usage_plugin.config.loader import load_config
from usage_plugin.encoding import decode_event
from usage_plugin.runtime import Runtime
from usage_plugin.tracking.ledger_retry import wait_while_busy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

CONFIG = """
usage_plugin:
  data_dir: ./data
  admission: {{orphan_grace: 1s, on_unmetered: {unmetered}, on_cut_stream: {cut}}}
  limits:
    - {{name: tokens, per: user, window: day, max_total_tokens: 100000}}
    - {{name: money, per: user, match: {{user: flat}}, window: day, max_cost: 1}}
"""


class Plugin:
    """The handler on its own runtime, outside of any proxy."""

    def __init__(self, runtime: Runtime, key: Callable[..., Any]) -> None:
        from usage_plugin.proxy.handler import UsageHandler_PROXY_  # noqa: PLC0415  # imports LiteLLM
        from usage_plugin.proxy.price_book import PriceBook  # noqa: PLC0415

        self.runtime = runtime
        self.key = key
        self.hooks = UsageHandler_PROXY_(runtime, PriceBook())

    async def admit(self, user: str = "ann", kind: str = "acompletion") -> dict[str, Any]:
        """Admit a request, and return its body as LiteLLM keeps it."""
        data = {"model": "m", "messages": [], "max_tokens": 50, "litellm_call_id": "call-1"}
        await self.hooks.async_pre_call_hook(self.key(user_id=user), None, data, kind)
        return data

    async def fail(self, data: dict[str, Any], error: Exception) -> None:
        await self.hooks.async_post_call_failure_hook(data, error, self.key())
        await self.written()

    async def answer(self, data: dict[str, Any], tokens: int = 7) -> Any:
        response = {"usage": {"prompt_tokens": tokens, "completion_tokens": 0}}
        passed_on = await self.hooks.async_post_call_success_hook(data, self.key(), response)
        await self.written()
        return passed_on

    async def log(self, data: dict[str, Any], tokens: int = 7, **metadata: Any) -> None:
        """Log a success as LiteLLM does."""
        kwargs = {
            "litellm_params": {"metadata": {**data.get("metadata", {}), **metadata}},
            "standard_logging_object": {"prompt_tokens": tokens, "completion_tokens": 0, "call_type": "acompletion"},
        }
        await self.hooks.async_log_success_event(kwargs, None, None, None)
        await self.written()

    async def written(self) -> None:
        """Wait for settlements that were queued while the keeper was writing."""
        while self.runtime.request_ledger.pending:
            await asyncio.sleep(0.001)

    @property
    def events(self) -> list[Any]:
        return [decode_event(entry.event) for entry in self.runtime.ledger.outbox(0, 100)]

    @property
    def open(self) -> int:
        return len(self.runtime.ledger.open_reservations())

    def counted(self) -> Counter[str]:
        wait_while_busy(lambda: self.runtime.anomalies.hand_over(self.runtime.operations))
        counts: Counter[str] = Counter()
        for found in self.runtime.operations.anomalies():
            counts[found.kind] += found.times
        return counts


@pytest.fixture
def unmetered() -> str:
    return "allow"


@pytest.fixture
def cut() -> str:
    return "estimate"


@pytest.fixture
async def plugin(
    key: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unmetered: str, cut: str
) -> AsyncIterator[Plugin]:
    monkeypatch.setattr("usage_plugin.proxy.price_book._router", lambda: None)  # no price is known
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(unmetered=unmetered, cut=cut))
    runtime = Runtime(load_config(path))
    yield Plugin(runtime, key)
    await runtime.close()


async def test_a_request_is_admitted_once(plugin: Plugin) -> None:
    """A callback that is listed twice, and a hook that LiteLLM calls again, do not add a second hold."""
    data = await plugin.admit()
    await plugin.hooks.async_pre_call_hook(plugin.key(user_id="ann"), None, data, "acompletion")
    assert plugin.open == 1
    await plugin.answer(data)
    assert (plugin.open, len(plugin.events)) == (0, 1)


async def test_a_settled_request_lets_go_of_its_answer(plugin: Plugin) -> None:
    """After settlement the plugin keeps no reference to body or answer, however long it remembers the exchange."""
    data = await plugin.admit()
    request = plugin.hooks._inflight.of_hook(data)
    answer = {"usage": {"prompt_tokens": 7}}
    await plugin.hooks.async_post_call_success_deployment_hook(data, answer, None)
    assert request.delivered is not None
    await plugin.answer(data)
    assert request.settled
    assert request.delivered is None


async def test_what_is_told_again_is_counted_and_not_charged(plugin: Plugin) -> None:
    """The log of a whole answer is expected; another report of a settled request is an uncharged duplicate."""
    data = await plugin.admit()
    await plugin.answer(data)
    await plugin.log(data)
    assert "duplicate" not in plugin.counted()
    await plugin.log(data)
    await plugin.fail(data, ValueError())
    assert plugin.counted()["duplicate"] == 2
    assert [event.input_tokens for event in plugin.events] == [7]


async def test_what_was_never_admitted_is_charged_to_the_proxy(plugin: Plugin) -> None:
    """A success without the plugin's stamp is charged to the proxy itself."""
    await plugin.log({}, tokens=9)
    (event,) = plugin.events
    assert (event.user, event.status, event.input_tokens) == ("(internal)", "success", 9)
    assert plugin.counted()["unheld"] == 1
    await plugin.log({}, tokens=0)
    assert len(plugin.events) == 1, "what used nothing is no request"


async def test_a_stamp_cannot_be_made_up(plugin: Plugin) -> None:
    """A client that puts an event id into its metadata affects no other request, and its own is recorded."""
    data = {"model": "m", "messages": [], "max_tokens": 50, "metadata": {"usage_plugin_event": "x"}}
    await plugin.hooks.async_pre_call_hook(plugin.key(user_id="ann"), None, data, "acompletion")
    await plugin.answer(data)
    assert [event.user for event in plugin.events] == ["ann"]


async def test_a_bug_at_admission_is_a_503_and_holds_nothing(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the plugin fails after the hold was taken, the request does not start, and the hold is released."""
    from litellm.proxy._types import ProxyException  # noqa: PLC0415

    monkeypatch.setattr("usage_plugin.proxy.inflight.proxy_metadata", lambda _data: 1 / 0)
    with pytest.raises(ProxyException) as raised:
        await plugin.admit()
    assert raised.value.code == "503"
    await plugin.written()
    assert plugin.open == 0
    assert [(event.status, event.cost) for event in plugin.events] == [("failure", 0)]


@pytest.mark.parametrize(
    "broken",
    ["usage_plugin.proxy.charges.read_outcome", "usage_plugin.tracking.admission.recorder._excess"],
)
async def test_a_bug_at_the_end_charges_what_was_held(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """If an answer cannot be parsed or settled, the client still gets it, and it is charged as reserved."""
    data = await plugin.admit()
    monkeypatch.setattr(broken, lambda *_args, **_kwargs: 1 / 0)
    assert (await plugin.answer(data))["usage"]["prompt_tokens"] == 7
    assert plugin.open == 0
    (event,) = plugin.events
    assert (event.status, event.estimated, event.output_tokens) == ("success", True, 50)


async def test_a_bug_in_a_hook_leaves_the_hold_for_the_end(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a hook fails, nothing is raised; the request is settled at the latest when the worker ends."""
    data = await plugin.admit()
    monkeypatch.setattr("usage_plugin.proxy.usage_parsing.inline_usage", lambda _response: 1 / 0)
    assert await plugin.answer(data)
    assert plugin.open == 1
    plugin.hooks.close()
    assert (plugin.open, [event.status for event in plugin.events]) == (0, ["cancelled"])
    assert plugin.counted()["orphaned"] == 1


async def serve(
    plugin: Plugin, *, status: int = 200, whole: bool = True, leaves: bool = False, broken: bool = False
) -> dict[str, Any]:
    """Serve a request about which no further hook reports, and return its body."""
    from usage_plugin.proxy.request_scope import RequestScopeMiddleware  # noqa: PLC0415  # imports LiteLLM

    data: dict[str, Any] = {}

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        data.update(await plugin.admit())
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"hi", "more_body": True})
        if leaves:
            await receive()
        if broken:
            await plugin.hooks.async_log_failure_event({"litellm_params": data}, None, None, None)
        if not whole:
            raise RuntimeError("broken off")
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        pass

    wrapper = RequestScopeMiddleware(app, on_start=plugin.hooks.answer_begins, on_end=plugin.hooks.request_ended)
    with contextlib.suppress(RuntimeError):
        await wrapper({"type": "http"}, receive, send)
    return data


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ({}, "success"),
        ({"status": 500}, "failure"),
        ({"whole": False}, "failure"),
        ({"leaves": True}, "cancelled"),
        ({"broken": True}, "failure"),
        ({"leaves": True, "whole": False}, "cancelled"),
        ({"leaves": True, "broken": True}, "cancelled"),
    ],
    ids=["answered", "an-error", "broken-off", "left", "broken-as-if-whole", "left-and-broken-off", "left-and-broken"],
)
async def test_an_end_that_nobody_tells_of_is_what_it_was_on_the_wire(
    plugin: Plugin, how: dict[str, Any], status: str
) -> None:
    """After the grace period the request is charged as reserved, with the status that the client saw."""
    await serve(plugin, **how)
    assert plugin.open == 1
    for _ in range(2):  # in two halves, for a worker that stood still
        set_forward(asyncio.get_running_loop(), 0.5)
        await asyncio.sleep(0.001)
    await eventually(lambda: plugin.open == 0)
    assert [(event.status, event.output_tokens, event.estimated) for event in plugin.events] == [(status, 50, True)]


async def test_a_worker_that_stood_still_hears_what_was_logged_meanwhile(plugin: Plugin) -> None:
    """If the event loop is blocked for longer than the grace period, the log queued behind it settles the request."""
    data = await serve(plugin)
    set_forward(asyncio.get_running_loop(), 1.5)
    for _ in range(20):  # LiteLLM's queue takes a few turns
        await asyncio.sleep(0.001)
    await plugin.log(data)
    assert [(event.status, event.input_tokens, event.estimated) for event in plugin.events] == [("success", 7, False)]


class ProviderError:
    """Create the errors that LiteLLM raises for a provider's."""

    def __new__(cls, name: str) -> Exception:
        import litellm  # noqa: PLC0415

        made: Exception
        if name == "Timeout":
            made = litellm.Timeout("late", model="m", llm_provider="openai")
        else:
            response = httpx.Response(500, request=httpx.Request("POST", "http://localhost"))
            made = litellm.InternalServerError("planned", llm_provider="openai", model="m", response=response)
        return made


async def send(plugin: Plugin, data: dict[str, Any]) -> None:
    await plugin.hooks.async_pre_call_deployment_hook(data, None)


@pytest.mark.parametrize(
    ("cut", "timeout", "charged"),
    [("estimate", None, False), ("estimate", 5, True), ("reserved", None, True)],
    ids=["our-patience", "the-clients-patience", "reserved"],
)
async def test_what_a_timeout_costs(plugin: Plugin, timeout: int | None, charged: bool) -> None:
    """A slow provider costs the user nothing, unless the operator says so; a short timeout set by the client does."""
    data = await plugin.admit()
    await send(plugin, data)
    await plugin.fail({**data, "timeout": timeout}, ProviderError("Timeout"))
    (event,) = plugin.events
    assert (event.status, event.error, event.estimated) == ("failure", "Timeout", True)
    assert (event.output_tokens == 50) is charged


async def test_a_refusing_provider_costs_nothing(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error instead of an answer is free, even if LiteLLM does not report the attempt that it ended."""
    data = await plugin.admit()
    await send(plugin, data)
    await plugin.hooks.async_post_call_failure_deployment_hook(data, ValueError(), None)
    await plugin.fail(data, ProviderError("InternalServerError"))
    monkeypatch.setattr("usage_plugin.proxy.settlement._ATTEMPTS_ARE_TOLD", False)
    data = await plugin.admit()
    await send(plugin, data)
    await plugin.fail(data, ProviderError("InternalServerError"))
    assert [(event.status, event.output_tokens) for event in plugin.events] == [("failure", 0)] * 2


async def test_a_provider_that_breaks_off_is_charged_as_reserved(plugin: Plugin) -> None:
    """Once a provider has accepted a request and begun, its bill is unknown, so the reserved amount is charged."""
    data = await plugin.admit()
    await send(plugin, data)
    await plugin.fail(data, ProviderError("InternalServerError"))
    assert [(event.status, event.output_tokens) for event in plugin.events] == [("failure", 50)]


async def test_an_answer_after_the_refusal_is_charged(plugin: Plugin) -> None:
    """If another hook refuses while the provider is at work, the provider's later answer is charged."""
    data = await plugin.admit()
    await send(plugin, data)
    await plugin.fail(data, ValueError("refused"))
    assert plugin.open == 1
    response = {"usage": {"prompt_tokens": 30, "completion_tokens": 3}}
    await plugin.hooks.async_post_call_success_deployment_hook(data, response, None)
    (event,) = plugin.events
    assert (event.status, event.error, event.input_tokens, event.output_tokens) == ("failure", "ValueError", 30, 3)
    assert plugin.open == 0


@pytest.mark.parametrize("unmetered", ["deny", "allow", "0.25"])
async def test_unmetered_routes_follow_the_policy(plugin: Plugin, unmetered: str) -> None:
    """An unmetered route is refused, admitted and marked, or charged a flat amount, which is held from the start."""
    from litellm.proxy._types import ProxyException  # noqa: PLC0415

    kind = "pass_through_endpoint"
    if unmetered == "deny":
        with pytest.raises(ProxyException) as raised:
            await plugin.admit("flat", kind)
        assert (raised.value.code, raised.value.headers["x-usage-refusal"]) == ("400", "unmetered")
        return
    data = await plugin.admit("flat", kind)
    await plugin.log(data, tokens=0)
    (event,) = plugin.events
    assert (event.status, event.estimated) == ("success", True)
    if unmetered == "allow":
        assert (event.cost, event.cost_source, event.reserved) == (None, "unpriced", 0)
        return
    assert (event.cost, event.cost_source, event.reserved) == (250_000_000, "reserved", 250_000_000)
    for _ in range(3):
        await plugin.log(await plugin.admit("flat", kind), tokens=0)
    with pytest.raises(ProxyException) as raised:
        await plugin.admit("flat", kind)
    assert raised.value.headers["x-usage-limit"] == "money"
