"""A model provider that answers every path and method, and counts each request it receives.

Its answers resemble OpenAI's closely enough for LiteLLM to process them. It has chats, embeddings, vector store
searches, and responses and batches that complete later. `GET /_received` lists the requests received, and `POST /_reset`
clears the list. `POST /_finish` sets the result that a later look-up of a response or a batch returns.

Run it with `python -m tests.proxy.any_provider PORT`; it does not depend on usage_plugin.
"""

from __future__ import annotations

import itertools
import json
import sys
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request
    from starlette.websockets import WebSocket

received: list[dict[str, Any]] = []
later: dict[str, dict[str, Any]] = {}
numbers = itertools.count(1)
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
CHUNK = "The answer is 42. " * 10


def usage_of(body: dict[str, Any]) -> dict[str, int]:
    """Return one input token for each character of the text, and the maximum allowed output, at most 1,000 tokens."""
    most = [body[name] for name in ("max_tokens", "max_completion_tokens") if body.get(name)]
    asked, given = len(json.dumps(body.get("messages", ""))), min([1_000, *most])
    return {"prompt_tokens": asked, "completion_tokens": given, "total_tokens": asked + given}


def chat(body: dict[str, Any]) -> Response:
    head = {"id": f"chatcmpl-{next(numbers)}", "created": 1, "model": body.get("model", "m")}
    usage = usage_of(body)
    if not body.get("stream"):
        message = {"role": "assistant", "content": "hello"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": usage})

    def send() -> Iterator[str]:
        chunk = {**head, "object": "chat.completion.chunk"}
        for delta, reason in (({"role": "assistant", "content": "hello"}, None), ({}, "stop")):
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            yield f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\n"
        if (body.get("stream_options") or {}).get("include_usage"):
            yield f"data: {json.dumps({**chunk, 'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(send(), media_type="text/event-stream")


def begun(kind: str, body: dict[str, Any]) -> Response:
    """Return the first answer of work that completes later; its status is queued or validating."""
    number = f"{'resp' if kind == 'response' else 'batch'}_{next(numbers):032x}"
    facts = {"id": number, "object": kind, "created_at": 1, "model": body.get("model")}
    if kind == "response":
        facts |= {"status": "queued", "background": True, "output": [], "usage": None, "error": None,
                  "incomplete_details": None, "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}  # fmt: skip
        if not body.get("background"):
            details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
            usage = {"input_tokens": 9, "output_tokens": 5, "total_tokens": 14, **details}
            return JSONResponse({**facts, "status": "completed", "background": False, "usage": usage})
    else:
        facts |= {"status": "validating", "endpoint": body.get("endpoint"), "input_file_id": "file-1",
                  "completion_window": "24h", "request_counts": {"total": 0, "completed": 0, "failed": 0}}  # fmt: skip
    later[number] = facts
    return JSONResponse(facts)


async def answer(request: Request) -> Response:
    """Answer any path; one answer fits many of them."""
    raw = await request.body()
    try:
        body = json.loads(raw)
    except ValueError:
        body = {}
    body = body if isinstance(body, dict) else {}
    path = request.url.path
    received.append({"method": request.method, "path": path, "body": body})
    last = path.rstrip("/").rpartition("/")[2]
    if request.method == "GET" and last in later:
        return JSONResponse(later[last])
    if path.endswith("/content"):
        # The output file of a batch.
        usage = {"prompt_tokens": 1_000, "completion_tokens": 300, "total_tokens": 1_300}
        done = {"id": "chatcmpl-1", "object": "chat.completion", "model": "gpt-5.1", "choices": [], "usage": usage}
        line = {"id": "r", "custom_id": "1", "response": {"status_code": 200, "request_id": "q", "body": done}}
        return Response(json.dumps(line) + "\n", media_type="application/jsonl")
    if path.endswith("/search"):
        content = [{"type": "text", "text": CHUNK}]
        found = [{"file_id": f"file-{n}", "filename": "f", "score": 0.9, "content": content} for n in range(3)]
        return JSONResponse({"object": "vector_store.search_results.page", "search_query": "q", "data": found})
    if path.endswith("/embeddings"):
        usage = {"prompt_tokens": 9, "total_tokens": 9}
        data = [{"object": "embedding", "index": 0, "embedding": [0.1]}]
        return JSONResponse({"object": "list", "data": data, "model": body.get("model", "m"), "usage": usage})
    if path.endswith("/images/generations"):
        usage = {"input_tokens": 9, "output_tokens": 272, "total_tokens": 281,
                 "input_tokens_details": {"text_tokens": 9, "image_tokens": 0}}  # fmt: skip
        return JSONResponse({"created": 1, "data": [{"b64_json": "AAAA"}], "usage": usage})
    if path.endswith("/rerank"):
        meta = {"billed_units": {"search_units": 1}}
        return JSONResponse({"id": "r", "results": [{"index": 0, "relevance_score": 0.9}], "meta": meta})
    if path.endswith("/moderations"):
        return JSONResponse({"id": "m", "model": "m", "results": []})
    if path.endswith("/responses"):
        return begun("response", body)
    if path.endswith("/batches"):
        return begun("batch", body)
    if path.endswith("/chat/completions"):
        return chat(body)
    if path.endswith("/completions"):
        choice = {"index": 0, "text": "hello", "finish_reason": "stop", "logprobs": None}
        head = {
            "id": f"cmpl-{next(numbers)}",
            "object": "text_completion",
            "created": 1,
            "model": body.get("model", "m"),
        }
        return JSONResponse({**head, "choices": [choice], "usage": usage_of(body)})
    return JSONResponse({"id": f"thing_{next(numbers)}", "object": "thing", "status": "completed"})


async def meet(websocket: WebSocket) -> None:
    """Accept a WebSocket on any path."""
    received.append({"method": "WS", "path": websocket.url.path, "body": {}})
    await websocket.close()


async def show_received(_request: Request) -> Response:
    return JSONResponse(received)


async def reset(_request: Request) -> Response:
    received.clear()
    return JSONResponse({})


async def finish(request: Request) -> Response:
    """POST /_finish: set the result of all deferred work of one kind."""
    body = await request.json()
    for number, facts in later.items():
        if facts["object"] == body["object"]:
            later[number] = {**facts, **body}
    return JSONResponse({})


app = Starlette(
    routes=[
        Route("/_received", show_received),
        Route("/_reset", reset, methods=["POST"]),
        Route("/_finish", finish, methods=["POST"]),
        Route("/{path:path}", answer, methods=METHODS),
        WebSocketRoute("/{path:path}", meet),
    ]
)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="critical", timeout_keep_alive=600)
