"""The wire formats of model providers: each one's answer and usage, whole and as a stream.

An *answer* is a mapping that a test gives. `usage` is the provider's own usage object, exactly as it is sent. The other
keys are optional:

- `model`: the model that the answer names; by default the requested one.
- `body`: further top-level fields of the answer, such as `service_tier`; in a stream, of each chunk or final event.
- `message`, `candidate`, `output`: further fields of the message, of Gemini's candidate, further items of a response.
- `usages`: other usage objects for single formats, by name.
- `stream`: the place of the usage in a chat stream. `extra_chunk` (OpenAI, requested with `stream_options`),
  `last_choice` (in the chunk with the finish reason), `every_chunk` (growing up to the total), `twice`
  (last choice, then an extra chunk), `x_groq` (Groq's own field, then as OpenAI), `absent`.
- `start`: for Anthropic's streams, fields that differ between message_start and the end.
- `delta`: for Anthropic's streams, the whole usage of message_delta; by default every number, as the current total.
- `first`: for Gemini's streams, the usage of every chunk but the last.
- `cut`: hang up after this number of frames.
- `padding`: a field of this many characters before a whole answer, like those with pictures.
- `encoding`: `gzip` or `deflate`: compress a whole answer.
- `text`: the text of the whole answer, which is then not JSON.
- `headers`: the headers of the answer.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import struct
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

TEXT = "hi there"
PARTS = ("hi", " the", "re")
SSE = "text/event-stream"
JSON = "application/json"
AWS = "application/vnd.amazon.eventstream"


class Sent(NamedTuple):
    """The frames of a stream, or one frame for a whole answer."""

    content_type: str
    frames: tuple[bytes, ...]


class Asked(NamedTuple):
    """The parts of a request that determine the answer."""

    model: str
    stream: bool
    body: Mapping[str, Any]


def whole(body: Mapping[str, Any]) -> Sent:
    return Sent(JSON, (json.dumps(body).encode(),))


def events(items: Iterable[Mapping[str, Any]], *, named: bool = False, done: bool = False) -> Sent:
    """Return server-sent events; `named` ones have their type as the event's name."""
    frames = [
        (f"event: {item['type']}\n" if named else "").encode() + b"data: " + json.dumps(item).encode() + b"\n\n"
        for item in items
    ]
    return Sent(SSE, (*frames, *((b"data: [DONE]\n\n",) if done else ())))


def usage_of(answer: Mapping[str, Any], name: str) -> Any:
    return answer.get("usages", {}).get(name, answer.get("usage"))


