"""The doctor's findings without sending a request. `tests/proxy/test_doctor.py` sends some."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from usage_plugin.cli.doctor import command, environment, probes, temporary_proxy, wiring
from usage_plugin.cli.doctor.http_client import Response, fetch
from usage_plugin.cli.doctor.mock_provider import MockProvider
from usage_plugin.config import load_config
from usage_plugin.domain.ledger import Hold
from usage_plugin.domain.operations import Anomaly
from usage_plugin.encoding import encode_event
from usage_plugin.errors import StorageUnavailableError
from usage_plugin.sqlite_file import has_wal_reset_bug
from usage_plugin.testing.builders import NOON, make_event

SECOND = 1_000_000
CALLBACK = "usage_plugin.proxy.callback"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("CONFIG_FILE_PATH", "NUM_WORKERS", "LITELLM_MASTER_KEY", "USAGE_PLUGIN_ENFORCE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def proxy_yaml(config_path):
    """Change the proxy's YAML, section by section."""

    def change(**sections):
        document = yaml.safe_load(config_path.read_text())
        for name, values in sections.items():
            document[name] = {**document.get(name, {}), **values}
        config_path.write_text(yaml.safe_dump(document))
        return config_path

    return change


@pytest.fixture
def examine(run):
    """The findings of a static look, those that are not ok as {level: [text and remedy]}."""

    def examine():
        result = run("doctor", "--static", "--format", "json")
        document = json.loads(result.stdout)
        levels = {"warning": [], "problem": []}
        for finding in document["findings"]:
            if finding["level"] != "ok":
                levels[finding["level"]].append(f"{finding['text']} {finding['remedy']}")
        assert document["ok"] == (not levels["problem"])
        assert result.exit_code == int(not document["ok"])
        return levels

    return examine


def said(lines, *parts):
    """Whether one of the lines has all the parts."""
    return any(all(part in line for part in parts) for line in lines)


# ── no problems ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_good_configuration_has_no_problem(run, books, examine):
    """Without problems the doctor ends with 0, and its output names every check."""
    books.add()
    books.flush()
    assert examine()["problem"] == []
    text = run.ok("doctor", "--static")
    for part in ("Wiring", "Environment", "Data", "names usage_plugin.proxy.callback once", "no-log", "LiteLLM 1.",
                 "a local file system", "are free", "The clock is set to 2026-11-23 12:00:00 UTC",
                 "The ledger is consistent", "The store has every event", "accepts events", "Anomalies\n"):  # fmt: skip
        assert part in text, part
    assert "✓" in text
    assert "✗" not in text
    assert "\x1b" not in text


def test_before_anything_is_recorded_the_files_are_looked_at(run, config_path):
    """Without a data folder the doctor looks at everything else, and makes none."""
    text = run.ok("doctor", "--static")
    assert "Nothing has been recorded" in text
    assert "does not exist yet; the proxy creates it" in text
    assert not (config_path.parent / "data").exists()


def test_the_doctor_does_not_load_litellm(execute, books):
    """The static look takes no LiteLLM, and no seconds."""
    done = execute(
        "doctor", "--static", "--format", "json", env={**execute.environment, "PYTHONPROFILEIMPORTTIME": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert "usage_plugin.cli.doctor.wiring" in done.stderr
    assert " litellm\n" not in done.stderr


def test_marks_are_plain_where_the_terminal_has_only_ascii(execute, books):
    """In an ASCII locale the marks are letters."""
    done = execute("doctor", "--static", env={**execute.environment, "PYTHONIOENCODING": "ascii"})
    assert "ok litellm_settings.callbacks names" in done.stdout
    assert done.returncode == 0


def test_rows_of_the_doctor_are_its_findings(run, books, monkeypatch):
    """CSV and JSON lines hold the findings."""
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**40))
    rows = run.json("doctor", "--static")["findings"]
    assert run.jsonl("doctor", "--static") == rows
    assert {row["area"] for row in run.csv("doctor", "--static")} == {"wiring", "surroundings", "books"}


