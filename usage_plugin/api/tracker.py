"""The tracker: record, reserve and read the usage of a data folder."""

from __future__ import annotations

import asyncio
import datetime as dt
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from usage_plugin.api.profiles import ProfileFields, checked_fields
from usage_plugin.api.queries import UsageQueries
from usage_plugin.api.reservations import Reservation, reserve
from usage_plugin.api.summary import summarise
from usage_plugin.api.validation import (
    Attribution,
    Facts,
    UsageFacts,
    cost_of,
    count_of,
    outcome_of,
    subjects_of,
    text_of,
    user_name,
)
from usage_plugin.domain.money import to_decimal
from usage_plugin.domain.profiles import UserProfile
from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.subjects import clean_name
from usage_plugin.domain.usage import UsageEvent, new_event_id
from usage_plugin.domain.windows import MICROSECONDS
from usage_plugin.errors import LedgerError, UsagePluginError
from usage_plugin.tracking.admission.decisions import unheld
from usage_plugin.tracking.admission.demands import Ask, Candidate
from usage_plugin.tracking.admission.recorder import OpenRequest
from usage_plugin.tracking.ledger_retry import LONGEST_WAIT, retry_while_busy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from typing_extensions import Unpack

    from usage_plugin.api.results import Money, UsageSummary
    from usage_plugin.domain.subjects import Subjects
    from usage_plugin.tracking.admission.recorder import Outcome

CALL_TYPE = "library"
"""The call type of events that a program records."""

_LONGEST_WORK = 366 * 86_400
_PAGE = 1_000