def chat(asked: Asked, answer: Mapping[str, Any]) -> Sent:
    """OpenAI's chat completions, which most providers use."""
    usage = usage_of(answer, "chat")
    head = {"id": "chatcmpl-1", "created": 1, "model": answer.get("model", asked.model), **answer.get("body", {})}
    if not asked.stream:
        message = {"role": "assistant", "content": TEXT, **answer.get("message", {})}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return whole({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
    chunk = {**head, "object": "chat.completion.chunk"}
    place = answer.get("stream", "extra_chunk")
    # OpenAI sends it only on request; a provider that always sends it uses another place.
    wanted = (asked.body.get("stream_options") or {}).get("include_usage")
    items: list[dict[str, Any]] = []
    for at, part in enumerate(PARTS):
        delta = {"role": "assistant", "content": part, **(answer.get("message", {}) if not at else {})}
        item = {**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        if place == "every_chunk":
            item["usage"] = grown(usage, at + 1, len(PARTS) + 1)
        if place == "extra_chunk" and wanted:
            item["usage"] = None
        items.append(item)
    last = {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    if place in ("last_choice", "every_chunk", "twice"):
        last["usage"] = usage
    if place == "x_groq":
        last["x_groq"] = {"id": "req_1", "usage": usage}
    items.append(last)
    if place == "twice" or (place in ("extra_chunk", "x_groq") and wanted):
        items.append({**chunk, "choices": [], "usage": usage})
    return events(items, done=True)


def grown(usage: Any, at: int, of: int) -> Any:
    """Return the usage after some of the parts: the output grows, and the rest is known from the start."""
    if not isinstance(usage, dict) or not isinstance(usage.get("completion_tokens"), int):
        return usage
    output = usage["completion_tokens"] * at // of
    total = usage.get("total_tokens", 0) - usage["completion_tokens"] + output
    return {**usage, "completion_tokens": output, "total_tokens": total}


def completions(asked: Asked, answer: Mapping[str, Any]) -> Sent:
    """OpenAI's text completions."""
    usage = usage_of(answer, "completions")
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": answer.get("model", asked.model)}
    head |= answer.get("body", {})
    if not asked.stream:
        return whole({**head, "choices": [{"index": 0, "text": TEXT, "finish_reason": "stop"}], "usage": usage})
    items = [{**head, "choices": [{"index": 0, "text": part, "finish_reason": None}]} for part in PARTS]
    items.append({**head, "choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})
    if (asked.body.get("stream_options") or {}).get("include_usage"):
        items.append({**head, "choices": [], "usage": usage})
    return events(items, done=True)


def as_responses(usage: Any) -> Any:
    """Return chat's usage with the names of OpenAI's Responses API for the same numbers."""
    if not isinstance(usage, dict) or "input_tokens" in usage:
        return usage
    names = {
        "prompt_tokens": "input_tokens",
        "completion_tokens": "output_tokens",
        "prompt_tokens_details": "input_tokens_details",
        "completion_tokens_details": "output_tokens_details",
    }
    return {names.get(name, name): value for name, value in usage.items()}


def responses(asked: Asked, answer: Mapping[str, Any]) -> Sent:
    """OpenAI's Responses API."""
    usage = answer.get("usages", {}).get("responses", as_responses(answer.get("usage")))
    message = {
        "type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
        "content": [{"type": "output_text", "text": TEXT, "annotations": [], **answer.get("message", {})}],
    }  # fmt: skip
    body: dict[str, Any] = {
        "id": "resp_1", "object": "response", "created_at": 1, "status": "completed",
        "model": answer.get("model", asked.model), "output": [*answer.get("output", []), message], "error": None,
        "incomplete_details": None, "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "temperature": 1.0,
        "top_p": 1.0, "usage": usage, **answer.get("body", {}),
    }  # fmt: skip
    if not asked.stream:
        return whole(body)
    begun = {**body, "status": "in_progress", "output": [], "usage": None}
    delta = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "logprobs": []}
    items: list[dict[str, Any]] = [{"type": "response.created", "response": begun}]
    items.append({"type": "response.output_item.added", "output_index": 0, "item": {**message, "content": []}})
    items += [{"type": "response.output_text.delta", "delta": part, **delta} for part in PARTS]
    items.append({"type": "response.output_text.done", "text": TEXT, **delta})
    items.append({"type": "response.output_item.done", "output_index": 0, "item": message})
    items.append({"type": f"response.{body['status']}", "response": body})
    return events([{**item, "sequence_number": at} for at, item in enumerate(items)], named=True)


def anthropic_events(asked: Asked, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    usage = usage_of(answer, "messages")
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": answer.get("model", asked.model)}
    head |= {"stop_reason": None, "stop_sequence": None, "content": [], **answer.get("body", {})}
    # The fees of tools are known only at the end.
    begun = usage
    if isinstance(usage, dict):
        begun = {name: value for name, value in usage.items() if name != "server_tool_use"}
        begun |= {"output_tokens": 1, **answer.get("start", {})}
    # The usage of message_delta is cumulative, as Anthropic documents.
    counted = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
    end = usage
    if isinstance(usage, dict):
        end = {name: usage[name] for name in (*counted, "server_tool_use") if name in usage}
    end = answer.get("delta", end)
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    return [
        {"type": "message_start", "message": {**head, "usage": begun}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": part}} for part in PARTS),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": delta, "usage": end},
        {"type": "message_stop"},
    ]


def anthropic_whole(asked: Asked, answer: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": answer.get("model", asked.model),
        "content": [*answer.get("output", []), {"type": "text", "text": TEXT}], "stop_reason": "end_turn",
        "stop_sequence": None, "usage": usage_of(answer, "messages"), **answer.get("body", {}),
    }  # fmt: skip


def messages(asked: Asked, answer: Mapping[str, Any]) -> Sent:
    """Anthropic's Messages API: `input_tokens` excludes the cached ones."""
    if not asked.stream:
        return whole(anthropic_whole(asked, answer))
    return events(anthropic_events(asked, answer), named=True)


def gemini(asked: Asked, answer: Mapping[str, Any]) -> Sent:
    """Gemini's generateContent: prompt and candidates exclude thoughts and the prompts of tools."""
    usage = answer.get("usage")

    def part(text: str, usage: Any, *, last: bool) -> dict[str, Any]:
        candidate: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
        if last:
            candidate |= {"finishReason": "STOP", **answer.get("candidate", {})}
        version = answer.get("model", asked.model)
        found = {"candidates": [candidate], "modelVersion": version, "responseId": "r1", **answer.get("body", {})}
        return found if usage is None else {**found, "usageMetadata": usage}

    if not asked.stream:
        return whole(part(TEXT, usage, last=True))
    first = {"promptTokenCount": usage.get("promptTokenCount", 0), "totalTokenCount": 1} if usage else None
    early = answer.get("first", first)
    return events([*(part(text, early, last=False) for text in PARTS[:-1]), part(PARTS[-1], usage, last=True)])


def aws_frame(kind: str, payload: Mapping[str, Any]) -> bytes:
    """Return one event of AWS's binary stream: lengths, checksum, headers, payload, checksum."""
    headers = b""
    for name, value in ((":event-type", kind), (":content-type", JSON), (":message-type", "event")):
        # 7 is the type of text.
        headers += bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
    content = json.dumps(payload).encode()
    prelude = struct.pack(">II", 16 + len(headers) + len(content), len(headers))
    framed = prelude + struct.pack(">I", binascii.crc32(prelude)) + headers + content
    return framed + struct.pack(">I", binascii.crc32(framed))


def converse(asked: Asked, answer: Mapping[str, Any]) -> Sent:
    """Bedrock's Converse: `inputTokens` excludes the cached ones."""
    usage = answer.get("usage")
    further = answer.get("body", {})
    if not asked.stream:
        message = {"role": "assistant", "content": [{"text": TEXT}]}
        body = {"output": {"message": message}, "stopReason": "end_turn", "metrics": {"latencyMs": 5}, **further}
        return whole(body if usage is None else {**body, "usage": usage})
    items: list[tuple[str, dict[str, Any]]] = [("messageStart", {"role": "assistant"})]
    items += [("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": part}}) for part in PARTS]
    items += [("contentBlockStop", {"contentBlockIndex": 0}), ("messageStop", {"stopReason": "end_turn"})]
    metadata = {"metrics": {"latencyMs": 5}, **further}
    items.append(("metadata", metadata if usage is None else {**metadata, "usage": usage}))
    return Sent(AWS, tuple(aws_frame(kind, payload) for kind, payload in items))


def invoke(asked: Asked, answer: Mapping[str, Any]) -> Sent:
    """Bedrock's InvokeModel with an Anthropic model: Anthropic's own events in AWS's frames."""
    if not asked.stream:
        return whole(anthropic_whole(asked, answer))
    items = anthropic_events(asked, answer)
    usage = usage_of(answer, "messages") or {}
    counts = {"inputTokenCount": usage.get("input_tokens", 0), "outputTokenCount": usage.get("output_tokens", 0)}
    items[-1]["amazon-bedrock-invocationMetrics"] = {**counts, "invocationLatency": 5, "firstByteLatency": 1}
    frames = (aws_frame("chunk", {"bytes": base64.b64encode(json.dumps(item).encode()).decode()}) for item in items)
    return Sent(AWS, tuple(frames))


def cohere_chat(asked: Asked, answer: Mapping[str, Any]) -> Sent:
    """Cohere's chat, second version: billed tokens in addition to used ones."""
    usage = answer.get("usage")
    if not asked.stream:
        message = {"role": "assistant", "content": [{"type": "text", "text": TEXT}]}
        return whole({"id": "c1", "finish_reason": "COMPLETE", "message": message, "usage": usage})
    items: list[dict[str, Any]] = [
        {"type": "message-start", "id": "c1", "delta": {"message": {"role": "assistant", "content": []}}},
        {"type": "content-start", "index": 0, "delta": {"message": {"content": {"type": "text", "text": ""}}}},
    ]
    items += [
        {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": part}}}} for part in PARTS
    ]
    items.append({"type": "content-end", "index": 0})
    items.append({"type": "message-end", "id": "c1", "delta": {"finish_reason": "COMPLETE", "usage": usage}})
    # LiteLLM does not request server-sent events, so Cohere sends one object per line.
    return Sent("application/stream+json", tuple(json.dumps(item).encode() + b"\n" for item in items))


def embeddings(asked: Asked, answer: Mapping[str, Any]) -> Sent:
    """OpenAI's embeddings, which Voyage, Mistral and others use too."""
    data = [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}]
    body = {"object": "list", "data": data, "model": answer.get("model", asked.model), **answer.get("body", {})}
    return whole({**body, "usage": answer.get("usage")})


def body_alone(asked: Asked, answer: Mapping[str, Any]) -> Sent:
    """A format that differs between providers: the test gives the body."""
    return whole(answer.get("body", {}))


def images(asked: Asked, answer: Mapping[str, Any]) -> Sent:
    """OpenAI's images: models priced per token report a usage."""
    data = [{"b64_json": "AAAA"}] * answer.get("images", asked.body.get("n") or 1)
    body = {"created": 1, "data": data, **answer.get("body", {})}
    return whole(body if answer.get("usage") is None else {**body, "usage": answer["usage"]})


def speech(asked: Asked, answer: Mapping[str, Any]) -> Sent:
    """Audio, without any usage."""
    return Sent("audio/mpeg", (b"RIFF" * 100,))


def transcription(asked: Asked, answer: Mapping[str, Any]) -> Sent:
    """OpenAI's transcriptions: billed by the token or by the second, according to the usage."""
    body = {"text": TEXT, **answer.get("body", {})}
    return whole(body if answer.get("usage") is None else {**body, "usage": answer["usage"]})


FORMATS: tuple[tuple[str, Callable[[Asked, Mapping[str, Any]], Sent]], ...] = (
    (":generateContent", gemini),
    (":streamGenerateContent", gemini),
    (":rawPredict", messages),
    (":streamRawPredict", messages),
    (":embedContent", body_alone),
    (":batchEmbedContents", body_alone),
    (":predict", body_alone),
    ("/converse", converse),
    ("/converse-stream", converse),
    ("/invoke", invoke),
    ("/invoke-with-response-stream", invoke),
    ("/v2/chat", cohere_chat),
    ("/chat/completions", chat),
    ("/completions", completions),
    ("/responses", responses),
    ("/messages", messages),
    ("/embeddings", embeddings),
    ("/rerank", body_alone),
    ("/embed", body_alone),
    ("/ocr", body_alone),
    ("/images/generations", images),
    ("/images/edits", images),
    ("/audio/speech", speech),
    ("/audio/transcriptions", transcription),
)
"""The format by the end of the path."""


def asked_of(path: str, body: Mapping[str, Any]) -> Asked:
    """Return the requested model and whether a stream is requested: from the body, else from the path."""
    model = body.get("model")
    if not isinstance(model, str):
        parts = path.split("/")
        after = next((parts[at + 1] for at, part in enumerate(parts[:-1]) if part in ("model", "models")), "")
        model = after.split(":", 1)[0] if "generateContent" in path or "GenerateContent" in path else after
    stream = bool(body.get("stream")) or ":stream" in path or path.endswith("-stream")
    return Asked(model, stream, body)


def answer_for(path: str, body: Mapping[str, Any], answer: Mapping[str, Any]) -> Sent:
    """Return the answer in the format of this path.

    Raises:
        LookupError: No format has this path.
    """
    if "text" in answer:
        return Sent(JSON, (answer["text"].encode(),))
    for end, render in FORMATS:
        if path.endswith(end):
            return padded(render(asked_of(path, body), answer), answer.get("padding", 0))
    raise LookupError(path)


def padded(sent: Sent, length: int) -> Sent:
    """Return a whole answer with a long text before it, with every kind of character that JSON escapes."""
    if not length or len(sent.frames) > 1:
        return sent
    text = json.dumps(('{"usage": {"prompt_tokens": 1}} \\ [ \n é' * (length // 40 + 1))[:length])
    return sent._replace(frames=(b'{"padding": ' + text.encode() + b", " + sent.frames[0].lstrip(b"{"),))


def compressed(content: bytes, encoding: str) -> bytes:
    """Return an answer compressed as `content-encoding` names it."""
    return {"gzip": gzip.compress, "deflate": zlib.compress}[encoding](content)
