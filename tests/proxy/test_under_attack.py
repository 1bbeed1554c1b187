"""A five-cent limit against hostile clients and other callbacks: 25 requests at once, with one and two workers.

The provider is the obedient one. Its bill for a user never exceeds the limit, and at least its bill is recorded.
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any

import pytest

from tests.proxy.attacks import LONG
from tests.proxy.conftest import Proxy, running
from tests.proxy.test_believing_nobody import Bank, bank, config, deployment, recorded, send_all
from tests.support import soak

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.proxy

__all__ = ["bank"]

FIVE_CENTS = 50_000_000
AT_ONCE = 25

HOOKS = """
from litellm.integrations.custom_logger import CustomLogger

class Mine(CustomLogger):
    async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
        text = str(data.get("messages") or data.get("input") or data.get("contents"))
        if "TO-DEAR" in text: data["model"] = "dear"
        if "TO-CHEAP" in text: data["model"] = "vllm"
        if "TURN-DEAR" in text: data["fallbacks"] = ["dear"]
        if "TURN-CHEAP" in text: data["fallbacks"] = ["vllm"]
        if "MORE-TEXT" in text: data["messages"].insert(0, {"role": "system", "content": "Answer in verse. " * 10})
        if "MUCH-TEXT" in text: data["messages"].insert(0, {"role": "system", "content": "Answer in verse. " * 10_000})
        if "LONGER" in text: data["max_tokens"] = 19_000
        if "NO-LIMIT" in text: data.pop("max_tokens", None)
        return data

mine = Mine()
"""

LIMITS = [
    {"name": "cents", "per": "user", "match": {"user": "who-a*"}, "window": "day", "max_cost": "0.05"},
    {"name": "plenty", "per": "user", "match": {"user": "who-b*"}, "window": "day", "max_cost": 5},
    {"name": "never-dear", "per": "user", "match": {"user": "who-b*", "model": "dear"}, "window": "day", "max_cost": 0},
]


@pytest.fixture(scope="module", params=[pytest.param(1, marks=soak.REPETITIONS), 2], ids=["1-worker", "2-workers"])
def attacked(request: pytest.FixtureRequest, bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp(f"attacked-{request.param}")
    (folder / "hooks_of_ours.py").write_text(HOOKS)
    setting = config(bank, LIMITS)
    setting["litellm_settings"]["callbacks"].append("hooks_of_ours.mine")
    url = f"{bank.url}/openai/v1"
    for name, model, limit in (("own", "own-x", 16_384), ("mixed", "mixed-x", 16_384), ("mixed", "plain-x", None)):
        entry = deployment(name, f"openai/{model}", url)
        entry["litellm_params"] |= {"max_tokens": limit} if limit else {}
        setting["model_list"].append(entry)
    setting["router_settings"]["fallbacks"] = [{"broken": ["own"]}]
    with running(folder, setting, workers=request.param) as proxy:
        yield proxy


CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "MARK hi"}]}
ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "a limit under another name": (CHAT, {"model": "claude", "max_output_tokens": 1, **HI}),
    "a limit the route ignores": ("/v1/responses", {"model": "gpt", "input": "MARK hi", "max_tokens": 16}),
    "a limit in the wrong place": ("/v1beta/models/gem:generateContent", {"contents": [{"role": "user", "parts": [{"text": "MARK hi"}]}], "max_tokens": 1}),
    "a limit LiteLLM drops": (CHAT, {"model": "text", "max_completion_tokens": 1, **HI}),
    "usage that is hidden": (CHAT, {"model": "gpt", "max_tokens": 2_400, "stream": True, **HI, "extra_body": {"stream_options": {"include_usage": False}}}),
    "usage that is not wanted": (CHAT, {"model": "gpt", "max_tokens": 2_400, "stream": True, **HI, "stream_options": {"include_usage": False}}),
    "a stream by another word": (CHAT, {"model": "gpt", "max_tokens": 2_400, "stream": 1, **HI}),
    "a stream by a side door": (CHAT, {"model": "gpt", "max_tokens": 2_400, **HI, "extra_body": {"stream": True}}),
    "another model by the provider": (CHAT, {"model": "router", "max_tokens": 400, **HI, "models": ["openai/o1-pro"], "route": "fallback"}),
    "another model of no price": (CHAT, {"model": "router", "max_tokens": 400, **HI, "models": ["no/such"]}),
    "settings of the router": (CHAT, {"model": "broken", "max_tokens": 50, **HI, "router_settings_override": {"fallbacks": [{"broken": [{"model": "dear", "max_tokens": 9_000}]}]}}),
    "fallbacks": (CHAT, {"model": "broken", "max_tokens": 50, **HI, "fallbacks": ["dear"]}),
    "tools that are an object": (CHAT, {"model": "gem", "max_tokens": 10, **HI, "extra_body": {"tools": {"functionDeclarations": [{"name": "f", "description": LONG * 30}]}}}),
    "a schema": (CHAT, {"model": "gem", "max_tokens": 10, **HI, "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"description": LONG * 30}}}}),
    "many answers": (CHAT, {"model": "gpt", "max_tokens": 500, "n": 40, **HI}),
    "many answers in words": (CHAT, {"model": "gpt", "max_tokens": 500, **HI, "extra_body": {"n": "40"}}),
    "another callback's model": (CHAT, {"model": "gpt", "max_tokens": 100, "messages": [{"role": "user", "content": "MARK TO-DEAR"}]}),
    "another callback's fallback": (CHAT, {"model": "broken", "max_tokens": 100, "messages": [{"role": "user", "content": "MARK TURN-DEAR"}]}),
    "another callback's text": (CHAT, {"model": "gpt", "max_tokens": 100, "messages": [{"role": "user", "content": "MARK MUCH-TEXT"}]}),
    "another callback's limit": (CHAT, {"model": "gpt", "max_tokens": 100, "messages": [{"role": "user", "content": "MARK LONGER"}]}),
    "no limit any more": (CHAT, {"model": "gpt", "max_tokens": 100, "messages": [{"role": "user", "content": "MARK NO-LIMIT"}]}),
    "nothing but asking": (CHAT, {"model": "gpt", **HI}),
}  # fmt: skip


def marked(body: dict[str, Any], mark: str) -> dict[str, Any]:
    return json.loads(json.dumps(body).replace("MARK", mark))


async def test_no_attack_spends_more_than_the_limit(attacked: Proxy, bank: Bank) -> None:
    """For 25 concurrent requests of a user with five cents, the provider bills at most that, and all is on record."""
    users = {name: f"who-a{secrets.token_hex(5)}" for name in ATTACKS}
    requests = [
        (route, users[name], marked(body, users[name]))
        for name, (route, body) in ATTACKS.items()
        for _ in range(AT_ONCE)
    ]
    answers = await send_all(attacked, requests)
    attacked.settled()
    bills, (_, charged) = bank.bills(), recorded(attacked)
    for name, user in users.items():
        billed = bills.get(user, {"nano": 0})["nano"]
        assert billed <= FIVE_CENTS, name
        assert charged.get(user, 0) >= billed, name
    for (_, user, body), (status, text) in zip(requests, answers, strict=True):
        # A model that fails answers 500 if the limit has no room for its fallback.
        expected = status in (200, 400, 402, 429) or (status, body["model"]) == (500, "broken")
        assert expected, (user, status, text)


@pytest.mark.parametrize("holder", ["metadata", "litellm_metadata"])
@pytest.mark.parametrize("route", [CHAT, "/v1/responses", "/v1/messages", "/v1beta/models/xai:generateContent"])
async def test_a_client_does_not_say_which_model_is_billed(
    attacked: Proxy, bank: Bank, route: str, holder: str
) -> None:
    """The router writes the model into the metadata, but some routes would keep a client's own value."""
    user = f"who-b{secrets.token_hex(5)}"
    bodies: dict[str, Any] = {
        "/v1/responses": {"input": "MARK hi"},
        "/v1beta/models/xai:generateContent": {"contents": [{"role": "user", "parts": [{"text": "MARK hi"}]}]},
    }
    body = {"model": "xai", **bodies.get(route, {**HI, "max_tokens": 5}), holder: {"model_group": "no-such-model"}}
    ((status, text),) = await send_all(attacked, [(route, user, marked(body, user))])
    assert status == 200, text
    attacked.settled()
    (event,) = attacked.events(user)
    assert (event["model"], event["cost_source"]) == ("xai", "computed")


