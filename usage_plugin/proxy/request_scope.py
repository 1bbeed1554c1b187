"""The request scope: one HTTP request and its answer, seen from outside LiteLLM.

An ASGI wrapper around the whole proxy puts a `RequestScope` into a context variable, where hooks find it in any task
that LiteLLM runs them in. It is filled and never replaced, since a context variable set in a child task is invisible
to others.

The values that hooks leave in it become headers of the answer, on every route. The wrapper also reports when the
request is really over: after the last byte, or when the client disconnected.
"""

from __future__ import annotations

import json
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from usage_plugin.domain.subjects import INTERNAL, Subjects
from usage_plugin.errors import UsagePluginError
from usage_plugin.proxy.client_response import anthropic_body
from usage_plugin.proxy.routes import WEBSOCKET

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping

    from litellm.proxy._types import ProxyException

    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.usage import Status
    from usage_plugin.proxy.inflight_request import InflightRequest
    from usage_plugin.proxy.routes import Rule
    from usage_plugin.proxy.streams import Report
    from usage_plugin.tracking.admission.demands import AccountStatus

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_ERROR = 400
"""The lowest HTTP status of an error."""

_LONGEST_AFTERWARDS = 600.0
"""Seconds after a request during which its later calls to providers are charged to the same user."""

current: ContextVar[RequestScope | None] = ContextVar("usage_plugin_request_scope", default=None)


class RequestScope:
    """One request: its route, its user, and the values that the hooks leave for the answer.

    Attributes:
        method: The HTTP method, or `routes.WEBSOCKET`.
        path: The path, without the prefix under which the proxy is mounted.
        rule: The rule of the route, once LiteLLM has authenticated the request.
        looked_up: The body of a request for deferred work, as hooks get it.
        subjects: Returns the parties of the request; None before it is authenticated.
        output_limit: The output limit that the gate set, where LiteLLM does not forward the request's own body.
        refused: The gate's error, raised again wherever LiteLLM continues in spite of it.
        ended: When the request was over, in seconds of the monotonic clock; None until then.
        headers: Added to the answer; they replace headers of the same name.
        status: The status of our refusal; some versions of LiteLLM turn it into a 500 on some routes.
        body: The body of our refusal, where it differs from the one that LiteLLM writes.
        account_status: The status of the caller's most constrained limit.
        cost: The cost of the request in nano-dollars, once it is known.
        ending: The outcome on the wire. `cancelled` if the client left before the whole answer was sent. `success` if
            it was sent and its status is not an error.
        report: Reads the usage from the answer sent to the client, where that is the provider's own.
        requests: The admitted requests: one, except for websockets and where LiteLLM calls the hook again.
    """

    __slots__ = (
        "_client_headers", "_raw_headers", "account_status", "body", "cost", "ended", "ending", "headers", "looked_up",
        "method", "output_limit", "path", "refused", "report", "requests", "rule", "status", "subjects",
    )  # fmt: skip

    def __init__(self, path: str = "", raw_headers: Iterable[tuple[bytes, bytes]] = (), method: str = "POST") -> None:
        """Create it from the request's path, headers and method, in ASGI's form."""
        self.path = path
        self.method = method
        self._raw_headers = raw_headers
        self._client_headers: Mapping[str, str] | None = None
        self.rule: Rule | None = None
        self.subjects: Callable[[], Subjects] | None = None
        self.looked_up: Mapping[str, Any] | None = None
        self.output_limit: int | None = None
        self.refused: ProxyException | None = None
        self.headers: dict[str, str] = {}
        self.status: int | None = None
        self.body: bytes | None = None
        self.account_status: AccountStatus | None = None
        self.cost: Nano | None = None
        self.ending: Status = "failure"
        self.ended: float | None = None
        self.report: Report | None = None
        self.requests: list[InflightRequest] = []

    @property
    def client_headers(self) -> Mapping[str, str]:
        """The request's headers by lower-case name; the last value of a repeated name counts, as in LiteLLM."""
        if self._client_headers is None:
            self._client_headers = {
                name.decode("latin-1"): value.decode("latin-1") for name, value in self._raw_headers
            }
        return self._client_headers

    def refuse(self, answer: ProxyException, *, replace: bool = False) -> None:
        """Answer with this error.

        Args:
            answer: The error that is raised.
            replace: Whether to send this error instead of the one LiteLLM derives from it. Errors in Anthropic's format
                always are.
        """
        self.status, self.headers = int(answer.code), answer.headers
        self.body = anthropic_body(answer, self.path)
        if replace:
            self.refused = answer
            openai_body = json.dumps({"error": answer.to_dict()}, ensure_ascii=False)
            self.body = self.body or openai_body.encode("utf-8", "replace")


def requests_here() -> list[InflightRequest]:
    """Return the unsettled requests of the current scope."""
    scope = current.get()
    return [request for request in scope.requests if not request.settled] if scope is not None else []


