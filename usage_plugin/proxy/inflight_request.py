"""One admitted request, with its state until it is settled. `inflight` keeps those of a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usage_plugin.tracking.admission.recorder import OpenRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usage_plugin.domain.usage import Status
    from usage_plugin.proxy.request_plan import HeldBounds
    from usage_plugin.proxy.streams import Report, Stream
    from usage_plugin.tracking.admission.decisions import Admitted, Refusal


class InflightRequest(OpenRequest):
    """An admitted request, with its state as reported by the hooks.

    Attributes:
        answer: The provider's answer, from LiteLLM's innermost call.
        stream: LiteLLM's stream, from its innermost call.
        report: The report of the provider's own frames, or of the bytes sent to the client.
        logged: The arguments of a success log that came before the last frame was read.
        is_over: Whether the last byte is sent.
        is_at_provider: Whether a provider has received the request and not answered yet.
        broken: Whether the last attempt was logged as a failure.
        cut: Whether only a part of the answer was delivered.
        status_told: The status that the client got, while the provider may still be working, and bill the request.
        error: The name of the failure's exception.
        unmetered: Whether the route reports no usage.
        owns_all_calls: Whether every provider call of this HTTP request belongs to it, regardless of the call id.
        held_bounds: The bounds that its outgoing form is compared with; None if no limit depends on them.
        stopped: The refusal, if the outgoing request exceeds the limits.
    """

    __slots__ = (
        "answer", "broken", "cut", "error", "held_bounds", "is_at_provider", "is_over", "logged", "owns_all_calls",
        "report", "status_told", "stopped", "stream", "unmetered",
    )  # fmt: skip

    def __init__(
        self, admitted: Admitted, started: int, *, unmetered: bool = False, owns_all_calls: bool = False
    ) -> None:
        """Create it from an admitted request; `started` is in the monotonic clock's time."""
        super().__init__(admitted, started)
        self.answer: Any = None
        self.stream: Stream | None = None
        self.report: Report | None = None
        self.logged: tuple[Mapping[str, Any], Any] | None = None
        self.is_over = False
        self.is_at_provider = False
        self.broken = False
        self.cut = False
        self.status_told: Status | None = None
        self.error: str | None = None
        self.unmetered = unmetered
        self.owns_all_calls = unmetered or owns_all_calls
        self.held_bounds: HeldBounds | None = None
        self.stopped: Refusal | None = None

    @property
    def models(self) -> tuple[str | None, str | None]:
        """The requested name of the model, which may be an alias, and the router's own."""
        return self.admitted.event.requested_model, self.admitted.event.model
