"""Routes: the one classification of LiteLLM's routes, by the possible cost of a request.

The first pattern that matches decides. Reading (GET, HEAD, OPTIONS) and deleting cost nothing unless a pattern says
otherwise. Any other route without a pattern is unclassified.

`docs/routes.md` is generated from this table and the installed LiteLLM's own routes (`listing`). A test fails if an
installed LiteLLM has a route without a pattern.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

if TYPE_CHECKING:
    from collections.abc import Iterator

Verdict = Literal["held", "metered", "refused", "free", "unclassified"]
"""The verdict on a request.

- `held`: its worst case is reserved before it is sent. An unbounded request is refused under a cost or token limit.
- `metered`: it is recorded and counted for its user; `admission.on_unmetered` decides.
- `refused`: no bound is known, so it is refused for a user with a cost or token limit, else recorded.
- `free`: it costs nothing.
- `unclassified`: it is refused for a user with any limit that can stop a request, else recorded.
"""

Method = Literal["write", "edit", "any", "ws"]
"""The requests that a pattern covers.

- `write`: all methods that are not safe, such as POST, PUT and PATCH
- `edit`: PUT and PATCH only
- `any`: all of HTTP
- `ws`: WebSockets
"""


class Rule(NamedTuple):
    """A group of routes with one verdict.

    Attributes:
        patterns: `[x]` is optional, `(x|y)` either of them, `*` one segment of the path, `**` any number of them.
        call_type: The call type with which the gate admits and records a request; None if only LiteLLM's hook does.
        is_gated: Whether the gate holds the request itself, because LiteLLM calls no hook before it.
    """

    verdict: Verdict
    method: Method
    patterns: tuple[str, ...]
    reason: str
    call_type: str | None = None
    is_gated: bool = False


PASS_THROUGH = "pass_through_endpoint"  # noqa: S105  # no password
"""LiteLLM's call type of requests that are forwarded unchanged."""

_OTHERS_ENDPOINTS = "litellm.proxy.pass_through_endpoints.pass_through_endpoints"
"""The module whose functions serve the endpoints of `general_settings.pass_through_endpoints`, under any path."""

_PROVIDERS = (
    "openai|openai_passthrough|anthropic|cohere|mistral|openrouter|gemini|vertex_ai|vertex-ai|bedrock|vllm|azure"
    "|azure_ai|azure_speech|nvidia_nim|gigachat|watsonx|assemblyai|eu\\.assemblyai|fal_ai|typesafe|tinyfish|cursor|milvus"
)


def _rule(verdict: Verdict, method: Method, *patterns: str, reason: str, **more: Any) -> Rule:
    return Rule(verdict, method, patterns, reason, **more)


