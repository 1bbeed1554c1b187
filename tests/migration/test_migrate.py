"""Import from the previous tracker: everything arrives once, invalid records are reported, nothing is lost."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.migration.conftest import USD, House, OldTracker, limits_of, names_in, profile_of, record
from usage_plugin.backends.partitioned.partitioned_store import open_store
from usage_plugin.domain.profiles import UserProfile
from usage_plugin.domain.subjects import Subjects
from usage_plugin.errors import MigrationError
from usage_plugin.migration import directory_migration as module
from usage_plugin.migration import legacy_sources
from usage_plugin.runtime import Parts
from usage_plugin.testing.builders import make_event

DAYS = {
    "ann": {
        "2026-01-30": record(3, 0.1 + 0.2, failed_requests=1),
        "2026-01-31": record(2, 1, models_used={"gpt": 1, "o3": 1}),
    },
    "bo": {"2026-02-01": record(1, 1e-9, providers_used={}, models_used={})},
}
MONTHS = {
    "ann": {"2026-01": record(5, 1.3, failed_requests=1), "2025-12": record(7, 7.25)},
    "bo": {"2026-02": record(4, 9)},
}
EXPECTED = {
    ("ann", "2025-12-01", "gpt", "openai"): (7, 0, 70, 35, 0, 0, 0, 7_250_000_000),
    ("ann", "2026-01-30", "gpt", "openai"): (3, 1, 30, 15, 0, 0, 0, 300_000_000),
    ("ann", "2026-01-31", "unknown", "openai"): (2, 0, 20, 10, 0, 0, 0, 1_000_000_000),
    ("bo", "2026-02-01", "unknown", "unknown"): (1, 0, 10, 5, 0, 0, 0, 1),
}


def format_1(old: OldTracker) -> None:
    old.days(DAYS)
    old.months(MONTHS)
    old.write("user_profiles.json", {"users": [profile_of("ann", preferences={"theme": "dark", "size": 1.5})]})
    old.write("spending_limits.json", {"last_updated": "x", "limits": [limits_of("ann", daily_limit=10.0)]})


def format_2(old: OldTracker) -> None:
    old.database(DAYS, MONTHS).close()
    old.tree(DAYS, MONTHS)
    lines = [
        profile_of("ann", updated_at="2026-01-01T00:00:00", user_tier="free"),
        profile_of("ann", preferences={"theme": "dark", "size": 1.5}),
    ]
    old.write("user_profiles.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    old.write("spending_limits/user_0123456789abcdef.json", limits_of("ann", daily_limit=10.0))
    old.write("spending_limits/index.json", {"ann": "user_0123456789abcdef.json"})


@pytest.mark.parametrize("write", [format_1, format_2])
def test_a_small_directory_moves_in(old: OldTracker, house: House, write: Any) -> None:
    """Of each format every day, month, profile and limit arrives, to the nano-dollar, and the sources are renamed."""
    write(old)
    outcome = house.migrate(old.directory)
    assert house.days() == EXPECTED
    assert (outcome.users, outcome.days, outcome.months, outcome.imported) == (2, 3, 1, 4)
    assert outcome.totals.cost == 8_550_000_001
    assert outcome.checked
    assert outcome.is_complete
    assert [(one["kind"], one["user"], one["date"]) for one in outcome.findings] == [("disagreement", "bo", "2026-02")]
    assert (
        "4 requests, 60 tokens, 9.00 USD, its days 1 requests, 15 tokens, 0.000000001 USD"
        in outcome.findings[0]["text"]
    )
    assert house.profiles() == [
        UserProfile("ann", "Ann", "ann@example.org", "premium", True, {"theme": "dark", "size": 1.5}, {},
                    1_767_258_000_000_000, 1_767_344_400_000_000)
    ]  # fmt: skip
    assert not outcome.not_renamed
    left = [name for name in names_in(old.directory) if "/" not in name and not name.endswith(".legacy_backup")]
    assert left == [legacy_sources.STATE_FILE]
    assert names_in(house.config.data_dir / "migration") == {"lock"}, "the staging database names users"


def test_the_limits_are_ordinary_ones(old: OldTracker, house: House) -> None:
    """A limit for each kind with an override for each user; exact names; disabled, empty or invalid ones are left out."""
    old.write("spending_limits.json", {"limits": [
        limits_of("ann", daily_limit=10.1, weekly_limit=20, monthly_limit=30, per_request_limit=1, per_session_limit=2,
                  provider_limits={"openai": 3.5, "x": None}, model_limits={"gpt*": 0.25}),
        limits_of("a[b]*", daily_limit=0, per_request_limit=float("nan")),
        limits_of("eva", daily_limit=5, enabled=False),
    ]})  # fmt: skip
    outcome = house.migrate(old.directory)
    house.path.write_text(house.path.read_text().replace("}", ", limits_from: [data/migrated_limits.yaml]}"))
    limits = {limit.name: limit for limit in house.config.limit_set().limits}
    found = {name: [(dict(o.match.conditions), o.amount) for o in limit.overrides] for name, limit in limits.items()}
    assert found == {
        "migrated-daily": [({"user": ("a[[]b][*]",)}, 0), ({"user": ("ann",)}, 10_100_000_000)],
        "migrated-weekly": [({"user": ("ann",)}, 20 * USD)],
        "migrated-monthly": [({"user": ("ann",)}, 30 * USD)],
        "migrated-request": [({"user": ("ann",)}, 1 * USD)],
        "migrated-session": [({"user": ("ann",)}, 2 * USD)],
        "migrated-provider": [({"user": ("ann",), "provider": ("openai",)}, 3_500_000_000)],
        "migrated-model": [({"user": ("ann",), "model": ("gpt[*]",)}, 250_000_000)],
    }
    assert {limit.amount for limit in limits.values()} == {None}
    assert limits["migrated-daily"].alert_at == (50, 80, 95)
    assert limits["migrated-request"].alert_at == ()
    assert outcome.limits == 7
    told = sorted((one["kind"], one["user"]) for one in outcome.findings)
    assert told == [("left_out", "eva"), ("rejected", "a[b]*")]


def test_thresholds_that_differ_are_told(old: OldTracker, house: House) -> None:
    """There is one alert_at for all users of a limit."""
    old.write("spending_limits.json", {"limits": [
        limits_of("ann", daily_limit=1), limits_of("bo", daily_limit=1, alert_thresholds=[0.9]),
    ]})  # fmt: skip
    outcome = house.migrate(old.directory)
    assert "alert_at" not in house.config.migrated_limits.read_text()
    assert "[50, 80, 95]: 1, [90]: 1" in outcome.findings[0]["text"]


def test_a_file_with_limits_that_was_changed_is_not_written_over(old: OldTracker, house: House) -> None:
    """An edited file stays, the old limits keep their file, and the outcome reports it."""
    old.write("spending_limits.json", {"limits": [limits_of("ann", daily_limit=1)]})
    target = house.config.migrated_limits
    target.parent.mkdir()
    target.write_text("limits: []\n")
    outcome = house.migrate(old.directory)
    assert target.read_text() == "limits: []\n"
    assert not outcome.is_complete
    assert set(outcome.not_renamed) == {"spending_limits.json"}
    target.unlink()
    assert house.migrate(old.directory).is_complete
    assert "ann" in target.read_text()


ODD = [
    "../../x",
    "",
    "x" * 10_000,
    '{"user": 1}',
    "[1]",
    "(anonymous)",
    " ann ",
    "a\nb",
    "ünï☃",
    "\x00",
    "NaN: NaN, ",
    "a/b",
]


def test_persons_are_kept_as_privacy_says(old: OldTracker, house: House) -> None:
    """With pseudonyms, history and profiles come under them, and limits still find their users."""
    house.path.write_text(
        f"usage_plugin: {{data_dir: data, privacy: {{user: pseudonym}}, migrate_from: {old.directory}}}\n"
    )
    format_1(old)
    house.migrate(old.directory)
    pseudonyms = Parts(house.config).make_pseudonyms()
    ann, bo = pseudonyms.kept("ann"), pseudonyms.kept("bo")
    assert {user for user, _ in house.costs()} == {ann, bo}
    assert [profile.user for profile in house.profiles()] == [ann]
    limits = house.config.limit_set(pseudonyms)
    (matched,) = limits.matching(pseudonyms.keep(Subjects(user="ann")), "gpt", None)
    assert (matched.subject, matched.amount_at(0)) == (ann, 10 * USD)


@pytest.mark.parametrize("kind", ["days", "database"])
def test_odd_names_lose_nothing(old: OldTracker, house: House, kind: str) -> None:
    """Any user name of the previous tracker arrives: under its own name, or under a substitute that is listed."""
    days = {user: {"2026-01-01": record(1, number + 1)} for number, user in enumerate(ODD)}
    if kind == "days":
        old.days(days)
    else:
        old.database(days).close()
    outcome = house.migrate(old.directory)
    costs = house.costs()
    assert sorted(costs.values()) == [(number + 1) * USD for number in range(len(ODD))]
    users = {user for user, _ in costs}
    assert {"../../x", "ann", "ünï☃", "NaN: NaN,", "a/b"} <= users
    made = {user for user in users if user.startswith("imported-")}
    assert len(made) == len(ODD) - 5 == outcome.renamed_users
    assert all(user.isprintable() and len(user) <= 256 for user in users)
    assert not list(old.directory.parent.glob("x*"))


def test_two_users_that_become_one_are_added_up(old: OldTracker, house: House) -> None:
    """Where names are folded or trimmed, no user's usage displaces another's."""
    house.path.write_text("usage_plugin: {data_dir: data, identity: {casefold: true}}\n")
    old.days({name: {"2026-01-01": record(1, cost)} for name, cost in (("Ann", 1), ("ann", 2), ("ann ", 4))})
    house.migrate(old.directory)
    assert house.costs() == {("ann", "2026-01-01"): 7 * USD}


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (record(cost=-0.5), "total_cost: found -0.5"),
        (record(cost=float("nan")), "total_cost: expected a number; found 'NaN'"),
        (record(cost=float("inf")), "total_cost: expected a number; found 'Infinity'"),
        (record(cost=1e300), "total_cost: found 1E+300"),
        (record(cost="1"), "total_cost: expected a number; found '1'"),  # type: ignore[arg-type]
        (record(requests=-1), "total_requests: found -1"),
        (record(total_requests=1.5), "total_requests: expected a whole number; found 1.5"),
        (record(total_input_tokens=10**100), "total_input_tokens: found a number with dozens of digits"),
        (record(failed_requests=True), "failed_requests: expected a number; found True"),
        (7, "expected a record"),
        ([record()], "expected a record"),
    ],
)
def test_what_cannot_be_right_is_rejected_and_told(old: OldTracker, house: House, one: Any, reason: str) -> None:
    """It is not imported, it stops nothing, and the report describes it."""
    old.days({"ann": {"2026-01-01": one, "2026-01-02": record(cost=2)}})
    outcome = house.migrate(old.directory)
    assert house.costs() == {("ann", "2026-01-02"): 2 * USD}
    assert outcome.rejected == 1
    assert outcome.findings == house.findings()
    assert (outcome.findings[0]["user"], outcome.findings[0]["date"]) == ("ann", "2026-01-01")
    assert reason in outcome.findings[0]["text"]


@pytest.mark.parametrize(
    "when", ["2026-02-30", "2026-1-1", "yesterday", "", "2026-01", "0001-01-01", "9999-12-31", "20260101"]
)
def test_days_that_do_not_exist_are_told(old: OldTracker, house: House, when: str) -> None:
    """There is no day to count them for."""
    old.days({"ann": {when: record(), "2026-01-02": record(cost=2)}})
    assert house.migrate(old.directory).rejected == 1
    assert house.costs() == {("ann", "2026-01-02"): 2 * USD}


def test_numbers_are_rounded_to_the_nano_dollar_once(old: OldTracker, house: House) -> None:
    """A float counts as the text that was written, half a nano-dollar goes to the even one."""
    texts = {
        "01": "0.30000000000000004",
        "02": "1.0000000005",
        "03": "1.0000000015",
        "04": "1.00000000050000000001",
        "05": "3",
    }
    records = ", ".join(
        f'"2026-01-{day}": {{"total_requests": 1, "total_cost": {text}}}' for day, text in texts.items()
    )
    old.write("daily_usage.json", f'{{"ann": {{{records}}}}}')
    house.migrate(old.directory)
    assert list(house.costs().values()) == [300_000_000, 1_000_000_000, 1_000_000_002, 1_000_000_001, 3_000_000_000]


def test_missing_keys_are_zero(old: OldTracker, house: House) -> None:
    """A record need not have all keys; without a total, the parts are the total."""
    old.days({"ann": {"2026-01-01": {"successful_requests": 3, "failed_requests": 1, "other": {"a": [1, {}]}}}})
    house.migrate(old.directory)
    assert house.days() == {("ann", "2026-01-01", "unknown", "unknown"): (4, 1, 0, 0, 0, 0, 0, 0)}


def test_a_file_that_ends_early_is_imported_as_far_as_it_goes(old: OldTracker, house: House) -> None:
    """It keeps its name; once it is repaired, the rest follows and nothing comes twice."""
    days = {f"user-{number}": {"2026-01-01": record(1, 1)} for number in range(50)}
    whole = json.dumps(days)
    old.write("daily_usage.json", whole[: len(whole) // 2])
    old.months({"eva": {"2026-01": record(1, 3)}})
    outcome = house.migrate(old.directory)
    assert not outcome.is_complete
    assert outcome.broken == 1
    assert set(outcome.not_renamed) == {"daily_usage.json"}
    assert 20 <= len(house.costs()) <= 30
    again = house.migrate(old.directory)
    assert again.imported == 0
    old.write("daily_usage.json", whole)
    repaired = house.migrate(old.directory)
    assert repaired.is_complete
    assert house.costs() == {(user, "2026-01-01"): USD for user in days} | {("eva", "2026-01-01"): 3 * USD}


@pytest.mark.parametrize(
    "text", ["", "[]", "7", "{", "nonsense", '{"ann": 5}', "\x00\xff", '{"ann": {"2026-01-01": {"total_cost": 1e}}}']
)
def test_a_file_that_holds_something_else_stops_nothing(old: OldTracker, house: House, text: str) -> None:
    """It is reported, and the others are imported."""
    old.write("daily_usage.json", text)
    old.months({"eva": {"2026-01": record(1, 3)}})
    outcome = house.migrate(old.directory)
    assert outcome.rejected + outcome.broken == 1
    assert house.costs() == {("eva", "2026-01-01"): 3 * USD}


def test_a_damaged_database_is_told_and_the_files_count(old: OldTracker, house: House) -> None:
    """If the database is unreadable, the tree next to it is the source."""
    old.tree(DAYS)
    (old.directory / "usage_aggregations.db").write_bytes(b"SQLite format 3\0" + os.urandom(5000))
    outcome = house.migrate(old.directory)
    assert outcome.broken == 1
    assert len(house.costs()) == 3
    assert set(outcome.not_renamed) == {"usage_aggregations.db"}


def test_of_database_and_files_the_one_with_more_requests_is_right(old: OldTracker, house: House) -> None:
    """For each user and day, and the report lists them."""
    old.database(
        {"ann": {"2026-01-01": record(5, 5), "2026-01-02": record(1, 1)}, "bo": {"2026-01-01": record(1, 1)}}
    ).close()
    old.tree({"ann": {"2026-01-01": record(4, 9), "2026-01-02": record(2, 2)}, "eva": {"2026-01-01": record(1, 1)}})
    outcome = house.migrate(old.directory)
    assert house.costs() == {
        ("ann", "2026-01-01"): 5 * USD, ("ann", "2026-01-02"): 2 * USD, ("bo", "2026-01-01"): USD, ("eva", "2026-01-01"): USD,
    }  # fmt: skip
    assert [(one["kind"], one["date"]) for one in outcome.findings] == [
        ("disagreement", "2026-01-01"), ("disagreement", "2026-01-02"),
    ]  # fmt: skip
    assert "usage_aggregations.db and partitioned disagree" in outcome.findings[0]["text"]


def test_a_day_that_stands_there_twice_counts_once(old: OldTracker, house: House) -> None:
    """JSON allows duplicate keys: the one with more requests is right, and the duplicate is reported."""
    old.write(
        "daily_usage.json",
        f'{{"ann": {{"2026-01-01": {json.dumps(record(1, 9))}}}, "ann": {{"2026-01-01": {json.dumps(record(2, 1))}}}}}',
    )
    assert house.migrate(old.directory).disagreements == 1
    assert house.costs() == {("ann", "2026-01-01"): USD}


def test_what_the_database_has_not_checkpointed_is_imported(old: OldTracker, house: House) -> None:
    """Changes in the extra files of the database belong to it."""
    connection = old.database({})
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute(
        "INSERT INTO daily_aggregations (user_id, date, total_requests, total_cost) VALUES ('ann', '2026-01-01', 1, 2)"
    )
    connection.commit()
    assert (old.directory / "usage_aggregations.db-wal").stat().st_size
    house.migrate(old.directory)
    connection.close()
    assert house.costs() == {("ann", "2026-01-01"): 2 * USD}


def test_links_are_not_followed(old: OldTracker, house: House, tmp_path: Path) -> None:
    """Neither a source, nor a folder or a file below it, can lead anywhere else."""
    elsewhere = OldTracker(tmp_path / "elsewhere")
    elsewhere.days({"spy": {"2026-01-01": record()}})
    elsewhere.tree({"spy": {"2026-01-01": record()}})
    old.tree({"ann": {"2026-01-01": record(1, 1)}})
    (old.directory / "daily_usage.json").symlink_to(elsewhere.directory / "daily_usage.json")
    (old.directory / "partitioned" / "aa").symlink_to(elsewhere.directory / "partitioned")
    (old.directory / "partitioned" / "daily_2026-01-01.json").symlink_to(elsewhere.directory / "daily_usage.json")
    os.mkfifo(old.directory / "monthly_usage.json")
    outcome = house.migrate(old.directory)
    assert house.costs() == {("ann", "2026-01-01"): USD}
    assert sorted(one["where"] for one in outcome.findings) == [
        "daily_usage.json", "monthly_usage.json", "partitioned/daily_2026-01-01.json",
    ]  # fmt: skip
    assert "daily_usage.json" in names_in(elsewhere.directory)


def test_twice_is_once(old: OldTracker, house: House) -> None:
    """A second migration finds everything there; backups are never imported again."""
    format_2(old)
    house.migrate(old.directory)
    before = house.days()
    outcome = house.migrate(old.directory)
    assert outcome.is_complete
    assert outcome.imported == 0
    assert house.days() == before == EXPECTED


def test_a_directory_that_was_moved_is_known(old: OldTracker, house: House) -> None:
    """Its name is in it: put back and imported again under another path, it adds nothing."""
    old.days(DAYS)
    house.migrate(old.directory)
    before = house.days()
    (old.directory / "daily_usage.json.legacy_backup").rename(old.directory / "daily_usage.json")
    moved = old.directory.rename(old.directory.with_name("moved"))
    house.migrate(moved)
    assert house.days() == before


def test_what_was_added_since_follows(old: OldTracker, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory in use can be migrated again: an increase is imported, a decrease is reported."""

    def fail(source: Any) -> list[Path]:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(module, "rename", fail)
    old.days({"ann": {"2026-01-01": record(2, 2), "2026-01-02": record(5, 5)}})
    old.months({"bo": {"2026-01": record(3, 3)}})
    assert house.migrate(old.directory).not_renamed == {
        "daily_usage.json": "Cannot rename it: Permission denied.",
        "monthly_usage.json": "Cannot rename it: Permission denied.",
    }
    old.days({
        "ann": {"2026-01-01": record(3, 2.5), "2026-01-02": record(4, 5), "2026-01-03": record(1, 1)},
        "bo": {"2026-01-05": record(3, 3)},
    })  # fmt: skip
    outcome = house.migrate(old.directory)
    assert outcome.imported == 2
    assert house.costs() == {
        ("ann", "2026-01-01"): 2_500_000_000, ("ann", "2026-01-02"): 5 * USD, ("ann", "2026-01-03"): USD,
        ("bo", "2026-01-01"): 3 * USD,
    }  # fmt: skip
    assert sorted((one["user"], one["date"]) for one in outcome.findings) == [
        ("ann", "2026-01-02"),
        ("bo", "2026-01-05"),
    ]


