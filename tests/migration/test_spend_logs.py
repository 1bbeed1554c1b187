"""LiteLLM's own spend logs become usage events, each once, for any number of overlapping exports."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.migration.conftest import House, Quiet
from usage_plugin.domain.store import UsageFilter
from usage_plugin.domain.subjects import ANONYMOUS
from usage_plugin.domain.usage import UsageEvent
from usage_plugin.domain.windows import ALWAYS
from usage_plugin.errors import RejectedError, StorageUnavailableError
from usage_plugin.migration.spend_logs import IdentityRules, Imported, event_of, import_spend_logs
from usage_plugin.runtime import Parts

KEY = "88dc28d0f030c55ed4ab77ed8faf098196cb1c05df778539800c9f1243fe6b4b"
NAMING = IdentityRules(("key", "end_user"), casefold=False, json_field=None, keep=lambda subjects: subjects)
ROW: dict[str, Any] = {
    "request_id": "chatcmpl-1", "call_type": "acompletion", "api_key": KEY, "spend": 0.00012345678949,
    "total_tokens": 15, "prompt_tokens": 10, "completion_tokens": 5, "startTime": "2026-09-01T10:00:00.500Z",
    "endTime": "2026-09-01T10:00:02Z", "completionStartTime": None, "model": "gpt-4o-mini-2024-07-18", "model_id": "d-1",
    "model_group": "gpt", "custom_llm_provider": "openai", "api_base": "", "user": "ann", "cache_hit": "False",
    "metadata": {"usage_object": {"prompt_tokens_details": {"cached_tokens": 4},
                                  "completion_tokens_details": {"reasoning_tokens": 2}},
                 "user_api_key_alias": "ann-laptop"},
    "request_tags": ["prod", "User-Agent: curl"], "team_id": "research", "organization_id": None, "end_user": "",
    "session_id": "s-1", "status": "success", "messages": {}, "response": {},
}  # fmt: skip


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            **ROW,
            "request_id": f"chatcmpl-{number}",
            "spend": number / 8,
            "startTime": f"2026-09-01T10:{number % 60:02d}:00Z",
        }
        for number in range(first, first + count)
    ]


def jsonl(path: Path, found: list[Any]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in found))
    return path


def as_csv(path: Path, found: list[dict[str, Any]]) -> Path:
    """As Postgres writes it: booleans and JSON as text, nothing for NULL."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(ROW))
    writer.writeheader()
    for row in found:
        plain = {name: json.dumps(value) if isinstance(value, dict | list) else value for name, value in row.items()}
        writer.writerow({**plain, "startTime": plain["startTime"].replace("T", " ").removesuffix("Z")})
    path.write_text(out.getvalue())
    return path


def imported(house: House, path: Path, **options: Any) -> Imported:
    async def run() -> Imported:
        async with Parts(house.config).open_store() as store:
            return await import_spend_logs(path, house.config.data_dir, NAMING, store, Quiet(), **options)

    return asyncio.run(run())


def events(house: House) -> list[UsageEvent]:
    async def read() -> list[UsageEvent]:
        async with Parts(house.config).open_store() as store:
            return [event async for event in store.events(ALWAYS, UsageFilter())]

    return asyncio.run(read())


