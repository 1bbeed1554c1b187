"""No false refusals: an ordinary, generous limit refuses no request of ordinary clients, whole or streamed.

The clients' requests are in `client_shapes.yaml`. The configurations are those of LiteLLM's documentation that change
how a request is routed, rewritten or priced. Models have the prices of LiteLLM's own map, as for most operators.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
import yaml

from tests.proxy.conftest import Proxy, fake_provider, noon_zone, running
from tests.proxy.test_believing_nobody import Bank, bank
from tests.support import plain_http

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.proxy

__all__ = ["bank"]

SHAPES: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("client_shapes.yaml").read_text())["shapes"]
AT_ONCE = 10
FAILED = re.compile(r'"error": ?[{]|event: error')
LIMIT = {"name": "daily", "per": "user", "window": "day", "max_cost": 50}

MODELS = {
    "gpt": ("openai/gpt-4o", "/openai/v1"),
    "thinking": ("openai/o3", "/openai/v1"),
    "claude": ("anthropic/claude-sonnet-4-5-20250929", "/anthropic"),
    "gem": ("gemini/gemini-2.5-pro", "/gemini"),
    "vllm": ("hosted_vllm/llama", "/vllm/v1"),
    "router": ("openrouter/openai/gpt-4o-mini", "/openrouter/v1"),
    "sound": ("openai/gpt-4o-audio-preview-2024-12-17", "/openai/v1"),
}
HI = [{"role": "user", "content": "hi, my number is 555-1234"}]
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/messages": {"messages": HI, "max_tokens": 300},
    "/v1/responses": {"input": "hi, my number is 555-1234"},
}
OTHER_ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "embedding": ("/v1/embeddings", {"input": ["hi", "ho"], "encoding_format": "float", "dimensions": 256}),
    "rerank": ("/v1/rerank", {"query": "hi", "documents": ["a", "b"], "top_n": 1, "return_documents": True}),
    "image": ("/v1/images/generations", {"prompt": "a cat", "n": 1, "size": "1024x1024", "quality": "low"}),
    "speech": ("/v1/audio/speech", {"input": "hi", "voice": "alloy", "response_format": "mp3", "speed": 1.0}),
    "moderation": ("/v1/moderations", {"input": "hi"}),
    "completion": ("/v1/completions", {"prompt": "hi"}),
}
OWN_PRICES = {"input_cost_per_token": 0.000001, "output_cost_per_token": 0.000002}
EVERYWHERE = ("gpt", "thinking", "claude", "gem", "vllm")
"""The providers behind one proxy: a client does not know which provider serves its model."""


class Sent(NamedTuple):
    """A request and its answer."""

    what: str
    status: int
    refusal: str | None
    text: str

    @property
    def is_served(self) -> bool:
        """Whether it was answered to its end; a stream may fail after a status of 200."""
        return self.status == 200 and self.refusal is None and not FAILED.search(self.text)


def deployment(bank: Bank, name: str, model: str, path: str, **more: Any) -> dict[str, Any]:
    own = OWN_PRICES if model.startswith(("hosted_vllm/", "openrouter/")) else {}
    return {
        "model_name": name,
        "litellm_params": {"model": model, "api_base": bank.url + path, "api_key": "none", **own, **more},
    }


def config(models: list[dict[str, Any]], **sections: Any) -> dict[str, Any]:
    settings = {
        "callbacks": ["usage_plugin.proxy.callback"],
        "drop_params": True,
        **sections.pop("litellm_settings", {}),
    }
    general = {"master_key": "os.environ/LITELLM_MASTER_KEY", **sections.pop("general_settings", {})}
    usage = {
        "data_dir": "./data",
        "timezone": noon_zone(),
        "identity": {"user": ["header:x-test-user"]},
        "limits": [LIMIT],
    }
    return {
        "model_list": models, "litellm_settings": settings, "general_settings": general, "usage_plugin": usage, **sections,
    }  # fmt: skip


Request = tuple[str, str, dict[str, Any], dict[str, str]]


async def send_all(proxy: Proxy, requests: list[Request]) -> list[Sent]:
    """Send requests, each as a separate user."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(
        client: httpx.AsyncClient, what: str, route: str, body: dict[str, Any], headers: dict[str, str]
    ) -> Sent:
        user = {"x-test-user": f"u-{secrets.token_hex(6)}"}
        keys = {"authorization": f"Bearer {proxy.key}", "content-type": "application/json"}
        async with gate:
            answer = await client.post(proxy.url + route, content=json.dumps(body), headers={**headers, **user, **keys})
        return Sent(what, answer.status_code, answer.headers.get("x-usage-refusal"), answer.text)

    async with plain_http.AsyncClient(timeout=60) as client:
        return await asyncio.gather(*[one(client, *request) for request in requests])


