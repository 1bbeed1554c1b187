"""A store, ledger or backend without one of its methods is named by `check`, before anything calls it.

`test_abilities.py` has the optional methods.
"""

from __future__ import annotations

import inspect
import pydoc
from pathlib import Path
from textwrap import dedent

import pytest
from click.testing import CliRunner

from usage_plugin.backends.memory import MemoryStore
from usage_plugin.cli import main
from usage_plugin.domain.ledger import Ledger
from usage_plugin.domain.profiles import ProfileStore
from usage_plugin.domain.store import UsageStore
from usage_plugin.plugins.interface import IdentityResolver, StorageBackend
from usage_plugin.plugins.interface_checks import documentation_of

BACKEND = """
from contextlib import asynccontextmanager
from usage_plugin.domain.store import UsageStore
from usage_plugin.plugins import hookimpl
from usage_plugin.plugins.interface import NoOptions, StorageBackend

{store}

class Backend(StorageBackend[NoOptions]):
    name = "thirds"
    options_model = NoOptions

    {open}

@hookimpl
def usage_register_storage_backends():
    return [Backend()]
"""
OPEN = """@asynccontextmanager
    async def open(self, options, context):
        yield Store()
"""
VERBS = sorted(UsageStore.__abstractmethods__)


def store(**changes: str) -> str:
    """Write a store with every method, some of them otherwise: a name for another, a signature, nothing."""
    lines = ["class Store(UsageStore):"]
    for verb in VERBS:
        function = getattr(UsageStore, verb)
        how = "async def" if inspect.iscoroutinefunction(function) else "def"
        found = changes.get(verb, f"{how} {verb}(self, *arguments, **options): raise NotImplementedError")
        lines += [f"    {found}"] if found else []
    return "\n".join(lines)


def check(folder: Path, source: str) -> tuple[int, str]:
    path = folder / "thirds.py"
    path.write_text(dedent(source))
    path.chmod(0o600)
    folder.chmod(0o700)
    (folder / "config.yaml").write_text(
        "usage_plugin: {plugins: [{path: thirds.py}], storage: {backend: thirds}, data_dir: ./data}\n"
    )
    done = CliRunner().invoke(main, ["--config", str(folder / "config.yaml"), "check"])
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert not (folder / "data").exists()
    return done.exit_code, " ".join(done.output.split())


def test_a_whole_store_is_fine(tmp_path: Path) -> None:
    """With any names of arguments, a store with every method passes."""
    assert check(tmp_path, BACKEND.format(store=store(), open=OPEN))[0] == 0


@pytest.mark.parametrize("verb", VERBS)
def test_a_store_without_a_method_is_named(tmp_path: Path, verb: str) -> None:
    """The line has the backend, the method and its signature."""
    code, text = check(tmp_path, BACKEND.format(store=store(**{verb: ""}), open=OPEN))
    assert code == 1
    assert "storage backend thirds" in text
    assert "thirds.py" in text
    assert f"def {verb}(self" in text
    assert text.count("missing `") == 1


def test_a_misspelt_method_is_named_with_the_right_one(tmp_path: Path) -> None:
    """A similar name in its place is mentioned too."""
    code, text = check(
        tmp_path, BACKEND.format(store=store(aggregate="async def agregate(self, *arguments): ..."), open=OPEN)
    )
    assert code == 1
    assert "(did you mean agregate?)" in text
    assert "Each method is documented: python -m pydoc usage_plugin.plugins.storage.UsageStore" in text


@pytest.mark.parametrize(
    ("port", "path"),
    [
        (UsageStore, "usage_plugin.plugins.storage.UsageStore"),
        (StorageBackend, "usage_plugin.plugins.storage.StorageBackend"),
        (Ledger, "usage_plugin.plugins.ledger.Ledger"),
        (ProfileStore, "usage_plugin.plugins.ledger.ProfileStore"),
        (IdentityResolver, "usage_plugin.plugins.IdentityResolver"),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_documentation_has_a_public_path(port: type, path: str) -> None:
    """The command prints the docstrings of an interface, wherever it is defined."""
    command = documentation_of(port)
    assert command == f"python -m pydoc {path}"
    assert pydoc.locate(path) is port


def test_a_method_that_cannot_be_called_is_named(tmp_path: Path) -> None:
    """An argument too few, or another name of a keyword, fails at the first call; so it is found before."""
    for found in (
        "async def prune(self, *, events_before, days_before): ...",
        "async def prune(self, *, before, days_before, most): ...",
    ):
        code, text = check(tmp_path, BACKEND.format(store=store(prune=found), open=OPEN))
        assert code == 1
        assert "prune must accept the call `async def prune(self, *, events_before" in text


def test_a_backend_without_its_method_is_named(tmp_path: Path) -> None:
    """So is a backend that cannot open its store, or calls it otherwise."""
    code, text = check(tmp_path, BACKEND.format(store=store(), open="def opens(self, options, context): ..."))
    assert code == 1
    assert "missing `def open(self, options" in text
    assert "(did you mean opens?)" in text


def test_a_base_that_others_complete_is_fine(tmp_path: Path) -> None:
    """Only classes that nothing completes are looked at."""
    parts = (
        store(health="").replace("class Store(", "class Base(")
        + "\nclass Store(Base):\n    async def health(self): ...\n"
    )
    assert check(tmp_path, BACKEND.format(store=parts, open=OPEN))[0] == 0


def test_a_store_of_ours_with_another_method_is_fine(tmp_path: Path) -> None:
    """Inherited methods count."""
    assert MemoryStore.aggregate
    inherited = (
        "from usage_plugin.backends.memory import MemoryStore\n"
        "class Store(MemoryStore):\n    async def health(self): ...\n"
    )
    assert check(tmp_path, BACKEND.format(store=inherited, open=OPEN))[0] == 0


def test_the_proxy_does_not_start_with_such_a_store(tmp_path: Path) -> None:
    """The error of `check` stops a worker too, in the same words."""
    from usage_plugin.config import load_config  # noqa: PLC0415
    from usage_plugin.errors import PluginError  # noqa: PLC0415
    from usage_plugin.runtime import Parts  # noqa: PLC0415

    check(tmp_path, BACKEND.format(store=store(append=""), open=OPEN))
    with pytest.raises(PluginError, match="missing `async def append"):
        Parts(load_config(tmp_path / "config.yaml"))