RULES: tuple[Rule, ...] = (
    # Free, although the path begins like one with a cost.
    _rule(
        "free", "write",
        "/v1/messages/count_tokens", "/claude_code_gateway/v1/messages/count_tokens",
        "[/v1beta]/models/**:countTokens", "[/openai][/v1]/responses/input_tokens",
        "/utils/(token_counter|transform_request)",
        "/cost/(estimate|predict-cache)", "/spend/calculate",
        reason="counts or estimates, and generates nothing",
    ),
    _rule(
        "free", "write",
        "[/openai][/v1]/responses/*/cancel", "[/v1|/*/v1]/batches/**/cancel", "[/v1]/fine_tuning/jobs/**/cancel",
        "[/v1beta]/interactions/*/cancel", "[/v1]/evals/*/cancel", "[/v1]/evals/*/runs/*",
        reason="stops work",
    ),
    _rule(
        "free", "write",
        "[/v1|/*/v1]/files", "[/v1]/assistants", "[/v1]/threads", "[/v1]/threads/*/messages", "[/v1]/evals",
        "[/v1]/evals/*",
        "[/v1]/vector_stores/*", "[/v1]/vector_stores/*/files/*",
        reason="stores data that no model reads yet",
    ),
    # LLM routes.
    _rule(
        "held", "write",
        "[/v1]/chat/completions", "/engines/**/chat/completions", "/openai/deployments/**/chat/completions",
        "/cursor/chat/completions", "[/v1]/completions", "/engines/**/completions",
        "/openai/deployments/**/completions",
        reason="bounded by its tokens",
    ),
    _rule(
        "held", "write",
        "/queue/chat/completions",
        reason="bounded by its tokens; LiteLLM calls no hook, so the gate holds it",
        call_type="acompletion",
        is_gated=True,
    ),
    _rule(
        "held", "write",
        "[/v1]/rag/query",
        reason="a completion whose input is bounded by the model's context; the gate holds it",
        call_type="acompletion", is_gated=True,
    ),
    _rule(
        "held", "write",
        "[/v1]/embeddings", "/engines/**/embeddings", "/openai/deployments/**/embeddings", "[/v1]/moderations",
        "[/v1|/v2]/rerank",
        reason="bounded by its input",
    ),
    _rule(
        "held", "write",
        "[/v1|/openai/v1]/responses", "[/claude_code_gateway]/v1/messages",
        "[/v1beta]/models/**:(generateContent|streamGenerateContent)",
        reason="bounded by its tokens; background work is refused where a limit needs a bound",
    ),
    _rule(
        "held", "write",
        "[/v1]/images/(generations|edits)", "/openai/deployments/**/images/(generations|edits)", "[/v1]/audio/speech",
        "[/v1]/search", "[/v1]/search/*", "/prompts/test",
        reason="priced by the piece or the token; refused without a price",
    ),
    _rule(
        "held", "write",
        "[/v1|/openai/v1]/responses/compact", "[/v1beta]/interactions", "[/v1]/audio/transcriptions",
        "[/v1]/(ocr|extraction|videos|decisions|systemone)",
        reason="refused under a cost or token limit wherever it is unbounded",
    ),
    _rule(
        "refused", "write",
        "/v1beta/agents", "[/v1]/videos/*/remix", "[/v1]/videos/(edits|extensions|characters)",
        reason="has no model, so no price is known",
    ),
    _rule(
        "refused", "write",
        "[/openai][/v1]/realtime[/translations]/(client_secrets|transcription_sessions|calls)",
        reason="opens an unbounded session",
    ),
    _rule(
        "refused", "ws",
        "[/openai][/v1]/realtime[/translations]", "[/v1]/responses",
        reason="unbounded: requests over a WebSocket",
    ),
    _rule(
        "refused", "ws",
        "[/v1]/live/sessions", "/vertex_ai/live", "/deepgram[/v1]/(listen|speak)", "/(openai|openai_passthrough)/**",
        reason="unbounded: requests over a WebSocket, which no hook sees", call_type=PASS_THROUGH,
    ),
    # Deferred work, or work done elsewhere.
    _rule(
        "refused", "write",
        "[/v1|/*/v1]/batches",
        reason="the file decides the cost; where it is allowed, it is held until the result is known",
    ),
    _rule(
        "metered", "write",
        "[/v1]/fine_tuning/jobs",
        reason="billed by the provider later", call_type="fine_tuning_job",
    ),
    _rule("metered", "write", "[/v1]/threads/*/runs", reason="the thread decides the cost", call_type="thread_run"),
    _rule("metered", "write", "[/v1]/rag/ingest", reason="embeds its input", call_type="rag_ingest"),
    _rule(
        "metered", "write",
        "[/v1]/vector_stores", "[/v1]/vector_stores/**/search", "[/v1]/vector_stores/*/files",
        reason="billed by size, time or search", call_type="vector_store",
    ),
    _rule(
        "metered", "write",
        "[/v1]/containers", "[/v1]/containers/*/files",
        reason="billed by time", call_type="container",
    ),
    _rule("metered", "write", "[/v1]/evals/*/runs", reason="the data decides the cost", call_type="eval_run"),
    _rule("metered", "write", "[/v1]/skills", reason="billed by the provider", call_type="skill"),
    _rule(
        "metered", "write",
        "/a2a/*", "[/v1]/a2a/*/message/(send|stream)",
        reason="the cost of an agent is not reported", call_type="agent",
    ),
    _rule("metered", "write", "/mcp-rest/tools/call", reason="the cost of a tool is not reported", call_type="mcp"),
    _rule(
        "metered", "any",
        "/mcp", "/mcp/**", "/*/mcp", "/toolset/*/mcp",
        reason="the cost of a tool is not reported", call_type="mcp",
    ),
    # Pass-through.
    _rule(
        "metered", "write",
        "/(laya|bespoke|eu_jev)/v1/systemone", "/backend-api/codex/*", "/(comprehendmedical|transcribe)[/*]",
        reason="passed through as it is", call_type=PASS_THROUGH,
    ),
    _rule("free", "any", "/cursor[/v1]/models", reason="lists models"),
    _rule(
        "metered", "any",
        f"/({_PROVIDERS})/**", "/plugin-proxy/*/**",
        reason="passed through as it is", call_type=PASS_THROUGH,
    ),
    # The proxy's own tools that call a model.
    _rule(
        "metered", "write",
        "[/guardrails]/apply_guardrail", "/guardrails/test_custom_code", "/policies/test-pipeline",
        "/utils/test_policies_and_guardrails",
        reason="a guardrail may ask a model", call_type="guardrail",
    ),
    _rule(
        "metered", "write",
        "/policy/templates/(enrich|enrich/stream|suggest|test)", "/usage/ai/chat",
        "/auto_router/(test_routing|shadow_eval/start)", "/lens/*/runs",
        reason="asks a model for the proxy's own pages", call_type="proxy_tool",
    ),
    _rule(
        "metered", "write",
        "/lens/worker/*/*/model",
        reason="a worker's call to a model; LiteLLM names no user", call_type="proxy_tool",
    ),
    _rule(
        "metered", "write",
        "/(health|search_tools)/test_connection",
        reason="a real request to the provider", call_type="health_check",
    ),
    _rule(
        "metered", "any",
        "/health",
        reason="a real request to each model, for the requesting user", call_type="health_check",
    ),
    # Free.
    _rule(
        "free", "write",
        "/(key|user|team|organization|customer|end_user|budget|tag|project|invitation|jwt|scim|email)/**",
        "/management/v1/(teams|users)/**", "/v2/(key|organization)/**", "/onboarding/**",
        reason="manages keys, users, teams and budgets",
    ),
    _rule(
        "free", "write",
        "/login", "/*/login", "/*/login/exchange", "/session/logout", "/sso/**", "/moyai/connect/*",
        "/liteadmin/slack/connect/*",
        "[/*]/(register|token)", "/(revoke|introspect)", "/authorize/complete", "/claude_code_gateway/oauth/*",
        "/v1/mcp/oauth/*", "/v1/mcp/server/oauth/*/*",
        reason="signs in or registers",
    ),
    _rule(
        "free", "write",
        "/model/(new|update|delete|block|unblock|*/update)", "/(model_group|model_hub)/*", "[/v1]/access_group[/**]",
        "/v1/unified_access_group[/*]", "/credentials[/**]", "/fallback", "/(add|delete)/allowed_ip",
        "/(config|config_overrides|update|reload|schedule|upload)/**", "/debug/memory/**", "/lazy/warm/*",
        reason="changes the proxy's configuration",
    ),
    _rule(
        "free", "write",
        "/(cache|coordination_redis)/**", "/(cloudzero|vantage)/**", "/global/spend/*", "/compliance/*",
        "/api/event_logging/batch", "/(v1|claude_code_gateway/v1)/(logs|traces|metrics)", "/v1/traces/query",
        "/v1/rust_control_plane/logs", "/langfuse/**",
        reason="caches, exports and traces",
    ),
    _rule(
        "free", "write",
        "/guardrails", "/guardrails/(register|validate_blocked_words_file)",
        "/guardrails/submissions/*/(approve|reject)",
        "/policies", "/policies/(attachments|resolve|attachments/estimate-impact)", "/policies/name/*/versions",
        "/policy/(test|validate)", "/prompts", "/utils/dotprompt_json_converter",
        reason="defines guardrails, policies and prompts",
    ),
    _rule(
        "free", "edit",
        "/(guardrails|policies|prompts|search_tools|lens)/*", "/policies/*/status", "/lens/*/findings/*",
        reason="changes a definition",
    ),
    _rule(
        "free", "write",
        "/auto_router/(availability|classifier/default_prompt|validate_complexity_router_config)",
        "/auto_router/shadow_eval/*/stop", "/v1/tool/policy", "/search_tools", "/v1/indexes",
        "[/v1]/vector_store/(new|update|delete|info)", "/v1/memory[/**]", "/v1/workflows/runs[/**]",
        reason="manages the proxy's own definitions and records",
    ),
    _rule(
        "free", "write",
        "/v1/agents[/**]", "/v1/a2a/discover", "/claude-code/plugins[/**]", "/v1/mcp/**", "/mcp-rest/test/**",
        reason="registers agents, plugins and MCP servers, and lists their tools",
    ),
    _rule(
        "free", "write",
        "/lens", "/lens/(feedback|signals|watch-all)", "/lens/(datasets|feedback|preview|traces|tracing|workers)/**",
        "/lens/datasets", "/lens/worker/claim", "/lens/worker/*/*/(heartbeat|progress|result)", "/lens/*/cancel",
        reason="manages evaluations; its runs are metered",
    ),
    _rule(
        "free", "write",
        "/telemetry/*", "/health/deployment_warnings/*", "/alerting/**", "/subscription_accounts/(new|update|delete)",
        "/skill-hub/skills/**", "/skill-hub/submissions/*/(approve|reject)",
        reason="settings of the proxy's own pages",
    ),
    _rule("metered", "write", "/skill-hub/submissions/*/scan", reason="may ask a model", call_type="proxy_tool"),
    _rule("metered", "write", "/lens/**", reason="a service that may ask a model", call_type="proxy_tool"),
)  # fmt: skip