class UsageTracker(UsageQueries):
    """Records usage, holds budgets and reads the history, in one event loop; `open_tracker` creates it."""

    # ── recording ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def record_usage(self, user_id: str | None, *, cost: Money | None, **facts: Unpack[UsageFacts]) -> UsageEvent:
        """Record a completed request, and charge it on every limit that counts it; limits do not refuse it.

        On return the event is in the ledger's file, and is moved to the history within a second or two. If the call
        raises or is cancelled, nothing was recorded.

        Args:
            user_id: the user; None for the shared user `(anonymous)`.
            cost: the cost in USD; None if no price is known.
            facts: model, provider, tokens, session_id, team …: the keys of `UsageFacts`. `seconds` is the duration of
                the request, which counts in the window of its beginning.

        Raises:
            MoneyError: the cost is not a valid amount, or exceeds the maximum of one request.
            SubjectNameError: a name is not valid.
            LedgerError: the ledger did not accept the event within five seconds.
            UsagePluginError: a fact is unknown or cannot be stored.
        """
        runtime = self._runtime
        used, others, rest = _split(facts)
        outcome = outcome_of(cost, used)
        subjects = self._subjects(user_id, others)
        lasted = _microseconds(rest.get("seconds", 0.0))
        draft = self._draft(subjects, outcome.model, outcome.provider, runtime.clock.now() - lasted)
        draft = draft._replace(call_id=text_of("request_id", rest.get("request_id")))
        event = self.record_outcome(draft, subjects, outcome, lasted)
        if runtime.request_ledger.pending:
            # Another process is writing to the ledger.
            try:
                await runtime.request_ledger.drain(LONGEST_WAIT)
            except asyncio.CancelledError:
                runtime.request_ledger.withdraw(event.event_id)
                raise
            if runtime.request_ledger.withdraw(event.event_id):
                raise LedgerError(
                    f"The ledger did not accept this usage within {LONGEST_WAIT:.0f} seconds: it is not recorded.",
                    hint="Retry when the ledger is available; see the log for the cause.",
                )
        return event

    def record_outcome(self, draft: UsageEvent, subjects: Subjects, outcome: Outcome, lasted: int) -> UsageEvent:
        """Record a request without an admission, for adapters; `lasted` in microseconds."""
        runtime = self._runtime
        request = OpenRequest(unheld(draft, subjects), runtime.clock.monotonic() - lasted)
        recorded = runtime.recorder.record(request, outcome)
        if recorded is None:
            raise UsagePluginError(f"The event {draft.event_id} was already recorded.")
        runtime.anomalies.count_event(recorded.event)
        return recorded.event

    @property
    def casefold(self) -> bool:
        """Whether `Ann` and `ann` are one user: `identity.casefold`."""
        return self._runtime.config.identity.casefold

    def now(self) -> int:
        """Return the current time in microseconds since 1970 UTC."""
        return self._runtime.clock.now()

    def reserve_budget(
        self,
        user_id: str | None,
        amount: Money,
        *,
        model: str | None = None,
        provider: str | None = None,
        max_input_tokens: int | None = None,
        max_output_tokens: int | None = None,
        **others: Unpack[Attribution],
    ) -> AbstractAsyncContextManager[Reservation]:
        """Hold an amount on every limit that counts the work, for the length of the context.

        Settle it inside with what the work really cost. What is left unsettled is released, however the context is
        left: it costs nothing, and leaves no event. If the process dies inside, it is charged by `admission.on_lost`.
        A budget that would fit once others settle is waited for, as long as `admission.max_wait` says.

        Args:
            user_id: the user; None for the shared user `(anonymous)`.
            amount: the maximum cost of the work in USD.
            model: the model, which limits may match.
            provider: the provider, which limits may match.
            max_input_tokens: the maximum number of input tokens; required by limits on tokens.
            max_output_tokens: the maximum number of output tokens; required by limits on tokens.
            others: session_id, team …: the keys of `Attribution`.

        Raises:
            BudgetExceededError: on entering: a limit does not have the amount left.
            NotAdmittedError: on entering: the ledger is unavailable, or a limit on tokens needs a maximum.
            MoneyError: the amount is not valid, or exceeds the maximum of one request.
            SubjectNameError: a name is not valid.
            UsagePluginError: a dimension is unknown, or a maximum is not a valid number of tokens.
        """
        subjects = self._subjects(user_id, others)
        model, provider = clean_name(model, what="model"), clean_name(provider, what="provider")
        most = {"max_input_tokens": max_input_tokens, "max_output_tokens": max_output_tokens}
        counts = {name: None if count is None else count_of(name, count) for name, count in most.items()}
        ask = Ask(
            draft=self._draft(subjects, model, provider, self._runtime.clock.now()),
            subjects=subjects,
            primary=(Candidate(model, provider, priced=True, worst_cost=cost_of(amount)),),
            input_tokens=counts["max_input_tokens"],
            output_tokens=counts["max_output_tokens"],
        )
        return reserve(self._runtime, ask)

    def _subjects(self, user_id: str | None, others: Attribution) -> Subjects:
        return self.keep(subjects_of(self._runtime.config.identity, user_id, others))

    def keep(self, subjects: Subjects) -> Subjects:
        """Return the subjects with keys, and persons under `privacy: {user: pseudonym}`, replaced by pseudonyms."""
        return self._runtime.pseudonyms.keep(subjects)

    @staticmethod
    def _draft(subjects: Subjects, model: str | None, provider: str | None, started_at: int) -> UsageEvent:
        return UsageEvent(
            event_id=new_event_id(),
            started_at=started_at,
            status="recovered",
            call_type=CALL_TYPE,
            **subjects.kept(),
            requested_model=model,
            model=model,
            provider=provider,
        )

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def get_user_daily_usage(self, user_id: str, date: dt.date | str | None = None) -> Decimal:
        """Return a user's spend on a day, in USD.

        Args:
            user_id: the user.
            date: a day of the configured time zone, also as `YYYY-MM-DD`; by default today.
        """
        return to_decimal((await self._reader.user_day(self._user(user_id), _day(date))).cost)

    async def get_user_monthly_usage(self, user_id: str, month: dt.date | str | None = None) -> Decimal:
        """Return a user's spend in a month, in USD.

        Args:
            user_id: the user.
            month: the month as `YYYY-MM`, or any day of it; by default the current month.
        """
        day = _day(f"{month}-01" if isinstance(month, str) and month.count("-") == 1 else month)
        return to_decimal((await self._reader.user_month(self._user(user_id), day)).cost)

    async def get_user_session_usage(self, user_id: str, session_id: str) -> Decimal:
        """Return a user's spend in a session, in USD, from all events of the user that are kept."""
        events = self._reader.events(usage_filter=UsageFilter(user=self._user(user_id)))
        return to_decimal(sum([event.cost or 0 async for event in events if event.session == session_id]))

    async def get_user_usage_summary(self, user_id: str, days: int = 30) -> UsageSummary:
        """Return a user's limits, alerts, sessions and usage of the last days, today included."""
        if days < 1:
            raise UsagePluginError(f"days: expected 1 or more; found {days}.")
        name = user_name(self._runtime.config.identity, user_id)
        return await summarise(self._runtime, self._reader, name, days)

    def _user(self, user_id: str) -> str:
        """Return the name under which a user's records are kept."""
        return self._runtime.pseudonyms.kept(user_name(self._runtime.config.identity, user_id))

    # ── profiles ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def get_user_profile(self, user_id: str) -> UserProfile | None:
        """Return a user's profile; None if there is none."""
        return self._runtime.profiles.get(self._user(user_id))

    async def put_user_profile(self, user_id: str, **fields: Unpack[ProfileFields]) -> UserProfile:
        """Create or change a user's profile; fields that are not given do not change.

        Args:
            user_id: the user.
            fields: username, email, tier, is_active, preferences and metadata; the latter two are dicts for JSON.

        Raises:
            UsagePluginError: a field is unknown, or its value has the wrong type.
        """
        checked = checked_fields(fields)
        user, now = self._user(user_id), self._runtime.clock.now()
        profiles = self._runtime.profiles

        def put() -> UserProfile:
            profile = (profiles.get(user) or UserProfile(user, created_at=now)).changed(now, **checked)
            profiles.put([profile])
            return profile

        return await retry_while_busy(put)

    async def delete_user_profile(self, user_id: str) -> bool:
        """Delete a user's profile, and no other records; return False if there is none."""
        return await retry_while_busy(lambda: self._runtime.profiles.remove(self._user(user_id)))

    async def user_profiles(self) -> AsyncIterator[UserProfile]:
        """Stream all profiles, by user."""
        last = ""
        while page := self._runtime.profiles.page(last, _PAGE):
            for profile in page:
                yield profile
            last = page[-1].user
            await asyncio.sleep(0)

    # ── alerts ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def acknowledge_alert(self, alert_id: int, by: str) -> bool:
        """Record that an alert was acknowledged; return False if it does not exist or was acknowledged before."""
        runtime = self._runtime
        name = text_of("by", by)
        if not name:
            raise UsagePluginError(f"by: expected a name; found {by!r}.")
        return await retry_while_busy(lambda: runtime.operations.acknowledge_alert(alert_id, runtime.clock.now(), name))


def _split(facts: UsageFacts) -> tuple[Facts, Attribution, dict[str, Any]]:
    """Split facts into usage, attribution, and duration and id; unknown ones are in the usage, which rejects them."""
    used: Any = {}
    others: Any = {}
    rest: dict[str, Any] = {}
    for name, value in facts.items():
        if name in Attribution.__annotations__:
            others[name] = value
        elif name in ("seconds", "request_id"):
            rest[name] = value
        else:
            used[name] = value
    return used, others, rest


def _microseconds(seconds: float | Decimal) -> int:
    # Infinity and NaN cannot all be compared.
    fits = isinstance(seconds, int | float | Decimal) and not (isinstance(seconds, Decimal) and not seconds.is_finite())
    if not fits or not 0 <= seconds <= _LONGEST_WORK:
        raise UsagePluginError(f"seconds: expected a duration from 0 to {_LONGEST_WORK}; found {seconds!r}.")
    return round(seconds * MICROSECONDS)


def _day(day: dt.date | str | None) -> dt.date | None:
    try:
        return dt.date.fromisoformat(day) if isinstance(day, str) else day
    except ValueError:
        raise UsagePluginError(f"expected a day as YYYY-MM-DD, or a month as YYYY-MM; found {day!r}.") from None
