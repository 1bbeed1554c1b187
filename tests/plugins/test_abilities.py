"""The optional methods of a store and its backend: `check` names abilities, mistakes, and methods that cannot be called."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.plugins.test_verbs import BACKEND, OPEN, check, store
from usage_plugin.api import open_tracker
from usage_plugin.cli import main
from usage_plugin.domain.store import ABILITIES
from usage_plugin.plugins.ability_checks import abilities_of
from usage_plugin.plugins.interface import BACKEND_ABILITIES
from usage_plugin.plugins.manager import Plugins
from usage_plugin.runtime import BUILTIN_PLUGINS

RANKING = "async def ranking(self, by, first, last, usage_filter, *, most, also=()): ..."


def with_methods(*methods: str, opening: str = OPEN, bases: str = "UsageStore") -> str:
    """Write a backend whose store has further methods, and `opening` as the methods of the backend."""
    lines = store().replace("(UsageStore)", f"({bases})")
    imports = "from usage_plugin.plugins.storage import LeavesTraces, Ranks\n"
    return imports + BACKEND.format(store="\n".join([lines, *(indent(one, "    ") for one in methods)]), open=opening)


def test_abilities_of_the_shipped_backends() -> None:
    """Each ability is one of a shipped store, which authors can read."""
    backends = Plugins(BUILTIN_PLUGINS, entry_points=False).storage_backends
    found = {name: abilities_of(backend) for name, backend in backends.items()}
    assert found == {
        "memory": [],
        "sqlite": ["KeepsHours", "LeavesTraces", "Ranks", "Renewable", "Sorts"],
        "partitioned": ["HandsOut", "KeepsCopies", "LeavesTraces"],
        "hybrid": [
            "HandsOut", "KeepsCopies", "KeepsHours", "LeavesTraces", "Ranks", "Reports", "Restorable", "Sorts",
        ],
        "postgres": ["KeepsHours", "LeavesTraces", "Ranks", "Sorts"],
        "objects": ["LeavesTraces"],
    }  # fmt: skip
    assert {name for names in found.values() for name in names} == {
        ability.__name__ for ability in (*ABILITIES, *BACKEND_ABILITIES)
    }


def test_abilities_are_listed(tmp_path: Path) -> None:
    """A store with the methods has the ability, and so has its backend."""
    methods = (RANKING, "async def compact(self): ...", "@property\ndef trouble(self): ...")
    restore = f"{OPEN}\n    def restore(self, options, context, *, dry_run): ...\n"
    code, text = check(tmp_path, with_methods(*methods, opening=restore))
    assert code == 0
    assert "Abilities of the store: LeavesTraces, Ranks, Reports, Restorable." in text
    assert "Warning" not in text


def test_a_store_without_abilities_has_none(tmp_path: Path) -> None:
    """The line is there, since a misspelt method would be missed in it."""
    assert "Abilities of the store: none." in check(tmp_path, with_methods())[1]


@pytest.mark.parametrize(
    ("method", "problem"),
    [
        ("async def ranking(self, by, first, last, usage_filter, *, top): ...", "ranking must accept the call `async def"),
        ("async def ranking(self, by, first, last): ...", "has an invalid Ranks"),
        ("async def compact(self, deep): ...", "compact must accept the call `async def compact(self) -> None`"),
        ("def trouble(self): ...", "trouble must be a property"),
    ],
)  # fmt: skip
def test_an_ability_that_cannot_be_called_is_named(tmp_path: Path, method: str, problem: str) -> None:
    """It would fail at its first use, such as an erasure."""
    code, text = check(tmp_path, with_methods(method))
    assert code == 1
    assert "Store of the storage backend thirds of the plugin thirds" in text
    assert problem in text
    assert "python -m pydoc usage_plugin.plugins.storage." in text


def test_a_backends_ability_that_cannot_be_called_is_named(tmp_path: Path) -> None:
    """The same for a method of the backend."""
    code, text = check(tmp_path, with_methods(opening=f"{OPEN}\n    def restore(self, options): ...\n"))
    assert code == 1
    assert "Backend of the storage backend thirds" in text
    assert "restore must accept the call `def restore(self, options" in text


def test_a_protocol_as_a_base_needs_its_methods(tmp_path: Path) -> None:
    """Python makes an object of such a class, whose inherited method returns None."""
    code, text = check(tmp_path, with_methods("async def compcat(self): ...", bases="LeavesTraces, UsageStore"))
    assert code == 1
    assert "has an invalid LeavesTraces: missing `async def compact(self) -> None`" in text


@pytest.mark.parametrize(
    ("methods", "warning"),
    [
        (("async def rankng(self, *what): ...",), "rankng is never called; if it is the ability Ranks, call it ranking"),
        (("async def in_order_of_costs(self): ...",), "if it is the ability Sorts, call it in_order_of_cost"),
        (
            ("async def keep_profiles(self, profiles): ...", "def profiles(self): ..."),
            "keep_profiles, profiles is never called without `async def keep_limits(self, limits",
        ),
    ],
)  # fmt: skip
def test_a_probable_mistake_is_a_warning(tmp_path: Path, methods: tuple[str, ...], warning: str) -> None:
    """The store works without the ability, so the check passes."""
    code, text = check(tmp_path, with_methods(*methods))
    assert code == 0
    assert f"Store of the storage backend thirds of the plugin thirds ({tmp_path}/thirds.py)" in text
    assert warning in text


def test_other_methods_are_no_mistakes(tmp_path: Path) -> None:
    """Short names that happen to be a little similar, properties of other kinds and private methods."""
    methods = ("async def send(self): ...", "def connect(self): ...", "def start(self): ...", "def _rankng(self): ...")
    assert "Warning" not in check(tmp_path, with_methods(*methods))[1]


WORKING = """
from contextlib import asynccontextmanager
from usage_plugin.backends.memory import MemoryStore
from usage_plugin.plugins import ConfigError, hookimpl
from usage_plugin.plugins.storage import NoOptions, StorageBackend

