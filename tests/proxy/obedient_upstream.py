"""A provider that makes no assumptions: it obeys the fields of its own API, and bills everything that it generates.

It answers any path in the shape that the path requires. An answer is as long as the API's own output limit allows, or
`MOST` without a limit. Each byte of everything it reads is billed as input. A stored conversation is read up to the
model's context. Fields that make a real provider charge more (tiers, searches, other models) cost a fortune here. Bills
are kept by the mark in the text of a request.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from starlette.requests import Request

MOST = 20_000
INPUT = 1_000
OUTPUT = 10_000
"""Nano-dollars per token, as the deployments of the tests are priced."""
FORTUNE = 10**12
CONTEXTS = {"o3": 200_000}
"""The maximum input tokens that a model reads, as in LiteLLM's map."""
STORED = ("conversation", "previous_response_id")
"""Fields of /responses that make the provider read its stored content, up to the model's context."""

MARK = re.compile(r"who-[0-9a-z]+")

bills: defaultdict[str, dict[str, int]] = defaultdict(lambda: {"calls": 0, "nano": 0})
seen: dict[str, Any] = {}
models: dict[str, int] = {}
"""The price multiple of each model, by the name that the provider receives; any other model costs a fortune."""


def number(*values: Any) -> int | None:
    """Return the first valid output limit; a real provider would refuse an invalid one."""
    for value in values:
        read = int(value) if isinstance(value, str) and value.isdigit() else value
        if isinstance(read, int | float) and not isinstance(read, bool) and read > 0:
            return int(read)
    return None


def of(body: Any, *path: str) -> Any:
    """Return a nested field, or None if it is missing."""
    for name in path:
        body = body.get(name) if isinstance(body, dict) else None
    return body


def fields_of(family: str, path: str, body: dict[str, Any]) -> tuple[int | None, Any, list[Any], list[Any]]:
    """Return the output limit, the number of answers, the parts read as input, and the fields that cost a fortune."""
    if path.endswith("/responses"):
        text = [body.get(n) for n in ("input", "instructions", "tools", "text", "prompt")]
        return (
            number(body.get("max_output_tokens")),
            1,
            text,
            [body.get("background"), body.get("prompt")],
        )
    if family == "anthropic":
        text = [body.get(n) for n in ("messages", "system", "tools", "output_format", "output_config")]
        fast = body.get("speed") if body.get("speed") != "standard" else None
        return (
            number(body.get("max_tokens")),
            1,
            text,
            [fast, body.get("inference_geo"), body.get("mcp_servers"), body.get("container")],
        )
    if family == "gemini":
        config = body.get("generationConfig") or body.get("generation_config")
        text = [body.get(n) for n in ("contents", "systemInstruction", "system_instruction", "tools", "toolConfig")]
        text.append(of(config, "responseSchema") or of(config, "responseJsonSchema"))
        limit = number(of(config, "maxOutputTokens"), of(config, "max_output_tokens"))
        count = of(config, "candidateCount") or of(config, "candidate_count") or 1
        return (
            limit,
            count,
            text,
            [of(config, "routingConfig"), body.get("cachedContent"), of(config, "responseModalities")],
        )
    if family == "bedrock":
        text = [body.get(n) for n in ("messages", "system", "toolConfig")]
        more = body.get("additionalModelRequestFields")
        return (
            number(of(body, "inferenceConfig", "maxTokens")),
            1,
            text,
            [of(more, "speed"), body.get("performanceConfig")],
        )
    if family == "ollama":
        return (
            number(of(body, "options", "num_predict")),
            1,
            [body.get(n) for n in ("messages", "tools", "format", "prompt", "system")],
            [],
        )
    text = [
        body.get(n)
        for n in (
            "messages",
            "tools",
            "functions",
            "response_format",
            "prompt",
            "suffix",
            "documents",
            "guided_json",
            "chat_template_kwargs",
            "prediction",
        )
    ]
    costs = [body.get(n) for n in ("web_search_options", "search_parameters", "plugins", "background", "chat_template")]
    if family == "openrouter":
        costs += [body.get("preset"), body.get("models"), body.get("provider")]
    answers = max(number(body.get("n")) or 1, number(body.get("best_of")) or 1)
    prompts = body.get("prompt")
    # A chat has a single prompt: only the older API answers each text of a list.
    if "/chat" not in path and isinstance(prompts, list) and prompts and isinstance(prompts[0], str):
        answers *= len(prompts)
    return number(body.get("max_completion_tokens"), body.get("max_tokens")), answers, text, costs