def test_a_row_is_an_event() -> None:
    """Every known field has the place that it has in a request's own event."""
    event = event_of(ROW, NAMING)
    assert event._replace(event_id="") == UsageEvent(
        event_id="", started_at=1_788_256_800_500_000, status="success", call_type="acompletion", duration_us=1_500_000,
        user="ann", team="research", api_key=KEY, api_key_alias="ann-laptop", session="s-1", tags=("prod",),
        call_id="chatcmpl-1", model="gpt", served_model="gpt-4o-mini-2024-07-18", deployment="d-1", provider="openai",
        input_tokens=10, output_tokens=5, cached_input_tokens=4, reasoning_tokens=2, cost=123_457, cost_source="litellm",
    )  # fmt: skip
    assert event.event_id == event_of({**ROW, "spend": 1}, NAMING).event_id
    assert event.event_id != event_of({**ROW, "request_id": "chatcmpl-2"}, NAMING).event_id


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"user": "default_user_id", "end_user": "bo"}, {"user": "ann-laptop", "end_user": "bo"}),
        ({"user": "", "end_user": "bo", "metadata": {}}, {"user": f"key-{KEY[:16]}"}),
        ({"user": None, "end_user": "bo", "api_key": "litellm_proxy_master_key", "metadata": None}, {"user": "bo"}),
        ({"user": "", "end_user": None, "api_key": "", "metadata": "{"}, {"user": ANONYMOUS, "api_key": None}),
        ({"status": "failure"}, {"status": "failure"}),
        ({"status": None, "metadata": {"status": "failure", "error_information": {"error_class": "RateLimitError"}}},
         {"status": "failure", "error": "RateLimitError"}),
        ({"cache_hit": "True", "spend": 0}, {"cache_hit": True, "input_tokens": 0, "output_tokens": 0, "cached_input_tokens": 0,
                                             "usage": {"prompt_tokens": 10, "completion_tokens": 5}}),
        ({"model_group": ""}, {"model": "gpt-4o-mini-2024-07-18"}),
        ({"request_tags": '["a", 5, "a"]'}, {"tags": ("a",)}),
        ({"request_tags": "nonsense"}, {"tags": ()}),
        ({"spend": "0.30000000000000004", "prompt_tokens": "7"}, {"cost": 300_000_000, "input_tokens": 7}),
        ({"spend": None}, {"cost": 0}),
        ({"startTime": "2026-09-01 12:00:00.5+02"}, {"started_at": 1_788_256_800_500_000}),
        ({"startTime": "2026-09-01 10:00:00.500000", "endTime": "2026-09-01 09:00:00"}, {"duration_us": 0}),
        ({"metadata": {"usage_object": {"prompt_tokens_details": "x", "cache_read_input_tokens": 99}}}, {"cached_input_tokens": 0}),
    ],
)  # fmt: skip
def test_rows_of_all_kinds_are_read(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    """As Postgres, Prisma and several versions of LiteLLM write them."""
    event = event_of({**ROW, **changes}, NAMING)
    assert {name: getattr(event, name) for name in expected} == expected


def test_what_cannot_be_kept_as_it_is_gets_another_form() -> None:
    """A user that no request could have gets a name that was made up, and a key is never kept as itself."""
    event = event_of({**ROW, "user": '{"a": 1}', "api_key": "sk-secret"}, NAMING)
    assert event.user.startswith("imported-a-1-")
    assert event.api_key == hashlib.sha256(b"sk-secret").hexdigest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"request_id": ""}, "request_id is missing"),
        ({"request_id": None}, "request_id is missing"),
        ({"spend": -1}, "spend: found -1, which is out of range"),
        ({"spend": "NaN"}, "spend: found NaN, which is out of range"),
        ({"spend": "much"}, "spend: expected a number; found 'much'"),
        ({"prompt_tokens": -1}, "prompt_tokens: found -1, which"),
        ({"prompt_tokens": 10**12}, "prompt_tokens: found 1000000000000, which"),
        ({"startTime": None}, "startTime: expected a time; found None"),
        (
            {"startTime": "2026-02-30T10:00:00Z"},
            "startTime: expected a time of the calendar; found '2026-02-30T10:00:00Z'",
        ),
        (
            {"startTime": "1969-12-31T10:00:00Z"},
            "startTime: expected a year between 1970 and 2199; found '1969-12-31T10:00:00Z'",
        ),
        ({"endTime": "later"}, "endTime: expected a time; found 'later'"),
    ],
)
def test_a_row_that_cannot_be_right_is_rejected(changes: dict[str, Any], message: str) -> None:
    """The reason names the column and the value."""
    with pytest.raises(RejectedError) as caught:
        event_of({**ROW, **changes}, NAMING)
    assert message in str(caught.value)


@pytest.mark.parametrize("write", [jsonl, as_csv])
def test_overlapping_exports_are_imported_once(house: House, tmp_path: Path, write: Any) -> None:
    """Each request is one event, in any number of files."""
    first = imported(house, write(tmp_path / "first", rows(1_200)))
    assert (first.rows, first.events, first.known) == (1_200, 1_200, 0)
    second = imported(house, write(tmp_path / "second", rows(1_200, first=600)))
    assert (second.rows, second.events, second.known) == (1_200, 600, 600)
    found = events(house)
    assert len(found) == len({event.event_id for event in found}) == 1_800
    assert sum(event.cost or 0 for event in found) == sum(range(1_800)) * 10**9 // 8 == first.cost + second.cost