_READING = Rule("free", "any", (), "reads or deletes")
_UNCLASSIFIED = Rule("unclassified", "any", (), "not classified yet", call_type="unclassified_route")
_REGISTERED = Rule("metered", "any", (), "passed through as configured", call_type=PASS_THROUGH)
_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
WEBSOCKET = "WS"
"""Stands for the method of a WebSocket."""


def rule_of(method: str, path: str, endpoint: object = None) -> Rule:
    """Return the rule of a request.

    Args:
        method: The HTTP method, or `WEBSOCKET`.
        path: The path without the proxy's root path.
        endpoint: The function that serves it, where that is known.
    """
    if getattr(endpoint, "__module__", None) == _OTHERS_ENDPOINTS and method != WEBSOCKET:
        return _REGISTERED
    return _found(method, path)


@lru_cache(maxsize=1024)
def _found(method: str, path: str) -> Rule:
    path = path.rstrip("/") or "/"
    is_safe = method in _SAFE
    for rule, pattern in _compiled():
        if _covers(rule.method, method, is_safe=is_safe) and pattern.fullmatch(path):
            return rule
    return _READING if is_safe else _UNCLASSIFIED


def _covers(covered: Method, method: str, *, is_safe: bool) -> bool:
    if method == WEBSOCKET:
        return covered == "ws"
    if covered == "edit":
        return method in ("PUT", "PATCH")
    return covered == "any" or (covered == "write" and not is_safe)