# ── the wiring ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("callbacks", "parts"),
    [
        (["other.callback"], ("does not name the plugin", f'["{CALLBACK}"]')),
        (None, ("does not name the plugin",)),
        ([CALLBACK, CALLBACK], ("2 times", "once")),
    ],
)
def test_the_callback_must_be_listed_once(examine, proxy_yaml, callbacks, parts):
    """A list of callbacks without the plugin, or with it twice, is a problem."""
    proxy_yaml(litellm_settings={"callbacks": callbacks})
    assert said(examine()["problem"], *parts)


def test_the_callback_may_be_a_string(examine, proxy_yaml):
    """LiteLLM takes a single name, too."""
    proxy_yaml(litellm_settings={"callbacks": CALLBACK})
    assert examine()["problem"] == []


@pytest.mark.parametrize("name", ["success_callback", "failure_callback"])
def test_the_callback_in_another_list_is_a_problem(examine, proxy_yaml, name):
    """In `success_callback` none of the hooks that refuse is called."""
    proxy_yaml(litellm_settings={name: [CALLBACK]})
    assert said(examine()["problem"], name)


def test_a_file_that_litellm_would_load_instead_is_a_problem(examine, config_path):
    """LiteLLM loads usage_plugin/proxy.py from the YAML's folder instead of the plugin."""
    (config_path.parent / "usage_plugin").mkdir()
    (config_path.parent / "usage_plugin" / "proxy.py").write_text("callback = None\n")
    assert said(examine()["problem"], "usage_plugin/proxy.py")


@pytest.mark.parametrize("name", ["usage_plugin.py", "usage_plugin"])
def test_a_file_that_python_would_load_instead_is_a_warning(examine, config_path, name):
    """A file or folder of the package's name hides it from a proxy that is started in that folder with python -m."""
    path = config_path.parent / name
    path.mkdir() if name == "usage_plugin" else path.write_text("")
    assert said(examine()["warning"], f"{path} hides")


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("from usage_plugin.proxy.handler import UsageHandler_PROXY_\nclass Mine(UsageHandler_PROXY_): pass\n", "subclasses"),
        ("import usage_plugin.proxy.handler as h\nclass Mine(h.UsageHandler_PROXY_): pass\n", "subclasses"),
        ("from usage_plugin.proxy import callback as mine\n", "registers it again"),
        ("class Mine(:\n", "cannot be loaded"),
    ],
)  # fmt: skip
def test_a_callback_of_ones_own_that_takes_ours_is_a_problem(examine, proxy_yaml, code, part):
    """Inherited hooks are never called, and a second name for the callback registers it twice."""
    path = proxy_yaml(litellm_settings={"callbacks": [CALLBACK, "mine.callback"]})
    (path.parent / "mine.py").write_text(code)
    assert said(examine()["problem"], part)


def test_another_callback_is_accepted(examine, proxy_yaml):
    """Another callback is accepted, in any location."""
    path = proxy_yaml(litellm_settings={"callbacks": [CALLBACK, "mine.callback", "langfuse", "elsewhere.callback"]})
    (path.parent / "mine.py").write_text("import usage_plugin\ncallback = None\n")
    assert examine()["problem"] == []


def test_a_handler_that_a_client_can_silence_is_a_problem(monkeypatch, tmp_path):
    """A class without _PROXY_ in its name could be silenced by `no-log`, unless LiteLLM ignores that parameter."""
    (tmp_path / "proxy").mkdir()
    (tmp_path / "proxy" / "handler.py").write_text("class Handler:\n    async def async_pre_call_hook(self): ...\n")
    monkeypatch.setattr(wiring.usage_plugin, "__file__", str(tmp_path / "__init__.py"))
    (found,) = wiring._check_no_log({})
    assert (found.level, "no-log" in found.text) == ("problem", True)
    assert [found.level for found in wiring._check_no_log({"global_disable_no_log_param": True})] == [
        "ok",
        "problem",
    ], "and it lacks hooks"


def test_settings_that_change_the_counts_are_warnings(examine, proxy_yaml):
    """LiteLLM's cache, and the setting that hides aborted streams from us, are warnings."""
    proxy_yaml(litellm_settings={"cache": True, "disable_streaming_logging": True})
    found = examine()
    assert said(found["warning"], "cache is enabled")
    assert said(found["warning"], "disable_streaming_logging")
    proxy_yaml(litellm_settings={"cache_params": {"mode": "default_off"}, "disable_streaming_logging": False})
    assert not said(examine()["warning"], "cache is enabled")


