"""Properties of the PostgreSQL ledger itself; the contract is in test_contract.py."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from tests.support.postgres import PASSWORD, PATIENCE, PostgresOpening, PostgresServer, new_schema
from usage_plugin.domain.ledger import AccountKey, Balance, Charge, Hold, Ledger, NotSettled
from usage_plugin.domain.operations import Anomaly
from usage_plugin.errors import ConfigError, LedgerError, StorageVersionError
from usage_plugin.ledgers.postgres import PostgresLedgerBackend, PostgresOptions, operations
from usage_plugin.plugins.interface import BackendContext, check_options
from usage_plugin.postgres import server
from usage_plugin.postgres.address import PRISMA_PARAMETERS, Address
from usage_plugin.testing.builders import ANN, END, TEAM, hold, record_new, settle_one

LARGEST = 2**63 - 1
KEY = "usage_plugin.ledger.options.url"


# ── the URL ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_place_has_no_credentials() -> None:
    """Several hosts and the database are named without user, password and parameters."""
    found = Address("postgres://ann:s3cret@one:5432,two:5433/usage?sslmode=require", 5, KEY)
    assert found.location == "postgresql://one:5432,two:5433/usage"
    assert found.conninfo == "postgresql://ann:s3cret@one:5432,two:5433/usage?sslmode=require"
    assert (
        Address("postgresql:///usage?host=%2Frun%2Fpg&password=s3cret", 5, KEY).location == "postgresql:///run/pg/usage"
    )


def test_the_parameters_of_prisma_are_left_out() -> None:
    """A URL that LiteLLM uses, with parameters of Prisma, works here; all other parameters stay."""
    prisma = "&".join(f"{name}=1" for name in sorted(PRISMA_PARAMETERS))
    found = Address(f"postgresql://db/usage?{prisma}&sslmode=require&connect_timeout=3", 5, KEY)
    assert found.conninfo == "postgresql://db/usage?sslmode=require&connect_timeout=3"
    assert psycopg.conninfo.conninfo_to_dict(found.conninfo)["sslmode"] == "require"


@pytest.mark.parametrize(
    "url",
    [
        "s3cret", "mysql://ann:s3cret@db/usage", "postgresql://", "postgresql://ann:s3cret%@db/usage",
        "postgresql://ann:pa/s3cret@db/usage", "postgresql://ann:s3cret@x@db/usage", "postgresql://ann:s3cret@db:port/x",
        "postgresql://ann:pa#s3cret@db/usage", "postgresql://ann:pa s3cret@db/usage", "postgresql://ann:[s3cret@db/usage",
        "postgresql://ann:s3cret@one:5432,two:s3cret/usage", "postgresql://ann:1?s3cret@db/usage",
        "host=db password=s3cret",
    ],
)  # fmt: skip
def test_an_invalid_url_is_not_repeated(url: str) -> None:
    """The error of an invalid URL has the key and a remedy, and no part of a password."""
    with pytest.raises(ConfigError, match=r"^usage_plugin\.ledger\.options\.url: ") as raised:
        Address(url, 5, KEY)
    assert "s3cret" not in str(raised.value)
    assert raised.value.hint


def test_an_unknown_parameter_is_named() -> None:
    """A parameter that the driver does not know is found before anything starts."""
    options = PostgresOptions.model_validate({"url": "postgresql://ann:s3cret@db/usage?sslmod=require"})
    with pytest.raises(ConfigError, match="sslmod") as raised:
        PostgresLedgerBackend().check(options, BackendContext(Path(), ZoneInfo("UTC")))
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [
        {"ur": "postgresql://ann:s3cret@db/usage"},
        {"url": "postgresql://ann:s3cret@db/usage", "schema": "Robert'); --"},
        {"url": "postgresql://ann:s3cret@db/usage", "schema": "pg_x"},
        {"url": "postgresql://ann:s3cret@db/usage", "connect_timeout": "soon"},
        {"url": "postgresql://ann:s3cret@db/usage", "table": "x"},
    ],
)
def test_invalid_options_do_not_show_the_password(options: dict[str, Any]) -> None:
    """Errors of options, a misspelt `url` included, leave out the credentials."""
    with pytest.raises(ConfigError) as raised:
        check_options("usage_plugin.ledger.options", PostgresOptions, options)
    assert "s3cret" not in str(raised.value)
    assert "usage_plugin.ledger.options" in str(raised.value)


def test_options_do_not_show_the_password() -> None:
    """Neither the validated options nor their text contain the password."""
    options = PostgresOptions.model_validate({"url": "postgresql://ann:s3cret@db/usage"})
    assert "s3cret" not in f"{options!r} {options} {options.model_dump()}"


def test_the_driver_is_an_extra(opening: PostgresOpening, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without psycopg the error has the command that installs it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for use in (opening.open, opening.exists):
        with pytest.raises(ConfigError, match=r'pip install "usage-plugin\[postgres\]"'):
            use()


def test_importing_the_backend_loads_no_driver() -> None:
    """A proxy with another ledger does not pay for the driver."""
    code = "import sys, usage_plugin.ledgers.postgres; sys.exit('psycopg' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ── the server ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_refused_connection_is_explained_without_the_password(postgres: PostgresServer, tmp_path: Path) -> None:
    """A wrong password and an unreachable server are ledger errors with a remedy, without any password."""
    for old, new in (("w%25rd", "wrong"), (f":{postgres.port}", ":1")):
        opening = PostgresOpening(PostgresLedgerBackend(), tmp_path, {"url": postgres.url.replace(old, new)})
        with pytest.raises(LedgerError, match="cannot be reached") as raised:
            opening.open()
        assert raised.value.hint
        for secret in (PASSWORD, "wrong", "w%25rd", "ss%2F"):
            assert secret not in str(raised.value)


def test_a_stricter_isolation_is_refused(opening: PostgresOpening) -> None:
    """A server that sets a stricter isolation level for the role is refused, with the statement that changes it."""
    url = f"{opening.options['url']}?options=-cdefault_transaction_isolation%3Dserializable"
    strict = PostgresOpening(opening.backend, opening.data_dir, {**opening.options, "url": url})
    with pytest.raises(LedgerError, match="ALTER ROLE"):
        strict.open()
    assert not opening.exists()


def test_processes_that_start_at_once_share_one_schema(opening: PostgresOpening) -> None:
    """Several workers that open a new ledger at once create it once."""
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: opening.open(), range(4)))
    assert len({one.ledger.writer for one in opened}) == 1
    for one in opened:
        one.close()


def test_a_newer_schema_can_be_used_while_it_allows_that(
    opening: PostgresOpening, bare: psycopg.Connection[Any]
) -> None:
    """Two versions of the package share a ledger, until the newer one excludes the older one."""
    opening.open().close()
    bare.execute(f"INSERT INTO {opening.options['schema']}.versions (number, oldest) VALUES (998, 4)")
    opened = opening.open()
    assert settle_one(opened.ledger, "a") == 1
    opened.close()
    bare.execute(f"INSERT INTO {opening.options['schema']}.versions (number, oldest) VALUES (999, 999)")
    with pytest.raises(StorageVersionError, match="999"):
        opening.open()


def test_a_role_without_rights_is_told_so(
    opening: PostgresOpening, postgres: PostgresServer, bare: psycopg.Connection[Any]
) -> None:
    """A role that may not create the schema gets an error that names the rights."""
    role = new_schema()
    bare.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    url = f"postgresql://{role}:x@127.0.0.1:{postgres.port}/postgres"
    with pytest.raises(LedgerError, match="Grant"):
        PostgresOpening(opening.backend, opening.data_dir, {**opening.options, "url": url}).open()


def test_a_lost_connection_is_opened_again(ledger: Ledger, bare: psycopg.Connection[Any]) -> None:
    """After the server has cut a connection, one call fails and the next works."""
    settle_one(ledger, "a")
    bare.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename <> ''"
    )
    with pytest.raises(LedgerError):
        ledger.acknowledged()
    assert settle_one(ledger, "b") == 2


def test_a_stopped_server_is_given_up(
    ledger: Ledger, bare: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that accepts everything and answers nothing is given up after a while; then the ledger works again."""
    settle_one(ledger, "a")
    (pid,) = bare.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'usage_plugin' AND query LIKE '%usage_v1_settle%'"
    ).fetchall()[0]
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(server, "_PATIENCE", 0.2)
    try:
        with pytest.raises(LedgerError, match=r"no answer within 0\.2 s"):
            ledger.outbox(0, 10)
        monkeypatch.setattr(server, "_PATIENCE", 60.0)
        assert len(ledger.outbox(0, 10)) == 1
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
def test_a_killed_server_loses_nothing_that_was_answered(ledger: Ledger, postgres: PostgresServer) -> None:
    """After `kill -9` of the whole server and its restart, all settlements are there, and the ledger works again."""
    ledger.reserve("held", "w", 5, [hold(ANN, 30, 100)], "draft")
    seqs = [settle_one(ledger, str(number)) for number in range(20)]
    os.kill(postgres.main_process, signal.SIGKILL)
    postgres.stop()
    with pytest.raises(LedgerError):
        ledger.acknowledged()
    postgres.start()
    assert [entry.seq for entry in ledger.outbox(0, 100)] == seqs
    assert ledger.balances([ANN]) == {ANN: Balance(0, 30)}
    assert settle_one(ledger, "next") == seqs[-1] + 1


