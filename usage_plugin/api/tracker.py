"""The tracker: what a program may do with the usage of a data folder."""

from __future__ import annotations

import asyncio
import datetime as dt
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from usage_plugin.api.facts import (
    Belonging,
    Facts,
    UsageFacts,
    belonging,
    cost_of,
    count_of,
    given,
    text_of,
    user_name,
)
from usage_plugin.api.profiles import ProfileFields, checked_fields
from usage_plugin.api.queries import UsageQueries
from usage_plugin.api.reservations import Reservation, reserve
from usage_plugin.api.summary import summarise
from usage_plugin.api.waiting import LONGEST_WAIT, when_free
from usage_plugin.domain.money import to_decimal
from usage_plugin.domain.profiles import UserProfile
from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.subjects import clean_name
from usage_plugin.domain.usage import UsageEvent, new_event_id
from usage_plugin.domain.windows import MICROSECONDS
from usage_plugin.errors import LedgerError, UsagePluginError
from usage_plugin.tracking.admission import unheld
from usage_plugin.tracking.demands import Ask, Candidate
from usage_plugin.tracking.recorder import OpenRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from typing_extensions import Unpack

    from usage_plugin.api.values import Money, UsageSummary
    from usage_plugin.domain.subjects import Subjects
    from usage_plugin.tracking.recorder import Outcome

CALL_TYPE = "library"
"""The call type of events that a program recorded."""

_LONGEST_WORK = 366 * 86_400
_PAGE = 1_000