def runs_tools(tools: Any) -> bool:
    """Whether one of the tools, in any shape, is run by the provider."""
    text = json.dumps(tools)
    return any(
        name in text
        for name in (
            "googleSearch",
            "google_search",
            "web_search",
            "codeExecution",
            "code_interpreter",
            "urlContext",
            "mcp",
        )
    )


def size(value: Any) -> int:
    """Return the bytes of all text in a value, including keys."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, dict):
        return sum(size(key) + size(item) for key, item in value.items())
    if isinstance(value, list):
        return sum(map(size, value))
    return 0


async def answer(request: Request) -> Response:
    """POST to any path."""
    raw = (await request.body()).decode()
    body = json.loads(raw)
    path = request.url.path
    family = path.split("/")[1]
    found = MARK.search(raw)
    mark = found[0] if found else "nobody"
    limit, answers, text, costs = fields_of(family, path, body)
    try:
        answers = max(1, int(answers))
    except (TypeError, ValueError):
        answers = 1
    output = min(MOST, limit or MOST)
    tokens = sum(map(size, text))
    model = str(
        body.get("model")
        or unquote(path).split("/model/")[-1].split("/")[-2 if family == "bedrock" else -1].partition(":")[0]
    )
    if path.endswith("/responses") and any(map(body.get, STORED)):
        tokens = CONTEXTS.get(model, FORTUNE)
    nano = (tokens * INPUT + output * answers * OUTPUT) * models.get(model, FORTUNE)
    tier = body.get("service_tier") or body.get("serviceTier")
    if (
        any(costs)
        or runs_tools(body.get("tools"))
        or (isinstance(tier, str) and tier.lower() in ("priority", "fast", "scale", "ultrafast"))
    ):
        nano += FORTUNE
    bills[mark]["calls"] += 1
    # A provider does not charge for a failure.
    bills[mark]["nano"] += 0 if family == "broken" else nano
    seen[mark] = {"path": path, "body": body}
    usage = (tokens, output * answers)
    if family == "broken":
        return JSONResponse({"error": {"message": "broken", "type": "server_error"}}, 500)
    is_stream = body.get("stream") is True or "stream" in path.lower().rpartition("/")[2]
    return reply(family, path, body, usage, is_stream=is_stream)


def reply(family: str, path: str, body: Mapping[str, Any], usage: tuple[int, int], *, is_stream: bool) -> Response:
    """Return an answer in the family's shape, with the true usage where the API reports it."""
    tokens, output = usage
    model = str(body.get("model") or "m")
    if path.endswith("/responses"):
        item = {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "hello", "annotations": []}],
        }
        whole = {
            "id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": model, "output": [item],
            "error": None, "incomplete_details": None, "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
            "usage": {"input_tokens": tokens, "output_tokens": output, "total_tokens": tokens + output},
        }  # fmt: skip
        events = [
            {"type": "response.created", "response": {**whole, "status": "in_progress", "usage": None}},
            {"type": "response.completed", "response": whole},
        ]
        return events_of(events, named=True) if is_stream else JSONResponse(whole)
    if family == "anthropic":
        whole = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": model,
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "content": [{"type": "text", "text": "hello"}],
            "usage": {"input_tokens": tokens, "output_tokens": output},
        }
        events = [
            {
                "type": "message_start",
                "message": {**whole, "content": [], "usage": {"input_tokens": tokens, "output_tokens": 1}},
            },
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": output}},
            {"type": "message_stop"},
        ]
        return events_of(events, named=True) if is_stream else JSONResponse(whole)
    if family == "gemini":
        counts = {"promptTokenCount": tokens, "candidatesTokenCount": output, "totalTokenCount": tokens + output}
        whole = {
            "candidates": [
                {"content": {"role": "model", "parts": [{"text": "hello"}]}, "finishReason": "STOP", "index": 0}
            ],
            "usageMetadata": counts,
            "modelVersion": model,
        }
        return events_of([whole]) if is_stream else JSONResponse(whole)
    if family == "bedrock":
        counts = {"inputTokens": tokens, "outputTokens": output, "totalTokens": tokens + output}
        return JSONResponse(
            {
                "output": {"message": {"role": "assistant", "content": [{"text": "hello"}]}},
                "stopReason": "end_turn",
                "usage": counts,
                "metrics": {"latencyMs": 1},
            }
        )
    if family == "cohere":
        whole = {
            "id": "1",
            "finish_reason": "COMPLETE",
            "message": {"role": "assistant", "content": [{"type": "text", "text": "hello"}]},
            "usage": {
                "billed_units": {"input_tokens": tokens, "output_tokens": output},
                "tokens": {"input_tokens": tokens, "output_tokens": output},
            },
        }
        return JSONResponse(whole)
    if family == "ollama":
        whole = {
            "model": model,
            "created_at": "2024-01-01T00:00:00Z",
            "message": {"role": "assistant", "content": "hello"},
            "response": "hello",
            "done": True,
            "done_reason": "stop",
            "prompt_eval_count": tokens,
            "eval_count": output,
        }
        return JSONResponse(whole)
    counts = {"prompt_tokens": tokens, "completion_tokens": output, "total_tokens": tokens + output}
    head = {"id": "1", "created": 1, "model": model, **({"service_tier": "default"} if family == "groq" else {})}
    if path.endswith("/chat/completions"):
        if is_stream:
            chunk = {**head, "object": "chat.completion.chunk"}
            events = [
                {
                    **chunk,
                    "choices": [
                        {"index": 0, "delta": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
                    ],
                }
            ]
            if family == "mistral" or of(body, "stream_options", "include_usage") is True:
                events.append({**chunk, "choices": [], "usage": counts})
            return events_of(events, done=True)
        choice = {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
        return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": counts})
    text = {
        **head,
        "object": "text_completion",
        "choices": [{"index": 0, "text": "hello", "finish_reason": "stop", "logprobs": None}],
    }
    if is_stream:
        with_usage = of(body, "stream_options", "include_usage") is True
        return events_of(
            [text, *([{**head, "object": "text_completion", "choices": [], "usage": counts}] if with_usage else [])],
            done=True,
        )
    return JSONResponse({**text, "usage": counts})


def events_of(events: list[dict[str, Any]], *, named: bool = False, done: bool = False) -> Response:
    """Return server-sent events."""

    def lines() -> Iterator[str]:
        for at, event in enumerate(events):
            yield (
                f"event: {event['type']}\n" if named else ""
            ) + f"data: {json.dumps({**event, 'sequence_number': at} if named else event)}\n\n"
        if done:
            yield "data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


async def show(_request: Request) -> Response:
    """GET /bills: calls and nano-dollars, by mark."""
    return JSONResponse(bills)


async def show_seen(_request: Request) -> Response:
    """GET /seen: the last request of each mark, as received."""
    return JSONResponse(seen)


async def set_models(request: Request) -> Response:
    """PUT /models: set the price multiples of some models."""
    models.update(await request.json())
    return JSONResponse(models)


app = Starlette(
    routes=[
        Route("/bills", show),
        Route("/handed_out", show),
        Route("/seen", show_seen),
        Route("/models", set_models, methods=["PUT"]),
        Route("/{path:path}", answer, methods=["POST"]),
    ]
)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="critical", timeout_keep_alive=600)
