"""The exchange: one HTTP request and its answer, seen from outside of LiteLLM.

An ASGI wrapper around the whole proxy puts an `Exchange` into a context variable. Hooks find it there, whichever task
LiteLLM runs them in: it is filled and never replaced, since what a child task sets nobody else sees. What they leave in
it becomes headers of the answer, on every route; and when the request is really over, down to the last byte or the
client's hanging up, the wrapper says so.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping

    from usage_plugin.domain.money import Nano
    from usage_plugin.domain.usage import Status
    from usage_plugin.proxy.streams import Report
    from usage_plugin.proxy.underway import RequestUnderWay
    from usage_plugin.tracking.demands import Standing

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_ERROR = 400
"""The statuses of HTTP from which on an answer is that of a failure."""

current: ContextVar[Exchange | None] = ContextVar("usage_plugin_exchange", default=None)


class Exchange:
    """What our hooks leave for the answer.

    Attributes:
        headers: added to the answer, in place of what has the same name.
        status: of our refusal; LiteLLM turns some into a 500 on some routes, depending on its version.
        body: of our refusal, where it is not the one that LiteLLM writes.
        standing: how the tightest of the caller's own limits stands.
        cost: of the request, in nano-dollars, once it is known.
        ending: how it looks from here: cancelled if the client left before the whole answer was sent, success if it
            was sent and its status is not that of an error.
        report: reads the frames that the client gets, where they are the provider's own.
        requests: what was admitted: one, but for websockets, and where LiteLLM calls the hook once more.
    """

    __slots__ = (
        "_asked", "_client_headers", "body", "cost", "ending", "headers", "path", "report", "requests", "standing",
        "status",
    )  # fmt: skip

    def __init__(self, path: str = "", asked: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Start with the path and the headers of the request, as ASGI has them."""
        self.path = path
        self._asked = asked
        self._client_headers: Mapping[str, str] | None = None
        self.headers: dict[str, str] = {}
        self.status: int | None = None
        self.body: bytes | None = None
        self.standing: Standing | None = None
        self.cost: Nano | None = None
        self.ending: Status = "failure"
        self.report: Report | None = None
        self.requests: list[RequestUnderWay] = []

    @property
    def client_headers(self) -> Mapping[str, str]:
        """The request's headers by their lower-case names; of several with one name the last, as in LiteLLM."""
        if self._client_headers is None:
            self._client_headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self._asked}
        return self._client_headers


class ExchangeWrapper:
    """Wraps the proxy's ASGI app."""

    def __init__(
        self, app: App, *, on_start: Callable[[Exchange], None], on_end: Callable[[RequestUnderWay, Status], None]
    ) -> None:
        """Call `on_start` before an answer's headers are sent, `on_end` when an admitted request is over.

        Neither may raise.
        """
        self._app = app
        self._on_start = on_start
        self._on_end = on_end

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope.get("path", ""), scope.get("headers", ()))
        is_sent, answered = False, 0
        body: bytes | None = None
        token = current.set(exchange)

        async def send_with_headers(message: Message) -> None:
            nonlocal is_sent, answered, body
            if message["type"] == "http.response.start":
                self._on_start(exchange)
                message = _with_ours(message, exchange)
                answered, body = message["status"], exchange.body
            elif message["type"] == "http.response.body":
                is_sent = _sends_the_last(message, exchange, answered)
                message, body = _in_place(message, body)
            await send(message)

        async def receive_with_end() -> Message:
            message = await receive()
            if message["type"] in ("http.disconnect", "websocket.disconnect") and not is_sent:
                exchange.ending = "cancelled"
            return message

        try:
            await self._app(scope, receive_with_end, send_with_headers)
        finally:
            current.reset(token)
            for request in exchange.requests:
                self._on_end(request, exchange.ending)


def _sends_the_last(message: Message, exchange: Exchange, status: int) -> bool:
    """Read a part of an answer's body; return whether it is the last one."""
    if exchange.report is not None:
        exchange.report.read_bytes(message.get("body", b""))
    is_last = not message.get("more_body")
    if is_last and status < _ERROR and exchange.ending != "cancelled":
        exchange.ending = "success"
    return is_last


def _in_place(message: Message, body: bytes | None) -> tuple[Message, bytes | None]:
    """Put the body of our refusal in place of a part of LiteLLM's, and nothing in place of its further parts."""
    return (message, None) if body is None else ({**message, "body": body}, b"")


def _with_ours(message: Message, exchange: Exchange) -> Message:
    ours = {name.lower().encode("latin-1"): _latin(value) for name, value in exchange.headers.items()}
    if exchange.body is not None:
        ours |= {b"content-type": b"application/json", b"content-length": str(len(exchange.body)).encode()}
    kept = [pair for pair in message.get("headers", ()) if pair[0].lower() not in ours]
    return {**message, "status": exchange.status or message["status"], "headers": [*kept, *ours.items()]}


def _latin(value: str) -> bytes:
    """Encode a header's value; what HTTP cannot carry becomes a question mark."""
    return value.encode("latin-1", "replace")
