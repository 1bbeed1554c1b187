"""The classification of routes, path by path."""

from __future__ import annotations

import pytest

from usage_plugin.proxy.routes import RULES, WEBSOCKET, _expression, rule_of

EXPECTED = {
    "held": [
        "POST /v1/chat/completions", "POST /chat/completions", "POST /engines/a/b/chat/completions", "POST /queue/chat/completions",
        "POST /openai/deployments/x/chat/completions", "POST /v1/responses", "POST /openai/v1/responses", "POST /v1/messages",
        "POST /v1beta/models/gemini/pro:generateContent", "POST /models/x:streamGenerateContent", "POST /v2/rerank",
        "POST /rag/query", "POST /v1/rag/query", "POST /v1/search/web", "POST /prompts/test", "POST /v1/chat/completions/",
    ],
    "metered": [
        "POST /v1/fine_tuning/jobs", "POST /threads/t/runs", "POST /v1/rag/ingest", "POST /v1/vector_stores/vs/search",
        "POST /v1/vector_stores/vs/files", "POST /a2a/agent", "POST /v1/a2a/agent/message/send", "GET /mcp", "POST /mcp/x",
        "POST /server/mcp", "POST /mcp-rest/tools/call", "POST /openai/v1/chat/completions", "GET /anthropic/v1/models",
        "DELETE /vllm/x", "PUT /azure/x/y", "POST /eu.assemblyai/v2/transcript", "POST /transcribe/op", "POST /plugin-proxy/p/x",
        "POST /apply_guardrail", "POST /guardrails/apply_guardrail", "POST /usage/ai/chat", "POST /lens/x/runs", "GET /health",
        "POST /health/test_connection", "POST /lens/worker/a/b/model", "POST /v1/evals/e/runs", "POST /v1/containers/c/files",
    ],
    "refused": [
        "POST /v1/batches", "POST /openai/v1/batches", "POST /v1/videos/v/remix", "POST /v1beta/agents",
        "POST /v1/realtime/client_secrets", "WS /v1/realtime", "WS /responses", "WS /vertex_ai/live", "WS /openai/v1/realtime",
        "WS /openai/anything", "WS /deepgram/v1/listen",
    ],
    "free": [
        "POST /v1/messages/count_tokens", "POST /v1/responses/r/cancel", "GET /v1/responses/r", "GET /v1/batches/b",
        "POST /v1/files", "POST /v1/threads", "POST /v1/threads/t/messages", "POST /key/generate", "POST /team/new",
        "POST /langfuse/api/public/ingestion", "POST /v1/vector_store/new", "PUT /guardrails/g", "PATCH /prompts/p",
        "DELETE /v1/files/f", "GET /whatever/is/new", "POST /lens/x/cancel", "POST /models/x:countTokens",
    ],
    "unclassified": [
        "POST /v1/something/new", "PUT /x", "PATCH /a/b", "WS /new", "POST /guardrails/new", "POST /openai", "POST /keys/x",
        "POST /v1/threads/t/runs/r", "POST /", "POST /prompts/new", "WS /v1/chat/completions",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("verdict", "line"), [(verdict, line) for verdict, lines in EXPECTED.items() for line in lines], ids=str
)
def test_a_route_has_its_verdict(verdict: str, line: str) -> None:
    """The first matching pattern decides; a route without one is free to read and unclassified to write."""
    method, path = line.split(" ")
    assert rule_of(method, path).verdict == verdict


def test_what_the_configuration_passes_through_is_metered() -> None:
    """A configured pass-through route may have any path: its function identifies it."""

    def endpoint() -> None:
        pass

    endpoint.__module__ = "litellm.proxy.pass_through_endpoints.pass_through_endpoints"
    assert rule_of("POST", "/v1/chat/completions", endpoint).verdict == "metered"
    assert rule_of(WEBSOCKET, "/v1/chat/completions", endpoint).verdict == "unclassified"


def test_each_pattern_says_what_it_means() -> None:
    """A dot in a pattern matches only a dot, and every rule has a reason."""
    assert all(rule.reason and rule.patterns for rule in RULES)
    assert _expression("[/v1]/a/*/b/**") == "(?:/v1)?/a/[^/]+/b/.+"
