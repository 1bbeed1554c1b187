"""Refused requests, as plugins receive them: the facts that the client received, without its prompt or key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from usage_plugin.domain.limits import Unit

Reason = Literal["spent", "busy", "too_large", "unpriced", "unbounded", "unmetered", "outbox_full", "unavailable"]
"""The reason of a refusal; `docs/refusals.md` has a row for each."""


class RefusedRequest(NamedTuple):
    """A request that was refused.

    Attributes:
        ref: the reference that the client received; `usage-plugin explain REF` looks it up.
        at: microseconds since 1970 UTC.
        reason: `docs/refusals.md` has a row for each.
        limit: the limit that refused it; None if the ledger or the store did not work, or the route is unmetered.
            Without a limit `subject` is empty, and the amounts are None.
        subject: the limit's subject by dimension: `{"user": "ann"}`; empty for everybody.
        unit: the unit of the amounts; `usd` is nano-dollars.
        maximum: the amount that the limit allows.
        spent: the amount spent on its account before.
        reserved: the amount that other requests held.
        needed: the amount that this request may use.
        resets_at: the time at which room returns by itself, microseconds since 1970 UTC; None if it does not.
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
