"""The write guard prevents any access outside of a test's folders and fails the test, also for child processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.proxy.conftest import ROOT
from tests.support.guarding import OWNER, python_path
from tests.write_guard import write_guard

TESTS = """
import os, shutil, socket, sqlite3, subprocess, sys
from contextlib import suppress
from pathlib import Path

import pytest

OUTSIDE = Path(os.environ["OUTSIDE"])

def in_a_child(program):
    subprocess.run([sys.executable, "-c", program], stderr=subprocess.DEVNULL)

WAYS = {
    "write": lambda: (OUTSIDE / "kept").write_text("gone"),
    "append": lambda: (OUTSIDE / "kept").open("a"),
    "open": lambda: os.open(OUTSIDE / "new", os.O_CREAT | os.O_WRONLY),
    "truncate": lambda: os.truncate(OUTSIDE / "kept", 0),
    "mkdir": lambda: (OUTSIDE / "new").mkdir(),
    "unlink": lambda: (OUTSIDE / "kept").unlink(),
    "rename-out": lambda: (OUTSIDE / "kept").rename("taken"),
    "rename-in": lambda: (Path("own").write_text(""), Path("own").rename(OUTSIDE / "kept")),
    "rmtree": lambda: shutil.rmtree(OUTSIDE),
    "chmod": lambda: (OUTSIDE / "kept").chmod(0o777),
    "symlink": lambda: (OUTSIDE / "new").symlink_to("/"),
    "hardlink": lambda: (Path("own").write_text(""), os.link("own", OUTSIDE / "new")),
    "through-a-link": lambda: (Path("way").symlink_to(OUTSIDE), Path("way/kept").write_text("gone")),
    "sqlite": lambda: sqlite3.connect(OUTSIDE / "new").execute("CREATE TABLE t (x)"),
    "listen": lambda: socket.socket().bind(("0.0.0.0", 0)),
    "child": lambda: in_a_child(f"open({str(OUTSIDE / 'kept')!r}, 'w')"),
    "grandchild": lambda: subprocess.run(["sh", "-c", f"'{sys.executable}' -c 'import os; os.remove(\\"{OUTSIDE}/kept\\")'"]),
    "unguarded-child": lambda: subprocess.run([sys.executable, "-c", ""], env={}),
}

@pytest.mark.parametrize("way", WAYS)
def test_outside(way, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with suppress(OSError):  # as careless code does
        WAYS[way]()

def test_inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own").write_text("")
    in_a_child("open('own', 'w')")
    sqlite3.connect("own").execute("CREATE TABLE t (x)").connection.close()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
    (Path.home() / ".own").write_text("")
    assert (OUTSIDE / "kept").read_text() == "kept"
    sqlite3.connect(f"file:{OUTSIDE}/base?mode=ro", uri=True).close()
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Run those tests in a pytest that may write to fewer folders; return its output, and the folder outside."""
    folder = tmp_path_factory.mktemp("guard")
    outside = folder / "outside"
    for path in (outside, folder / "inside"):
        path.mkdir()
    (outside / "kept").write_text("kept")
    (outside / "base").touch()
    (folder / "inside" / "test_touching.py").write_text(TESTS)
    environment = {name: value for name, value in os.environ.items() if name != OWNER}
    environment |= {
        "PYTHONPATH": os.pathsep.join((write_guard.FOLDER, str(ROOT))),
        write_guard.ROOTS: str(folder / "inside"),
        "TMPDIR": str(folder / "inside"),
        "OUTSIDE": str(outside),
    }
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "-p", "tests.support.guarding"]
    command += ["--basetemp", str(folder / "inside" / "base"), "test_touching.py"]
    done = subprocess.run(command, cwd=folder / "inside", env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr, outside


def test_whatever_touches_something_outside_fails(ran: tuple[str, Path]) -> None:
    """Each way to write, delete, link or listen outside fails its test, although the test suppresses the error."""
    printed, _ = ran
    ways = re.findall(r'^    "([a-z-]+)": lambda', TESTS, re.MULTILINE)
    assert len(ways) == 18
    failed = re.findall(r"^ERROR .*::test_outside\[([a-z-]+)\]", printed, re.MULTILINE)
    assert sorted(failed) == sorted(ways), printed


def test_nothing_outside_was_touched(ran: tuple[str, Path]) -> None:
    """The guard prevents each violation that it reports."""
    _, outside = ran
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"kept": "kept", "base": ""}


def test_what_is_inside_may_be_touched(ran: tuple[str, Path]) -> None:
    """Writing to the test's own folders, listening on loopback and reading any file are permitted."""
    printed, _ = ran
    assert re.search(r"^PASSED .*::test_inside$", printed, re.MULTILINE), printed
    assert "ERROR test_touching.py::test_inside" not in printed


def test_only_the_import_of_litellm_runs_without_collections(tmp_path: Path) -> None:
    """In a process of a test, the garbage collector is off while LiteLLM is imported, and on after it."""
    (tmp_path / "litellm").mkdir()
    (tmp_path / "litellm" / "__init__.py").write_text("import gc\nMEANWHILE = gc.isenabled()\n")
    program = "import gc, litellm; print(litellm.MEANWHILE, gc.isenabled())"
    environment = {**os.environ, "PYTHONPATH": python_path(tmp_path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"