def streamed(route: str, body: dict[str, Any], *, stream: bool) -> tuple[str, dict[str, Any]]:
    """Return the request as a streamed or a whole one."""
    if "enerateContent" in route:
        path = route.partition(":")[0]
        return f"{path}:streamGenerateContent?alt=sse" if stream else f"{path}:generateContent", body
    body = {name: value for name, value in body.items() if name != "stream_options" or stream}
    return route, {**body, "stream": stream}


def check(sent: list[Sent]) -> None:
    """Fail with all requests that were not served."""
    failed = [str(one._replace(text=one.text[:400])) for one in sent if not one.is_served]
    if failed:
        pytest.fail("\n".join([f"{len(failed)} of {len(sent)}", *failed]), pytrace=False)


async def check_that_limits_hold(proxy: Proxy, model: str) -> None:
    """Fail if the proxy would serve everything: it must refuse a field of unknown cost."""
    body = {"model": model, "messages": HI, "user": "ann", "nobody_knows_this": 1}
    (sent,) = await send_all(proxy, [("unknown field", "/v1/chat/completions", body, {})])
    assert (sent.status, sent.refusal) == (400, "unbounded"), sent


def other_kinds(url: str) -> list[dict[str, Any]]:
    """Return non-chat models as in LiteLLM's documentation, and two chat models, one of which falls back."""

    def entry(name: str, model: str, **info: Any) -> dict[str, Any]:
        base = {"api_base": url if model.startswith("cohere/") else f"{url}/v1", "api_key": "none"}
        return {"model_name": name, "litellm_params": {"model": model, **base}, "model_info": info}

    return [
        entry("embedding", "openai/text-embedding-3-small", mode="embedding"),
        entry("rerank", "cohere/rerank-v3.5", mode="rerank"),
        entry("image", "openai/dall-e-3", mode="image_generation", output_cost_per_image=0.04),
        entry("speech", "openai/tts-1", mode="audio_speech"),
        entry("moderation", "openai/omni-moderation-latest", mode="moderation"),
        entry("completion", "text-completion-openai/gpt-3.5-turbo-instruct", mode="completion"),
        entry("small", "openai/gpt-4o-mini"),
        entry("large", "openai/gpt-4o"),
    ]


