"""Deferred results: background responses and batches, whose first answer comes before their usage is known.

The first answer names the work and reports that it is not finished. Its reservation then stays in the ledger, and no
worker waits for it. A later look-up that returns the result settles it: on any worker, and once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from litellm.responses.utils import ResponsesAPIRequestUtils

from usage_plugin.errors import LedgerError
from usage_plugin.log import get_logger, short_error
from usage_plugin.proxy.inflight_request import InflightRequest
from usage_plugin.tracking.admission import deferred_reservations

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usage_plugin.domain.clock import Clock
    from usage_plugin.domain.usage import Status
    from usage_plugin.tracking.admission.recorder import Recorder
    from usage_plugin.tracking.ledger_thread import LedgerThread

LOOK_UPS = frozenset({"aget_responses", "aretrieve_batch"})
"""LiteLLM's call types for looking up deferred work."""

_OPEN = frozenset({"queued", "in_progress", "validating", "finalizing", "cancelling"})
_DONE: Mapping[str, Status] = {
    "completed": "success", "incomplete": "success", "failed": "failure", "expired": "failure",
    "cancelled": "cancelled",
}  # fmt: skip

log = get_logger()


class Work(NamedTuple):
    """An answer's report on deferred work.

    Attributes:
        provider_id: The provider's own id; LiteLLM wraps it in other ids that differ between answers.
        status: The final status; None until the work is finished.
    """

    provider_id: str
    status: Status | None


class Deferred:
    """Reservations that wait for deferred results; each handler has one."""

    def __init__(self, ledger: LedgerThread, recorder: Recorder, clock: Clock) -> None:
        """Create it from the ledger's thread, the recorder and the clock."""
        self._ledger = ledger
        self._recorder = recorder
        self._clock = clock

    async def hold(self, request: InflightRequest, work: Work) -> bool:
        """Keep a reservation in the ledger until the result is known; return False if that is impossible."""
        if not request.admitted.holds:
            return False
        try:
            await self._ledger.run(
                lambda opened: deferred_reservations.defer(opened.operations, work.provider_id, request.event_id)
            )
        except LedgerError as error:
            log.error("request.not_deferred", event_id=request.event_id, **short_error(error))  # noqa: TRY400
            return False
        self._recorder.free_slots(request)
        return True

    async def find(self, work: Work) -> InflightRequest | None:
        """Return the request that a result belongs to; None if it was settled before."""
        try:
            admitted = await self._ledger.run(
                lambda opened: deferred_reservations.find(opened.ledger, opened.operations, work.provider_id)
            )
        except LedgerError as error:
            log.error("request.not_found", **short_error(error))  # noqa: TRY400
            return None
        if admitted is None:
            return None
        took = self._clock.now() - admitted.event.started_at
        return InflightRequest(admitted, self._clock.monotonic() - max(0, took))

    async def forget(self, work: Work) -> None:
        """Remove the note of work that has been settled."""
        try:
            await self._ledger.run(lambda opened: deferred_reservations.forget(opened.operations, work.provider_id))
        except LedgerError as error:
            log.debug("request.note_left", **short_error(error))


def work_of(answer: Any, number: object = None) -> Work | None:  # any of LiteLLM's answers
    """Return an answer's report on deferred work; None if it is an ordinary answer.

    Args:
        answer: The provider's answer.
        number: The id that the client looked up, since the answer's own may be encrypted by now.
    """
    name, status = _field(answer, "object"), _field(answer, "status")
    known = number or _field(answer, "id")
    if name not in ("response", "batch") or not isinstance(known, str) or not isinstance(status, str):
        return None
    if status not in _OPEN and status not in _DONE:
        return None
    if name == "response":
        known = ResponsesAPIRequestUtils.decode_previous_response_id_to_original_previous_response_id(known)
    return Work(known, _DONE.get(status))


def finished_work(answer: Any, number: object = None) -> Work | None:  # any of LiteLLM's answers
    """Return the report on deferred work if it is finished, else None."""
    work = work_of(answer, number)
    return work if work is not None and work.status is not None else None


def is_batch(answer: Any) -> bool:  # any of LiteLLM's answers
    """Whether an answer describes a batch."""
    return bool(_field(answer, "object") == "batch")


def _field(answer: Any, name: str) -> Any:
    return answer.get(name) if isinstance(answer, dict) else getattr(answer, name, None)
