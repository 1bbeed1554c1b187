"""Refused requests, as plugins are told of them: what the client was told, without its prompt or key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from usage_plugin.domain.limits import Unit

Reason = Literal["spent", "busy", "too_large", "unpriced", "unbounded", "unmetered", "outbox_full", "unavailable"]
"""Why a request is refused; `docs/refusals.md` has a row for each."""


class RefusedRequest(NamedTuple):
    """A request that was refused.

    Attributes:
        ref: what the client was told to name; `usage-plugin explain REF` looks it up.
        at: microseconds since 1970 UTC.
        reason: `docs/refusals.md` has a row for each.
        limit: the limit that refused it; None if the ledger or the store did not work, or the route is unmetered.
            Without a limit `subject` is empty, and the amounts are None.
        subject: whom the limit counts, dimension by dimension: `{"user": "ann"}`; empty for everybody.
        unit: what the amounts count; `usd` is nano-dollars.
        maximum: what the limit allows.
        spent: what was spent on its account before, `reserved` what others held, `needed` what this one may use.
        resets_at: when time alone makes room again, microseconds since 1970 UTC; None if it does not.
    """

    ref: str
    at: int
    reason: Reason
    user: str
    model: str | None = None
    limit: str | None = None
    subject: dict[str, str] = {}  # noqa: RUF012  # never changed
    unit: Unit | None = None
    maximum: int | None = None
    spent: int | None = None
    reserved: int | None = None
    needed: int | None = None
    resets_at: int | None = None