def subjects_here() -> Subjects:
    """Return the parties of the current request; calls outside of any request belong to the proxy itself."""
    scope = current.get()
    if scope is None or (scope.ended is not None and time.monotonic() - scope.ended > _LONGEST_AFTERWARDS):
        # A task that LiteLLM started during a request, and that outlives it, keeps its context.
        return Subjects(user=INTERNAL)
    if scope.requests:
        return scope.requests[0].admitted.subjects
    if scope.subjects is None:
        return Subjects(user=INTERNAL)
    try:
        return scope.subjects()
    except UsagePluginError:
        return Subjects()


class RequestScopeMiddleware:
    """Wraps the proxy's ASGI app."""

    def __init__(
        self, app: App, *, on_start: Callable[[RequestScope], None], on_end: Callable[[InflightRequest, Status], None]
    ) -> None:
        """Call `on_start` before an answer's headers are sent, and `on_end` when an admitted request is over.

        Neither may raise an error.
        """
        self._app = app
        self._on_start = on_start
        self._on_end = on_end

    async def __call__(self, asgi_scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        if asgi_scope["type"] not in ("http", "websocket"):
            await self._app(asgi_scope, receive, send)
            return
        path = asgi_scope.get("path", "").removeprefix(asgi_scope.get("root_path") or "")
        scope = RequestScope(path, asgi_scope.get("headers", ()), asgi_scope.get("method", WEBSOCKET))
        answer = _Answer(scope, asgi_scope, receive, send, self._on_start)
        token = current.set(scope)
        try:
            await self._app(asgi_scope, answer.receive, answer.send)
        finally:
            current.reset(token)
            scope.ended = time.monotonic()
            if scope.requests:
                # `subjects` keeps the whole body alive, and the requests have their parties.
                scope.subjects = None
            for request in scope.requests:
                self._on_end(request, scope.ending)


class _Answer:
    """Sends the answer of one request and observes its parts."""

    __slots__ = ("_asgi_scope", "_is_sent", "_on_start", "_receive", "_scope", "_send", "_status")

    def __init__(
        self,
        scope: RequestScope,
        asgi_scope: MutableMapping[str, Any],
        receive: Receive,
        send: Send,
        on_start: Callable[[RequestScope], None],
    ) -> None:
        self._scope = scope
        self._asgi_scope = asgi_scope
        self._receive = receive
        self._send = send
        self._on_start = on_start
        self._is_sent = False
        self._status = 0

    async def send(self, message: Message) -> None:
        scope, kind = self._scope, message["type"]
        if kind == "http.response.start":
            self._on_start(scope)
            message = _with_ours(message, scope)
            self._status = message["status"]
            if scope.report is not None:
                scope.report.begin(message["status"], message.get("headers", ()))
        elif scope.body is not None and kind in ("http.response.body", "websocket.close"):
            if not self._is_sent:
                self._is_sent = True
                await self._send_refusal(message, scope.body)
            return
        elif kind == "http.response.body":
            self._is_sent = _sends_the_last(message, scope, self._status)
        await self._send(message)

    async def _send_refusal(self, message: Message, refusal: bytes) -> None:
        """Send our own error instead of LiteLLM's; on a WebSocket as far as the server supports it."""
        if message["type"] == "http.response.body":
            await self._send({"type": "http.response.body", "body": refusal})
        elif "websocket.http.response" in (self._asgi_scope.get("extensions") or {}):
            begun: Message = {"type": "websocket.http.response.start", "status": self._scope.status, "headers": []}
            await self._send(_with_ours(begun, self._scope))
            await self._send({"type": "websocket.http.response.body", "body": refusal})
        else:
            await self._send(message)

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] in ("http.disconnect", "websocket.disconnect") and not self._is_sent:
            self._scope.ending = "cancelled"
        return message


def _sends_the_last(message: Message, scope: RequestScope, status: int) -> bool:
    """Read a part of an answer's body, and return whether it is the last one."""
    if scope.report is not None:
        scope.report.read_bytes(message.get("body", b""))
    is_last = not message.get("more_body")
    if is_last and status < _ERROR and scope.ending != "cancelled":
        scope.ending = "success"
    return is_last


def _with_ours(message: Message, scope: RequestScope) -> Message:
    ours = {name.lower().encode("latin-1"): _latin(value) for name, value in scope.headers.items()}
    dropped = set(ours)
    if scope.body is not None:
        ours |= {b"content-type": b"application/json", b"content-length": str(len(scope.body)).encode()}
        # LiteLLM's body may be compressed; ours is not.
        dropped |= {*ours, b"content-encoding", b"transfer-encoding"}
    kept = [pair for pair in message.get("headers", ()) if pair[0].lower() not in dropped]
    return {**message, "status": scope.status or message["status"], "headers": [*kept, *ours.items()]}


def _latin(value: str) -> bytes:
    """Encode a header value, replacing characters that HTTP cannot carry with question marks."""
    return value.encode("latin-1", "replace")
