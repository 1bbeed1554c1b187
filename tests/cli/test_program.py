from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time

import pytest

import usage_plugin
from usage_plugin.cli import main
from usage_plugin.cli.output import FORMATS

READERS = ["report", "limits", "events", "status"]


def now():
    return time.time_ns() // 1000


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("output", FORMATS)
def test_every_command_prints_every_format(shared, noon, command, output):
    """Each command ends with 0 in each format, and its output is valid in that format."""
    books, run = shared
    if not run.json("events")["events"]:
        books.add(user="ann")
    text = run.ok(command, "--format", output)
    if output == "json":
        json.loads(text)
    elif output == "jsonl":
        assert all(json.loads(line) for line in text.splitlines())


def test_the_configuration_may_be_named_before_or_after_the_command(run, config_path, books, monkeypatch, tmp_path):
    """--config works before the command and after it; the one nearer to the command wins."""
    books.add(user="ann")
    other = tmp_path / "other.yaml"
    other.write_text("usage_plugin: {data_dir: ./nothing}\n", encoding="utf-8")
    for arguments in (
        ["--config", str(config_path), "report"],
        ["report", "--config", str(config_path)],
        ["--config", str(other), "report", "--config", str(config_path)],
    ):
        assert run(*arguments, config=None).exit_code == 0
    assert run("--config", str(config_path), "report", "--config", str(other), config=None).exit_code == 1
    monkeypatch.setenv("USAGE_PLUGIN_CONFIG", str(config_path))
    assert run("report", config=None).exit_code == 0
    monkeypatch.delenv("USAGE_PLUGIN_CONFIG")
    monkeypatch.chdir(config_path.parent)
    assert run("report", config=None).exit_code == 0


@pytest.mark.parametrize("command", [[name] for name in READERS] + [["explain", "0123ABCD"]], ids=str)
def test_before_anything_is_recorded_every_command_says_so(run, config_path, command):
    """Without a data folder a command ends with 1, names the folder and the remedy, and creates no files."""
    result = run(*command)
    assert result.exit_code == 1
    assert f"Nothing has been recorded in {config_path.parent / 'data'} yet." in result.stderr
    assert "usage_plugin.proxy.callback" in result.stderr
    assert result.stdout == ""
    assert not (config_path.parent / "data").exists()


def test_reading_an_empty_folder_makes_no_files(run, config_path):
    """A reader changes nothing: it does not put databases into a folder in which there are none."""
    folder = config_path.parent / "data"
    folder.mkdir()
    assert run("report").exit_code == 1
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [["--config", "gone.yaml", "report"], ["report", "--config", "gone.yaml"], ["check", "--config", "gone.yaml"]],
    ids=str,
)
def test_a_missing_file_ends_with_1(run, arguments):
    """A configuration that is not there ends with exit code 1 and its name."""
    result = run(*arguments, config=None)
    assert result.exit_code == 1
    assert "gone.yaml" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["colour"],
        ["--colour"],
        ["explain"],
        ["explain", "a", "b"],
        ["report", "--format", "yaml"],
        ["events", "--follow", "x"],
    ],
    ids=str,
)
def test_a_command_that_is_written_wrongly_ends_with_2(run, arguments):
    """Unknown commands and options end with exit code 2."""
    assert run(*arguments).exit_code == 2


def test_a_broken_configuration_ends_with_1_in_every_command(run, config_path):
    """Every command reports a mistake in the YAML on stderr."""
    config_path.write_text("usage_plugin: {timezone: Mars}\n", encoding="utf-8")
    for command in READERS:
        result = run(command)
        assert result.exit_code == 1
        assert "usage_plugin.timezone" in result.stderr


@pytest.mark.parametrize("name", ["ledger.db", "usage.db"])
def test_a_damaged_file_ends_with_1(run, books, config_path, name):
    """A file that is not a database causes a message with its name, not a traceback."""
    books.add()
    books.flush()
    books.ledger.close()
    for path in (config_path.parent / "data").glob(f"{name}*"):
        path.unlink()
    (config_path.parent / "data" / name).write_bytes(b"this is no database, and long enough to be seen as none. " * 100)
    result = run("report")
    assert result.exit_code == 1
    assert name in result.stderr


def test_help_names_every_command(run):
    """--help lists all commands, each with a sentence."""
    text = run.ok("--help")
    for name, command in main.commands.items():
        assert re.search(rf"^  {name}  +\S", text, re.MULTILINE)
        assert command.help
        assert "Usage" in run.ok(name, "--help")


