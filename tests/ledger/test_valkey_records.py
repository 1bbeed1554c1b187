"""The operations log, the profiles and the erasure on a Valkey server: as in SQLite, bounded, fenced, and without a trace."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.support.valkey import RunningServer, valkey_opening, valkey_server
from tests.support.waiting import wait_until
from usage_plugin.domain.erasure import NameMatches
from usage_plugin.domain.ledger import AccountKey, Charge
from usage_plugin.domain.operations import Adjustment, AlertKey, Anomaly, AuditEntry, RefusalCount
from usage_plugin.domain.profiles import UserProfile
from usage_plugin.errors import LedgerError
from usage_plugin.ledgers.sqlite import open_sqlite_ledger
from usage_plugin.ledgers.valkey import ValkeyOptions
from usage_plugin.ledgers.valkey.opening import open_valkey_ledger
from usage_plugin.ledgers.valkey.server import KEY_NAMES, RECORD_KEY_NAMES
from usage_plugin.testing.builders import END, record_new

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from usage_plugin.domain.open_ledger import OpenLedger

YEAR = 366 * END
MOST = 2**63 - 1
TIMES = st.sampled_from([0, 1, 2, 2**53, 2**53 + 1, 2**62])
AMOUNTS = st.sampled_from([0, 1, -1, 2**53 + 1, 2**62])
NAMES = st.sampled_from(["ann", "ann\n9", "bo\x1fann", "bo"])
TEXTS = st.sampled_from(["{}", '{"user":"ann"}', '{"user":"ann\\n9"}', "7|x\ny"])
NUMBERS = st.integers(0, 4)


@pytest.fixture
def options(valkey: RunningServer, tmp_path: Path) -> ValkeyOptions:
    return ValkeyOptions.model_validate(valkey_opening(valkey, tmp_path / "usage").options)


@pytest.fixture
def opened(options: ValkeyOptions) -> Iterator[OpenLedger]:
    opened = open_valkey_ledger(options)
    yield opened
    opened.close()


# ── as in SQLite ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Both(RuleBasedStateMachine):
    """Does each verb on both ledgers."""

    both: tuple[OpenLedger, OpenLedger]

    def do(self, verb: Callable[[OpenLedger], Any]) -> None:
        first, second = map(verb, self.both)
        assert first == second

    @rule(late=TIMES)
    def maintain(self, late: int) -> None:
        self.do(lambda one: one.operations.maintain(YEAR + late))

    @rule(name=NAMES.filter(lambda name: "\x1f" not in name))
    def erase(self, name: str) -> None:
        self.do(lambda one: [sorted(matches) for matches in one.erasable.find(name)])
        self.do(lambda one: one.erasable.erase(one.erasable.find(name)))

    def teardown(self) -> None:
        for one in self.both:
            one.close()


class Adjustments(Both):
    @rule(subject=NAMES, amount=st.none() | AMOUNTS, until=TIMES, ended=st.none() | st.none() | TIMES)
    def adjust(self, subject: str, amount: int | None, until: int, ended: int | None) -> None:
        made = Adjustment(0, "daily", subject, amount, amount, 5, until, "root", "why", ended)
        self.do(lambda one: one.operations.adjust(made))

    @rule(number=NUMBERS, at=TIMES)
    def end(self, number: int, at: int) -> None:
        version = [one.operations.adjustments_version() for one in self.both]
        self.do(lambda one: one.operations.end_adjustment(number, at))
        is_changed = [
            one.operations.adjustments_version() != before for one, before in zip(self.both, version, strict=True)
        ]
        assert is_changed[0] == is_changed[1]

    @invariant()
    def have_the_same(self) -> None:
        self.do(lambda one: [one.operations.adjustments(since) for since in (None, 0, 1, 2**53)])


class Alerts(Both):
    @rule(subject=NAMES, start=AMOUNTS, at=TIMES, details=TEXTS)
    def alert(self, subject: str, start: int, at: int, details: str) -> None:
        self.do(lambda one: one.operations.alert(AlertKey(2**62, subject, start, 80), at, details))

    @rule(number=NUMBERS, at=TIMES, actor=NAMES)
    def acknowledge(self, number: int, at: int, actor: str) -> None:
        self.do(lambda one: one.operations.acknowledge_alert(number, at, actor))

    @invariant()
    def have_the_same(self) -> None:
        for subjects in (["ann"], ["ann\n9", "bo\x1fann", "bo"], []):
            self.do(lambda one, subjects=subjects: [one.operations.alerts(since, subjects) for since in (0, 2, 2**53)])


class Refusals(Both):
    @rule(
        counts=st.lists(st.builds(RefusalCount, TIMES, NAMES, NAMES, NAMES, NUMBERS), max_size=3),
        details=st.lists(st.tuples(NAMES, TIMES, TEXTS), max_size=3),
    )
    def refuse(self, counts: list[RefusalCount], details: list[tuple[str, int, str]]) -> None:
        self.do(lambda one: one.operations.count_refusals(counts, details))

    @rule(name=NAMES, text=st.none() | TEXTS)
    def note(self, name: str, text: str | None) -> None:
        self.do(lambda one: one.operations.note(name, text))

    @rule(at=TIMES, subject=NAMES, counts=st.dictionaries(NAMES, AMOUNTS, max_size=2))
    def audit(self, at: int, subject: str, counts: dict[str, int]) -> None:
        self.do(lambda one: one.operations.audit(AuditEntry(0, at, "forget", subject, "root", "why", counts)))

    @invariant()
    def have_the_same(self) -> None:
        self.do(lambda one: [sorted(one.operations.refusal_counts(since)) for since in (0, 2, 2**53)])
        self.do(lambda one: [one.operations.refusal(ref) for ref in ("ann", "ann\n9", "bo", "")])
        self.do(lambda one: one.operations.audited())
        self.do(lambda one: [one.operations.notes(prefix) for prefix in ("", "ann")])


class Anomalies(Both):
    @rule(
        anomalies=st.lists(
            st.builds(Anomaly, st.just("gap"), NAMES, NUMBERS, st.integers(-9, 9), TIMES, TIMES), max_size=3
        )
    )
    def count(self, anomalies: list[Anomaly]) -> None:
        self.do(lambda one: one.operations.count_anomalies(anomalies))

    @invariant()
    def have_the_same(self) -> None:
        self.do(lambda one: one.operations.anomalies())


class Profiles(Both):
    @rule(profiles=st.lists(st.builds(UserProfile, NAMES, NAMES, updated_at=TIMES), max_size=3))
    def put(self, profiles: list[UserProfile]) -> None:
        self.do(lambda one: one.profiles.put(profiles))

    @rule(user=NAMES)
    def remove(self, user: str) -> None:
        self.do(lambda one: one.profiles.remove(user))

    @invariant()
    def have_the_same(self) -> None:
        self.do(lambda one: [one.profiles.get(user) for user in ("ann", "bo", "")])
        self.do(lambda one: [one.profiles.page(after, most) for after in ("", "ann") for most in (0, 2, 10)])
        self.do(lambda one: [one.profiles.changes(after, most) for after in (0, 3, 9) for most in (0, 2, 10)])
        self.do(lambda one: one.profiles.version())


@pytest.mark.parametrize("kind", [Adjustments, Alerts, Anomalies, Profiles, Refusals])
def test_records_are_as_in_sqlite(valkey: RunningServer, tmp_path: Path, kind: type[Both]):
    """After any verbs in any order, with numbers beyond 2^53 and texts that the script uses itself."""
    opening = valkey_opening(valkey, tmp_path / "usage")
    numbers = itertools.count()

    class Machine(kind):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            options = ValkeyOptions.model_validate(opening.another().options)
            self.both = (open_sqlite_ledger(tmp_path / f"{next(numbers)}.db"), open_valkey_ledger(options))

    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=30, stateful_step_count=20, deadline=None, derandomize=True, database=None),
    )


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_memory_is_bounded(opened: OpenLedger):
    """The details of 10,000 refusals are kept, and 2,000 anomalies; more of a kind are counted as others."""
    operations = opened.operations
    for first in range(0, 11_450, 2_290):
        operations.count_refusals([], [(f"R{number}", 1, "{}") for number in range(first, first + 2_290)])
    assert [operations.refusal(f"R{number}") for number in (1_449, 1_450, 11_449)] == [None, "{}", "{}"]
    operations.count_anomalies([Anomaly("unpriced", f"model-{number}", 1, 2, 5, 6) for number in range(2_010)])
    operations.count_anomalies([Anomaly("unpriced", f"model-{number}", 1, 2, 5, 6) for number in (0, 2_005)])
    operations.count_anomalies([Anomaly("gap", "store", 1, 2, 5, 6)])
    anomalies = {(one.kind, one.concerns): one.times for one in operations.anomalies()}
    assert len(anomalies) == 2_002
    assert anomalies["unpriced", "(others)"] == 11
    assert anomalies["unpriced", "model-0"] == 2
    assert anomalies["gap", "(others)"] == 1


def test_retention_leaves_nothing(valkey: RunningServer, options: ValkeyOptions, opened: OpenLedger):
    """When it is over, slice after slice, only counters are left of these records."""
    for number in range(1_100):
        name = f"n{number}"
        opened.operations.alert(AlertKey(1, name, 0, 80), number)
        opened.operations.adjust(Adjustment(0, "daily", name, 1, 2, 0, number, "root", "why"))
    opened.operations.count_refusals([RefusalCount(number, "daily", "ann", "spent", 1) for number in range(1_100)], [])
    opened.operations.count_refusals([], [("R", 1, "{}")])
    opened.erasable.erase(NameMatches(refusals=[("R", "{}")]))
    opened.operations.count_anomalies([Anomaly("gap", f"n{number}", 1, 1, 1, number) for number in range(1_100)])
    opened.operations.acknowledge_alert(1, 5, "kim")
    opened.operations.end_adjustment(1_000, 5)
    for _ in range(3):
        opened.operations.maintain(YEAR + 2_000)
    assert set(keys_on(valkey, options)) == {"meta", "counters", "fleet"}


def test_sums_stop_at_the_largest_number(opened: OpenLedger):
    """An error within a verb would leave half of it done."""
    for amount, bound in ((MOST, MOST), (-MOST, -MOST - 1)):
        kind = f"kind {amount}"
        for _ in range(2):
            opened.operations.count_anomalies([Anomaly(kind, "x", MOST, amount, 5, 6), Anomaly(kind, "y", 1, 1, 5, 6)])
        of_kind = [one for one in opened.operations.anomalies() if one.kind == kind]
        assert of_kind == [Anomaly(kind, "x", MOST, bound, 5, 6), Anomaly(kind, "y", 2, 2, 5, 6)]


def test_numbers_beyond_64_bits_are_refused(opened: OpenLedger):
    """Before anything is sent."""
    for verb in (
        lambda: opened.operations.alert(AlertKey(2**63, "ann", 0, 80), 5),
        lambda: opened.operations.adjust(Adjustment(0, "daily", "ann", 1, 2, 0, 2**63, "root", "why")),
        lambda: opened.operations.count_anomalies([Anomaly("gap", "x", 1, 2**63, 5, 6)]),
        lambda: opened.profiles.put([UserProfile("ann", updated_at=-(2**64))]),
    ):
        with pytest.raises(LedgerError, match="64 bits"):
            verb()


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def keys_on(server: RunningServer, options: ValkeyOptions) -> list[str]:
    """Return the names of a ledger's keys; fail for one without its hash tag."""
    tag = f"{{{options.prefix}}}:"
    reply = server.command("KEYS", f"*{options.prefix}*").decode().split("\r\n")
    keys = [part for part in reply if part and part[0] not in "*$"]
    assert all(key.startswith(tag) for key in keys)
    return [key.removeprefix(tag) for key in keys]


