"""A fake model provider: OpenAI's, Anthropic's and Gemini's wire formats, with usage that the test chooses.

The text of a request is a JSON *plan*, so each test sets the usage of its answer: `{"in": 100, "out": 20, "cached": 40,
"reasoning": 5, "status": 500, "delay": 0.1, "chunks": 4}`. Further keys are `cache_write`, `cache_write_1h` (part of
it), `audio_in`, `audio_out`, `image_in` and `service_tier` (the tier that was served). `"silent": true` omits the
usage. A model named `broken…` always fails.

Faults of any answer:

- `"fail_first": n` with a `"mark"` fails n times, then answers.

Faults and delays of a stream:

- `"hold"` waits before the first frame, and `"pause"` after each.
- `"stall": n` stalls after n frames for longer than any test waits.
- `"drop": n` hangs up after n frames.
- `"error": n` sends an error frame after n frames.

`"wordy": true` makes the parts of a stream as long as its token count. `"obeys": true` returns at most the number of
output tokens that the request allows.

`GET /handed_out` returns the usage handed out, summed by model, and `POST /reset` clears it. For a plan with an `"id"`,
`GET /answers` returns its usage, the share of the stream that was sent, and the output limits of the request.

Run it with `python -m tests.proxy.fake_upstream PORT`; it does not depend on usage_plugin.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

handed_out: dict[str, Counter[str]] = defaultdict(Counter)
by_id: dict[str, dict[str, Any]] = {}
numbers = itertools.count(1)
STALL_SECONDS = 120
failures: Counter[str] = Counter()
seen: Counter[str] = Counter()


def text_of(body: dict[str, Any]) -> str:
    """Return the text that carries the plan, in any of the wire formats."""
    value = body.get("messages") or body.get("input") or body.get("prompt") or body.get("query") or ""
    while isinstance(value, list) and value:
        value = value[-1]
        if isinstance(value, dict):
            value = value.get("content") or value.get("text") or ""
    return value if isinstance(value, str) else ""


def plan_of(body: dict[str, Any]) -> dict[str, Any]:
    """Return the plan; a text that is not a plan gets a small fixed usage."""
    plan = {"in": 10, "out": 5, "cached": 0, "reasoning": 0, "status": 200, "delay": 0.0, "chunks": 3}
    plan |= dict.fromkeys(("cache_write", "cache_write_1h", "audio_in", "audio_out", "image_in"), 0)
    try:
        given = json.loads(text_of(body))
    except ValueError:
        given = {}
    return plan | given if isinstance(given, dict) else plan


def count(model: str, plan: dict[str, Any]) -> None:
    """Add the usage of this answer to the sums."""
    sums = handed_out[model]
    sums["requests"] += 1
    for key in ("in", "out", "cached", "reasoning"):
        sums[key] += plan[key]
    if "id" in plan:
        # `share` grows as a stream is sent: frames that are not fetched are not generated.
        kept = by_id[plan["id"]]
        kept |= {"model": model, "share": 1.0, **{key: plan[key] for key in ("in", "out", "cached", "reasoning")}}


def bounds_in(body: dict[str, Any]) -> list[int]:
    """Return the output limits that a request names."""
    return [body[name] for name in ("max_tokens", "max_completion_tokens", "max_output_tokens") if name in body]


async def begin(request: Request) -> tuple[dict[str, Any], dict[str, Any], Response | None]:
    """Read the body, wait as planned, and return the error answer if the plan has one."""
    body = await request.json()
    plan = plan_of(body)
    handed_out[body["model"]]["calls"] += 1
    seen[plan.get("mark", "")] += 1
    if "id" in plan:
        by_id.setdefault(plan["id"], {"calls": 0, "share": 0.0})["calls"] += 1
        by_id[plan["id"]]["bounds"] = bounds_in(body)
    await asyncio.sleep(plan["delay"])
    if plan.get("obeys"):
        plan["out"] = min([plan["out"], *bounds_in(body)])
    if body["model"].startswith("broken"):
        plan["status"] = 500
    if failures[plan.get("mark", "")] < plan.get("fail_first", 0):
        failures[plan["mark"]] += 1
        plan["status"] = 500
    if plan["status"] != 200:
        error = {"error": {"message": "planned", "type": "server_error", "code": str(plan["status"])}}
        return body, plan, JSONResponse(error, status_code=plan["status"])
    return body, plan, None


def words(plan: dict[str, Any]) -> str:
    """Return one part of a stream; in a wordy stream, which may be cut, it is as long as its share of the tokens."""
    return "hi " * max(1, plan["out"] // plan["chunks"]) if plan.get("wordy") else "hi "


def frames(items: list[dict[str, Any]], plan: dict[str, Any], *, named: bool, done: bool) -> StreamingResponse:
    """Send server-sent events, yielding to the event loop between them."""

    async def send() -> AsyncIterator[str]:
        await asyncio.sleep(plan.get("hold", 0))
        for at, item in enumerate(items):
            if at == plan.get("stall"):
                await asyncio.sleep(STALL_SECONDS)
            if at == plan.get("drop"):
                raise ConnectionResetError("planned")
            if at == plan.get("error"):
                error = {"type": "error", "error": {"type": "server_error", "message": "planned", "code": "500"}}
                yield f"{'event: error' if named else ''}\ndata: {json.dumps(error)}\n\n"
                return
            name = f"event: {item['type']}\n" if named else ""
            if "id" in plan:
                by_id[plan["id"]]["share"] = (at + 1) / len(items)
            yield f"{name}data: {json.dumps(item)}\n\n"
            await asyncio.sleep(plan.get("pause", 0))
        if done:
            yield "data: [DONE]\n\n"

    return StreamingResponse(send(), media_type="text/event-stream")


def openai_usage(plan: dict[str, Any]) -> dict[str, Any]:
    """Return the usage in the format of chat and text completions."""
    return {
        "prompt_tokens": plan["in"],
        "completion_tokens": plan["out"],
        "total_tokens": plan["in"] + plan["out"],
        "prompt_tokens_details": {
            "cached_tokens": plan["cached"],
            **given(plan, audio_tokens="audio_in", image_tokens="image_in", cache_write_tokens="cache_write"),
        },
        "completion_tokens_details": {"reasoning_tokens": plan["reasoning"], **given(plan, audio_tokens="audio_out")},
    }


def given(plan: dict[str, Any], **fields: str) -> dict[str, Any]:
    """Return the fields of an answer that have a value in the plan; providers omit zero values."""
    return {field: plan[key] for field, key in fields.items() if plan.get(key)}


async def chat(request: Request) -> Response:
    """POST /v1/chat/completions."""
    body, plan, error = await begin(request)
    if error:
        return error
    count(body["model"], plan)
    head = {
        "id": f"chatcmpl-{next(numbers)}",
        "created": 1,
        "model": body["model"],
        **given(plan, service_tier="service_tier"),
    }
    usage = None if plan.get("silent") else openai_usage(plan)
    if not body.get("stream"):
        message = {"role": "assistant", "content": "hello"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
    chunk = {**head, "object": "chat.completion.chunk"}
    items: list[dict[str, Any]] = [
        {**chunk, "choices": [{"index": 0, "delta": {"role": "assistant", "content": words(plan)}}]}
        for _ in range(plan["chunks"])
    ]
    items.append({**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if (body.get("stream_options") or {}).get("include_usage"):
        items.append({**chunk, "choices": [], "usage": usage})
    return frames(items, plan, named=False, done=True)


async def completions(request: Request) -> Response:
    """POST /v1/completions."""
    body, plan, error = await begin(request)
    if error:
        return error
    count(body["model"], plan)
    head = {"id": f"cmpl-{next(numbers)}", "object": "text_completion", "created": 1, "model": body["model"]}
    usage = openai_usage(plan)
    if not body.get("stream"):
        choice = {"index": 0, "text": "hello", "finish_reason": "stop", "logprobs": None}
        return JSONResponse({**head, "choices": [choice], "usage": usage})
    items: list[dict[str, Any]] = [
        {**head, "choices": [{"index": 0, "text": words(plan), "finish_reason": None, "logprobs": None}]}
        for _ in range(plan["chunks"])
    ]
    items.append({**head, "choices": [{"index": 0, "text": "", "finish_reason": "stop", "logprobs": None}]})
    if (body.get("stream_options") or {}).get("include_usage"):
        items.append({**head, "choices": [], "usage": usage})
    return frames(items, plan, named=False, done=True)


async def embeddings(request: Request) -> Response:
    """POST /v1/embeddings."""
    body, plan, error = await begin(request)
    if error:
        return error
    plan["out"] = plan["reasoning"] = plan["cached"] = 0
    count(body["model"], plan)
    usage = {"prompt_tokens": plan["in"], "total_tokens": plan["in"]}
    data = [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}]
    return JSONResponse({"object": "list", "data": data, "model": body["model"], "usage": usage})


async def responses(request: Request) -> Response:
    """POST /v1/responses."""
    body, plan, error = await begin(request)
    if error:
        return error
    count(body["model"], plan)
    number = next(numbers)
    item = {
        "type": "message", "id": f"msg_{number}", "status": "completed", "role": "assistant",
        "content": [{"type": "output_text", "text": "hello", "annotations": []}],
    }  # fmt: skip
    answer: dict[str, Any] = {
        "id": f"resp_{number}", "object": "response", "created_at": 1, "status": "completed",
        "model": body["model"], "output": [item], "error": None, "incomplete_details": None,
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "temperature": 1.0, "top_p": 1.0,
        "usage": {
            "input_tokens": plan["in"],
            "input_tokens_details": {
                "cached_tokens": plan["cached"],
                **given(plan, audio_tokens="audio_in", cache_write_tokens="cache_write"),
            },
            "output_tokens": plan["out"],
            "output_tokens_details": {"reasoning_tokens": plan["reasoning"]},
            "total_tokens": plan["in"] + plan["out"],
        },
        **given(plan, service_tier="service_tier"),
    }  # fmt: skip
    if plan.get("silent"):
        answer["usage"] = None
    if not body.get("stream"):
        return JSONResponse(answer)
    begun = {**answer, "status": "in_progress", "output": [], "usage": None}
    delta = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    items: list[dict[str, Any]] = [{"type": "response.created", "response": begun}]
    items += [{"type": "response.output_text.delta", "delta": words(plan), **delta} for _ in range(plan["chunks"])]
    items.append({"type": "response.completed", "response": answer})
    numbered = [{**event, "sequence_number": at} for at, event in enumerate(items)]
    return frames(numbered, plan, named=True, done=False)


async def messages(request: Request) -> Response:
    """POST /v1/messages, in Anthropic's format: input_tokens excludes the cached ones."""
    body, plan, error = await begin(request)
    if error:
        return error
    count(body["model"], plan)
    usage = {
        "input_tokens": plan["in"] - plan["cached"] - plan["cache_write"],
        "cache_read_input_tokens": plan["cached"],
        "cache_creation_input_tokens": plan["cache_write"],
        "output_tokens": plan["out"],
        **given(plan, service_tier="service_tier"),
    }
    if plan["cache_write"]:
        usage["cache_creation"] = {
            "ephemeral_5m_input_tokens": plan["cache_write"] - plan["cache_write_1h"],
            "ephemeral_1h_input_tokens": plan["cache_write_1h"],
        }
    if plan.get("silent"):
        usage = {"input_tokens": 0, "output_tokens": 0}
    head: dict[str, Any] = {
        "id": f"msg_{next(numbers)}", "type": "message", "role": "assistant", "model": body["model"],
        "stop_reason": "end_turn", "stop_sequence": None,
    }  # fmt: skip
    if not body.get("stream"):
        return JSONResponse({**head, "content": [{"type": "text", "text": "hello"}], "usage": usage})
    begun = {**head, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": words(plan)}}
    items: list[dict[str, Any]] = [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *([delta] * plan["chunks"]),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": usage["output_tokens"]},
        },
        {"type": "message_stop"},
    ]
    return frames(items, plan, named=True, done=False)


