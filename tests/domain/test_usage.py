from __future__ import annotations

import json
import time
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usage_plugin.domain.usage import SCHEMA, UsageEvent, UsageTotals, from_record, new_event_id, to_record, totals_of
from usage_plugin.encoding import decode_event, encode_event

names = st.none() | st.text()
counts = st.integers(0, 2**63 - 1)
events = st.builds(
    UsageEvent,
    event_id=st.text(min_size=1),
    started_at=counts,
    status=st.sampled_from(["success", "failure", "cancelled", "recovered"]),
    call_type=st.text(),
    duration_us=counts,
    user=st.text(),
    team=names,
    api_key=names,
    api_key_alias=names,
    end_user=names,
    organization=names,
    session=names,
    tags=st.lists(st.text()).map(tuple),
    call_id=names,
    requested_model=names,
    model=names,
    served_model=names,
    deployment=names,
    provider=names,
    input_tokens=counts,
    output_tokens=counts,
    cached_input_tokens=counts,
    cache_write_tokens=counts,
    reasoning_tokens=counts,
    cost=st.none() | counts,
    cost_source=st.sampled_from(["computed", "litellm", "reserved", "unpriced", "none"]),
    reserved=counts,
    excess=counts,
    estimated=st.booleans(),
    cache_hit=st.booleans(),
    injected_output_tokens=st.none() | counts,
    service_tier=names,
    error=names,
    usage=st.none() | st.dictionaries(st.text(), counts, min_size=1, max_size=3),
)


def make_event(**changes):
    return UsageEvent(**{"event_id": "e1", "started_at": 1, "status": "success", "call_type": "acompletion", **changes})


@given(events)
def test_an_event_survives_the_way_through_text(event):
    """Every event is decoded from its line of JSON without any change."""
    line = encode_event(event)
    assert "\n" not in line
    assert decode_event(line) == event
    assert decode_event(line.encode()) == event


@given(events, st.dictionaries(st.text(min_size=1).map(lambda name: f"future_{name}"), st.none() | st.text() | counts))
def test_fields_of_a_newer_schema_are_passed_over(event, unknown):
    """A record of a newer version is decoded without its unknown fields."""
    record = {**json.loads(encode_event(event)), **unknown, "v": SCHEMA + 1}
    assert decode_event(json.dumps(record)) == event


def test_what_is_empty_is_left_out():
    """A record contains only the schema's number and values that differ from the defaults, so the outbox is small."""
    assert to_record(make_event()) == {
        "v": 1, "event_id": "e1", "started_at": 1, "status": "success", "call_type": "acompletion",
    }  # fmt: skip


def test_an_unknown_cost_and_a_cost_of_nothing_are_told_apart():
    """A cost of None, which means that no price is known, is not decoded as 0, nor 0 as None."""
    assert decode_event(encode_event(make_event(cost=None))).cost is None
    assert decode_event(encode_event(make_event(cost=0))).cost == 0


def test_a_record_without_optional_fields_gets_the_defaults():
    """A record of an older version is decoded with the defaults of newer fields."""
    assert (
        from_record({"v": 1, "event_id": "e1", "started_at": 1, "status": "success", "call_type": "acompletion"})
        == make_event()
    )


def test_nan_is_never_written():
    """NaN is written as null, which every parser accepts, and the rest of the event is unchanged."""
    event = decode_event(encode_event(make_event(cost=5, usage={"x": float("nan"), "y": 1})))
    assert (event.cost, event.usage) == (5, {"x": None, "y": 1})


@pytest.mark.parametrize("character", [*map(chr, range(160)), "\u2028", "é", "💸", '"', "\\"])
def test_texts_are_written_as_everybody_writes_them(character):
    """A text in a record has the standard library's encoding, since erasure searches for it."""
    assert json.dumps(character, ensure_ascii=False) in encode_event(make_event(user=character))


@pytest.mark.parametrize("unusual", [{"user": "\ud800"}, {"cost": 2**64}])
def test_what_does_not_fit_is_left_to_whoever_keeps_it(unusual):
    """A lone surrogate, or a number of more than 64 bits, is encoded, and the ledger rejects it."""
    (value,) = unusual.values()
    assert json.dumps(value, ensure_ascii=False) in encode_event(make_event(**unusual))


def test_events_cannot_be_changed():
    """An event is immutable."""
    with pytest.raises(AttributeError):
        make_event().cost = 5


@pytest.mark.parametrize(("status", "failed"), [("success", 0), ("failure", 1), ("cancelled", 0), ("recovered", 0)])
def test_every_status_is_a_request_and_only_failures_are_failed(status, failed):
    """All four statuses count as requests, and only failures as failed requests."""
    totals = totals_of(make_event(status=status))
    assert (totals.requests, totals.failed_requests) == (1, failed)


def test_totals_of_an_event_are_its_numbers():
    """The totals of one event are its tokens and its cost; an unknown cost adds nothing."""
    event = make_event(
        input_tokens=1, output_tokens=2, cached_input_tokens=3, cache_write_tokens=4, reasoning_tokens=5, cost=6
    )
    assert totals_of(event) == UsageTotals(1, 0, 1, 2, 3, 4, 5, 6)
    assert totals_of(make_event(cost=None)).cost == 0


@settings(max_examples=25)
@given(st.lists(events, max_size=5))
def test_totals_add_up(found):
    """Sums of many events are exact, in any order of addition."""
    forward = backward = UsageTotals()
    for event in found:
        forward = forward.plus(totals_of(event))
    for event in reversed(found):
        backward = totals_of(event).plus(backward)
    assert forward == backward
    assert forward.requests == len(found)
    assert forward.cost == sum(event.cost or 0 for event in found)


def test_event_ids_are_uuids_of_version_7():
    """An event id is a valid UUID with the version and variant of RFC 9562, and the time in its first 48 bits."""
    before = time.time_ns() // 1_000_000
    text = new_event_id()
    after = time.time_ns() // 1_000_000
    parsed = uuid.UUID(text)
    assert str(parsed) == text
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert before <= parsed.int >> 80 <= after


def test_event_ids_are_unique_and_random():
    """Ids of one millisecond differ, and all their random bits vary."""
    made = [uuid.UUID(new_event_id()).int for _ in range(5_000)]
    assert len(set(made)) == len(made)
    random_bits = [bit for bit in range(80) if bit not in (62, 63) and bit not in range(76, 80)]
    assert all(0.4 < sum(value >> bit & 1 for value in made) / len(made) < 0.6 for bit in random_bits)


def test_event_ids_of_later_milliseconds_sort_later():
    """Ids sort by the time of their creation."""
    first = new_event_id()
    while (later := new_event_id())[:13] == first[:13]:
        pass
    assert first < later
