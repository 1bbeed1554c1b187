from __future__ import annotations

import json
from zoneinfo import ZoneInfo

import pytest

from usage_plugin.config import Config
from usage_plugin.domain.ledger import Balance
from usage_plugin.domain.limit_set import Matched
from usage_plugin.domain.limits import Limit
from usage_plugin.domain.windows import WINDOW_KINDS, WindowRule
from usage_plugin.tracking.admission.decisions import Refusal
from usage_plugin.tracking.admission.demands import AccountStatus, Demand

SECOND = 1_000_000
USD = 10**9
AT = 1_795_453_200_000_000
"""2026-11-23 17:00 UTC."""


@pytest.fixture(scope="session")
def client_response(litellm):
    """The module, which imports LiteLLM."""
    from usage_plugin.proxy import client_response  # noqa: PLC0415

    return client_response


def make_limit(**changes):
    return Limit(
        **{
            "name": "daily",
            "per": ("user",),
            "unit": "usd",
            "amount": 5 * USD,
            "window": WindowRule("day"),
            "zone": ZoneInfo("UTC"),
            **changes,
        }
    )


def rule_of(kind):
    """Return a window rule of a kind; a rolling window has 5 h."""
    return WindowRule(kind, length=5 * 3600 * SECOND if kind == "rolling" else 0)


def demand(limit=None, subject="ann", maximum=5 * USD, amount=120_000_000, at=AT):
    limit = limit or make_limit()
    return Demand.of(Matched(limit, subject, ((None, maximum),)), at, amount)


def refusal(reason="spent", **changes):
    """Return a refusal: Ann has spent 4.98 of 5 USD today and asks for 0.12 more."""
    return Refusal(**{
        "reason": reason, "ref": "01JD8Z", "at": AT, "user": "ann", "model": "gpt", "demand": demand(),
        "balance": Balance(4_980_000_000, 0), **changes,
    })  # fmt: skip


def busy(**changes):
    return refusal("busy", **{"retry_after": SECOND, "balance": Balance(4_000_000_000, 990_000_000), **changes})


def window_ends(**changes):
    return refusal("busy", **{"retry_after": 30 * SECOND, **changes})


REASONS = {
    "spent": (refusal(), 402, "budget_exceeded"),
    "too large": (refusal("too_large", demand=demand(amount=6 * USD)), 402, "request_exceeds_limit"),
    "fits once others settle": (busy(), 429, "budget_busy"),
    "the window ends soon": (window_ends(), 429, "rate_limit_exceeded"),
    "unpriced": (refusal("unpriced", balance=Balance()), 400, "model_unpriced"),
    "unbounded": (refusal("unbounded", balance=Balance()), 400, "request_unbounded"),
    "no ledger": (refusal("unavailable", demand=None, balance=Balance()), 503, "ledger_unavailable"),
}


@pytest.mark.parametrize(("found", "status", "kind"), REASONS.values(), ids=REASONS.keys())
def test_each_reason_has_its_status_and_type(client_response, found, status, kind):
    """A refusal that a short wait lifts is a 429, spent or too large is a 402, unpriced or unbounded is a 400."""
    error = client_response.refusal_error(found, Config())
    assert int(error.code) == status
    assert error.type == kind
    assert error.param == (found.demand.limit.name if found.demand else None)
    assert f"Ref {found.ref}" in error.message


@pytest.mark.parametrize(("found", "status", "kind"), REASONS.values(), ids=REASONS.keys())
def test_headers_say_whether_to_try_again(client_response, found, status, kind):
    """A refusal that waiting lifts has a wait from 1 to 60 seconds; any other disables retries."""
    headers = client_response.refusal_headers(found)
    assert headers["x-usage-refusal"] == found.reason
    assert headers.get("x-usage-limit") == (found.demand.limit.name if found.demand else None)
    assert all(isinstance(value, str) and value.isascii() and value.isprintable() for value in headers.values())
    if status in (429, 503):
        assert 1 <= int(headers["Retry-After"]) <= 60
        assert 0 < int(headers["retry-after-ms"]) <= 60_000
        assert "x-should-retry" not in headers
    else:
        assert headers["x-should-retry"] == "false"
        assert not {name.lower() for name in headers} & {"retry-after", "retry-after-ms"}


@pytest.mark.parametrize("wait", [1, 500_000, SECOND, 30 * SECOND, 59_999_999, 60 * SECOND])
def test_waits_are_jittered_within_their_bounds(client_response, wait):
    """Clients retry at different instants, never before the wait is over, and never after more than 60 seconds."""
    waits = [int(client_response.refusal_headers(window_ends(retry_after=wait))["retry-after-ms"]) for _ in range(50)]
    assert all(min(60_000, wait / 1_000) <= found <= min(60_000, wait / 1_000 + 1_001) for found in waits)
    assert len(set(waits)) > 1 or wait >= 59 * SECOND
    assert 1 <= int(client_response.refusal_headers(window_ends(retry_after=wait))["Retry-After"]) <= 60