async def raw(request: Request) -> Response:
    """POST /raw: the target of a pass-through route; nothing in its answer shows the cost."""
    _, _, error = await begin(request)
    return error or JSONResponse({"fine": True})


async def images(request: Request) -> Response:
    """POST /v1/images/generations: priced per image, or per token if the plan asks for `usage`."""
    body, plan, error = await begin(request)
    if error:
        return error
    handed_out[body["model"]]["images"] += body.get("n") or 1
    answer: dict[str, Any] = {"created": 1, "data": [{"b64_json": "AAAA"}] * (body.get("n") or 1)}
    if plan.get("usage"):
        details = {"text_tokens": plan["in"] - plan["image_in"], "image_tokens": plan["image_in"]}
        total = plan["in"] + plan["out"]
        answer["usage"] = {
            "input_tokens": plan["in"], "input_tokens_details": details, "output_tokens": plan["out"], "total_tokens": total,
        }  # fmt: skip
    return JSONResponse(answer)


async def speech(request: Request) -> Response:
    """POST /v1/audio/speech: the answer is audio only."""
    body, _, error = await begin(request)
    if error:
        return error
    handed_out[body["model"]]["characters"] += len(body["input"])
    return Response(b"RIFF" * 100, media_type="audio/mpeg")


async def rerank(request: Request) -> Response:
    """POST /v1/rerank, in Cohere's format: billed per search unit."""
    body, plan, error = await begin(request)
    if error:
        return error
    handed_out[body["model"]]["queries"] += plan.get("queries", 1)
    meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": plan.get("queries", 1)}}
    found = [{"index": 0, "relevance_score": 0.9}]
    return JSONResponse({"id": f"rerank-{next(numbers)}", "results": found, "meta": meta})


