"""A model provider as a process: it answers on every provider's paths, with the answers that a test stores.

`PUT /_answers/KEY` stores an answer (see `wire`). It is sent to each request that contains `case=KEY` in its body, or
`case-KEY` in its path. `GET /_requests/KEY` lists the paths and bodies received with this key.

Run it with `python -m tests.providers.fake_provider PORT`; it does not depend on usage_plugin or LiteLLM.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.providers.wire import SSE, answer_for, compressed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

_KEY = re.compile(rb"case[=-]([A-Za-z0-9_.-]+)")

answers: dict[str, dict[str, Any]] = {}
requests: dict[str, list[dict[str, Any]]] = defaultdict(list)
polled: Counter[str] = Counter()
unknown: list[str] = []


async def store(request: Request) -> Response:
    """PUT /_answers/KEY: store an answer."""
    answers[request.path_params["key"]] = await request.json()
    return Response(status_code=204)


async def seen(request: Request) -> Response:
    """GET /_requests/KEY: list the requests with this key."""
    return JSONResponse(requests[request.path_params["key"]])


async def unanswered(request: Request) -> Response:
    """GET /_unknown: list the paths without a stored answer."""
    return JSONResponse(unknown)


async def token(request: Request) -> Response:
    """POST /token: Google's token for the key of a service account."""
    return JSONResponse({"access_token": "none", "expires_in": 3600, "token_type": "Bearer"})


async def answer(request: Request) -> Response:
    """Answer any path of any provider."""
    content = await request.body()
    path = request.url.path
    found = _KEY.search(content) or _KEY.search(path.encode())
    try:
        body = json.loads(content) if content else {}
    except ValueError:
        # The body is a form with a file.
        body = {}
    key = found.group(1).decode() if found else ""
    requests[key].append({"path": path, "body": body})
    planned = answers.get(key)
    if planned is not None and request.method == "GET":
        polls = planned["polls"]
        sent = answer_for("/responses", {}, polls[min(polled[key], len(polls) - 1)])
        polled[key] += 1
        return Response(sent.frames[0], media_type=sent.content_type)
    if planned is None:
        unknown.append(f"{request.method} {path} {key!r}")
        return JSONResponse({"error": {"message": f"no answer for {key!r} on {path}"}}, status_code=404)
    try:
        sent = answer_for(path, body, planned)
    except LookupError:
        unknown.append(f"{request.method} {path} {key!r}")
        return JSONResponse({"error": {"message": f"unknown path: {path}"}}, status_code=404)
    if len(sent.frames) == 1 and "encoding" in planned:
        name = planned["encoding"]
        return Response(
            compressed(sent.frames[0], name), media_type=sent.content_type, headers={"content-encoding": name}
        )
    if len(sent.frames) == 1 and sent.content_type != SSE:
        return Response(sent.frames[0], media_type=sent.content_type, headers=planned.get("headers"))

    async def frames() -> AsyncIterator[bytes]:
        for at, frame in enumerate(sent.frames):
            if at == planned.get("cut"):
                raise ConnectionResetError("planned")
            yield frame

    return StreamingResponse(frames(), media_type=sent.content_type, headers=planned.get("headers"))


METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH"]
app = Starlette(
    routes=[
        Route("/_answers/{key}", store, methods=["PUT"]),
        Route("/_requests/{key}", seen),
        Route("/_unknown", unanswered),
        Route("/token", token, methods=["POST"]),
        Route("/{path:path}", answer, methods=METHODS),
    ]
)


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="error", timeout_keep_alive=300)