@pytest.mark.parametrize("status", [402, 403, 429])
def test_the_status_of_spent_can_be_chosen(client_response, status):
    """admission.status_when_spent sets the status of spent limits only, and disables retries."""
    config = Config.model_validate({"admission": {"status_when_spent": status}})
    assert int(client_response.refusal_error(refusal(), config).code) == status
    assert client_response.refusal_error(refusal(), config).headers["x-should-retry"] == "false"
    assert int(client_response.refusal_error(REASONS["too large"][0], config).code) == 402


def test_the_sentence_is_the_documented_one(client_response):
    """The message has the user's spend and limit, the maximum cost of the request, the reset, and the contact."""
    assert client_response.sentence(refusal(), "Ask #ai-platform for more") == (
        "ann has used 4.98 of 5.00 USD today (limit daily); this request may cost up to 0.12. "
        "Resets 2026-11-24 00:00 UTC, in 7 h. Ask #ai-platform for more. Ref 01JD8Z"
    )


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (busy(), "ann has used 4.00 of 5.00 USD today (limit daily), and requests in flight hold 0.99; this request may cost up to 0.12. Try again in a moment. Ref 01JD8Z"),
        (REASONS["too large"][0], "The limit daily allows ann 5.00 USD today; this request may cost up to 6.00. Ref 01JD8Z"),
        (REASONS["unpriced"][0], "No price is known for the model gpt, so it cannot be used under the cost limit daily. Ref 01JD8Z"),
        (REASONS["no ledger"][0], "The usage ledger does not answer, so this request cannot be admitted; try again. Ref 01JD8Z"),
        (
            refusal(demand=demand(make_limit(unit="requests", window=WindowRule("minute"), name="rate"), maximum=3, amount=1), balance=Balance(3, 0)),
            "ann has used 3 of 3 requests this minute (limit rate); this request may use up to 1. Resets 2026-11-23 17:01 UTC, in 60 s. Ref 01JD8Z",
        ),
        (
            refusal(demand=demand(make_limit(unit="total_tokens", window=WindowRule("month"), zone=ZoneInfo("Europe/Berlin")), maximum=1000, amount=200), balance=Balance(900, 0)),
            "ann has used 900 of 1000 tokens this month (limit daily); this request may use up to 200. Resets 2026-12-01 00:00 CET, in 7 days. Ref 01JD8Z",
        ),
        (
            refusal(demand=demand(make_limit(window=WindowRule("rolling", 5 * 3600 * SECOND)))),
            "ann has used 4.98 of 5.00 USD in 5 h (limit daily); this request may cost up to 0.12. There is room for it again in 5 h. Ref 01JD8Z",
        ),
        (
            refusal(demand=demand(make_limit(per=("user", "session"), window=WindowRule("session")), subject="ann\x1fs-1")),
            "ann has used 4.98 of 5.00 USD in this session (limit daily); this request may cost up to 0.12. Ref 01JD8Z",
        ),
        (
            busy(demand=demand(make_limit(unit="parallel_requests", window=WindowRule("lifetime")), maximum=3, amount=1), balance=Balance(0, 3)),
            "ann has used 0 of 3 requests at the same time (limit daily), and requests in flight hold 3; this request may use up to 1. Try again in a moment. Ref 01JD8Z",
        ),
    ],
)  # fmt: skip
def test_sentences_are_for_people(client_response, found, expected):
    """Each reason, unit and window has its own wording."""
    assert client_response.sentence(found, "") == expected


@pytest.mark.parametrize(
    ("contact", "end"),
    [
        ("Ask Bo", "Ask Bo. Ref 01JD8Z"),
        ("Ask Bo!", "Ask Bo! Ref 01JD8Z"),
        ("Ask Bo.", "Ask Bo. Ref 01JD8Z"),
        ("", "in 7 h. Ref 01JD8Z"),
    ],
)
def test_the_contact_ends_every_refusal(client_response, contact, end):
    """The contact precedes the ref, as a sentence."""
    assert client_response.sentence(refusal(), contact).endswith(end)
    if contact:
        assert all(contact in client_response.sentence(found, contact) for found, _, _ in REASONS.values())


def test_the_fields_are_the_documented_ones(client_response):
    """A refusal by one of the caller's own limits has all facts in its fields, with amounts as decimal strings."""
    fields = client_response.refusal_error(refusal(), Config()).provider_specific_fields
    assert fields == {
        "reason": "spent", "limit": "daily", "subject": {"user": "ann"}, "unit": "usd", "max": "5.00", "spent": "4.98",
        "reserved": "0.00", "needed": "0.12", "resets_at": "2026-11-24T00:00:00+00:00", "ref": "01JD8Z",
    }  # fmt: skip


OTHERS = {
    "a team's": make_limit(name="research", per=("team",)),
    "everyone's": make_limit(name="company", per=("global",)),
    "a tag's": make_limit(name="tagged", per=("tag",)),
    "a model's": make_limit(name="modelled", per=("model",)),
    "an organization's": make_limit(name="org", per=("organization",)),
}


