"""No kind of file, in any place that the configuration names, can hang or crash a command or a worker."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from usage_plugin.atomic_files import NotRegularFileError, open_regular, read_regular
from usage_plugin.config import ConfigFile, load_config, with_limits
from usage_plugin.config.yaml_text import compose, construct
from usage_plugin.errors import ConfigError, UsagePluginError
from usage_plugin.tracking.privacy.secret import make_secret

EXECUTABLE = Path(sys.executable).with_name("usage-plugin")
SECONDS = 5
"""The time limit for an error; the command itself takes half a second to start."""
SLOW = 4
"""The factor by which a loaded machine may be slower."""

LIMITS = "limits: [{name: daily, per: user, window: day, max_cost: 5}]\n"
BOMB = "".join(
    f"{name}: &{name} [{', '.join([f'*{before}' if before else 'x'] * 9)}]\n"
    for before, name in zip(["", *"abcdefgh"], "abcdefghi", strict=True)
)
MERGES = "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}], {name}1: 1}}\n"
    if before
    else f"{name}: &{name} {{k: v}}\n"
    for before, name in zip(["", *"abcdefgh"], "abcdefghi", strict=True)
)
KEYS = "".join(
    f"{name}: &{name} {{? [{', '.join([f'*{before}' if before else 'x'] * 9)}] : 1}}\n"
    for before, name in zip(["", *"abcdefgh"], "abcdefghi", strict=True)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 3_000))
SELF = "a: &a [*a]\n"
MERGED_SELF = "a: &a {<<: *a, b: 1}\n"
DEEP = "a: " + "[" * 100_000
DEEP_CLOSED = "a: " + "[" * 50_000 + "]" * 50_000
DEEP_MAPS = "a: " + "{b: " * 20_000
DEEP_BLOCKS = "- " * 50_000 + "x"
WIDE = "a: [" + "x," * 3_000_000 + "]"

TEXTS = {
    "alias bomb": BOMB, "bomb of merges": MERGES, "bomb of keys": KEYS, "chain of aliases": CHAIN, "itself": SELF,
    "merges itself": MERGED_SELF, "deep": DEEP, "deep and closed": DEEP_CLOSED, "deep mappings": DEEP_MAPS,
    "deep blocks": DEEP_BLOCKS, "wide": WIDE,
}  # fmt: skip
BYTES = {
    "binary": bytes(range(256)) * 50, "zeros": bytes(5_000), "latin-1": b"a: caf\xe9\n", "utf-16": "a: b\n".encode("utf-16"),
    "lone surrogate": b"a: \xed\xa0\x80\n",
}  # fmt: skip
KINDS = (
    *TEXTS,
    *BYTES,
    "pipe",
    "socket",
    "device",
    "endless device",
    "folder",
    "missing",
    "huge",
    "link to a device",
    "circle of links",
)


def make(path: Path, kind: str, *, section: bool = False) -> None:
    """Create a file of a kind; with `section`, a text becomes a configuration's section."""
    if kind in TEXTS:
        text = TEXTS[kind]
        if section:
            text = "usage_plugin:\n" + "".join(f"  {line}\n" for line in text.splitlines())
        path.write_text(text)
    elif kind in BYTES:
        path.write_bytes(BYTES[kind])
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif kind in ("device", "endless device", "link to a device"):
        path.symlink_to({"device": "/dev/null", "endless device": "/dev/zero", "link to a device": "/dev/random"}[kind])
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(3 << 30)
    elif kind == "circle of links":
        path.symlink_to(path)


def in_time(call: Any) -> Any:
    began = time.monotonic()
    result = call()
    assert time.monotonic() - began < SECONDS * SLOW
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # A short path, since the path of a socket must be short.
    return tmp_path


PLACES = {
    "the YAML itself": "",
    "include": "include: [named.yaml]\nmodel_list: []\nusage_plugin: {}\n",
    "an include of an include": "include: [between.yaml]\nmodel_list: []\nusage_plugin: {}\n",
    "limits_from": "usage_plugin: {limits_from: named.yaml}\n",
}


def place(folder: Path, where: str) -> Path:
    """Create a configuration that names a file; return that file's path."""
    (folder / "config.yaml").write_text(PLACES[where])
    (folder / "between.yaml").write_text("include: [named.yaml]\n")
    return folder / "named.yaml"


