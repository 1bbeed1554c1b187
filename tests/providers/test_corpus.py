"""Every answer of the corpus, sent by a fake provider through the real proxy, has the cost worked out by hand."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import litellm
import pytest
from litellm.litellm_core_utils.llm_cost_calc.utils import _is_off_peak

from tests.providers.entries import Call, Entry, calls, load, prices_in, value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.providers.conftest import Recorded

ENTRIES = load()
CALLS = calls(ENTRIES)
COLUMNS = {
    "input": "input_tokens", "output": "output_tokens", "cached": "cached_input_tokens", "written": "cache_write_tokens",
    "reasoning": "reasoning_tokens", "tier": "service_tier", "estimated": "estimated", "status": "status",
    "source": "cost_source",
}  # fmt: skip
NOT_IN_THE_EVENT = ("arithmetic", "sent", "off_peak")


@pytest.mark.proxy
# The first test sends all the requests.
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("call", CALLS, ids=[call.key for call in CALLS])
def test_the_recorded_cost_is_the_expected_one(call: Call, recorded: Callable[[Call], Recorded]) -> None:
    """The event has the cost and the tokens of the entry, or as many requests are admitted as its limit allows."""
    entry = call.entry
    if entry.needs is not None:
        pytest.importorskip(entry.needs)
    found = recorded(call)
    sent = ", ".join(sorted({request["path"] for request in found.sent})) or "nothing"
    summary = f"answers {found.statuses}, sent to the provider: {sent}"
    admitted = sum(status == 200 for status in found.statuses)
    if entry.admitted is not None and admitted not in entry.admitted:
        pytest.fail(f"admitted {admitted} of {entry.requests} | {summary} | {found.bodies[0][:300]}", pytrace=False)
    if entry.admitted is not None and not admitted:
        return
    # Refusals are events too; an entry with a limit expects them.
    passed = [event for event in found.events if entry.admitted is None or event["status"] != "failure"]
    if entry.polls:
        passed = [summed(passed)] if passed else []
    wrong = [difference for event in passed for difference in differences(entry, event)]
    for name, value in entry.expected.get("sent", {}).items():
        if not found.sent or (asked := found.sent[0]["body"].get(name)) != value:
            wrong.append(f"{name} sent to the provider: expected {value}; found {asked if found.sent else None}")
    if wrong or not passed:
        counted = "; ".join(f"{text} ({wrong.count(text)} ×)" for text in dict.fromkeys(wrong)) or "no event"
        pytest.fail(f"{counted} | LiteLLM {found.figures[0]} | {summary} | {found.bodies[0][:300]}", pytrace=False)


def summed(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the sums over the events of one response that was polled repeatedly."""
    costs = [Decimal(event["cost"]) for event in events if event["cost"] is not None]
    sums = {name: sum(event[name] for event in events) for name in ("input_tokens", "output_tokens")}
    return {**events[0], **sums, "cost": str(sum(costs, Decimal()))}


def differences(entry: Entry, event: dict[str, Any]) -> list[str]:
    """Return the fields that differ from the expected values."""
    given = entry.expected
    if "off_peak" in given and is_off_peak(entry, event):
        given = {**given, **given["off_peak"]}
    given = {"status": "success", **given}
    expected = {COLUMNS.get(name, name): value for name, value in given.items() if name not in NOT_IN_THE_EVENT}
    found = []
    for name, value in expected.items():
        recorded = event.get(name)
        if name == "cost" and value in ("charged", "estimated"):
            same = bool(recorded) and Decimal(recorded) > 0 and (value == "charged" or event["estimated"])
        elif name == "cost":
            same = recorded is None if value is None else recorded is not None and Decimal(recorded) == Decimal(value)
        else:
            same = recorded == value or (name == "status" and value is None)
        if not same:
            found.append(f"{name}: expected {value}; recorded {recorded}")
    return found


def is_off_peak(entry: Entry, event: dict[str, Any]) -> bool:
    """Whether the event began in a cheaper hour of the provider, as LiteLLM reads the map's windows."""
    (sheet,) = entry.sheet
    return _is_off_peak(MAP[sheet]["off_peak_pricing"], datetime.fromisoformat(event["started_at"]))


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])
def test_the_arithmetic_is_right(entry: Entry) -> None:
    """The arithmetic gives the expected cost, and each price in it is in the price map or in the deployment."""
    known = {Decimal(price) for price in entry.published} | set(numbers(entry.deployment))
    for name in entry.sheet:
        known |= set(numbers(MAP[name]))
    for expected in (entry.expected, entry.expected.get("off_peak", {})):
        cost = expected.get("cost")
        if cost in (None, "charged", "estimated"):
            continue
        assert isinstance(cost, str), "YAML must not make a float of it"
        arithmetic = str(expected["arithmetic"])
        # Money is a whole number of nano-dollars.
        assert round(value_of(arithmetic), 9) == Decimal(cost), f"{value_of(arithmetic):f}"
        assert prices_in(arithmetic) <= known, prices_in(arithmetic) - known


def test_names_are_unique() -> None:
    names = [entry.name for entry in ENTRIES]
    assert len(names) == len(set(names))


MAP: dict[str, Any] = json.loads(
    (Path(litellm.__file__).parent / "model_prices_and_context_window_backup.json").read_text(), parse_float=str
)


def numbers(value: Any) -> Iterator[Decimal]:
    """Yield the numbers in a price sheet, at any depth."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            yield Decimal(str(value))
        except ArithmeticError:
            return