async def one(proxy: Proxy, bank: Bank, body: dict[str, Any], route: str = CHAT) -> tuple[int, str, dict[str, Any]]:
    """Send a request of a user who may spend much, but nothing on the expensive model.

    Return its status and text, and the body that the provider received.
    """
    user = f"who-b{secrets.token_hex(5)}"
    ((status, text),) = await send_all(proxy, [(route, user, marked(body, user))])
    return status, text, bank.seen().get(user, {}).get("body", {})


@pytest.mark.parametrize("route", [CHAT, "/v1/responses", "/v1/messages", "/v1beta/models/gpt:generateContent"])
async def test_a_model_that_another_callback_chose_is_refused_like_any_other(
    attacked: Proxy, bank: Bank, route: str
) -> None:
    """The limit on the model that is really called refuses the request before it is sent, with status and fields."""
    said = "MARK TO-DEAR"
    bodies: dict[str, Any] = {
        "/v1/responses": {"input": said},
        "/v1beta/models/gpt:generateContent": {"contents": [{"role": "user", "parts": [{"text": said}]}]},
    }
    body = bodies.get(route, {"max_tokens": 100, "messages": [{"role": "user", "content": said}]})
    status, text, sent = await one(attacked, bank, {"model": "gpt", **body}, route)
    assert (status, sent) == (402, {})
    assert "never-dear" in text