def test_models_without_a_price_are_named_where_a_cost_limit_stands(examine, config_path):
    """A model without a price is refused under a cost limit, so it is named."""
    document = yaml.safe_load(config_path.read_text())
    document["model_list"].append({"model_name": "mystery", "litellm_params": {"model": "openai/mystery-9"}})
    config_path.write_text(yaml.safe_dump(document))
    assert said(examine()["warning"], "mystery")
    document["usage_plugin"]["limits"] = [{"name": "n", "per": "user", "window": "day", "max_requests": 1}]
    config_path.write_text(yaml.safe_dump(document))
    assert not said(examine()["warning"], "mystery")


def test_enforcing_that_is_off_is_said(examine, monkeypatch):
    """With USAGE_PLUGIN_ENFORCE=off nothing is refused, which is easily forgotten."""
    monkeypatch.setenv("USAGE_PLUGIN_ENFORCE", "off")
    assert said(examine()["warning"], "USAGE_PLUGIN_ENFORCE")


def test_a_section_in_a_file_of_its_own_needs_the_proxys_yaml(run, tmp_path, monkeypatch):
    """With our section in another file, the proxy's YAML is found by LiteLLM's own variable."""
    own = tmp_path / "own.yaml"
    own.write_text("usage_plugin: {data_dir: ./here}\n")
    assert "is not the proxy's YAML" in run("--config", str(own), "doctor", "--static", config=None).stdout
    proxys = tmp_path / "proxy.yaml"
    proxys.write_text("model_list: []\n")
    monkeypatch.setenv("CONFIG_FILE_PATH", str(proxys))
    result = run("--config", str(own), "doctor", "--static", config=None)
    assert result.exit_code == 1
    assert "does not name the plugin" in result.stdout


def test_a_broken_configuration_is_the_only_finding(run, config_path):
    """With a mistake in the YAML the proxy does not start; the doctor says which, and ends with 1."""
    config_path.write_text("usage_plugin: {timezone: Mars}\n")
    result = run("doctor", "--format", "json")
    assert result.exit_code == 1
    (finding,) = json.loads(result.stdout)["findings"]
    assert "usage_plugin.timezone" in finding["text"]
    result = run("doctor")
    assert "✗" in result.stdout
    assert "1 problem, " in result.stdout


# ── the surroundings ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("version", "level"),
    [("1.98.0", "ok"), ("1.106.2", "ok"), ("1.109.1", "ok"), ("2.0.0", "ok"), ("1.97.9", "problem"), ("0.9", "problem"),
     ("1.107.0", "problem"), ("1.107.3", "problem"), ("1.98.0rc1", "ok")],
)  # fmt: skip
def test_versions_of_litellm(version, level):
    """Before 1.98 cut streams are not billed, and 1.107 is reported as compromised."""
    assert environment.check_litellm_version(version).level == level


def test_a_missing_litellm_is_a_problem(monkeypatch):
    """The doctor must run where the proxy runs."""

    def missing(name):
        raise environment.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(environment.metadata, "version", missing)
    assert environment.check_litellm().level == "problem"


@pytest.mark.parametrize(("version", "level"), [((3, 51, 3), "ok"), ((3, 50, 7), "ok"), ((3, 50, 6), "warning"), ((3, 40, 1), "warning")])  # fmt: skip
def test_versions_of_sqlite(version, level):
    """A version with the WAL-reset bug is a warning, since the plugin is safe from it."""
    assert environment.check_sqlite(version).level == level
    assert has_wal_reset_bug(version) == (level == "warning")