def checked(folder: Path, command: str = "check") -> subprocess.CompletedProcess[str]:
    arguments = [EXECUTABLE, "--config", folder / "config.yaml", *command.split()]
    return in_time(lambda: subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False))


@contextmanager
def made(path: Path, kind: str, *, section: bool = False) -> Iterator[None]:
    """Create a file, and delete a huge one afterwards, since pytest keeps the folder of a failed test."""
    make(path, kind, section=section)
    try:
        yield
    finally:
        if kind == "huge":
            path.unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_a_command_ends_with_an_error_that_names_the_file(folder: Path, kind: str) -> None:
    """Any kind of file as the YAML: an error within seconds, with its name, no traceback, exit code 1."""
    with made(folder / "config.yaml", kind, section=True):
        done = checked(folder)
    assert done.returncode == 1, done
    assert "config.yaml" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stdout + done.stderr) < 50_000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [where for where, text in PLACES.items() if text])
def test_a_file_that_the_yaml_names_may_be_anything(folder: Path, where: str, kind: str) -> None:
    """Any kind of file that another one names: an error within seconds, with its name and a remedy."""
    named = place(folder, where)
    with made(named, kind), pytest.raises(ConfigError, match=r"named\.yaml") as error:
        in_time(lambda: load_config(folder / "config.yaml"))
    assert len(str(error.value)) < 50_000


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "missing"])
@pytest.mark.parametrize("where", PLACES)
def test_a_worker_keeps_what_it_had(folder: Path, where: str, kind: str) -> None:
    """If a file becomes invalid while the proxy runs, one error is reported and the previous content stays in force."""
    config = folder / "config.yaml"
    named = config if not PLACES[where] else folder / "named.yaml"
    good = f"usage_plugin: {{{LIMITS.strip()}}}\n"
    if named is config:
        config.write_text(good)
    else:
        config.write_text(PLACES[where].replace("usage_plugin: {}", good.strip()))
        (folder / "between.yaml").write_text("include: [named.yaml]\n")
        named.write_text(LIMITS if where == "limits_from" else "x: []\n")
    file = ConfigFile(config)
    before = file.config
    assert [limit.name for limit in before.limits] == ["daily"]
    kept = named.read_text()
    named.unlink()
    told = []
    make(named, kind, section=named is config)
    for _ in range(4):
        try:
            assert in_time(file.changed) is None
        except ConfigError as error:
            told.append(str(error))
    assert len(told) == 1
    assert named.name in told[0]
    assert file.config is before
    assert file.mistakes
    if named.is_dir() and not named.is_symlink():
        named.rmdir()
    else:
        named.unlink()
    named.write_text(kept)
    for _ in range(3):
        assert file.changed() is None
    assert file.mistakes is None
    assert file.config.limits == before.limits


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in TEXTS])
def test_a_plugin_that_is_no_file_is_refused(folder: Path, kind: str) -> None:
    """A plugin's path is read with the same checks as every other file."""
    folder.chmod(0o755)
    (folder / "config.yaml").write_text("usage_plugin: {plugins: [{path: named.py}]}\n")
    with made(folder / "named.py", kind):
        done = checked(folder)
    assert done.returncode == 1, done
    assert "named.py" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", [*BYTES, "pipe", "socket", "endless device", "folder", "huge"])
def test_a_secret_that_is_no_file_is_refused(folder: Path, kind: str) -> None:
    """The secret of the data folder is read with the same checks as every other file, also when a worker starts."""
    with made(folder / "secret", kind), pytest.raises(UsagePluginError, match="secret"):
        in_time(lambda: make_secret(folder / "secret"))


@pytest.mark.parametrize("kind", ["pipe", "endless device", "deep", "alias bomb", "huge", "binary"])
def test_limits_to_be_simulated_are_read_like_the_others(folder: Path, kind: str) -> None:
    """A file of limits named on the command line is read with the same checks."""
    (folder / "config.yaml").write_text("usage_plugin: {data_dir: ./data}\n")
    config = load_config(folder / "config.yaml")
    with made(folder / "named.yaml", kind), pytest.raises(ConfigError, match=r"named\.yaml"):
        in_time(lambda: with_limits(config, folder / "named.yaml"))


