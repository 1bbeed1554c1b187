"""Requests under way: the admitted requests that are not settled, and how a hook's request is found among them.

A request is identified by an id of our own in its metadata, which cannot be guessed. Call ids and response ids are
chosen by clients and providers, and repeat.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from usage_plugin.proxy import request_scope
from usage_plugin.proxy.litellm_metadata import metadata_in, proxy_metadata

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usage_plugin.proxy.inflight_request import InflightRequest

STAMP = "usage_plugin_event"
"""The key of our id in the request's metadata; it is never sent to a provider."""

_REMEMBERED = 10_000

_FREE_CALLS = re.compile(
    r"^a?_?(get|list|delete|cancel|retrieve|upload|file_)|_(retrieve|list|delete|(?<!generate_)content|character|job)$"
    r"|create_(file|assistants|thread|container|sandbox)$|add_message$|^vector_store_file|^avector_store_file"
)
"""Call types of look-ups and of storage: LiteLLM calls the hook for them too. All others can cost."""

Settler = Literal["inline", "success", "failure", "orphan", "deferred"]
"""How a request was settled.

- `inline`: before a whole answer is sent
- `success`: by the log of a success
- `failure`: by the failure hook
- `orphan`: without any hook
- `deferred`: not yet, since its settlement waits for a result
"""


class InflightRequests:
    """The requests in progress in this worker."""

    def __init__(self) -> None:
        """Start without any request."""
        self._open: dict[str, InflightRequest] = {}
        self._settled: OrderedDict[str, Settler] = OrderedDict()

    def add(self, request: InflightRequest, data: dict[str, Any], scope: request_scope.RequestScope | None) -> None:
        """Stamp an admitted request, and keep it until it is settled."""
        self._open[request.event_id] = request
        if scope is not None:
            scope.requests = [known for known in scope.requests if not known.settled] + [request]
        proxy_metadata(data)[STAMP] = request.event_id

    def forget(self, request: InflightRequest, settler: Settler) -> None:
        """Remove a settled request; its settler is remembered for a while."""
        self._open.pop(request.event_id, None)
        self._settled[request.event_id] = settler
        if len(self._settled) > _REMEMBERED:
            self._settled.popitem(last=False)

    def left(self) -> list[InflightRequest]:
        """Return the requests that are not settled."""
        return list(self._open.values())

    def of_hook(self, data: Mapping[str, Any]) -> InflightRequest | None:
        """Return the request of the body that a hook gets."""
        return self._stamped(data) or _of_scope(data.get("litellm_call_id"))

    def of_log(self, kwargs: Mapping[str, Any]) -> InflightRequest | None:
        """Return the request of a logging callback."""
        return self._stamped(_parameters(kwargs)) or _of_scope(kwargs.get("litellm_call_id"))

    @staticmethod
    def is_foreign(kwargs: Mapping[str, Any]) -> bool:
        """Whether a logged call was never admitted, such as a health check or a guardrail's own call."""
        if _stamps(_parameters(kwargs)):
            return False
        scope, call_id = request_scope.current.get(), kwargs.get("litellm_call_id")
        return scope is None or all(request.admitted.event.call_id != call_id for request in scope.requests)

    def repetition(self, holder: Mapping[str, Any], *, by: Settler) -> Literal["expected", "again"] | None:
        """Return whether a settled request is reported again, as expected or not; None if the request is unknown.

        Args:
            holder: The body that a hook gets, or the `kwargs` of a logging callback.
            by: The hook that reports.
        """
        for stamp in (*_stamps(holder), *_stamps(_parameters(holder))):
            settler = self._settled.get(stamp)
            if settler in ("inline", "deferred") and by == "success":
                # Every whole answer is logged once after it was settled inline.
                self._settled[stamp] = "success"
                return "expected"
            if settler is not None:
                return "again"
        return None

    def _stamped(self, holder: Mapping[str, Any]) -> InflightRequest | None:
        for stamp in _stamps(holder):
            if stamp in self._open:
                return self._open[stamp]
        return None


@lru_cache(maxsize=256)
def is_free(call_type: str) -> bool:
    """Whether calls of this type cost nothing, with any result."""
    return _FREE_CALLS.search(call_type) is not None


def _parameters(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = kwargs.get("litellm_params")
    return parameters if isinstance(parameters, dict) else {}


def _stamps(holder: Mapping[str, Any]) -> list[str]:
    """Return possible ids of ours; clients can send some too, but cannot guess a valid one."""
    stamps = [metadata.get(STAMP) for metadata in metadata_in(holder)]
    return [stamp for stamp in stamps if isinstance(stamp, str)]


def _of_scope(call_id: object) -> InflightRequest | None:
    """Return the unsettled request of this HTTP request. The call id excludes calls that guardrails made.

    A request that the gate admits has no call id yet. An unmetered route has none, and its failure hook gets no body.
    """
    scope = request_scope.current.get()
    if scope is None:
        return None
    return next(
        (r for r in scope.requests if not r.settled and (r.owns_all_calls or r.admitted.event.call_id == call_id)), None
    )