async def moderations(request: Request) -> Response:
    """POST /v1/moderations."""
    body, _, error = await begin(request)
    result = {"flagged": False, "categories": {}, "category_scores": {}}
    return error or JSONResponse({"id": f"modr-{next(numbers)}", "model": body["model"], "results": [result]})


async def generate_content(request: Request) -> Response:
    """POST /models/NAME:generateContent and :streamGenerateContent, in Gemini's format.

    Thoughts are counted separately from the output.
    """
    body = await request.json()
    name, _, verb = request.url.path.rpartition("/")[2].partition(":")
    plan = plan_of({"input": body["contents"][-1]["parts"][-1]["text"]})
    handed_out[name]["calls"] += 1
    count(name, plan)
    usage = {
        "promptTokenCount": plan["in"],
        "cachedContentTokenCount": plan["cached"],
        "candidatesTokenCount": plan["out"] - plan["reasoning"],
        "thoughtsTokenCount": plan["reasoning"],
        "totalTokenCount": plan["in"] + plan["out"],
    }
    content = {"role": "model", "parts": [{"text": "hello"}]}
    answer = {"candidates": [{"content": content, "finishReason": "STOP", "index": 0}], "modelVersion": name}
    if verb == "generateContent":
        return JSONResponse({**answer, "usageMetadata": usage})
    chunk = {"candidates": [{"content": content, "index": 0}], "modelVersion": name}
    return frames([*([chunk] * plan["chunks"]), {**answer, "usageMetadata": usage}], plan, named=False, done=False)