@pytest.mark.parametrize("limit", OTHERS.values(), ids=OTHERS.keys())
@pytest.mark.parametrize("reason", ["spent", "busy", "too_large"])
def test_amounts_of_others_are_not_shown(client_response, limit, reason):
    """A limit that is not the caller's own shows its name and its reset, but no amounts and no subject."""
    found = refusal(
        reason, demand=demand(limit, subject="secret-team", maximum=777 * USD, amount=888_000_000), balance=Balance(666 * USD, 555 * USD),
        retry_after=SECOND if reason == "busy" else None,
    )  # fmt: skip
    error = client_response.refusal_error(found, Config())
    assert set(error.provider_specific_fields) == {"reason", "limit", "resets_at", "ref"}
    headers = {name: value for name, value in error.headers.items() if name != "retry-after-ms"}  # random
    told = json.dumps([error.message, headers, error.provider_specific_fields])
    assert limit.name in error.message
    assert not [amount for amount in ("777", "666", "555", "888", "0.88", "secret-team") if amount in told]


@pytest.mark.parametrize("per", [("user",), ("api_key",), ("session",), ("team", "user")])
def test_amounts_of_the_callers_own_are_shown(client_response, per):
    """Limits per user, key and session, and per member of a team, are the caller's own."""
    subject = "\x1f".join(f"my-{dimension}" for dimension in per)
    error = client_response.refusal_error(refusal(demand=demand(make_limit(per=per), subject=subject)), Config())
    assert error.provider_specific_fields["subject"] == {dimension: f"my-{dimension}" for dimension in per}
    assert error.provider_specific_fields["spent"] == "4.98"


def test_token_amounts_are_numbers(client_response):
    """Amounts other than money are whole numbers."""
    found = refusal(demand=demand(make_limit(unit="output_tokens"), maximum=1000, amount=200), balance=Balance(900, 5))
    fields = client_response.refusal_error(found, Config()).provider_specific_fields
    assert (fields["unit"], fields["max"], fields["spent"], fields["reserved"], fields["needed"]) == (
        "output_tokens",
        1000,
        900,
        5,
        200,
    )


@pytest.mark.parametrize("window", WINDOW_KINDS)
@pytest.mark.parametrize("reason", ["spent", "busy", "too_large", "unpriced", "unbounded"])
def test_every_reason_can_be_told_of_every_window(client_response, window, reason):
    """A refusal by a limit with any window, including a lifetime, can be serialised."""
    found = refusal(
        reason, demand=demand(make_limit(window=rule_of(window))), retry_after=SECOND if reason == "busy" else None
    )
    error = client_response.refusal_error(found, Config())
    json.dumps(error.provider_specific_fields)
    assert error.message
    if window in ("lifetime", "session"):
        assert "Resets" not in error.message
        assert "10000" not in error.message


@pytest.mark.parametrize("window", [kind for kind in WINDOW_KINDS if kind != "request"])
def test_answers_tell_how_the_tightest_limit_stands(client_response, window):
    """An answer's headers have the limit, its remaining amount, unit and reset, for any window."""
    headers = client_response.status_headers(
        AccountStatus(demand(make_limit(window=rule_of(window))), Balance(4_000_000_000, 500_000_000))
    )
    assert headers["x-usage-limit"] == "daily"
    assert headers["x-usage-remaining"] == "0.50"
    assert headers["x-usage-unit"] == "usd"
    if window == "day":
        assert headers["x-usage-resets-at"] == "2026-11-24T00:00:00+00:00"


def test_nothing_left_is_told_as_nothing(client_response):
    """The remaining amount is never negative."""
    headers = client_response.status_headers(AccountStatus(demand(), Balance(6 * USD, 0)))
    assert headers["x-usage-remaining"] == "0.00"


def test_a_blocked_subject_is_told_so(client_response):
    """A limit of 0 is reported as an amount of 0, not as a missing one."""
    found = refusal("too_large", demand=demand(maximum=0, amount=1), balance=Balance())
    assert "0.00 USD" in client_response.sentence(found, "")
    assert client_response.refusal_error(found, Config()).provider_specific_fields["max"] == "0.00"


def test_a_wrong_request_is_a_400(client_response):
    """An invalid request is a 400 that names the parameter, and is not retried."""
    error = client_response.bad_request("The end user must be text.", param="user")
    assert (int(error.code), error.param, error.type) == (400, "user", "invalid_request_error")
    assert error.headers["x-should-retry"] == "false"


def test_hostile_names_are_told_as_they_are(client_response):
    """Names from requests are quoted in sentences and fields, and appear in no header."""
    found = refusal(user="[red]ann[/red] 用户", demand=demand(subject="[red]ann[/red] 用户"))
    error = client_response.refusal_error(found, Config())
    assert error.message.startswith("[red]ann[/red] 用户 has used")
    assert not [value for value in error.headers.values() if "red" in value]


def test_a_model_name_with_the_separator_in_it_can_be_told(client_response):
    """A model name comes from the client: one that contains the separator of subjects does not break the refusal."""
    limit = make_limit(per=("user", "model"))
    error = client_response.refusal_error(
        refusal(demand=demand(limit, subject="ann\x1fa\x1fb"), model="a\x1fb"), Config()
    )
    assert error.provider_specific_fields["subject"]["user"] == "ann"
