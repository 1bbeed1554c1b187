"""Requests under way: those that were admitted and are not settled, and how to find the one that a hook speaks of.

A request is known by an id of ours in its metadata, which nobody can guess. Call ids and response ids are chosen by
clients and providers, and repeat.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from usage_plugin.proxy import exchange
from usage_plugin.tracking.recorder import OpenRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usage_plugin.domain.usage import Status
    from usage_plugin.proxy.asking import Sending
    from usage_plugin.proxy.streams import Report, Stream
    from usage_plugin.tracking.admission import Admitted, Refusal

STAMP = "usage_plugin_event"
"""The key under which our id travels in the request's metadata; never sent to a provider."""

_METADATA = ("litellm_metadata", "metadata")
_REMEMBERED = 10_000

_FREE_CALLS = re.compile(
    r"^a?_?(get|list|delete|cancel|retrieve|upload|file_)|_(retrieve|list|delete|(?<!generate_)content|character|job)$"
    r"|create_(file|assistants|thread|container|sandbox)$|add_message$|^vector_store_file|^avector_store_file"
)
"""Call types of look-ups and of what only keeps things: LiteLLM calls the hook for them too. All others can cost."""

Settler = Literal["inline", "success", "failure", "orphan", "deferred"]
"""How a request was settled: inline before a whole answer is sent, by the log of a success, by the failure hook, by no
hook; or that its settlement waits for a result."""


class RequestUnderWay(OpenRequest):
    """An admitted request, and what the hooks have said of it so far.

    Attributes:
        answer: of the provider, as the innermost call of LiteLLM's has it.
        stream: LiteLLM's, as the innermost call of LiteLLM's has made it.
        report: what the provider's own frames have reported, where the client gets them as they are.
        logged: what was logged of its success before the last frame was read.
        is_over: its last byte is sent.
        sent: a provider has it, and has not answered.
        broken: the last attempt was logged as a failure.
        cut: what was delivered is only a part.
        failed: the client has been told of a failure; the provider may still be working, and will want its money.
        error: the name of that failure.
        unmetered: its route tells nobody what it used.
        fills_exchange: every call to a provider in its exchange belongs to it, whichever call id that has.
        sending: its bounds, to compare the outgoing request with; None where no limit depends on them.
        stopped: the refusal, if the outgoing request is more than the limits allow.
    """

    __slots__ = (
        "answer", "broken", "cut", "error", "failed", "fills_exchange", "is_over", "logged", "report", "sending",
        "sent", "stopped", "stream", "unmetered",
    )  # fmt: skip

    def __init__(
        self, admitted: Admitted, started: int, *, unmetered: bool = False, fills_exchange: bool = False
    ) -> None:
        """Remember what was admitted; `started` is the monotonic clock's."""
        super().__init__(admitted, started)
        self.answer: Any = None
        self.stream: Stream | None = None
        self.report: Report | None = None
        self.logged: tuple[Mapping[str, Any], Any] | None = None
        self.is_over = False
        self.sent = False
        self.broken = False
        self.cut = False
        self.failed: Status | None = None
        self.error: str | None = None
        self.unmetered = unmetered
        self.fills_exchange = unmetered or fills_exchange
        self.sending: Sending | None = None
        self.stopped: Refusal | None = None

    @property
    def models(self) -> tuple[str | None, str | None]:
        """The name that was asked for, and the router's own, of which it may be an alias."""
        return self.admitted.event.requested_model, self.admitted.event.model