@pytest.mark.parametrize(
    ("said", "model", "most"),
    [
        ("TO-CHEAP", "vllm-x", 100),
        ("MORE-TEXT", "gpt-x", 100),
        ("NO-LIMIT", "gpt-x", 4096),
        ("LONGER", "gpt-x", 19_000),
    ],
)
async def test_what_another_callback_changes_is_served_where_it_fits(
    attacked: Proxy, bank: Bank, said: str, model: str, most: int
) -> None:
    """A request whose model, text or output limit changes is admitted again, as it is really sent."""
    body = {"model": "gpt", "max_tokens": 100, "messages": [{"role": "user", "content": f"MARK {said}"}]}
    status, text, sent = await one(attacked, bank, body)
    assert status == 200, text
    assert (sent["model"], sent["max_tokens"]) == (model, most)


async def test_a_fallback_that_nobody_named_is_held_before_it_is_sent(attacked: Proxy, bank: Bank) -> None:
    """A fallback that another callback names after admission is admitted separately, or stops the request."""
    body = {"model": "broken", "max_tokens": 100}
    to_cheap = {**body, "messages": [{"role": "user", "content": "MARK TURN-CHEAP"}]}
    status, text, sent = await one(attacked, bank, to_cheap)
    assert (status, sent["model"]) == (200, "vllm-x"), text
    to_dear = {**body, "messages": [{"role": "user", "content": "MARK TURN-DEAR"}]}
    status, text, sent = await one(attacked, bank, to_dear)
    assert (status, sent["model"]) == (402, "broken-x"), text


@pytest.mark.parametrize(
    ("model", "asked", "sent"),
    [
        ("own", {}, {16_384}), ("own", {"max_tokens": 777}, {777}), ("own", {"max_tokens": -1}, {16_384}),
        ("own", {"max_tokens": None}, {16_384}), ("mixed", {}, {16_384, 4096}), ("mixed", {"max_tokens": 777}, {777}),
        ("gpt", {}, {4096}), ("gpt", {"max_tokens": -1}, {4096}), ("gpt", {"max_tokens": 30_000}, {30_000}),
        ("broken", {}, {16_384}),
    ],
    ids=str,
)  # fmt: skip
async def test_the_operators_own_output_limit_is_what_is_sent(
    attacked: Proxy, bank: Bank, model: str, asked: dict[str, Any], sent: set[int]
) -> None:
    """A limit in litellm_params overrides the default for that deployment only; the client's limit overrides both."""
    found = set()
    for _ in range(12 if len(sent) > 1 else 2):
        status, text, body = await one(attacked, bank, {"model": model, **asked, **HI})
        assert status == 200, text
        assert (
            model != "mixed"
            or "max_tokens" in asked
            or body["max_tokens"] == {"mixed-x": 16_384, "plain-x": 4096}[body["model"]]
        )
        found.add(body["max_tokens"])
    assert found == sent


async def test_a_model_that_thinks_first_gets_room_for_it(attacked: Proxy, bank: Bank) -> None:
    """A reasoning model gets a larger default output limit if the money allows it, otherwise the ordinary one."""
    status, text, sent = await one(attacked, bank, {"model": "thinking", **HI})
    assert (status, sent["max_completion_tokens"]) == (200, 25_000), text
    user = f"who-a{secrets.token_hex(5)}"
    ((status, text),) = await send_all(attacked, [(CHAT, user, marked({"model": "thinking", **HI}, user))])
    assert (status, bank.seen()[user]["body"]["max_completion_tokens"]) == (200, 4096), text


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"router_settings_override": {"num_retries": 1}}, "router_settings_override"),
        ({"extra_body": {"stream": True}}, "extra_body.stream"),
        ({"custom_llm_provider": "anthropic"}, "custom_llm_provider"),
        ({"additional_drop_params": ["max_tokens"]}, "additional_drop_params"),
        ({"specific_deployment": True}, "specific_deployment"),
        ({"nobody_knows_this": 1}, "nobody_knows_this"),
        ({"extra_body": {"preset": "x"}}, "preset"),
    ],
    ids=str,
)
async def test_a_refusal_names_the_field(attacked: Proxy, bank: Bank, body: dict[str, Any], field: str) -> None:
    """A refusal names the field that a client with a limit may not send, so that the client can omit it."""
    status, text, sent = await one(attacked, bank, {"model": "gpt", "max_tokens": 5, **HI, **body})
    assert (status, sent) == (400, {})
    assert field in text


async def test_without_a_limit_everything_passes(attacked: Proxy, bank: Bank) -> None:
    """If no limit can refuse the caller anything, the plugin does not refuse any field either."""
    body = {
        "model": "gpt", **HI, "nobody_knows_this": 1, "extra_body": {"top_k": 1, "another": {"a": 1}},
        "num_retries": 0, "drop_params": True, "fallbacks": [{"model": "vllm", "max_tokens": 7}],
    }  # fmt: skip
    user = f"who-c{secrets.token_hex(5)}"
    ((status, text),) = await send_all(attacked, [(CHAT, user, marked(body, user))])
    assert status == 200, text
    assert "max_tokens" not in bank.seen()[user]["body"]
    assert bank.seen()[user]["body"]["nobody_knows_this"] == 1
