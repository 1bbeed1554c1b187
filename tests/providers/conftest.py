"""One LiteLLM proxy in front of the fake provider, with all deployments of the corpus."""

from __future__ import annotations

import concurrent.futures
import json
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.providers.entries import Call
from tests.proxy.conftest import Proxy, fake_provider, noon_zone
from tests.support import plain_http

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AT_ONCE = 8

BASES: dict[str, dict[str, Any]] = {
    "bedrock": {
        "api_base": None, "api_key": None, "aws_access_key_id": "AKIAFAKE", "aws_secret_access_key": "fake",
        "aws_region_name": "us-east-1", "aws_bedrock_runtime_endpoint": "{url}",
    },
    "anthropic": {"api_base": "{url}"},
    "gemini": {"api_base": "{url}"},
    "azure": {"api_base": "{url}", "api_version": "2025-04-01-preview"},
    "azure_ai": {"api_base": "{url}"},
    "cohere": {"api_base": "{url}/v2/chat"},
    "cohere_chat": {"api_base": "{url}/v2/chat"},
    "deepseek": {"api_base": "{url}"},
    "perplexity": {"api_base": "{url}"},
    "voyage": {"api_base": "{url}/v1"},
    "vertex_ai": {"api_base": "{url}", "api_key": None, "vertex_project": "p", "vertex_location": "us-central1", "vertex_credentials": "{key}"},
}  # fmt: skip
"""The parameters that point LiteLLM to the fake, by provider; all others get `{url}/v1`."""

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "discounts": {
        "cost_discount_config": {"mistral": 0.5, "anthropic": 0.25, "openai": 1.0, "openrouter": 0.1},
        "cost_margin_config": {
            "groq": 0.1, "gemini": {"fixed_amount": 0.001}, "anthropic": {"percentage": 0.08, "fixed_amount": 0.0005},
            "xai": {"percentage": 0.2},
        },
    },
    "margins": {"cost_discount_config": {"deepseek": 0.5}, "cost_margin_config": {"global": 0.05, "groq": 0}},
    "flat": {},
}  # fmt: skip
"""The proxies, by their `litellm_settings`."""

ADMISSION: dict[str, dict[str, Any]] = {"flat": {"on_unmetered": "0.05"}}
"""The `admission` settings of the proxies, apart from the grace period."""


PASS_THROUGH = {
    "anthropic": "/anthropic/v1/messages",
    "openai_pass": "/openai/v1/chat/completions",
    "openrouter_pass": "/openrouter/chat/completions",
    "mistral_pass": "/mistral/v1/chat/completions",
    "gemini_pass": "/gemini/v1beta/models",
}
"""LiteLLM's pass-through routes, which forward a request unchanged to the address in the environment."""


class Recorded(NamedTuple):
    """The outcome of a call."""

    statuses: list[int]
    bodies: list[str]
    figures: list[str]
    events: list[dict[str, Any]]
    sent: list[dict[str, Any]]


class Provider:
    """The fake provider as a process."""

    def __init__(self, url: str) -> None:
        self.client = plain_http.Client(base_url=url)
        self.url = url

    def answers(self, key: str, answer: dict[str, Any]) -> None:
        self.client.put(f"/_answers/{key}", json=answer).raise_for_status()

    def requests(self, key: str) -> list[dict[str, Any]]:
        return self.client.get(f"/_requests/{key}").json()


@pytest.fixture(scope="session")
def provider() -> Iterator[Provider]:
    with fake_provider("tests.providers.fake_provider", "/_unknown") as url:
        made = Provider(url)
        with made.client:
            yield made


