"""For every request that a client can write, the provider bills at most the held amount, or the request is refused.

The provider obeys only the fields of its own API, and bills everything that it generates. The requests are drawn from
every field name that the installed LiteLLM knows, with false values, alone and combined.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections import defaultdict
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.proxy import attacks
from tests.proxy.conftest import ROOT, Proxy, free_port, noon_zone, running, wait_for
from tests.proxy.obedient_upstream import INPUT, OUTPUT
from tests.support import plain_http, soak

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.proxy

AT_ONCE = 25
TIMES_DEAR = 100
HUNG_UP = 599

FAMILIES = {
    "gpt": ("openai/gpt-x", "/openai/v1"),
    "thinking": ("openai/o3", "/openai/v1"),
    "claude": ("anthropic/claude-x", "/anthropic"),
    "gem": ("gemini/gemini-x", "/gemini"),
    "azure": ("azure/azure-x", "/azure"),
    "router": ("openrouter/openai/gpt-4o-mini", "/openrouter/v1"),
    "mistral": ("mistral/mistral-x", "/mistral/v1"),
    "cohere": ("cohere_chat/command-x", "/cohere/v2/chat"),
    "ollama": ("ollama_chat/llama-x", "/ollama"),
    "vllm": ("hosted_vllm/vllm-x", "/vllm/v1"),
    "deepseek": ("deepseek/deep-x", "/deepseek/v1"),
    "xai": ("xai/grok-x", "/xai/v1"),
    "text": ("text-completion-openai/text-x", "/textopenai/v1"),
    "bedrock": ("bedrock/converse/anthropic.claude-x", "/bedrock"),
    "broken": ("openai/broken-x", "/broken/v1"),
}
ROUTES = ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/completions", ":generateContent", ":streamGenerateContent")  # fmt: skip


def deployment(name: str, model: str, base: str, times: int = 1) -> dict[str, Any]:
    prices = {"input_cost_per_token": INPUT * times / 1e9, "output_cost_per_token": OUTPUT * times / 1e9}
    where: dict[str, Any] = {"api_base": base, "api_key": "none"}
    if model.startswith("bedrock/"):
        keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "aws_region_name": "us-east-1"}
        where = {"aws_bedrock_runtime_endpoint": base, **keys}
    if model.startswith("azure/"):
        where["api_version"] = "2024-10-21"
    return {"model_name": name, "litellm_params": {"model": model, **where, **prices}}


class Bank:
    """The obedient provider as a process."""

    def __init__(self, url: str) -> None:
        self.url = url

    def bills(self) -> dict[str, dict[str, int]]:
        return plain_http.get(f"{self.url}/bills").json()

    def seen(self) -> dict[str, Any]:
        return plain_http.get(f"{self.url}/seen").json()


@pytest.fixture(scope="module")
def bank() -> Iterator[Bank]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "tests.proxy.obedient_upstream", str(port)], cwd=ROOT)
    url = f"http://127.0.0.1:{port}"
    wait_for(f"{url}/bills", process)
    known = {model.split("/", 2 if model.startswith("bedrock") else 1)[-1]: 1 for model, _ in FAMILIES.values()}
    plain_http.put(f"{url}/models", json={**known, "dear-x": TIMES_DEAR})
    yield Bank(url)
    process.kill()
    process.wait()


def config(bank: Bank, limits: list[dict[str, Any]]) -> dict[str, Any]:
    models = [deployment(name, model, bank.url + path) for name, (model, path) in FAMILIES.items()]
    return {
        "model_list": [*models, deployment("dear", "openai/dear-x", f"{bank.url}/openai/v1", TIMES_DEAR)],
        # LiteLLM then drops the fields that a provider does not know, even an output limit.
        "litellm_settings": {"callbacks": ["usage_plugin.proxy.callback"], "drop_params": True},
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
        "usage_plugin": {
            "data_dir": "./data",
            "timezone": noon_zone(),
            "identity": {"user": ["header:x-test-user"]},
            "limits": limits,
            "admission": {"orphan_grace": "1s"},
        },
    }


@pytest.fixture(scope="module")
def bounded(bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Run a proxy with a large limit for each user, so that requests are bounded and rarely refused."""
    limits = [{"name": "daily", "per": "user", "window": "day", "max_cost": 500}]
    with running(tmp_path_factory.mktemp("bounded"), config(bank, limits)) as proxy:
        yield proxy


def base_of(draw: random.Random, route: str, model: str, mark: str) -> tuple[str, dict[str, Any]]:
    """Return an ordinary request for a route."""
    message = [{"role": "user", "content": f"{mark} hi"}]
    limit = draw.choice([None, 16, 300])
    if route.startswith(":"):
        body: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": f"{mark} hi"}]}]}
        if limit:
            body["generationConfig"] = {"maxOutputTokens": limit}
        return f"/v1beta/models/{model}{route}", body
    body = {"model": model}
    if route == "/v1/responses":
        body |= {"input": f"{mark} hi", **({"max_output_tokens": limit} if limit else {})}
    elif route == "/v1/completions":
        body |= {"prompt": f"{mark} hi", **({"max_tokens": limit} if limit else {})}
    else:
        body |= {"messages": message}
        if limit or route == "/v1/messages":
            body["max_tokens"] = limit or 16
    if draw.random() < 0.3:
        body["stream"] = True
    return route, body