@pytest.fixture(scope="module")
def plain(bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Run a proxy with models of each provider and each kind, and a fallback for each reason."""
    models = [deployment(bank, name, *where) for name, where in MODELS.items()]
    reasons = ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")
    router = {reason: [{"small": ["large"]}] for reason in reasons}
    mocking = {"dangerously_allow_mock_testing_request_params": True}
    with fake_provider("tests.proxy.any_provider", "/_received") as url:
        whole = config([*models, *other_kinds(url)], router_settings=router, general_settings=mocking)
        with running(tmp_path_factory.mktemp("plain"), whole) as proxy:
            yield proxy


async def test_no_clients_request_is_refused(plain: Proxy) -> None:
    """Each client's request is served, whole and streamed, by each provider that may be behind the model's name."""
    requests = []
    for name, shape in SHAPES.items():
        for model in shape.get("models", EVERYWHERE):
            for stream in (False, True):
                route, body = streamed(shape["route"].replace("MODEL", model), shape["body"], stream=stream)
                body = body if "MODEL" in shape["route"] else {"model": model, **body}
                what = f"{name}, {model}, {'streamed' if stream else 'whole'}"
                requests.append((what, route, body, shape.get("headers", {})))
    check(await send_all(plain, requests))
    await check_that_limits_hold(plain, "gpt")


CALLBACKS = """
from litellm.integrations.custom_guardrail import CustomGuardrail
from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy._types import UserAPIKeyAuth

class Mask(CustomLogger):
    async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
        for message in data.get("messages") or []:
            if isinstance(message.get("content"), str):
                message["content"] = message["content"].replace("555-1234", "<PHONE_NUMBER>")
        return data

class Guard(CustomGuardrail):
    async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
        data.setdefault("metadata", {})["guarded"] = "yes"
        return data

mask = Mask()

async def auth(request, api_key):
    return UserAPIKeyAuth(api_key=api_key, user_id="someone", models=[])
"""


def openai(bank: Bank, name: str, **more: Any) -> dict[str, Any]:
    return deployment(bank, name, "openai/gpt-4o", "/openai/v1", **more)


def claude(bank: Bank, name: str, **more: Any) -> dict[str, Any]:
    return deployment(bank, name, *MODELS["claude"], **more)


def with_info(entry: dict[str, Any], **info: Any) -> dict[str, Any]:
    return {**entry, "model_info": info}


def of_deployments(bank: Bank) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the settings that operators write for a deployment."""
    no_key = {
        "model_name": "credential",
        "litellm_params": {"model": "openai/gpt-4o", "litellm_credential_name": "shared"},
    }
    azure = deployment(bank, "base model", "azure/our-deployment", "/azure", api_version="2024-10-21")
    from_environment = {
        "model_name": "from environment",
        "litellm_params": {
            "model": "os.environ/OUR_MODEL",
            "api_base": "os.environ/OUR_BASE",
            "api_key": "os.environ/OUR_KEY",
        },
    }
    unlisted = deployment(bank, "own prices", "openai/our-own", "/openai/v1")
    per_second = deployment(bank, "o3", "openai/o3", "/openai/v1", reasoning_effort="high")
    models = [
        no_key,
        from_environment,
        per_second,
        with_info(azure, base_model="azure/gpt-4o"),
        with_info(unlisted, **OWN_PRICES, max_input_tokens=32_000, max_output_tokens=4096, mode="chat"),
        with_info(openai(bank, "described"), id="our-id", mode="chat", supports_vision=True, team="ours", health_check_model="openai/gpt-4o-mini"),
        openai(bank, "max_tokens", max_tokens=16_384),
        openai(bank, "max_completion_tokens", max_completion_tokens=8_000),
        openai(bank, "headers", extra_headers={"x-cost-center": "7"}, extra_body={"chat_template_kwargs": {"enable_thinking": False}, "priority_class": "low"}),
        deployment(bank, "vllm body", *MODELS["vllm"], extra_body={"top_k": 20, "our_option": {"a": 1}}),
        openai(bank, "sampling", temperature=0, seed=1, top_p=1, stop=["x"], frequency_penalty=0.1, user="proxy", metadata={"a": "b"}),
        claude(bank, "thinking", thinking={"type": "enabled", "budget_tokens": 1024}, max_tokens=8_000),
        claude(bank, "merged", merge_reasoning_content_in_choices=True, reasoning_effort="low"),
        claude(bank, "long context", extra_headers={"anthropic-beta": "context-1m-2025-08-07"}),
        claude(bank, "cache points", cache_control_injection_points=[{"location": "message", "role": "system"}]),
        openai(bank, "dropping", drop_params=True, additional_drop_params=["temperature", "response_format"]),
        openai(bank, "allowing", allowed_openai_params=["tools", "reasoning_effort"]),
        openai(bank, "waiting", timeout=300, stream_timeout=60, max_retries=2, num_retries=2, cooldown_time=5),
        openai(bank, "limited", rpm=1000, tpm=10_000_000, max_parallel_requests=50),
        openai(bank, "tagged", tags=["prod"]),
        openai(bank, "pass through", use_in_pass_through=True),
        deployment(bank, "safe", *MODELS["gem"], safety_settings=[{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]),
        deployment(bank, "bridge", "openai/responses/gpt-4o", "/openai/v1"),
    ]  # fmt: skip
    whole = config(
        models,
        credential_list=[{"credential_name": "shared", "credential_values": {"api_key": "none", "api_base": f"{bank.url}/openai/v1"}, "credential_info": {"description": "d"}}],
        general_settings={"custom_auth": "ours.auth"},
    )  # fmt: skip
    return whole, {str(entry["model_name"]): {} for entry in models}


def of_the_router(bank: Bank) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the settings that operators write about routing."""
    broken = {"model": "openai/gpt-4o", "path": "/broken/v1"}
    models = [
        openai(bank, "gpt", weight=9, rpm=1000, tpm=10_000_000),
        deployment(bank, "gpt", "azure/gpt-4o", "/azure", api_version="2024-10-21", weight=1, rpm=100, order=2),
        openai(bank, "large"),
        deployment(bank, "broken", **broken),
        deployment(bank, "twice broken", **broken),
        deployment(bank, "broken by default", **broken),
        with_info(openai(bank, "small"), max_input_tokens=8_000),
        deployment(bank, "openai/*", "openai/*", "/openai/v1"),
        deployment(bank, "anthropic/*", "anthropic/*", "/anthropic"),
        deployment(bank, "llama-*", "hosted_vllm/llama-*", "/vllm/v1"),
        deployment(bank, "*", "openai/*", "/openai/v1"),
    ]
    router = {
        "routing_strategy": "usage-based-routing-v2", "num_retries": 1, "timeout": 60, "allowed_fails": 100,
        "cooldown_time": 1, "enable_pre_call_checks": True, "retry_after": 0,
        "retry_policy": {"RateLimitErrorRetries": 2, "TimeoutErrorRetries": 1},
        "allowed_fails_policy": {"InternalServerErrorAllowedFails": 1000},
        "model_group_alias": {"gpt-4": "gpt", "hidden": {"model": "large", "hidden": True}},
        "fallbacks": [{"broken": ["gpt", "large"]}, {"twice broken": ["broken", "large"]}], "default_fallbacks": ["large"],
        "context_window_fallbacks": [{"small": ["large"]}], "content_policy_fallbacks": [{"small": ["anthropic/claude-sonnet-4-5-20250929"]}],
    }  # fmt: skip
    asked: dict[str, dict[str, Any]] = {
        "gpt": {}, "gpt-4": {}, "hidden": {}, "broken": {}, "twice broken": {}, "broken by default": {}, "small": {},
        "openai/gpt-4o-mini": {}, "anthropic/claude-sonnet-4-5-20250929": {}, "llama-3": {}, "gpt-4.1": {},
    }  # fmt: skip
    return config(models, router_settings=router, litellm_settings={"num_retries": 1, "request_timeout": 60}), asked


def of_settings(bank: Bank) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the settings that operators write for a whole proxy: caches, guardrails, tags, other callbacks, files."""
    models = [
        openai(bank, "gpt", tags=["default", "free"]), openai(bank, "gpt", tags=["paid"]), claude(bank, "claude", tags=["default"]),
    ]  # fmt: skip
    whole = config(
        models,
        include=["included.yaml"],
        router_settings={"routing_strategy": "latency-based-routing", "routing_strategy_args": {"ttl": 10}, "enable_tag_filtering": True},
        litellm_settings={
            "callbacks": ["usage_plugin.proxy.callback", "ours.mask"], "modify_params": True, "drop_params": False,
            "cache": True, "cache_params": {"type": "local", "ttl": 60}, "redact_user_api_key_info": True,
            "turn_off_message_logging": True, "json_logs": True, "set_verbose": False, "num_retries": 0,
        },
        guardrails=[{"guardrail_name": "guard", "litellm_params": {"guardrail": "ours.Guard", "mode": "pre_call", "default_on": True}}],
        general_settings={
            "user_header_name": "x-openwebui-user-id", "enforce_user_param": True, "always_include_stream_usage": True,
            "pass_through_endpoints": [{"path": "/ours", "target": f"{bank.url}/openai/v1/chat/completions", "headers": {"x": "y"}}],
            "global_max_parallel_requests": 500, "disable_spend_logs": True,
        },
    )  # fmt: skip
    asked: dict[str, dict[str, Any]] = {
        "gpt": {"user": "ann"}, "claude": {"user": "ann"}, "from a file": {"user": "ann"},
    }  # fmt: skip
    return whole, asked


CONFIGURATIONS = {"deployments": of_deployments, "routing": of_the_router, "settings": of_settings}


@pytest.mark.parametrize("kind", CONFIGURATIONS)
async def test_no_configuration_makes_a_limit_refuse(kind: str, bank: Bank, tmp_path: Path) -> None:
    """A plain request to each model of each configuration is served, on three routes, whole and streamed."""
    (tmp_path / "ours.py").write_text(CALLBACKS)
    included = {"model_list": [openai(bank, "from a file", tags=["default"])]}
    (tmp_path / "included.yaml").write_text(yaml.safe_dump(included))
    whole, asked = CONFIGURATIONS[kind](bank)
    environment = {"OUR_MODEL": "openai/gpt-4o-mini", "OUR_BASE": f"{bank.url}/openai/v1", "OUR_KEY": "none"}
    requests = [
        (f"{name} {route} {stream}", route, {"model": name, **body, **more, "stream": stream}, {"x-openwebui-user-id": "ann"})
        for name, more in asked.items()
        for route, body in ROUTES.items()
        for stream in (False, True)
    ]  # fmt: skip
    with running(tmp_path, whole, environment=environment) as proxy:
        check(await send_all(proxy, requests))
        await check_that_limits_hold(proxy, next(iter(asked)))


async def test_no_other_kind_of_model_is_refused(plain: Proxy) -> None:
    """Embeddings, images and the like, configured as LiteLLM documents, are served, as is each kind of fallback."""
    requests: list[Request] = [
        (name, route, {"model": name, **body}, {}) for name, (route, body) in OTHER_ROUTES.items()
    ]
    mocks = ("mock_testing_fallbacks", "mock_testing_context_fallbacks", "mock_testing_content_policy_fallbacks")
    requests += [
        (
            f"{mock} {stream}",
            "/v1/chat/completions",
            {"model": "small", "messages": HI, mock: True, "stream": stream},
            {},
        )
        for mock in mocks
        for stream in (False, True)
    ]
    check(await send_all(plain, requests))
    await check_that_limits_hold(plain, "small")