def test_csv_and_jsonl_give_the_same_events(house: House, tmp_path: Path) -> None:
    """The format of an export does not change its content."""
    assert imported(house, jsonl(tmp_path / "a", rows(10))).events == 10
    assert imported(house, as_csv(tmp_path / "b", rows(10))).events == 0


def test_what_the_store_has_pruned_does_not_come_back(house: House, tmp_path: Path) -> None:
    """Events go after their time and their sums stay: imported again, they would count twice."""
    path = jsonl(tmp_path / "a", rows(10))
    imported(house, path)
    days = house.days()

    async def prune() -> None:
        async with Parts(house.config).open_store() as store:
            from datetime import date  # noqa: PLC0415

            await store.prune(events_before=2**60, days_before=date(1970, 1, 2), most=100)

    asyncio.run(prune())
    assert events(house) == []
    assert imported(house, path).known == 10
    assert house.days() == days


def test_an_import_that_broke_off_goes_on(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that the store did not receive do not count as imported."""
    from usage_plugin.backends.sqlite.sqlite_store import SqliteStore  # noqa: PLC0415

    calls = []

    async def fail_later(store: Any, writer: str, numbered: Any) -> None:
        calls.append(numbered)
        if len(calls) == 3:
            raise StorageUnavailableError("The disk is full.")
        await append(store, writer, numbered)

    append = SqliteStore.append
    path = jsonl(tmp_path / "a", rows(2_000))
    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "append", fail_later)
        with pytest.raises(StorageUnavailableError):
            imported(house, path)
    assert len(events(house)) == 1_000
    again = imported(house, path)
    assert (again.events, again.known) == (1_000, 1_000)
    assert len(events(house)) == 2_000


def test_a_new_store_gets_everything(house: House, tmp_path: Path) -> None:
    """Imported rows are known per store."""
    path = jsonl(tmp_path / "a", rows(10))
    imported(house, path)
    for file in house.config.data_dir.glob("usage.db*"):
        file.unlink()
    assert imported(house, path).events == 10


def test_bad_rows_stop_nothing_and_are_listed(house: House, tmp_path: Path) -> None:
    """All of them in a file, with where they stand."""
    path = jsonl(tmp_path / "a", [*rows(2), "nonsense", "[1]", "", {**ROW, "request_id": "x", "spend": -1}, *rows(3)])
    done = imported(house, path)
    assert (done.rows, done.events, done.known, done.rejected) == (8, 3, 2, 3)
    report = [json.loads(line) for line in (house.config.data_dir / "import_report.jsonl").read_text().splitlines()]
    assert report == done.findings
    assert [finding["where"] for finding in report] == ["line 3", "line 4", "line 6"]


def test_a_csv_with_a_broken_row_goes_on(house: House, tmp_path: Path) -> None:
    """A row of another length is reported."""
    path = as_csv(tmp_path / "a", rows(3))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "chatcmpl-9,acompletion", *lines[1:]]))
    done = imported(house, path)
    assert (done.events, done.rejected) == (3, 1)


def test_rows_of_our_own_time_can_be_left_out(house: House, tmp_path: Path) -> None:
    """Requests that usage_plugin has recorded itself must not be imported again."""
    done = imported(house, jsonl(tmp_path / "a", rows(10)), before=1_788_256_800_000_000 + 5 * 60_000_000)
    assert (done.events, done.later) == (5, 5)


def test_what_is_kept_of_the_rows_names_nobody(house: House, tmp_path: Path) -> None:
    """To know a row again it takes a digest, and no name."""
    imported(house, jsonl(tmp_path / "a", rows(3)))
    connection = sqlite3.connect(house.config.data_dir / "migration" / "spend_logs.db")
    found = connection.execute("SELECT id, number FROM known ORDER BY number").fetchall()
    connection.close()
    assert [number for _, number in found] == [1, 2, 3]
    assert {len(digest) for digest, _ in found} == {16}