# ── repeated calls ───────────────────────────────────────────────────────────────────────────────────────────────────

VERBS: dict[str, Callable[[Ledger], object]] = {
    "reserve": lambda ledger: ledger.reserve("b", "w", 5, [hold(ANN, 7, 100), hold(TEAM, 7, None)], "draft"),
    "settle": lambda ledger: ledger.settle("a", [Charge(ANN, END, 12)], "event"),
    "release": lambda ledger: ledger.release("a"),
    "abandon": lambda ledger: ledger.abandon("a"),
    "free": lambda ledger: ledger.free("a", [TEAM]),
    "record": lambda ledger: ledger.record("new", [Charge(ANN, END, 12)], "event"),
    "recover": lambda ledger: ledger.recover("a"),
    "correct": lambda ledger: ledger.correct("c", [Charge(ANN, END, 12)]),
    "acknowledge": lambda ledger: ledger.acknowledge(1),
}


@pytest.mark.parametrize("is_acted_on", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_whose_answer_was_lost_can_be_repeated(
    verb: str, is_acted_on: bool, opening: PostgresOpening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that is cut before or after the server acted, and repeated, leaves the same ledger as one call."""
    results = []
    for cuts in (0, 1):
        opened = opening.another().open()
        ledger = opened.ledger
        ledger.reserve("a", "w", 5, [hold(ANN, 30, 100), hold(TEAM, 1, None)], "draft")
        record_new(ledger, [Charge(ANN, END, 1)], "first")
        left = [cuts]
        execute = server.execute

        def cut(connection: Any, *what: Any, left: list[int] = left, execute: Any = execute) -> Any:
            if not left[0]:
                return execute(connection, *what)
            left[0] -= 1
            if is_acted_on:
                execute(connection, *what)
            connection.close()
            raise psycopg.OperationalError("the connection is lost")

        monkeypatch.setattr(server, "execute", cut)
        for _ in range(cuts):
            with pytest.raises(LedgerError, match="the connection is lost"):
                VERBS[verb](ledger)
        VERBS[verb](ledger)
        monkeypatch.setattr(server, "execute", execute)
        assert ledger.verify() == []
        accounts = [account for limit_key in (1, 2) for account in ledger.accounts(limit_key, 0)]
        entries = [entry.event for entry in ledger.outbox(0, 10)]
        results.append((accounts, entries, ledger.open_reservations(), ledger.acknowledged()))
        opened.close()
    assert results[0] == results[1]


def test_a_reservation_that_arrives_after_its_end_holds_nothing(ledger: Ledger) -> None:
    """A reservation that was sent twice, and arrives again after the request was settled, holds nothing."""
    sent = ("a", "w", 5, [hold(ANN, 30, 100)], "draft")
    assert ledger.reserve(*sent).admitted
    ledger.settle("a", [Charge(ANN, END, 12)], "event")
    assert ledger.reserve(*sent)[:2] == (False, (Balance(12, 0),))
    assert ledger.balances([ANN]) == {ANN: Balance(12, 0)}


def test_any_worker_repeats_a_reservation(ledger: Ledger, opening: PostgresOpening) -> None:
    """A repetition gets the first answer from the server itself, in any worker and after others have reserved."""
    sent = ("a", "w", 5, [hold(ANN, 30, 100)], "draft")
    first = ledger.reserve(*sent)
    ledger.reserve("b", "w", 5, [hold(ANN, 50, 100)], "draft")
    other = opening.open()
    assert other.ledger.reserve(*sent) == first
    other.ledger.free("a", [ANN])
    assert other.ledger.reserve(*sent) == first, "it repeats what was sent, whatever was freed since"
    assert ledger.balances([ANN]) == {ANN: Balance(0, 50)}
    other.close()


# ── amounts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_large_amounts_are_exact(ledger: Ledger) -> None:
    """Amounts up to 2^62 are compared and added to the last unit."""
    most = 2**62
    assert ledger.reserve("a", "w", 5, [hold(ANN, most - 1, most)], "draft").admitted
    assert not ledger.reserve("b", "w", 5, [hold(ANN, 2, most)], "draft").admitted
    assert ledger.reserve("c", "w", 5, [hold(ANN, 1, most)], "draft")[:2] == (True, (Balance(0, most - 1),))
    ledger.settle("a", [Charge(ANN, END, most - 1)], "event")
    assert ledger.balances([ANN]) == {ANN: Balance(most - 1, 1)}
    ledger.settle("c", [Charge(ANN, END, most + 3)], "event")
    assert ledger.balances([ANN]) == {ANN: Balance(LARGEST, 0)}, "2^63 + 2 is more than can be stored"


def test_sums_stop_at_the_largest_number(ledger: Ledger) -> None:
    """Neither an account nor the sum of a rolling window overflows; more than 2^63 - 1 counts as that."""
    first, second = (AccountKey(1, start, "ann") for start in (10, 20))
    for account in (first, second):
        for _ in range(2):
            record_new(ledger, [Charge(account, END, LARGEST), Charge(account, END, LARGEST)], "event")
    assert ledger.balances([first]) == {first: Balance(LARGEST, 0)}
    refused = ledger.reserve("a", "w", 5, [Hold(second, END, 1, LARGEST, 1, since=10)], "draft")
    assert refused[:2] == (False, (Balance(LARGEST, 0),))
    with pytest.raises(LedgerError):
        ledger.record("too much", [Charge(ANN, 2**63, 1)], "event")
    assert ledger.settle("too much", [], None) is NotSettled.UNKNOWN


# ── transactions and housekeeping ───────────────────────────────────────────────────────────────────────────────────


def test_each_transaction_may_have_a_connection_of_its_own(
    opening: PostgresOpening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept in the session: a pooler may hand each transaction to another connection."""
    connections: list[psycopg.Connection[Any]] = []
    usable = server.Server._usable

    def pooled(self: server.Server) -> psycopg.Connection[Any]:
        if not self._is_in_transaction:
            if len(connections) < 3:
                connections.append(self._connect())
            self._connection = connections[0]
            connections.append(connections.pop(0))
            connections[-1].execute("DISCARD ALL")
        return usable(self)

    monkeypatch.setattr(server.Server, "_usable", pooled)
    opened = opening.open()
    for number in range(7):
        assert settle_one(opened.ledger, str(number)) == number + 1
    opened.operations.count_anomalies([Anomaly("gap", "store", 1, 7, 5, 6)])
    assert opened.erasable.find("ann").accounts == []
    opened.erasable.compact()
    assert opened.ledger.verify() == []
    opened.close()
    for connection in connections:
        connection.close()


def test_the_table_of_anomalies_is_bounded(opening: PostgresOpening, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the maximum number of rows, new anomalies are counted as others of their kind."""
    monkeypatch.setattr(operations, "_KEPT_ANOMALIES", 2)
    opened = opening.open()
    for _ in range(2):
        opened.operations.count_anomalies([Anomaly("gap", name, 1, 1, 5, 6) for name in ("a", "b", "c", "d")])
    found = {anomaly.concerns: anomaly.times for anomaly in opened.operations.anomalies()}
    assert found == {"a": 2, "b": 2, "(others)": 4}
    opened.close()


def test_no_verb_reads_a_whole_table(opening: PostgresOpening, bare: psycopg.Connection[Any]) -> None:
    """A session that has begun on an empty ledger still looks up single rows once the ledger is large."""
    schema = opening.options["schema"]
    opened = opening.open()
    ledger = opened.ledger

    def use(turn: int) -> None:
        for number in range(8):
            accounts = [AccountKey(key, number, "ann") for key in (1, 2, 3)]
            holds = [
                Hold(account, 2 * END, 5, LARGEST, 5, since)
                for account, since in zip(accounts, (0, None, None), strict=True)
            ]
            for name in ("a", "b", "c"):
                assert ledger.reserve(f"{name} {turn} {number}", "w", 5, holds, "draft").admitted
            assert ledger.settle(f"a {turn} {number}", [Charge(account, 2 * END, 3) for account in accounts], "event")
            ledger.free(f"b {turn} {number}", accounts[:1])
            assert ledger.abandon(f"b {turn} {number}")
            assert ledger.recover(f"c {turn} {number}")
            assert ledger.record(f"d {turn} {number}", [Charge(accounts[0], 2 * END, 3)], "event")
            assert ledger.correct(f"e {turn} {number}", [Charge(accounts[0], 2 * END, 3)])
            ledger.snapshot(accounts)
            ledger.waiting()
            ledger.acknowledge(1)
            ledger.maintain(END)

    # A plan is kept from the sixth use on.
    use(1)
    bare.execute(
        f"INSERT INTO {schema}.accounts SELECT 9, 'u' || n, 0, {9 * END}, 1, 0 FROM generate_series(1, 5000) n"
    )
    bare.execute(f"INSERT INTO {schema}.requests (event_id, ended) SELECT 'e' || n, 1 FROM generate_series(1, 5000) n")
    bare.execute(f"INSERT INTO {schema}.outbox SELECT -n, 'event' FROM generate_series(1, 1900) n")

    def rows_read() -> int:
        ledger._server.run("SELECT pg_stat_force_next_flush()")  # type: ignore[attr-defined]
        (rows,) = bare.execute(
            "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_user_tables WHERE schemaname = %s"
            " AND relname IN ('accounts', 'requests', 'outbox')",
            (schema,),
        ).fetchall()[0]
        return int(rows)

    before = rows_read()
    use(2)
    assert rows_read() - before < 3_000, "a table has been read as a whole"
    opened.close()


def test_each_verb_has_the_settings(ledger: Ledger, bare: psycopg.Connection[Any]) -> None:
    """Each function has the settings for locks and plans, except those that only others call."""
    rows = bare.execute(
        "SELECT proname FROM pg_proc WHERE pronamespace = %s::regnamespace AND cardinality(proconfig) IS DISTINCT FROM 5",
        (ledger.location.rpartition(" ")[2],),
    )
    helpers = {
        f"usage_v1_{name}"
        for name in [
            "holds",
            "look",
            "refusal",
            "lock",
            "discard",
            "hold",
            "held",
            "digest",
            "apply",
            "append",
            "book",
            "find",
            "end",
            "end_charged",
            "settled_before",
            "incarnation",
            "renew",
            "is_open",
            "now",
            "reassert",
            "do",
        ]
    }
    assert {name for (name,) in rows} == helpers


def test_old_ids_are_forgotten(ledger: Ledger, bare: psycopg.Connection[Any]) -> None:
    """Ended ids are deleted after two generations of ten minutes, and abandoned ones after a day more."""
    schema = ledger.location.rpartition(" ")[2]
    generation = 600_000_000
    ledger.maintain(END)
    settle_one(ledger, "a")
    ledger.abandon("b")
    ledger.reserve("open", "w", 5, [], "draft")
    kept = []
    for number in range(1, 150):
        ledger.maintain(END + number * generation)
        rows = bare.execute(f"SELECT event_id FROM {schema}.requests ORDER BY event_id").fetchall()
        kept.append([row[0] for row in rows])
    assert [kept[0], kept[1], kept[143], kept[148]] == [["a", "b", "open"], ["b", "open"], ["b", "open"], ["open"]]


# ── the test's own server ────────────────────────────────────────────────────────────────────────────────────────────

_START = """
import sys, time
from pathlib import Path
from tests.support.postgres import PostgresServer, binaries
server = PostgresServer(binaries(), Path(sys.argv[1]))
server.start()
print(server.port, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_server_ends_with_the_process_that_has_started_it(tmp_path: Path) -> None:
    """The server of a test stops by itself when the test's process is killed."""
    with subprocess.Popen([sys.executable, "-c", _START, str(tmp_path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        child.kill()
    deadline = time.monotonic() + PATIENCE
    while _is_listening(port):
        assert time.monotonic() < deadline, "it still runs"
        time.sleep(0.05)


def _is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
