"""A proxy in front of `any_provider`: every provider's address, and all that LiteLLM may look up, points to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.proxy.conftest import fake_provider
from tests.support import plain_http

if TYPE_CHECKING:
    from collections.abc import Iterator

PRICED = {"input_cost_per_token": 0.000001, "output_cost_per_token": 0.00001}
NO_LIMIT, BROKE, RICH = "free", "broke", "rich"
LIMITS = [
    {"name": "nothing", "per": "user", "match": {"user": f"{BROKE}*"}, "window": "day", "max_cost": 0},
    {"name": "plenty", "per": "user", "match": {"user": f"{RICH}*"}, "window": "day", "max_cost": 100},
]
KEYS = (
    "OPENAI",
    "ANTHROPIC",
    "COHERE",
    "MISTRAL",
    "GEMINI",
    "AZURE",
    "HOSTED_VLLM",
    "OPENROUTER",
    "ASSEMBLYAI",
    "TAVILY",
)


class AnyProvider:
    """The provider as a process."""

    def __init__(self, url: str) -> None:
        self.url = url

    def received(self) -> list[dict[str, Any]]:
        return plain_http.get(f"{self.url}/_received").json()

    def paths(self) -> list[str]:
        return [request["path"] for request in self.received()]

    def reset(self) -> None:
        plain_http.post(f"{self.url}/_reset")

    def finish(self, kind: str, **facts: Any) -> None:
        plain_http.post(f"{self.url}/_finish", json={"object": kind, "status": "completed", **facts})

    def environment(self) -> dict[str, str]:
        """Return the variables that point every provider that LiteLLM reads from the environment to this one."""
        bases = {f"{name}_API_BASE": self.url for name in KEYS}
        keys = {f"{name}_API_KEY": "none" for name in KEYS}
        return {**bases, **keys, "OPENAI_BASE_URL": f"{self.url}/v1", "LANGFUSE_HOST": self.url}


def provider() -> Iterator[AnyProvider]:
    with fake_provider("tests.proxy.any_provider", "/_received") as url:
        yield AnyProvider(url)


def routes_config(fake: AnyProvider, **admission: Any) -> dict[str, Any]:
    """Return a proxy's YAML with all the ways LiteLLM can reach a provider, and the plugin's section."""

    def model(name: str, served: str, **parameters: Any) -> dict[str, Any]:
        base = {"api_base": f"{fake.url}/v1", "api_key": "none", **parameters}
        return {"model_name": name, "litellm_params": {"model": served, **base}}

    return {
        "model_list": [
            model("cheap", "openai/cheap-up", **PRICED, max_input_tokens=100_000),
            model("gpt-5.1", "openai/gpt-5.1"),
            model("vector", "openai/vector-up", input_cost_per_token=0.000001),
            model("local", "hosted_vllm/local-up", **PRICED),
            model("az", "azure/az-up", api_base=fake.url, api_version="2024-10-21", **PRICED),
            model("claude", "anthropic/claude-up", api_base=fake.url, **PRICED),
            model("gem", "gemini/gem-up", api_base=fake.url, **PRICED),
            model("rank", "cohere/rank-up", api_base=fake.url, input_cost_per_query=0.001),
        ],
        "litellm_settings": {"callbacks": ["usage_plugin.proxy.callback"]},
        "assistant_settings": {
            "custom_llm_provider": "openai",
            "litellm_params": {"api_base": f"{fake.url}/v1", "api_key": "none"},
        },
        "search_tools": [
            {"search_tool_name": "web", "litellm_params": {"search_provider": "tavily", "api_key": "none", "api_base": fake.url}}
        ],
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "general_settings": {
            "master_key": "os.environ/LITELLM_MASTER_KEY",
            "pass_through_endpoints": [
                {"path": "/mine", "target": f"{fake.url}/mine", "auth": True},
                {"path": "/open", "target": f"{fake.url}/open", "auth": False},
            ],
        },
        "usage_plugin": {"data_dir": "./data", "limits": LIMITS, "admission": {"orphan_grace": "2s", **admission}},
    }  # fmt: skip