class UsageTracker(UsageQueries):
    """Records usage, holds budgets, and reads what was spent. One event loop uses it; `open_tracker` makes it."""

    # ── recording ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def record_usage(self, user_id: str | None, *, cost: Money | None, **facts: Unpack[UsageFacts]) -> UsageEvent:
        """Record a request that is over, and charge it on every limit that counts it; limits refuse nothing here.

        On return it is in the ledger's file, from where it goes into the history within a second or two. If this raises
        or is cancelled, nothing was recorded.

        Args:
            user_id: whose it is; None for the shared user `(anonymous)`.
            cost: in USD; None if no price is known.
            facts: model, provider, tokens, session_id, team …: the words of `UsageFacts`. `seconds` is how long the
                request took: it counts in the window in which it began.

        Raises:
            MoneyError: the cost is no amount, or more than any request costs.
            SubjectNameError: a name is not valid.
            LedgerError: the ledger did not take it within five seconds.
            UsagePluginError: there is no such fact, or one cannot be stored.
        """
        runtime = self._runtime
        used, others, rest = _sorted_out(facts)
        outcome = given(cost, used)
        subjects = self._subjects(user_id, others)
        lasted = _microseconds(rest.get("seconds", 0.0))
        draft = self._draft(subjects, outcome.model, outcome.provider, runtime.clock.now() - lasted)
        draft = draft._replace(call_id=text_of("request_id", rest.get("request_id")))
        event = self.record_outcome(draft, subjects, outcome, lasted)
        if runtime.recorder.pending:
            # Another process is writing just then.
            try:
                await runtime.recorder.drain(LONGEST_WAIT)
            except asyncio.CancelledError:
                runtime.recorder.withdraw(event.event_id)
                raise
            if runtime.recorder.withdraw(event.event_id):
                raise LedgerError(
                    f"The ledger did not take this usage within {LONGEST_WAIT:.0f} seconds: it is not recorded.",
                    hint="Record it again once the ledger works; the log says what is wrong with it.",
                )
        return event

    def record_outcome(self, draft: UsageEvent, subjects: Subjects, outcome: Outcome, lasted: int) -> UsageEvent:
        """Record what an adapter has read of a request that nobody asked us about; `lasted` in microseconds."""
        runtime = self._runtime
        request = OpenRequest(unheld(draft, subjects), runtime.clock.monotonic() - lasted)
        recorded = runtime.recorder.record(request, outcome)
        if recorded is None:
            raise UsagePluginError("A request of its own was settled before.")
        runtime.imperfections.look(recorded.event)
        return recorded.event

    @property
    def casefold(self) -> bool:
        """Whether `Ann` and `ann` are one: `identity.casefold`."""
        return self._runtime.config.identity.casefold

    def now(self) -> int:
        """Say what time it is, in microseconds since 1970 UTC."""
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
        **others: Unpack[Belonging],
    ) -> AbstractAsyncContextManager[Reservation]:
        """Hold an amount on every limit that counts the work, for as long as the context lasts.

        Settle it inside with what the work really cost. What is left unsettled is released, however the context is
        left: it costs nothing, and leaves no event. If the process dies inside, it is charged by `admission.on_lost`.
        A budget that would fit once others settle is waited for, as long as `admission.max_wait` says.

        Args:
            user_id: whose work it is; None for the shared user `(anonymous)`.
            amount: the most that the work can cost, in USD.
            model: which it will use; limits may match on it.
            provider: the same.
            max_input_tokens: the most that it can use, where limits count tokens.
            max_output_tokens: the same.
            others: session_id, team …: the words of `Belonging`.

        Raises:
            BudgetExceededError: on entering: a limit has no room.
            NotAdmittedError: on entering: the ledger does not work, or a limit on tokens needs to know a maximum.
            MoneyError: the amount is none, or more than any request costs.
            SubjectNameError: a name is not valid.
            UsagePluginError: there is no such dimension, or a maximum is no number of tokens.
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

    def _subjects(self, user_id: str | None, others: Belonging) -> Subjects:
        return self.keep(belonging(self._runtime.config.identity, user_id, others))

    def keep(self, subjects: Subjects) -> Subjects:
        """Put in the subjects of a request what is kept of keys, and of persons where they have pseudonyms."""
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
        """Give what a user spent on a day, in USD.

        Args:
            user_id: who.
            date: a day of the configured zone, also as `YYYY-MM-DD`; today if not given.
        """
        return to_decimal((await self._reader.user_day(self._user(user_id), _day(date))).cost)

    async def get_user_monthly_usage(self, user_id: str, month: dt.date | str | None = None) -> Decimal:
        """Give what a user spent in a month, in USD.

        Args:
            user_id: who.
            month: as `YYYY-MM`, or any day of it; the current one if not given.
        """
        day = _day(f"{month}-01" if isinstance(month, str) and month.count("-") == 1 else month)
        return to_decimal((await self._reader.user_month(self._user(user_id), day)).cost)

    async def get_user_session_usage(self, user_id: str, session_id: str) -> Decimal:
        """Give what a user spent in a session, in USD, as far back as events are kept; reads all events of the user."""
        events = self._reader.events(usage_filter=UsageFilter(user=self._user(user_id)))
        return to_decimal(sum([event.cost or 0 async for event in events if event.session == session_id]))

    async def get_user_usage_summary(self, user_id: str, days: int = 30) -> UsageSummary:
        """Show a user at a glance: limits, alerts, sessions, and the usage of so many days, today included."""
        if days < 1:
            raise UsagePluginError(f"days: found {days}, expected 1 or more.")
        name = user_name(self._runtime.config.identity, user_id)
        return await summarise(self._runtime, self._reader, name, days)

    def _user(self, user_id: str) -> str:
        """Give the name under which a user is kept."""
        return self._runtime.pseudonyms.kept(user_name(self._runtime.config.identity, user_id))

    # ── profiles ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def get_user_profile(self, user_id: str) -> UserProfile | None:
        """Give what is known of a user; None if nobody has said anything."""
        return self._runtime.ledger.profile(self._user(user_id))

    async def put_user_profile(self, user_id: str, **fields: Unpack[ProfileFields]) -> UserProfile:
        """Make or change a user's profile; what is not given stays as it is.

        Args:
            user_id: who.
            fields: username, email, tier, is_active, preferences and metadata, the latter two as JSON has them.

        Raises:
            UsagePluginError: there is no such field, or one is not what it must be.
        """
        checked = checked_fields(fields)
        user, now = self._user(user_id), self._runtime.clock.now()
        ledger = self._runtime.ledger

        def put() -> UserProfile:
            profile = (ledger.profile(user) or UserProfile(user, created_at=now)).changed(now, **checked)
            ledger.put_profiles([profile])
            return profile

        return await when_free(put)

    async def delete_user_profile(self, user_id: str) -> bool:
        """Forget a user's profile, and nothing else; False if there is none."""
        return await when_free(lambda: self._runtime.ledger.drop_profile(self._user(user_id)))

    async def user_profiles(self) -> AsyncIterator[UserProfile]:
        """Stream all profiles, by user."""
        last = ""
        while page := self._runtime.ledger.profiles(last, _PAGE):
            for profile in page:
                yield profile
            last = page[-1].user
            await asyncio.sleep(0)

    # ── alerts ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def acknowledge_alert(self, alert_id: int, by: str) -> bool:
        """Note who has seen to an alert; False if there is no such alert, or somebody has already."""
        runtime = self._runtime
        name = text_of("by", by)
        if not name:
            raise UsagePluginError(f"by: expected a name; found {by!r}.")
        return await when_free(lambda: runtime.ledger.acknowledge_alert(alert_id, runtime.clock.now(), name))


def _sorted_out(facts: UsageFacts) -> tuple[Facts, Belonging, dict[str, Any]]:
    """Tell what was used from whom it belongs to; what is neither is refused with the former."""
    used: Any = {}
    others: Any = {}
    rest: dict[str, Any] = {}
    for name, value in facts.items():
        if name in Belonging.__annotations__:
            others[name] = value
        elif name in ("seconds", "request_id"):
            rest[name] = value
        else:
            used[name] = value
    return used, others, rest


def _microseconds(seconds: float | Decimal) -> int:
    # Infinite ones and those that are no number cannot all be compared.
    fits = isinstance(seconds, int | float | Decimal) and not (isinstance(seconds, Decimal) and not seconds.is_finite())
    if not fits or not 0 <= seconds <= _LONGEST_WORK:
        raise UsagePluginError(f"seconds: expected the length of a request; found {seconds!r}.")
    return round(seconds * MICROSECONDS)


def _day(day: dt.date | str | None) -> dt.date | None:
    try:
        return dt.date.fromisoformat(day) if isinstance(day, str) else day
    except ValueError:
        raise UsagePluginError(f"{day!r} is no day; write YYYY-MM-DD, and YYYY-MM for a month.") from None