@pytest.mark.parametrize("kind", ["pipe", "endless device", "deep", "binary", "folder"])
def test_a_callback_beside_the_yaml_that_is_no_file_stops_no_command(folder: Path, kind: str) -> None:
    """A callback's file, which `check` and `doctor` read to see whether it changes requests, may be of any kind."""
    make(folder / "hooks.py", kind)
    (folder / "config.yaml").write_text(
        "model_list: []\nlitellm_settings: {callbacks: [usage_plugin.proxy.callback, hooks.mine]}\nusage_plugin: {}\n"
    )
    for command in ("check", "doctor --static"):
        done = checked(folder, command)
        assert "Traceback" not in done.stderr
        assert "hooks" in done.stdout


def test_variables_are_values_and_no_documents(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Endless brackets in a variable are text: they never reach the YAML parser, which would crash."""
    (folder / "config.yaml").write_text("usage_plugin: {contact: os.environ/DEEP}\n")
    monkeypatch.setenv("DEEP", "[" * 100_000)
    assert load_config(folder / "config.yaml").contact == "[" * 100_000


def test_mistakes_without_end_are_told_in_a_hundred_lines(folder: Path) -> None:
    """An error has at most a hundred lines, although a wrong file may have a million mistakes."""
    (folder / "config.yaml").write_text("usage_plugin:\n" + "".join(f"  k{n}: 1\n" for n in range(200_000)))
    with pytest.raises(ConfigError, match="199,900 more") as error:
        in_time(lambda: load_config(folder / "config.yaml"))
    assert len(str(error.value)) < 50_000


def test_aliases_within_bounds_are_read(folder: Path) -> None:
    """Valid aliases work: many limits can share their overrides."""
    overrides = ", ".join(f"{{match: {{user: u{n}}}, max_cost: 1}}" for n in range(200))
    limits = "".join(
        f"    - {{name: l{n}, per: user, window: day, max_cost: 5, overrides: *o}}\n" for n in range(1, 100)
    )
    (folder / "config.yaml").write_text(
        "usage_plugin:\n  limits:\n"
        f"    - {{name: l0, per: user, window: day, max_cost: 5, overrides: &o [{overrides}]}}\n{limits}"
    )
    config = load_config(folder / "config.yaml")
    assert sum(len(limit.overrides) for limit in config.limits) == 20_000


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text("ab*&<> :-", max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_whatever_is_no_bomb_is_read_as_before(value: Any) -> None:
    """The bounds change no valid document: it loads as it was written, aliases included."""
    shared = [value, value, {"again": value}]
    text = yaml.safe_dump(shared)
    node = compose(text, Path("a.yaml"))
    assert node is not None
    assert construct(node, Path("a.yaml"), exact=False) == shared


@given(st.lists(st.lists(st.integers(0, 11), max_size=9), min_size=1, max_size=12))
def test_aliases_are_counted_and_not_written_out(links: list[list[int]]) -> None:
    """Any graph of aliases is loaded or rejected at once, and the size of a loaded document is bounded."""
    lines = []
    for at, targets in enumerate(links):
        known = ", ".join(f"*n{target}" for target in targets if target <= at) or "x"
        lines.append(f"n{at}: &n{at} [{known}]")
    try:
        node = in_time(lambda: compose("\n".join(lines), Path("a.yaml")))
    except ConfigError:
        return
    assert node is not None
    written = json.dumps(construct(node, Path("a.yaml")))
    assert len(written) < 6_000_000


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "endless device", "folder"])
def test_only_regular_files_are_opened(folder: Path, kind: str) -> None:
    """The reason is in words."""
    make(folder / "x", kind)
    with pytest.raises(NotRegularFileError, match="expected a regular file; found a"):
        open_regular(folder / "x")


def test_a_file_without_a_size_is_bounded_as_it_is_read() -> None:
    """A file of the kernel has the size 0, and its content is bounded all the same."""
    with pytest.raises(NotRegularFileError, match="at most 10 bytes"):
        read_regular(Path("/proc/self/maps"), 10)
    assert read_regular(Path("/proc/self/comm"), 100)