async def send_all(proxy: Proxy, requests: list[tuple[str, str, dict[str, Any]]]) -> list[tuple[int, str]]:
    """Send requests, each as a separate user; return the statuses and the beginnings of the answers."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(client: httpx.AsyncClient, route: str, user: str, body: dict[str, Any]) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {proxy.key}", "Content-Type": "application/json", "x-test-user": user}
        async with gate:
            try:
                answer = await client.post(proxy.url + route, content=json.dumps(body), headers=headers)
            except httpx.TransportError as error:
                # LiteLLM closes the connection on some bodies; the provider may have charged all the same.
                return HUNG_UP, repr(error)
            return answer.status_code, answer.text[:400]

    async with plain_http.AsyncClient(timeout=60) as client:
        return await asyncio.gather(*[one(client, *request) for request in requests])


def recorded(proxy: Proxy) -> tuple[dict[str, int], dict[str, int]]:
    """Return the held and the charged amounts by user, in nano-dollars."""
    held: defaultdict[str, int] = defaultdict(int)
    charged: defaultdict[str, int] = defaultdict(int)
    for event in proxy.cli("events", "--last", "100000")["events"]:
        held[event["user"]] += int(Decimal(event["reserved"] or 0) * 10**9)
        charged[event["user"]] += int(Decimal(event["cost"] or 0) * 10**9)
    return held, charged


async def check(proxy: Proxy, bank: Bank, drawn: list[tuple[str, str, list[Any]]], seed: int) -> dict[str, int]:
    """Send attacks, and compare the bill of each with its held and charged amounts."""
    draw = random.Random(seed)
    marks = [f"who-{seed}x{at}" for at in range(len(drawn))]
    requests = []
    for mark, (route, model, fields) in zip(marks, drawn, strict=True):
        path, body = base_of(draw, route, model, mark)
        requests.append((path, mark, attacks.laid_over(body, fields)))
    answers = await send_all(proxy, requests)
    proxy.settled()
    held, charged = recorded(proxy)
    bills, seen = bank.bills(), bank.seen()
    passed, counts = [], {"sent": 0, "refused": 0, "failed": 0}
    for mark, request, (status, text) in zip(marks, requests, answers, strict=True):
        bill = bills.get(mark)
        if bill is None:
            counts["refused"] += 1
            continue
        counts["sent"] += 1
        counts["failed"] += status >= 400
        nano = bill["nano"]
        if nano > held[mark] or (status < 400 and nano > charged[mark]):
            passed.append({
                "request": json.dumps(request)[:700], "status": status, "answer": text[:100], "billed": nano,
                "held": held[mark], "charged": charged[mark], "sent": json.dumps(seen[mark])[:500],
            })  # fmt: skip
    assert not passed, f"{len(passed)} of {len(drawn)} got past their hold: " + "\n\n".join(map(str, passed[:12]))
    return counts


def combinations(seed: int, count: int, most: int) -> list[tuple[str, str, list[Any]]]:
    draw, known = random.Random(seed), attacks.names()
    return [
        (draw.choice(ROUTES), draw.choice([*FAMILIES]), attacks.drawn(draw, known, most)) for _ in range(count)
    ]  # fmt: skip


async def test_no_field_gets_past_what_is_held(bounded: Proxy, bank: Bank) -> None:
    """A request with one to three fields known to LiteLLM, on any route, costs at most its hold and its charge."""
    counts = await check(bounded, bank, combinations(1, 700, 3), 1)
    # The test proves nothing if every request is refused.
    assert counts["sent"] > 100, counts


@pytest.mark.soak
@pytest.mark.parametrize("route", ROUTES)
async def test_no_name_alone_gets_past_what_is_held(bounded: Proxy, bank: Bank, route: str) -> None:
    """Every name alone, on every route with three values (in a short soak, one), is billed at most the hold."""
    seed = 100 + ROUTES.index(route)
    draw = random.Random(seed)
    singles = [
        (route, draw.choice([*FAMILIES]), [attacks.attack(draw, name)])
        for name in attacks.names()
        for _ in range(soak.share_of(3, 1))
    ]
    await check(bounded, bank, singles, seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3, 3 + soak.share_of(5, 1)))
async def test_no_names_together_get_past_what_is_held(bounded: Proxy, bank: Bank, seed: int) -> None:
    """Ten thousand pairs and triples of names (in a short soak, two thousand) are billed at most the hold."""
    await check(bounded, bank, combinations(seed, 2_000, 3), seed)