@cache
def service_account(url: str) -> str:
    """Return a Google service account key whose tokens come from the fake."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    facts = {
        "type": "service_account",
        "project_id": "p",
        "private_key_id": "k",
        "private_key": private,
        "client_id": "1",
    }
    return json.dumps({**facts, "client_email": "a@p.iam.gserviceaccount.com", "token_uri": f"{url}/token"})


def model_of(call: Call, url: str) -> dict[str, Any]:
    """Return the entry of `model_list` for an entry of the corpus."""
    params = {"api_key": "none", **call.entry.params}
    if "api_base" in params:
        params["api_base"] = params["api_base"].format(url=url)
    provider = params.get("custom_llm_provider") or params["model"].split("/", 1)[0]
    for name, value in BASES.get(provider, {"api_base": "{url}/v1"}).items():
        if value is None:
            params.pop(name, None)
        else:
            params.setdefault(name, service_account(url) if value == "{key}" else value.format(url=url))
    return {"model_name": call.entry.name, "litellm_params": params, "model_info": call.entry.model_info}


def config_for(calls: list[Call], url: str, settings: str) -> dict[str, Any]:
    """Return the YAML of a proxy with the deployments of these calls."""
    entries = {call.entry.name: call for call in calls}
    limits = [
        {"name": name, "per": "user", "match": {"user": f"{name}.*"}, "window": "day", **call.entry.limit}
        for name, call in entries.items()
        if call.entry.limit
    ]
    return {
        "model_list": [model_of(call, url) for call in entries.values()],
        "litellm_settings": {"callbacks": ["usage_plugin.proxy.callback"], **SETTINGS[settings]},
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "general_settings": {
            "master_key": "os.environ/LITELLM_MASTER_KEY",
            "pass_through_endpoints": [
                {"path": "/ours", "target": url, "include_subpath": True},
                {"path": "/fixed", "target": url, "include_subpath": True, "cost_per_request": 0.25},
                {"path": "/nothing", "target": url, "include_subpath": True, "cost_per_request": 0},
            ],
        },
        "usage_plugin": {
            "data_dir": "./data", "timezone": noon_zone(), "limits": limits,
            "admission": {"orphan_grace": "5s", **ADMISSION.get(settings, {})},
            "identity": {"user": ["header:x-u", "key", "end_user"]},
        },
    }  # fmt: skip


def request_of(call: Call, text: str) -> tuple[str, dict[str, Any], dict[str, Any] | None]:
    """Return the path, the body and the files of a call."""
    entry, model = call.entry, call.entry.name
    stream = {"stream": True} if call.way == "stream" else {}
    messages = [{"role": "user", "content": text}]
    if call.route == "chat":
        asks = {"stream_options": {"include_usage": True}} if stream else {}
        return "/v1/chat/completions", {"model": model, "messages": messages, "max_tokens": 300, **stream, **asks, **entry.request}, None  # fmt: skip
    if call.route == "messages":
        return "/v1/messages", {"model": model, "messages": messages, "max_tokens": 300, **stream, **entry.request}, None  # fmt: skip
    if call.route == "pass":
        return entry.path.format(name=entry.name), {"messages": messages, **stream, **entry.request}, None
    if call.route in PASS_THROUGH:
        served = entry.params["model"].split("/", 1)[1]
        if call.route == "gemini_pass":
            verb = "streamGenerateContent?alt=sse" if stream else "generateContent"
            return f"/gemini/v1beta/models/{served}:{verb}", {"contents": [{"role": "user", "parts": [{"text": text}]}], **entry.request}, None  # fmt: skip
        asks = {"stream_options": {"include_usage": True}} if stream and call.route == "openai_pass" else {}
        return PASS_THROUGH[call.route], {"model": served, "messages": messages, "max_tokens": 300, **stream, **asks, **entry.request}, None  # fmt: skip
    if call.route == "responses":
        return "/v1/responses", {"model": model, "input": text, "max_output_tokens": 300, **stream, **entry.request}, None  # fmt: skip
    if call.route == "completions":
        return "/v1/completions", {"model": model, "prompt": text, "max_tokens": 300, **stream, **entry.request}, None
    if call.route == "gemini":
        verb = "streamGenerateContent?alt=sse" if stream else "generateContent"
        return f"/v1beta/models/{model}:{verb}", {"contents": [{"role": "user", "parts": [{"text": text}]}], **entry.request}, None  # fmt: skip
    if call.route == "embeddings":
        return "/v1/embeddings", {"model": model, "input": text, "encoding_format": "float", **entry.request}, None
    if call.route == "rerank":
        return "/v1/rerank", {"model": model, "query": text, "documents": ["a", "b"], **entry.request}, None
    if call.route == "images":
        return "/v1/images/generations", {"model": model, "prompt": text, **entry.request}, None
    if call.route == "speech":
        return "/v1/audio/speech", {"model": model, "input": text, "voice": "alloy", **entry.request}, None
    assert call.route == "transcription", call.route
    seconds = entry.request.get("seconds", 2)
    fields = {"model": model, "prompt": text, **{name: value for name, value in entry.request.items() if name != "seconds"}}  # fmt: skip
    return "/v1/audio/transcriptions", fields, {"file": ("sound.wav", sound(seconds), "audio/wav")}


def sound(seconds: int) -> bytes:
    """Return a WAV file of silence: 8,000 samples of one byte per second."""
    size = 8_000 * seconds
    head = b"RIFF" + (36 + size).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    head += (1).to_bytes(2, "little") * 2 + (8_000).to_bytes(4, "little") * 2 + (1).to_bytes(2, "little")
    return head + (8).to_bytes(2, "little") + b"data" + size.to_bytes(4, "little") + b"\x80" * size


def send(proxy: Proxy, call: Call) -> tuple[int, str, str]:
    """Send a call and its polls. Return the status, the text of the answer and LiteLLM's own figure."""
    path, body, files = request_of(call, call.entry.request.get("text") or f"case={call.key}")
    body = {name: value for name, value in body.items() if name != "text" and value is not None}
    headers = {"Authorization": f"Bearer {proxy.key}", "x-u": call.key}
    if call.route == "gemini_pass":
        # LiteLLM reads the key of this route from the same header as Google.
        headers["x-goog-api-key"] = proxy.key
    what: dict[str, Any] = {"data": body, "files": files} if files else {"json": body}
    with plain_http.Client(timeout=60, headers=headers, base_url=proxy.url) as client:
        try:
            response = client.post(path, **what)
        except httpx.RemoteProtocolError as error:
            # The answer breaks off.
            return 599, repr(error), ""
        for _ in range(call.entry.polled):
            client.get(f"{path.removesuffix('/responses')}/responses/{response.json()['id']}").raise_for_status()
    text = response.text if "audio" not in response.headers.get("content-type", "") else ""
    return response.status_code, text, response.headers.get("x-litellm-response-cost", "")