def test_a_read_only_directory_is_imported_once(old: OldTracker, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be renamed nor written down in it, and still a second migration adds nothing."""

    def read_only(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if str(path).startswith(str(old.directory)) and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, flags, *args, **options)

    def fail(source: Any) -> list[Path]:
        raise OSError(errno.EROFS, "Read-only file system")

    opened = os.open
    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(module, "rename", fail)
    format_2(old)
    names = names_in(old.directory)
    for imported in (4, 0):
        outcome = house.migrate(old.directory)
        assert outcome.imported == imported
        assert len(outcome.not_renamed) == 4
        assert house.days() == EXPECTED
    assert names_in(old.directory) == names


def test_a_dry_run_changes_nothing(old: OldTracker, house: House) -> None:
    """It reports the expected outcome, and neither the directory nor the data folder changes."""
    format_1(old)
    names = names_in(old.directory)
    outcome = house.preview(old.directory)
    assert (outcome.users, outcome.days, outcome.months, outcome.imported) == (2, 3, 1, 4)
    assert (outcome.profiles, outcome.limits, outcome.disagreements) == (1, 1, 1)
    assert names_in(old.directory) == names
    assert not house.config.data_dir.exists()
    done = house.migrate(old.directory)
    assert (done.users, done.days, done.months, done.totals) == (
        outcome.users,
        outcome.days,
        outcome.months,
        outcome.totals,
    )


def test_a_backup_is_never_written_over(old: OldTracker, house: House) -> None:
    """A backup that is there already keeps its name."""
    old.days(DAYS)
    old.write("daily_usage.json.legacy_backup", "precious")
    house.migrate(old.directory)
    assert (old.directory / "daily_usage.json.legacy_backup").read_text() == "precious"
    assert "ann" in (old.directory / "daily_usage.json.2.legacy_backup").read_text()


def test_a_store_that_took_less_than_it_was_given_is_noticed(old: OldTracker, house: House, tmp_path: Path) -> None:
    """Then the directory keeps its names."""
    old.days(DAYS)

    async def lose(store: Any, writer: str, numbered: Any) -> None:
        await append(store, writer, [*numbered[:-1], (numbered[-1][0], numbered[0][1])])

    from usage_plugin.backends.sqlite.sqlite_store import SqliteStore  # noqa: PLC0415

    append = SqliteStore.append_sums
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SqliteStore, "append_sums", lose)
        with pytest.raises(MigrationError, match="expected an increase of"):
            house.migrate(old.directory)
    assert "daily_usage.json" in names_in(old.directory)


def test_a_lost_staging_database_is_noticed(old: OldTracker, house: House) -> None:
    """Half a migration cannot be resumed without knowing which half is done."""
    old.days(DAYS)
    (old.directory / "spending_limits.json").write_text("{")
    house.migrate(old.directory)
    (staging,) = (house.config.data_dir / "migration").glob("*.db")
    for path in staging.parent.glob("*.db*"):
        path.unlink()
    for backup in old.directory.glob("daily*"):
        backup.unlink()
    old.days({"eva": {f"2026-01-{day:02d}": record() for day in range(1, 20)}})
    with pytest.raises(MigrationError, match=r"3 sums of .* that its staging database does not know"):
        house.migrate(old.directory)
    with pytest.raises(MigrationError, match="does not know"):
        house.migrate(old.directory)
    assert len(house.costs()) == 3


async def test_a_store_of_ours_is_not_imported(old: OldTracker) -> None:
    """The store's own files have the previous tracker's names: they are left alone, and the rest is found."""
    async with open_store(old.directory, ZoneInfo("UTC")) as store:
        await store.append("w", [(1, make_event())])
        await store.keep_profiles([UserProfile("ann")])
        await store.keep_limits([])
    assert legacy_sources.find_sources(old.directory) == ([], [])
    old.database(DAYS).close()
    old.write("user_profiles.json", {"users": []})
    found, _ = legacy_sources.find_sources(old.directory)
    assert [source.kind for source in found] == ["database", "profiles"]


@pytest.mark.parametrize("content", [None, "nonsense"])
def test_a_directory_of_something_else_is_refused(old: OldTracker, house: House, content: str | None) -> None:
    """The error lists the known sources, and no file is left behind."""
    if content:
        old.write("daily_usage.json.legacy_backup", content)
    with pytest.raises(MigrationError, match="Nothing to import in"):
        house.migrate(old.directory)
    with pytest.raises(MigrationError, match="expected a directory; found"):
        house.migrate(old.directory / "gone")
    assert legacy_sources.STATE_FILE not in names_in(old.directory)


def test_sums_that_cannot_be_added_up_are_refused(old: OldTracker, house: House) -> None:
    """A directory of nonsense must not break every report."""
    old.days({f"user-{number}": {"2026-01-01": record(1, 9_999_999)} for number in range(450)})
    with pytest.raises(MigrationError, match="expected sums of at most"):
        house.migrate(old.directory)
    assert house.costs() == {}


names = st.sampled_from(["ann", "bo", "", "x" * 300, "ünï", "a/b"])
whens = st.sampled_from(["2026-01-01", "2026-01-02", "2026-02-01", "2026-02-30"])
amounts = st.sampled_from([0, 0.1, 1e-9, 3.3333333333, -1, float("nan"), None])
records = st.builds(record, st.integers(0, 3), amounts)
directories = st.dictionaries(names, st.dictionaries(whens, records, max_size=3), max_size=4)
months = st.dictionaries(
    names, st.dictionaries(st.sampled_from(["2026-01", "2026-02"]), records, max_size=2), max_size=3
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(directories, directories, months)
def test_what_the_store_has_is_what_the_directory_says(
    tmp_path_factory: Any, files: Any, database: Any, month: Any
) -> None:
    """For any content, the sums in the store are those of the valid records, computed in a simple way."""
    folder = tmp_path_factory.mktemp("moving")
    old, path = OldTracker(folder / "old"), folder / "config.yaml"
    path.write_text("usage_plugin: {data_dir: data}\n")
    old.days(files)
    old.database(database).close()
    old.months(month)
    house = House(path)
    outcome = house.migrate(old.directory)
    expected: dict[tuple[str, str], Any] = {}
    for source, by_user in (("database", database), ("days", files), ("months", month)):
        for user, by_date in by_user.items():
            for when, one in by_date.items():
                cost = one["total_cost"]
                # SQLite keeps no NaN: it is NULL there, and so nothing.
                if when == "2026-02-30" or (cost is not None and (cost < 0 or (cost != cost and source != "database"))):
                    continue
                nano = 0 if cost is None or cost != cost else round(cost * 10**9)
                known = expected.get((user, when))
                if known is None or one["total_requests"] > known[0]:
                    expected[user, when] = (one["total_requests"], nano)
    right = {
        (user, when): value
        for (user, when), value in expected.items()
        if len(when) == 10 or not any(other == user and len(day) == 10 and day[:7] == when for other, day in expected)
    }
    assert (
        (outcome.totals.requests, outcome.totals.cost) == tuple(map(sum, zip(*right.values(), strict=True)))
        if right
        else (0, 0)
    )
    assert sum(house.costs().values()) == outcome.totals.cost
    assert sum(totals[0] for totals in house.days().values()) == outcome.totals.requests