MOUNTS = [
    ("/", "ext4"), ("/net", "nfs4"), ("/net/local", "xfs"), ("/mnt/s", "cifs"), ("/mnt/f", "fuse.sshfs"),
    ("/mnt/o", "fuse.fuse-overlayfs"), ("/mnt/9", "9p"), ("/tmp", "tmpfs"), ("/mnt/twice", "ext4"), ("/mnt/twice", "nfs"),
    ("/mnt/g", "fuse.glusterfs"), ("/mnt/m", "smbfs"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("folder", "level", "kind"),
    [
        ("/var/data", "ok", "ext4"), ("/net/ann/data", "problem", "nfs4"), ("/net/local/data", "ok", "xfs"),
        ("/network/data", "ok", "ext4"), ("/mnt/s", "problem", "cifs"), ("/mnt/f/x", "problem", "fuse.sshfs"),
        ("/mnt/o/x", "ok", "fuse-overlayfs"), ("/mnt/9/x", "problem", "9p"), ("/tmp/x", "warning", "tmpfs"),
        ("/mnt/twice/x", "problem", "nfs"), ("/mnt/g/x", "problem", "glusterfs"), ("/mnt/m/x", "problem", "smbfs"),
    ],
)  # fmt: skip
def test_network_file_systems_are_a_problem(folder, level, kind):
    """SQLite's locks may not hold on a network file system; the innermost mount counts, the last of two."""
    found = environment.check_file_system(Path(folder), MOUNTS)
    assert found.level == level
    assert kind in found.text
    assert environment.check_file_system(Path(folder), []).level == "warning"


def test_the_kernels_table_of_mounts_is_read():
    """Names with spaces and optional fields are read from the kernel's table as it is written."""
    table = (
        "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
        "90 27 0:50 / /mnt/my\\040share rw,relatime shared:1 master:2 - nfs4 host:/x rw,vers=4.2\n"
        "broken line\n"
    )
    assert list(environment._read_mountinfo(table)) == [("/proc", "proc"), ("/mnt/my share", "nfs4")]
    assert environment.mounts(), "and this machine has some"


def test_a_folder_that_others_can_read_is_a_warning(examine, books, config_path):
    """The data folder has the spend of each user, so only its owner may read it."""
    folder = config_path.parent / "data"
    folder.chmod(0o755)
    assert said(examine()["warning"], "Other users can read", "chmod 700")
    folder.chmod(0o700)
    assert not said(examine()["warning"], "Other users can read")


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path, monkeypatch):
    """A data folder that the proxy cannot write is a problem."""
    (tmp_path / "ledger.db").touch()
    monkeypatch.setattr(environment.os, "access", lambda path, mode: Path(path).name != "ledger.db")
    (found,) = environment.check_folder(tmp_path)
    assert (found.level, "ledger.db" in found.text) == ("problem", True)
    monkeypatch.setattr(environment.os, "access", lambda path, mode: False)
    (found,) = environment.check_folder(tmp_path / "not" / "there")
    assert found.level == "problem"


def test_a_folder_of_another_user_is_a_warning(tmp_path, monkeypatch):
    """Files of one user may not be writable for another."""
    tmp_path.chmod(0o700)
    monkeypatch.setattr(environment.os, "getuid", lambda: tmp_path.stat().st_uid + 12345)
    assert [found.level for found in environment.check_folder(tmp_path)] == ["warning", "ok"]


@pytest.mark.parametrize(("free", "level"), [(2**40, "ok"), (2**29, "warning"), (2**20, "problem")])
def test_a_full_disk_is_a_problem(tmp_path, monkeypatch, free, level):
    """Little room is a warning, none a problem."""
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert environment.check_disk(tmp_path / "not-yet").level == level


def test_a_clock_that_cannot_be_right_is_a_problem():
    """A clock from before this package, or behind recorded events, is wrong."""
    assert environment.check_clock(NOON, None).level == "ok"
    assert environment.check_clock(NOON, NOON + 60 * SECOND).level == "ok"
    assert environment.check_clock(NOON, NOON + 600 * SECOND).level == "problem"
    assert environment.check_clock(86_400 * SECOND, None).level == "problem"


def test_the_clock_is_compared_with_the_newest_event(examine, books):
    """A request recorded in the future says that the clock has jumped back."""
    books.add(started_at=NOON + 3600 * SECOND)
    assert said(examine()["problem"], "The clock is set to", "13:00:00")


