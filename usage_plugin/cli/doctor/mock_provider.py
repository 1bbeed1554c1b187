"""A model provider on loopback that answers every route at once: OpenAI's and Anthropic's wire formats, fixed usage.

The temporary proxy calls it like a real provider, so the complete path of a request is tested, at no cost.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

INPUT_TOKENS = 10
OUTPUT_TOKENS = 5
_TEXT = "fine"


class MockProvider:
    """Serves from `start` to `stop`; `calls` counts the requests."""

    def __init__(self) -> None:
        """Bind a free port."""
        self.calls = 0
        counting = self

        class Handler(_Handler):
            provider = counting

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="mock-provider", daemon=True)

    @property
    def url(self) -> str:
        """The base URL of the server."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        """Start serving."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving, and release the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    provider: MockProvider

    def do_POST(self) -> None:
        """Answer in the format of the route."""
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        self.provider.calls += 1
        answer = _RESPONSES.get(self.path.rsplit("/v1", 1)[-1])
        if answer is None:
            self._send(404, "application/json", b'{"error": {"message": "no such route"}}')
            return
        whole, events = answer(str(body.get("model")))
        if body.get("stream"):
            self._send(200, "text/event-stream", b"".join(_frames(events)))
        else:
            self._send(200, "application/json", json.dumps(whole).encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name in the base class
        """Log nothing: the doctor reports the results."""

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _frames(events: Iterable[dict[str, Any]]) -> Iterable[bytes]:
    for event in events:
        name = f"event: {event['type']}\n" if "type" in event else ""
        yield f"{name}data: {json.dumps(event)}\n\n".encode()
    yield b"data: [DONE]\n\n"


_Response = tuple[dict[str, Any], list[dict[str, Any]]]
_USAGE = {
    "prompt_tokens": INPUT_TOKENS,
    "completion_tokens": OUTPUT_TOKENS,
    "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
}


def _chat(model: str) -> _Response:
    head = {"id": "chatcmpl-doctor", "created": 1, "model": model}
    chunk = {**head, "object": "chat.completion.chunk"}
    message = {"role": "assistant", "content": _TEXT}
    whole = {
        **head,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": _USAGE,
    }
    return whole, [
        {**chunk, "choices": [{"index": 0, "delta": message}]},
        {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {**chunk, "choices": [], "usage": _USAGE},
    ]


def _completion(model: str) -> _Response:
    head = {"id": "cmpl-doctor", "object": "text_completion", "created": 1, "model": model}
    choice = {"index": 0, "text": _TEXT, "finish_reason": "stop", "logprobs": None}
    return {**head, "choices": [choice], "usage": _USAGE}, [
        {**head, "choices": [{**choice, "finish_reason": None}]},
        {**head, "choices": [{**choice, "text": ""}]},
        {**head, "choices": [], "usage": _USAGE},
    ]


def _embedding(model: str) -> _Response:
    data = [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}]
    usage = {"prompt_tokens": INPUT_TOKENS, "total_tokens": INPUT_TOKENS}
    return {"object": "list", "data": data, "model": model, "usage": usage}, []


def _response(model: str) -> _Response:
    item = {
        "type": "message", "id": "msg_doctor", "status": "completed", "role": "assistant",
        "content": [{"type": "output_text", "text": _TEXT, "annotations": []}],
    }  # fmt: skip
    whole = {
        "id": "resp_doctor", "object": "response", "created_at": 1, "status": "completed", "model": model,
        "output": [item], "error": None, "incomplete_details": None, "parallel_tool_calls": True,
        "tool_choice": "auto", "tools": [], "temperature": 1.0, "top_p": 1.0,
        "usage": {
            "input_tokens": INPUT_TOKENS, "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": OUTPUT_TOKENS, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
        },
    }  # fmt: skip
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {**whole, "status": "in_progress", "output": [], "usage": None}},
        {"type": "response.output_text.delta", "delta": _TEXT, "item_id": "msg_doctor", "output_index": 0,
         "content_index": 0},
        {"type": "response.completed", "response": whole},
    ]  # fmt: skip
    return whole, [{**event, "sequence_number": number} for number, event in enumerate(events)]


def _message(model: str) -> _Response:
    usage = {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS}
    head = {"id": "msg_doctor", "type": "message", "role": "assistant", "model": model, "stop_sequence": None}
    return {**head, "stop_reason": "end_turn", "content": [{"type": "text", "text": _TEXT}], "usage": usage}, [
        {"type": "message_start",
         "message": {**head, "stop_reason": None, "content": [], "usage": {**usage, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": _TEXT}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None},
         "usage": {"output_tokens": OUTPUT_TOKENS}},
        {"type": "message_stop"},
    ]  # fmt: skip


_RESPONSES = {
    "/chat/completions": _chat,
    "/completions": _completion,
    "/embeddings": _embedding,
    "/responses": _response,
    "/messages": _message,
}