class Store(MemoryStore):
    {method}

class Backend(StorageBackend[NoOptions]):
    name = "thirds"
    options_model = NoOptions

    def check(self, options, context):
        {check}

    @asynccontextmanager
    async def open(self, options, context):
        {open}
        yield Store(context.zone)

@hookimpl
def usage_register_storage_backends():
    return [Backend()]
"""


async def record(section: dict[str, Any]) -> None:
    async with open_tracker(section) as tracker:
        await tracker.record_usage("ann", cost="0.25")


def command(folder: Path, *arguments: str, **code: str) -> Result:
    """Record a request, replace the plugin by one with some code, and run a command."""
    harmless = {"method": "pass", "check": "pass", "open": "pass"}
    plugin = folder / "thirds.py"
    folder.chmod(0o700)
    section = {"plugins": [{"path": str(plugin)}], "storage": {"backend": "thirds"}, "data_dir": str(folder / "data")}
    (folder / "config.yaml").write_text(json.dumps({"usage_plugin": section}))
    plugin.write_text(dedent(WORKING).format(**harmless))
    plugin.chmod(0o600)
    asyncio.run(record(section))
    plugin.write_text(dedent(WORKING).format(**harmless | code))
    return CliRunner().invoke(main, ["--config", str(folder / "config.yaml"), *arguments])


FAILS = "raise RuntimeError('out of luck')"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("check",), {"check": FAILS}),
        (("report",), {"open": FAILS}),
        (("report",), {"method": f"async def aggregate(self, *what): {FAILS}"}),
        (("report", "--top", "3"), {"method": f"async def ranking(self, *what, most, also): {FAILS}"}),
        (("status",), {"method": f"async def size(self): {FAILS}"}),
        (("forget", "ann", "--yes"), {"method": f"async def compact(self): {FAILS}"}),
    ],
)
def test_an_error_of_a_backend_has_its_name(tmp_path: Path, arguments: tuple[str, ...], code: dict[str, str]) -> None:
    """A command prints the backend, its plugin, the error and its place, instead of a traceback."""
    found = command(tmp_path, *arguments, **code)
    text = " ".join(found.output.split())
    assert found.exit_code == 1
    assert isinstance(found.exception, SystemExit)
    assert "torage backend thirds of the plugin thirds" in text
    assert "failed: RuntimeError: out of luck (" in text
    assert "thirds.py, line " in text