def test_several_workers_get_their_requirements(config_path, monkeypatch):
    """uvicorn's health check kills slow starters; a ledger in memory cannot be shared."""
    config = load_config(config_path)
    assert list(environment.check_workers(config, ["1-a"])) == []
    (found,) = environment.check_workers(config, ["1-a", "2-b"])
    assert "--timeout_worker_healthcheck" in found.remedy
    monkeypatch.setenv("NUM_WORKERS", "4")
    assert [found.level for found in environment.check_workers(config, [])] == ["warning"]
    alone = config.model_copy(
        update={name: getattr(config, name).model_copy(update={"backend": "memory"}) for name in ("ledger", "storage")}
    )
    assert [found.level for found in environment.check_workers(alone, [])] == ["problem", "warning", "warning"]


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_a_correctly_started_proxy_gets_no_hint(config_path, monkeypatch):
    """If the system shows how the proxy was started, the hint is given only if it is needed."""
    told = environment._command_lines_of(f"{os.getpid()}-abc")
    assert "pytest" in told or sys.executable in told
    monkeypatch.setattr(environment, "_command_lines_of", lambda _: "litellm --timeout_worker_healthcheck 120")
    assert list(environment.check_workers(load_config(config_path), ["1-a", "2-b"])) == []


# ── the books ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_damage_is_a_problem(examine, books):
    """Every inconsistency that the ledger finds in itself is reported."""
    books.add()
    books.opened.file.execute("UPDATE accounts SET reserved = reserved + 5")
    problems = examine()["problem"]
    assert said(problems, "are reserved; open reservations hold 0", "copy the data folder")
    assert len(problems) >= 2


def test_a_store_that_is_behind_is_a_problem(examine, books):
    """Events that wait for minutes while a proxy runs say that the store does not take them."""
    books.add(started_at=NOON - 10 * SECOND)
    assert said(examine()["warning"], "1 events", "since no proxy is running")
    worker = books.parts.workers()
    worker.join()
    try:
        assert examine()["problem"] == []
        books.ledger.settle(books.reserve(started_at=NOON).event_id, [], encode_event(make_event()))
        books.flush()
        books.add(started_at=NOON - 600 * SECOND)
        assert said(examine()["problem"], "are waiting for the store, the oldest for 10 min")
    finally:
        worker.leave()


def test_an_open_reservation_of_a_dead_worker_is_a_warning(examine, books):
    """A reservation of a dead worker holds its amount until a keeper settles it."""
    books.add()
    books.reserve()
    assert said(examine()["warning"], "1 reservations of dead workers are open")


def test_a_store_that_does_not_work_is_a_problem(examine, books, monkeypatch):
    """The store is asked whether it takes events."""
    books.add()

    async def broken(self):
        raise StorageUnavailableError("the disk is full", hint="Make room.")

    monkeypatch.setattr("usage_plugin.backends.sqlite.sqlite_store.SqliteStore.health", broken)
    assert said(examine()["problem"], "the disk is full", "Make room.")


def test_a_problem_noted_by_the_proxy_is_a_problem(examine, books):
    """A note of a worker that something does not work is passed on."""
    books.add()
    books.operations.note("problem:config", json.dumps({"text": "line 3: no such key", "since": "2026-11-23"}))
    assert said(examine()["problem"], "The proxy reports a problem of config: line 3: no such key")


def test_a_damaged_file_is_a_problem(examine, books, config_path):
    """A file that is not a database is a finding, not a traceback."""
    books.ledger.close()
    for path in (config_path.parent / "data").glob("ledger.db*"):
        path.unlink()
    (config_path.parent / "data" / "ledger.db").write_bytes(b"this is no database, and long enough. " * 100)
    assert said(examine()["problem"], "ledger.db")


def test_every_kind_of_anomaly_is_counted(run, books):
    """Each kind has a line, also with 0, its total over all models, and its most frequent ones."""
    books.add()
    books.operations.count_anomalies([
        Anomaly("estimated", "gpt", 3, 10_000_000, NOON, NOON),
        Anomaly("estimated", "claude", 5, 20_000_000, NOON, NOON + 60 * SECOND),
        Anomaly("gap", "", 1, 0, NOON, NOON),
        Anomaly("new-kind", "x", 1, 0, NOON, NOON),
    ])  # fmt: skip
    found = run.json("doctor", "--static")["anomalies"]
    assert {(row["kind"], row["concerns"], row["times"]) for row in found} == {
        ("estimated", "gpt", 3), ("estimated", "claude", 5), ("gap", "", 1), ("new-kind", "x", 1),
    }  # fmt: skip
    text = [" ".join(line.split()) for line in run.ok("doctor", "--static").splitlines()]
    assert (
        "estimated 8 0.03 USD 2026-11-23 12:01 UTC claude 5, gpt 3"
        " charged by an estimate, since no usage was reported" in text
    )
    assert any(line.startswith("orphaned 0 ") for line in text)
    assert any(line.startswith("new-kind 1 ") for line in text)