class Underway:
    """The requests of this worker that are under way."""

    def __init__(self) -> None:
        """Start with none."""
        self._open: dict[str, RequestUnderWay] = {}
        self._settled: OrderedDict[str, Settler] = OrderedDict()

    def add(self, request: RequestUnderWay, data: dict[str, Any], here: exchange.Exchange | None) -> None:
        """Stamp an admitted request, and remember it."""
        self._open[request.event_id] = request
        if here is not None:
            here.requests = [known for known in here.requests if not known.settled] + [request]
        metadata_of(data)[STAMP] = request.event_id

    def forget(self, request: RequestUnderWay, settler: Settler) -> None:
        """Let go of a request that is settled; for a while it is known by whom."""
        self._open.pop(request.event_id, None)
        self._settled[request.event_id] = settler
        if len(self._settled) > _REMEMBERED:
            self._settled.popitem(last=False)

    def left(self) -> list[RequestUnderWay]:
        """List what is not settled."""
        return list(self._open.values())

    def of_hook(self, data: Mapping[str, Any]) -> RequestUnderWay | None:
        """Find the request of the body that a hook was given."""
        return self._stamped(data) or _of_exchange(data.get("litellm_call_id"))

    def of_log(self, kwargs: Mapping[str, Any]) -> RequestUnderWay | None:
        """Find the request that a logging callback speaks of."""
        return self._stamped(_parameters(kwargs)) or _of_exchange(kwargs.get("litellm_call_id"))

    @staticmethod
    def is_foreign(kwargs: Mapping[str, Any]) -> bool:
        """Say whether what was logged was never admitted: a health check, or a question that a guardrail asked."""
        if _stamps(_parameters(kwargs)):
            return False
        here, call_id = exchange.current.get(), kwargs.get("litellm_call_id")
        return here is None or all(request.admitted.event.call_id != call_id for request in here.requests)

    def repetition(self, holder: Mapping[str, Any], *, by: Settler) -> Literal["expected", "again"] | None:
        """Say whether a request that is settled is reported once more; None if it is not known.

        Args:
            holder: the body that a hook was given, or the `kwargs` of a logging callback.
            by: who reports.
        """
        for stamp in (*_stamps(holder), *_stamps(_parameters(holder))):
            settler = self._settled.get(stamp)
            if settler in ("inline", "deferred") and by == "success":
                # Every whole answer is logged after it was settled inline: that is once as expected.
                self._settled[stamp] = "success"
                return "expected"
            if settler is not None:
                return "again"
        return None

    def _stamped(self, holder: Mapping[str, Any]) -> RequestUnderWay | None:
        for name in _METADATA:
            metadata = holder.get(name)
            if isinstance(metadata, dict):
                stamp = metadata.get(STAMP)
                if isinstance(stamp, str) and stamp in self._open:
                    return self._open[stamp]
        return None


@lru_cache(maxsize=256)
def is_free(call_type: str) -> bool:
    """Say whether calls of this type cost nothing, whatever comes of them."""
    return _FREE_CALLS.search(call_type) is not None


def metadata_of(data: dict[str, Any]) -> dict[str, Any]:
    """Find the metadata that stays in the proxy: on some routes `metadata` is the provider's own parameter."""
    name = "litellm_metadata" if "litellm_metadata" in data else "metadata"
    if not isinstance(data.get(name), dict):
        data[name] = {}
    found: dict[str, Any] = data[name]
    return found


def _parameters(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = kwargs.get("litellm_params")
    return parameters if isinstance(parameters, dict) else {}


def _stamps(holder: Mapping[str, Any]) -> list[str]:
    """List what may be an id of ours; a client can put one there as well, but guess none."""
    found = (holder.get(name) for name in _METADATA)
    stamps = (metadata.get(STAMP) for metadata in found if isinstance(metadata, dict))
    return [stamp for stamp in stamps if isinstance(stamp, str)]


def _of_exchange(call_id: object) -> RequestUnderWay | None:
    """Find the request of this exchange; the call id tells it from calls that guardrails make meanwhile.

    A request that the gate admits has no call id yet. An unmetered route has none, and its failure hook gets no body.
    """
    here = exchange.current.get()
    if here is None:
        return None
    return next(
        (r for r in here.requests if not r.settled and (r.fills_exchange or r.admitted.event.call_id == call_id)), None
    )