async def show_handed_out(_request: Request) -> Response:
    """GET /handed_out: for each model, the calls received, the requests answered and the tokens handed out."""
    return JSONResponse({model: dict(sums) for model, sums in handed_out.items()})


async def show_seen(_request: Request) -> Response:
    """GET /seen: the calls received, by the mark in their plan."""
    return JSONResponse(seen)


async def show_answers(_request: Request) -> Response:
    """GET /answers: for each plan's id, the calls received, the tokens of the answer and the share that was sent."""
    return JSONResponse(by_id)


async def reset(_request: Request) -> Response:
    """POST /reset: clear the sums of the usage handed out."""
    handed_out.clear()
    return JSONResponse({})


app = Starlette(
    routes=[
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/v1/responses", responses, methods=["POST"]),
        Route("/v1/messages", messages, methods=["POST"]),
        Route("/v1/images/generations", images, methods=["POST"]),
        Route("/v1/audio/speech", speech, methods=["POST"]),
        Route("/v1/rerank", rerank, methods=["POST"]),
        Route("/v2/rerank", rerank, methods=["POST"]),
        Route("/v1/moderations", moderations, methods=["POST"]),
        Route("/raw", raw, methods=["POST"]),
        *(
            Route(path, generate_content, methods=["POST"])
            for path in ("/google/{path:path}", "/models/{path:path}", "/v1beta/models/{path:path}")
        ),
        Route("/handed_out", show_handed_out),
        Route("/seen", show_seen),
        Route("/answers", show_answers),
        Route("/reset", reset, methods=["POST"]),
    ]
)

if __name__ == "__main__":
    # Keep connections open for long: one that closes just as LiteLLM reuses it would fail a request.
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="critical", timeout_keep_alive=600)