# ── a running proxy, and the copy for a temporary one ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "arguments",
    [
        ["--url", "http://127.0.0.1:4000"],
        ["--url", "http://127.0.0.1:4000", "--model", "gpt"],
        ["--url", "127.0.0.1:4000", "--model", "gpt", "--key", "x"],
        ["--model", "gpt"],
        ["--url", "http://127.0.0.1:4000", "--model", "gpt", "--key", "x", "--static"],
    ],
    ids=" ".join,
)
def test_url_needs_a_model_and_a_key(run, books, arguments):
    """An address without a model, without a key, or that is none, is a mistake in writing."""
    result = run("doctor", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_a_key_is_asked_for_at_a_terminal(monkeypatch):
    """At a terminal the key is entered at a prompt, without echo."""
    monkeypatch.setattr(command.sys.stdin, "isatty", lambda: True, raising=False)
    asked = {}
    monkeypatch.setattr(command.click, "prompt", lambda text, **options: asked.update(options) or "sk-typed")
    target = command.read_target("http://127.0.0.1:4000/v1/", None, "gpt", None)
    assert target == ("http://127.0.0.1:4000", "sk-typed", "gpt", "gpt")
    assert asked["hide_input"]


def test_a_proxy_that_does_not_answer_is_a_problem(run, books):
    """An address without an answer is a problem, since no route can be tested; the key is never printed."""
    books.add()
    result = run("doctor", "--url", "http://127.0.0.1:9", "--model", "gpt", "--key", "sk-secret", "--format", "json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["requests"] == []
    assert said([found["text"] for found in document["findings"]], "No answer from http://127.0.0.1:9")
    assert "sk-secret" not in result.output
    assert "✗" in run("doctor", "--url", "http://127.0.0.1:9", "--model", "gpt", "--key", "sk-secret").stdout


def judge(*, status=200, headers=None, events=(), held=False, refused=False, text="{}"):
    probe = probes.Probe("chat", "/v1/chat/completions", {}, refused=refused)
    answer = Response(status, headers or {}, text)
    return probes._evaluate(probe, answer, "", None if events is None else list(events), held=held)


SEEN = {"x-usage-cost": "0.01"}
ERROR = json.dumps({"error": {"message": "no such\nmodel"}})


@pytest.mark.parametrize(
    ("case", "marks", "level", "note"),
    [
        ({"headers": SEEN, "events": [make_event()]}, (True, True, True), "ok", "success, 10 + 5 tokens, 0.01 USD"),
        ({"events": [make_event(cost=None)]}, (True, True, True), "ok", "no price"),
        ({"headers": SEEN}, (True, False, True), "problem", "no event after 15 s"),
        ({}, (False, False, True), "problem", "no sign that the plugin handled it"),
        ({"headers": SEEN, "held": True}, (True, False, False), "problem", "still open"),
        ({"events": [make_event(), make_event()]}, (True, False, True), "problem", "2 events"),
        ({"headers": {"x-usage-refusal": "spent", "x-usage-limit": "daily"}, "status": 402}, (True, None, None), "warning", "refused (spent) by daily"),
        ({"status": 401, "text": ERROR}, (None, None, None), "warning", "the key may not use this route: 401: no such model"),
        ({"status": 400, "text": ERROR, "events": [make_event(status="failure")]}, (True, True, True), "ok", "failure, 10 + 5 tokens, 0.01 USD, 400: no such model"),
        ({"status": 500, "text": "oops"}, (False, False, True), "problem", "500: oops"),
        ({"events": None, "headers": SEEN}, (True, None, None), "warning", ""),
        ({"events": None}, (None, None, None), "warning", "the ledger is not accessible"),
        ({"refused": True, "headers": {"x-usage-refusal": "too_large"}, "status": 402}, (True, None, None), "ok", "refused as expected"),
        ({"refused": True, "headers": SEEN}, (False, None, None), "problem", "did not refuse it"),
    ],
)  # fmt: skip
def test_a_response_and_its_event_are_evaluated(case, marks, level, note):
    """Gate, record and settlement are judged one by one, and each has its reason."""
    result = judge(**case)
    assert (result.gate.ok, result.record.ok, result.settle.ok) == marks
    assert result.level == level
    assert note in result.note


def test_the_results_are_summed_up():
    """Any disproof is a problem, anything unproved a warning."""
    good, bad = judge(headers=SEEN, events=[make_event()]), judge()
    unproved = judge(status=401)
    assert [found.level for found in probes.findings_of([good])] == ["ok"]
    assert [found.level for found in probes.findings_of([good, unproved])] == ["warning"]
    (found,) = probes.findings_of([good, unproved, bad])
    assert (found.level, "chat" in found.text) == ("problem", True)


async def test_events_are_found_by_the_call_id(books, monkeypatch):
    """New events with the doctor's call ids are read from the outbox; a second one of the same is seen, others are not."""
    monkeypatch.setattr(probes, "RECORD_SECONDS", 0.3)
    books.add(call_id="mine")
    after = probes._newest(books.ledger)
    for call_id in ("mine", "other", None, "mine", "late"):
        books.add(call_id=call_id)
    found = await probes._events(books.ledger, after, {"mine", "late", "never"})
    assert {call_id: len(events) for call_id, events in found.items()} == {"mine": 2, "late": 1}
    event = make_event(call_id="mine")
    books.ledger.reserve(event.event_id, "w", NOON, [], encode_event(event))
    other = make_event(call_id="other")
    books.ledger.reserve(other.event_id, "w", NOON, [], encode_event(other))
    assert await probes._held(books.ledger, {"mine", "late"}) == {"mine"}


DOCUMENT = {
    "model_list": [{"model_name": "real", "litellm_params": {"model": "openai/gpt-4o", "api_key": "sk-real"}}],
    "litellm_settings": {
        "callbacks": [CALLBACK, "mine.callback"], "drop_params": True, "cache": True,
        "cache_params": {"type": "redis", "host": "cache.example", "password": "p"},
    },
    "router_settings": {"num_retries": 3, "redis_host": "cache.example", "redis_password": "p"},
    "general_settings": {
        "master_key": "sk-real", "database_url": "postgres://u:p@db", "custom_auth": "mine.auth",
        "background_health_checks": True, "alerting": ["slack"], "store_model_in_db": True, "allowed_ips": ["10.0.0.1"],
        "max_request_size_mb": 5,
    },
    "guardrails": [{"guardrail_name": "x"}],
    "environment_variables": {"REDIS_HOST": "cache.example", "MINE": "1"},
    "usage_plugin": {
        "data_dir": "/somewhere", "storage": {"backend": "elsewhere"}, "timezone": "Europe/Berlin",
        "identity": {"user": ["key"], "on_missing": "deny"},
        "limits": [{"name": "daily", "per": "user", "window": "day", "max_cost": 0.1}],
    },
}  # fmt: skip


def test_the_copy_names_nothing_of_the_users_but_settings(tmp_path):
    """The temporary proxy has the user's callbacks and settings, and no provider, database, cache server or key."""
    before = json.dumps(DOCUMENT)
    copy, left_out = temporary_proxy.adapted_config(DOCUMENT, "http://127.0.0.1:1", tmp_path / "data")
    assert json.dumps(DOCUMENT) == before, "the user's own is not changed"
    text = json.dumps(copy)
    for secret in ("sk-real", "postgres", "cache.example", "password", "10.0.0.1", "/somewhere", "elsewhere", "slack"):
        assert secret not in text
    assert copy["litellm_settings"]["callbacks"] == [CALLBACK, "mine.callback"]
    assert copy["litellm_settings"]["drop_params"] is True
    assert copy["litellm_settings"]["cache_params"]["type"] == "local"
    assert copy["router_settings"] == {"num_retries": 3}
    assert copy["general_settings"] == {"max_request_size_mb": 5, "master_key": "os.environ/LITELLM_MASTER_KEY"}
    assert copy["environment_variables"] == {"MINE": "1"}
    assert {"guardrails", "general_settings.custom_auth", "usage_plugin.storage"} <= set(left_out)
    assert "general_settings.master_key" not in left_out
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(copy))
    config = load_config(path)
    assert [limit.name for limit in config.limits] == ["daily", temporary_proxy.BLOCKED]
    assert (config.limits[0].amount, str(config.timezone)) == (100_000_000, "Europe/Berlin")
    assert (config.data_dir, config.identity.on_missing) == (tmp_path / "data", "shared")


def test_the_copy_has_no_secret(tmp_path):
    """The temporary data folder has a secret of its own: the real one is not copied, and its file may be elsewhere."""
    for written in ({"secret": "ab" * 32}, {"secret_file": "mounted"}):
        section = {"privacy": {"user": "pseudonym", **written}}
        copy, _ = temporary_proxy.adapted_config({"usage_plugin": section}, "http://127.0.0.1:1", tmp_path / "data")
        assert copy["usage_plugin"]["privacy"] == {"user": "pseudonym"}


def test_the_copy_tells_no_plugin_that_is_a_file(tmp_path):
    """Files that would post somewhere stay out, with the resolvers and groups they bring; switches of packages stay."""
    section = {
        "plugins": [{"path": "slack.py", "options": {"webhook": "https://hooks"}}, {"package": "acme", "enabled": False}],
        "identity": {"user": ["resolver:badges", "end_user"], "groups_from": ["people"], "casefold": True},
        "groups": {"power": ["dana"]},
        "limits": [
            {"name": "a", "per": "user", "match": {"group": "interns"}, "window": "day", "max_cost": 1},
            {"name": "b", "per": "user", "window": "day", "max_cost": 1,
             "overrides": [{"match": {"group": ["power", "guests"]}, "max_cost": 2}]},
        ],
    }  # fmt: skip
    copy, left_out = temporary_proxy.adapted_config({"usage_plugin": section}, "http://127.0.0.1:1", tmp_path / "data")
    assert "usage_plugin.plugins" in left_out
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(copy))
    config = load_config(path)
    assert [(plugin.package, plugin.enabled) for plugin in config.plugins] == [("acme", False)]
    assert (config.identity.user, config.identity.groups_from, config.identity.casefold) == (("end_user",), (), True)
    assert config.groups == {"interns": (), "guests": (), "power": ("dana",)}