# ── the installed program ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_program_says_its_version(execute):
    """The installed program runs and says its version, without LiteLLM's six seconds."""
    done = execute("--version", env={**execute.environment, "PYTHONPROFILEIMPORTTIME": "1"})
    assert done.stdout.strip() == f"usage-plugin, version {usage_plugin.__version__}"
    assert "usage_plugin.cli" in done.stderr, "each import is told"
    assert "litellm" not in done.stderr


def test_the_program_reports(execute, books):
    """The installed program reads all records, in the store and in the outbox."""
    books.add(user="ann", started_at=now(), cost=10_000_000)
    done = execute("report", "--format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["total"]["cost"] == "0.01"
    books.flush()
    assert execute("report", "--format", "json").stdout == done.stdout


@pytest.mark.parametrize(("arguments", "code"), [(["explain", "X"], 1), (["colour"], 2), (["check"], 0)], ids=str)
def test_the_program_ends_with_the_documented_codes(execute, arguments, code):
    """Exit code 0 is all well, 1 something is wrong, 2 the command was written wrongly; errors go to stderr."""
    done = execute(*arguments)
    assert done.returncode == code
    assert bool(done.stderr) == (code != 0)
    assert "Traceback" not in done.stderr


def test_a_pipe_that_closes_early_causes_no_trace(execute, books, config_path):
    """A reader of the first line of a long output gets that line, and stderr is empty."""
    for number in range(600):
        books.add(user=f"user-{number:04d}", started_at=now())
    for command in (
        "events --last 1000 --format jsonl",
        "events --last 1000 --format json",
        "report --format csv",
        "report",
        "limits --format json",
    ):
        done = subprocess.run(
            f"'{execute.program}' --config '{config_path}' {command} | head -1",
            shell=True, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.stdout.count("\n") == 1, command
        assert done.stderr == "", command


@pytest.mark.parametrize("output", FORMATS)
def test_a_closed_pipe_causes_no_traceback(execute, books, output):
    """Even if the pipe is closed before the first byte, stderr is empty."""
    books.add(started_at=now())
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = execute("report", "--format", output, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert done.stderr == ""


def test_output_is_utf_8_free_of_colour_and_never_cut_in_a_pipe(execute, books):
    """In a pipe names are complete and without markup, at any length and in any script."""
    name = "用户-" + "x" * 120
    books.add(user=name, started_at=now())
    text = execute(
        "report", env={**execute.environment, "PYTHONUTF8": "1", "COLUMNS": "40", "TERM": "xterm-256color"}
    ).stdout
    assert "\x1b" not in text
    assert name in "".join(text.split())


def test_names_can_be_printed_where_the_locale_is_ascii(execute, books):
    """In an ASCII locale, a name with other letters is escaped, and causes no error."""
    books.add(user="用户 ü", started_at=now())
    for output in ("table", "csv"):
        environment = {**execute.environment, "PYTHONIOENCODING": "ascii"}
        done = execute("report", "--format", output, env=environment, text=False)
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr


def test_following_shows_new_events_until_interrupted(execute, books, config_path):
    """--follow prints events as they are settled, each once, and ends quietly with Ctrl-C."""
    books.add(user="before", started_at=now())
    process = subprocess.Popen(
        [execute.program, "--config", config_path, "events", "--follow", "--format", "jsonl"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Background processes of a script ignore Ctrl-C, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  # no threads here
    )  # fmt: skip
    try:
        assert json.loads(process.stdout.readline())["user"] == "before"
        for number in range(3):
            books.add(user=f"new-{number}", started_at=now())
        books.flush()
        assert [json.loads(process.stdout.readline())["user"] for _ in range(3)] == ["new-0", "new-1", "new-2"]
        process.send_signal(signal.SIGINT)
        rest, complaint = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert rest == ""
    assert "Traceback" not in complaint


def test_commands_work_during_a_write(run, books, monkeypatch):
    """A command takes no write lock: it does not wait for a worker that is writing, nor does the worker notice it."""
    monkeypatch.setattr("usage_plugin.ledgers.sqlite.file._START_TIMEOUT", 0.2)
    books.add()
    books.opened.file.execute("BEGIN IMMEDIATE")
    try:
        assert run.json("report")["total"]["requests"] == 1
    finally:
        books.opened.file.execute("ROLLBACK")
    books.add()
    assert run.json("report")["total"]["requests"] == 2