def fill(opened: OpenLedger, name: str) -> None:
    """Create a record of each kind."""
    record_new(opened.ledger, [Charge(AccountKey(1, 0, name), END, 5)], f'{{"user":"{name}"}}')
    opened.ledger.acknowledge(opened.ledger.outbox(0, 100)[-1].seq)
    operations = opened.operations
    operations.count_refusals([RefusalCount(1, "daily", name, "spent", 2)], [(f"R-{name}", 1, f'{{"user":"{name}"}}')])
    operations.alert(AlertKey(1, name, 0, 50), 1, "{}")
    operations.acknowledge_alert(1, 2, "kim")
    number = operations.adjust(Adjustment(0, "daily", name, 1, 2, 0, 10, "root", "why")).number
    operations.end_adjustment(number, 5)
    operations.count_anomalies([Anomaly("gap", "store", 1, 7, 5, 6)])
    operations.note("a", "b")
    operations.audit(AuditEntry(0, 5, "forget", "p-abc", "root", "why", {}))
    opened.profiles.put([UserProfile(name, updated_at=1)])


def test_every_key_is_declared(valkey: RunningServer, options: ValkeyOptions, opened: OpenLedger):
    """All are under one hash tag, and each is one of the keys that the scripts declare."""
    fill(opened, "eva")
    assert set(keys_on(valkey, options)) <= {*KEY_NAMES, *RECORD_KEY_NAMES}
    assert set(keys_on(valkey, options)) >= set(RECORD_KEY_NAMES)


# ── traces ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_byte_is_left_of_what_was_erased(tmp_path_factory: pytest.TempPathFactory):
    """After compacting, the name is in no file of the server, and the other events are as they were."""
    folder = tmp_path_factory.mktemp("v")
    with valkey_server(folder, rdbcompression="no") as server:
        opened = open_valkey_ledger(ValkeyOptions.model_validate({"url": server.url}))
        fill(opened, "first-person")
        fill(opened, "second-person")
        assert {b"first-person", b"second-person"} <= names_in(folder)
        second = opened.ledger.outbox(1, 10)
        opened.erasable.erase(opened.erasable.find("first-person"))
        opened.profiles.remove("first-person")
        opened.erasable.compact()
        assert opened.ledger.outbox(0, 10) == second
        # The server deletes the former file in the background.
        wait_until(lambda: names_in(folder) == {b"second-person"})
        opened.close()


def names_in(folder: Path) -> set[bytes]:
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return {name for name in (b"first-person", b"second-person") if name in content}