def test_python_files_next_to_the_yaml_are_linked(tmp_path):
    """The temporary proxy finds callbacks next to the YAML, and no other files are linked."""
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    for name in ("mine.py", "notes.txt", "package/__init__.py", "data/x.db", ".hidden/x.py"):
        path = tmp_path / "from" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    temporary_proxy._link_python_files(tmp_path / "from" / "config.yaml", tmp_path / "to")
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["mine.py", "package"]


def test_the_last_lines_of_a_proxys_log_have_no_secrets(tmp_path):
    """The last lines of a proxy's log are shown without keys and passwords."""
    log = tmp_path / "proxy.log"
    log.write_text("fine\n\nValueError: sk-abc_DEF-1 at postgres://ann:secret@host failed\nbye\n")
    assert temporary_proxy.last_lines(log) == "ValueError: … at postgres://…host failed"
    log.write_text("one\ntwo\n")
    assert temporary_proxy.last_lines(log) == "one\ntwo"


def test_the_mock_model_answers_every_route():
    """The doctor's provider answers each route, streamed and not, and counts its requests."""
    model = MockProvider()
    model.start()
    try:
        for number, probe in enumerate(probes.all_probes("a", "b", "c", "d"), start=1):
            answer = fetch(f"{model.url}{probe.path}", probe.body)
            assert answer.status == 200, probe
            assert answer.text.startswith(("data: ", "event: ")) is probe.streams
            assert ("usage" in answer.text) is True
            assert model.calls == number
        assert fetch(f"{model.url}/v1/nothing", {}).status == 404
    finally:
        model.stop()


def test_looking_changes_nothing(run, books):
    """The doctor leaves the books as they were."""
    books.add()
    account, end, _ = next(books._amounts(make_event()))
    books.ledger.reserve("x", "w", NOON, [Hold(account, end, 5, None, 5)], encode_event(make_event()))
    before = list(books.opened.file.connection.iterdump())
    run("doctor", "--static")
    assert list(books.opened.file.connection.iterdump()) == before