def answer_of(call: Call) -> dict[str, Any]:
    """Return the answer in the form that the fake provider stores."""
    answer = call.entry.answer
    if not call.entry.polls:
        return answer
    # A later request about the response is identified by its id.
    name = {"id": f"resp_case-{call.key}"}
    polls = [{**poll, "body": {**name, **poll.get("body", {})}} for poll in call.entry.polls]
    return {**answer, "body": {**name, **answer.get("body", {})}, "polls": polls}


def run(folder: Any, provider: Provider, calls: list[Call], settings: str) -> dict[str, Recorded]:
    """Send all the calls through one proxy, and return their outcomes by key."""
    for call in calls:
        provider.answers(call.key, answer_of(call))
    names = (
        "ANTHROPIC",
        "OPENAI",
        "OPENROUTER",
        "MISTRAL",
        "GEMINI",
        "COHERE",
        "AZURE",
        "VLLM",
        "HOSTED_VLLM",
        "WATSONX",
    )
    environment = {f"{name}_API_BASE": provider.url for name in names} | {f"{name}_API_KEY": "none" for name in names}
    proxy = Proxy(folder, config_for(calls, provider.url, settings), environment=environment)
    proxy.start()
    try:

        def one(call: Call) -> list[tuple[int, str, str]]:
            answers = []
            for _ in range(call.entry.requests):
                answers.append(send(proxy, call))
                if call.entry.one_by_one:
                    proxy.settled()
            return answers

        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            answers = dict(zip([call.key for call in calls], pool.map(one, calls), strict=True))
        proxy.settled()
        events = proxy.cli("events", "--last", "100000")["events"]
    finally:
        proxy.stop()
    by_user: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        by_user.setdefault(event["user"], []).append(event)
    return {
        call.key: Recorded(
            [status for status, _, _ in answers[call.key]],
            [body for _, body, _ in answers[call.key]],
            [figure for _, _, figure in answers[call.key]],
            by_user.get(call.key, []),
            provider.requests(call.key),
        )
        for call in calls
    }


@pytest.fixture(scope="session")
def recorded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, provider: Provider
) -> Callable[[Call], Recorded]:
    """Return a function that gives the outcome of a call.

    All selected calls are sent together, through one proxy for each settings.
    """
    found = [item.callspec.params["call"] for item in request.session.items if hasattr(item, "callspec") and "call" in item.callspec.params]  # fmt: skip
    done: dict[str, dict[str, Recorded]] = {}

    def of(call: Call) -> Recorded:
        settings = call.entry.settings
        if settings not in done:
            ours = [other for other in found if other.entry.settings == settings]
            done[settings] = run(tmp_path_factory.mktemp(settings), provider, ours, settings)
        return done[settings][call.key]

    return of