@lru_cache(maxsize=1)
def _compiled() -> tuple[tuple[Rule, re.Pattern[str]], ...]:
    return tuple((rule, re.compile("|".join(map(_expression, rule.patterns)))) for rule in RULES)


def _expression(pattern: str) -> str:
    """Return a pattern as a regular expression; its brackets and parentheses are already part of one."""
    pattern = pattern.replace("[", "(?:").replace("]", ")?")
    return pattern.replace("**", "\0").replace("*", "[^/]+").replace("\0", ".+")


class ListedRoute(NamedTuple):
    """A route of the installed LiteLLM, and its rule."""

    method: str
    path: str
    rule: Rule


def listing(app: Any) -> Iterator[ListedRoute]:  # FastAPI's
    """Yield an app's routes, one entry for each method."""
    for route, path in _flat(app.routes):
        original = getattr(route, "original_route", route)
        if isinstance(original, Mount):
            methods = [] if isinstance(original.app, StaticFiles) else ["POST"]
        else:
            methods = sorted(getattr(route, "methods", None) or [WEBSOCKET])
        for method in methods:
            yield ListedRoute(method, path, rule_of(method, _example(path), getattr(route, "endpoint", None)))


def _flat(routes: Any) -> Iterator[tuple[Any, str]]:
    """Yield all routes, including those of routers included as a whole, as FastAPI keeps them since 0.120."""
    try:
        from fastapi.routing import iter_route_contexts  # noqa: PLC0415  # not in every version
    except ImportError:
        yield from ((route, route.path) for route in routes)
    else:
        yield from ((context, context.path or "") for context in iter_route_contexts(routes))


def _example(path: str) -> str:
    """Return a path with example values for its parameters."""
    return re.sub(r"\{[^}]+\}", "x", path)
