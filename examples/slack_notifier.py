"""Posts alerts and refusals to a webhook of Slack, Mattermost, or any other that accepts {"text": …}.

    plugins:
      - {path: ./slack_notifier.py, options: {webhook: os.environ/SLACK_WEBHOOK}}

Clients often retry in bursts, so similar refusals are posted once an hour. The proxy counts a failed post as
`not_told`, under this plugin's name.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections import OrderedDict
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, HttpUrl, SecretStr, TypeAdapter, field_validator

from usage_plugin import plugins
from usage_plugin.plugins import Alert, BackendContext, RefusedRequest, Unit, format_usd, hookimpl, to_datetime

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_REMEMBERED = 10_000


class Options(plugins.Options):
    """The address and the kinds of messages; a limit's refusals of a subject are posted once in `quiet_minutes`."""

    webhook: SecretStr
    alerts: bool = True
    refusals: bool = True
    quiet_minutes: Annotated[int, Field(ge=0, le=10_080)] = 60
    timeout_seconds: Annotated[int, Field(ge=1, le=25)] = 10

    @field_validator("webhook")
    @classmethod
    def _is_url(cls, value: SecretStr) -> SecretStr:
        TypeAdapter(HttpUrl).validate_python(value.get_secret_value())
        return value


class Plugin:
    """Post messages one by one, in the thread that the proxy gives this plugin."""

    def __init__(self, options: Options, context: BackendContext) -> None:  # noqa: ARG002  # all plugins get both
        """Store the options."""
        self._options = options
        self._posted: OrderedDict[tuple[str, str], float] = OrderedDict()

    @hookimpl
    def usage_threshold_crossed(self, alert: Alert) -> None:
        """Post an alert; each one is sent once."""
        if self._options.alerts:
            amounts = f"{_amount(alert.unit, alert.amount)} of {_amount(alert.unit, alert.maximum)}"
            self._post(f"{_who(alert.subject)} passed {alert.threshold} % of limit {alert.limit}: {amounts}.")

    @hookimpl
    def usage_request_refused(self, refusal: RefusedRequest) -> None:
        """Post a refusal, unless a similar one was posted recently."""
        limit = refusal.limit or refusal.reason
        who = _who(refusal.subject) if refusal.limit else refusal.user
        if self._options.refusals and not self._is_quiet(limit, who):
            resets = f" until {to_datetime(refusal.resets_at):%Y-%m-%d %H:%M} UTC" if refusal.resets_at else ""
            self._post(f"{who} is refused by {limit} ({refusal.reason}){resets}. Ref {refusal.ref}")

    def _is_quiet(self, limit: str, who: str) -> bool:
        now = time.monotonic()
        posted = self._posted.get((limit, who))
        if posted is not None and now - posted < self._options.quiet_minutes * 60:
            return True
        self._posted[limit, who] = now
        self._posted.move_to_end((limit, who))
        if len(self._posted) > MOST_REMEMBERED:
            self._posted.popitem(last=False)
        return False

    def _post(self, text: str) -> None:
        request = urllib.request.Request(  # noqa: S310  # the options take http and https only
            self._options.webhook.get_secret_value(),
            json.dumps({"text": text}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=self._options.timeout_seconds):  # noqa: S310
            pass


def _who(subject: Mapping[str, str]) -> str:
    return ", ".join(f"{dimension} {name}" for dimension, name in subject.items()) or "everybody"


def _amount(unit: Unit, amount: int) -> str:
    return f"{format_usd(amount)} USD" if unit == "usd" else f"{amount:,} {unit.replace('_', ' ')}"
