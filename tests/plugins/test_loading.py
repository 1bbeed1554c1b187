"""Plugins are found and checked at the start; an invalid one is an error with the place, the reason and the remedy."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.plugins.conftest import IMPORTS
from usage_plugin import runtime
from usage_plugin.errors import ConfigError, PluginError
from usage_plugin.plugins.discovery import ConfiguredPlugin
from usage_plugin.plugins.manager import NO_CONTEXT, Plugins
from usage_plugin.runtime import BUILTIN_PLUGINS, load_plugins

if TYPE_CHECKING:
    from tests.plugins.conftest import Workplace

RESOLVER = """
class Resolver(interface.IdentityResolver):
    name = "people"
    def groups_of(self, user): return ["power"]
"""

REGISTERS = f"""
{RESOLVER}
@hookimpl
def usage_register_identity_resolvers(): return [Resolver()]
"""

LISTENS = """
@hookimpl
def usage_event_recorded(event): pass
"""


def load(path: Path, **options: object) -> Plugins:
    return Plugins(
        BUILTIN_PLUGINS, [ConfiguredPlugin("usage_plugin.plugins.0", path=path, options=options)], entry_points=False
    )


def install(folder: Path, name: str, *points: str, version: str = "1.2") -> None:
    """Write the metadata of a distribution, as pip does."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("[usage_plugin]\n" + "\n".join(points) + "\n")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_is_a_plugin(workplace: Workplace) -> None:
    """A file is loaded under a unique name, so that code that needs its module, such as dataclasses, works."""
    path = workplace.write(
        "mine.py",
        f"""
        from __future__ import annotations
        import dataclasses
        @dataclasses.dataclass
        class Kept:
            names: list[str] = dataclasses.field(default_factory=list)
        {LISTENS.replace(chr(10), chr(10) + " " * 8)}""".replace("from __future__ import annotations", ""),
    )
    (plugin,) = load(path).brought
    assert (plugin.name, plugin.source, plugin.location) == ("mine", "file", str(path))
    module = plugin.implements
    assert sys.modules[module.__name__] is module  # type: ignore[attr-defined]
    assert module.Kept().names == []  # type: ignore[attr-defined]
    assert not (path.parent / "__pycache__").exists()


def test_files_of_one_name_in_two_folders_are_two_modules(workplace: Workplace, tmp_path: Path) -> None:
    """Two files never share a module, even with equal names."""
    (tmp_path / "other").mkdir()
    first, second = workplace.write("mine.py", LISTENS), workplace.write("other/mine.py", LISTENS)
    modules = [load(path).brought[0].implements.__name__ for path in (first, second)]  # type: ignore[attr-defined]
    assert len(set(modules)) == 2


def test_a_path_starts_from_the_yaml(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path starts in the folder of the YAML, not in the current folder."""
    workplace.write("mine.py", LISTENS)
    monkeypatch.chdir("/")
    assert load_plugins(workplace.config("[{path: ./mine.py}]")).brought[0].name == "mine"


@pytest.mark.parametrize("loose", ["mine.py", "."])
def test_what_everybody_may_write_is_refused(workplace: Workplace, loose: str) -> None:
    """A file that anybody may change, or exchange in its folder, does not run in the proxy."""
    path = workplace.write("mine.py", "raise SystemExit")
    (path.parent / loose).chmod(0o777)
    with pytest.raises(PluginError, match="writable by all users") as error:
        load(path)
    assert "chmod o-w" in str(error.value)


def test_a_link_does_not_hide_who_may_write(workplace: Workplace, tmp_path: Path) -> None:
    """The target of a link counts, and its folder."""
    loose = tmp_path / "loose"
    loose.mkdir()
    real = workplace.write("loose/real.py", LISTENS)
    loose.chmod(0o777)
    (tmp_path / "mine.py").symlink_to(real)
    with pytest.raises(PluginError, match="loose is writable by all users"):
        load(tmp_path / "mine.py")


def test_what_belongs_to_somebody_else_is_refused(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a third user does not run in the proxy; root's does."""
    path = workplace.write("mine.py", LISTENS)
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 4321)
    if owner == 0:
        assert load(path).brought
        for changed in (path, path.parent):
            os.chown(changed, 4711, -1)
    with pytest.raises(PluginError, match="belongs to user") as error:
        load(path)
    assert "chown" in str(error.value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import not_there", "ModuleNotFoundError: No module named 'not_there'"),
        ("def", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_file_that_cannot_be_imported_says_why(workplace: Workplace, source: str, said: str) -> None:
    """A broken file stops the start with its name, its path and its error, and leaves no module behind."""
    before = set(sys.modules)
    with pytest.raises(PluginError) as error:
        load(workplace.write("mine.py", source))
    assert "Cannot import the plugin mine (" in str(error.value)
    assert "mine.py)" in str(error.value)
    assert said in str(error.value)
    assert not [name for name in set(sys.modules) - before if name.startswith("usage_plugin_file")]


def test_a_file_that_is_not_there_says_where_it_was_looked_for(tmp_path: Path) -> None:
    """A wrong path names the whole path."""
    with pytest.raises(PluginError, match=r"Cannot read the plugin .*: No such file") as error:
        load(tmp_path / "mine.py")
    assert str(tmp_path / "mine.py") in str(error.value)
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(PluginError, match=r"must end in \.py"):
        load(tmp_path / "mine.txt")


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────────

WITH_OPTIONS = """
class Options(interface.Options):
    room: str
    times: int = 1

class Plugin:
    def __init__(self, options, context):
        if options.room == "broken": raise ValueError("no such room")
        self.options, self.context = options, context
    @hookimpl
    def usage_event_recorded(self, event): pass
"""


def test_options_are_checked_and_handed_over(workplace: Workplace) -> None:
    """A module's `Plugin` is made with its `Options`, and with where the YAML and the data are."""
    workplace.write("mine.py", WITH_OPTIONS)
    config = workplace.config('[{path: mine.py, options: {room: "#ops"}}]')
    made = load_plugins(config).brought[0].implements
    assert (made.options.room, made.options.times) == ("#ops", 1)  # type: ignore[attr-defined]
    assert made.context.config_dir == workplace.folder  # type: ignore[attr-defined]
    assert made.context.data_dir == workplace.folder / "data"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "usage_plugin.plugins.0.options.room"),
        ({"room": "x", "tmes": 2}, "usage_plugin.plugins.0.options.tmes"),
        ({"room": "x", "times": "often"}, "found 'often'"),
    ],
)
def test_wrong_options_name_the_key(workplace: Workplace, options: dict[str, object], said: str) -> None:
    """Options that do not fit stop the start with key and value."""
    with pytest.raises(ConfigError) as error:
        load(workplace.write("mine.py", WITH_OPTIONS), **options)
    assert said in str(error.value)


def test_wrong_options_do_not_show_the_credentials_of_a_url(workplace: Workplace) -> None:
    """A URL in an error of options keeps its host, and loses user and password, also under a misspelt key."""
    path = workplace.write("mine.py", WITH_OPTIONS)
    with pytest.raises(ConfigError) as error:
        load(path, rom="postgresql://ann:s3cret/@x@db.example/usage")
    assert "postgresql://…@db.example/usage" in str(error.value)
    assert "s3cret" not in str(error.value)


def test_options_that_nobody_takes_are_refused(workplace: Workplace) -> None:
    """Options for a plugin that takes none are a mistake, not a wish."""
    with pytest.raises(
        PluginError, match=r"usage_plugin\.plugins\.0\.options: expected no options for the plugin mine "
    ):
        load(workplace.write("mine.py", LISTENS), room="x")


def test_a_plugin_that_cannot_begin_is_named(workplace: Workplace) -> None:
    """An error of `Plugin` stops the start."""
    with pytest.raises(PluginError, match=r"mine .* failed to start: .* ValueError: no such room"):
        load(workplace.write("mine.py", WITH_OPTIONS), room="broken")


# ── packages ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_installed_package_is_loaded_configured_and_switched_off(workplace: Workplace, packages: Path) -> None:
    """The entry point of a distribution is found by itself; the YAML gives it options, or keeps it out unimported."""
    (packages / "acme_usage.py").write_text(
        f"from usage_plugin.plugins import hookimpl, interface\n{WITH_OPTIONS.replace('room: str', 'room: str = chr(35)')}"
    )
    install(packages, "Acme.Usage", "acme = acme_usage")
    (found,) = load_plugins(workplace.config("[]")).brought
    assert (found.name, found.source, found.location) == ("acme", "package", "Acme.Usage 1.2")
    config = workplace.config("[{package: acme-usage, options: {room: ops}}]")
    assert load_plugins(config).brought[0].implements.options.room == "ops"  # type: ignore[attr-defined]
    (packages / "acme_usage.py").write_text("raise SystemExit")
    del sys.modules["acme_usage"]
    assert load_plugins(workplace.config("[{package: acme_usage, enabled: false}]")).brought == []
    with pytest.raises(PluginError, match=r"Cannot import the plugin acme \(Acme\.Usage 1\.2\)"):
        load_plugins(workplace.config("[]"))


def test_a_package_that_is_not_installed_is_named(workplace: Workplace, packages: Path) -> None:
    """A misspelt package would disable nothing: it is an error that lists the installed ones."""
    install(packages, "acme-usage", "acme = acme_usage")
    config = workplace.config("[{package: acme, enabled: false}]")
    with pytest.raises(
        PluginError, match=r"usage_plugin\.plugins\.0\.package: expected .* \(acme-usage\); found 'acme'"
    ):
        load_plugins(config)


def test_a_package_is_named_once(workplace: Workplace, packages: Path) -> None:
    """Of two entries for one package neither is silently passed over."""
    install(packages, "acme-usage", "acme = acme_usage")
    with pytest.raises(
        PluginError, match=r"plugins\.1\.package: duplicate of usage_plugin\.plugins\.0; found 'acme_usage' twice"
    ):
        load_plugins(workplace.config("[{package: acme-usage, enabled: false}, {package: acme_usage}]"))


def test_hooks_beside_the_class_are_refused(workplace: Workplace) -> None:
    """A module is a plugin or has a class `Plugin`: hooks that would not be called are an error."""
    with pytest.raises(PluginError, match="expected usage_request_refused as methods of it"):
        load(
            workplace.write(
                "mine.py", f"{WITH_OPTIONS}\n{LISTENS.replace('event_recorded(event', 'request_refused(refusal')}"
            )
        )
    with pytest.raises(PluginError, match=r"expected a subclass of usage_plugin\.plugins\.Options; found"):
        load(workplace.write("mine.py", WITH_OPTIONS.replace("(interface.Options)", "")))


def test_plugins_that_are_switched_off_are_not_touched(workplace: Workplace) -> None:
    """A file with `enabled: false` need not even be there."""
    assert load_plugins(workplace.config("[{path: gone.py, enabled: false, options: {room: x}}]")).brought == []


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch, packages: Path) -> None:
    """A plugin that comes with usage_plugin and is off, by the name of ours."""
    (packages / "a_plugin_of_ours.py").write_text(f"{IMPORTS}\n{WITH_OPTIONS}")
    monkeypatch.setattr(runtime.composition, "OPTIONAL_PLUGINS", {"ours": "a_plugin_of_ours"})


@pytest.mark.usefixtures("ours")
def test_a_plugin_of_ours_that_is_off_is_turned_on_by_its_name(workplace: Workplace) -> None:
    """It is loaded if it is named, with its options, and receives the path of the YAML."""
    assert load_plugins(workplace.config("[]")).brought == []
    assert load_plugins(workplace.config("[{name: ours, enabled: false}]")).brought == []
    config = workplace.config("[{name: ours, options: {room: x}}]")
    (found,) = load_plugins(config).brought
    assert (found.name, found.source) == ("ours", "optional")
    assert found.implements.options.room == "x"  # type: ignore[attr-defined]
    assert found.implements.context.config_file == config.path  # type: ignore[attr-defined]


@pytest.mark.usefixtures("ours")
def test_a_plugin_of_ours_is_named_once_and_as_it_is_called(workplace: Workplace) -> None:
    """A name that is wrong is answered with those that there are."""
    with pytest.raises(PluginError, match=r"plugins\.0\.name: expected one of ours; found 'hours'"):
        load_plugins(workplace.config("[{name: hours}]"))
    with pytest.raises(PluginError, match="expected unique names of plugins; found two named ours"):
        load_plugins(workplace.config("[{name: ours, options: {room: x}}, {name: ours, options: {room: x}}]"))


@pytest.mark.parametrize("entry", ["{}", "{options: {a: b}}", "{path: a.py, package: b}", "{path: a.py, name: b}"])
def test_an_entry_names_one_source(workplace: Workplace, entry: str) -> None:
    """A plugin is a file or a package."""
    with pytest.raises(
        ConfigError, match=r"usage_plugin\.plugins\.0: expected exactly one of path .*, package .* and name"
    ):
        workplace.config(f"[{entry}]")


# ── invalid plugins ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("source", "said", "remedy"),
    [
        ("x = 1", "implements no hook", "usage_event_recorded"),
        ("@hookimpl\ndef usage_event_recordet(event): pass", "unknown hook: usage_event_recordet", "Did you mean usage_event_recorded?"),
        ("@hookimpl\ndef something(): pass", "unknown hook: something", "The hooks are usage_register"),
        (f"{LISTENS}\ndef usage_request_refused(refusal): pass", "usage_request_refused of the plugin mine", "Write @hookimpl above it"),
        ("@hookimpl\ndef usage_event_recorded(evt): pass", "unknown arguments: evt", "usage_event_recorded(event)"),
        ("@hookimpl\ndef usage_event_recorded(event, more): pass", "unknown arguments: more", "usage_event_recorded(event)"),
        ("@hookimpl\nasync def usage_event_recorded(event): pass", "expected a plain function", "without async"),
        ("@hookimpl\ndef usage_event_recorded(event): yield", "expected a plain function", "without async"),
        ("@hookimpl(wrapper=True)\ndef usage_event_recorded(event): yield", "found a wrapper", "Remove the wrapper option"),
        ("@hookimpl\ndef usage_register_ledgers(): 1 / 0", "failed in usage_register_ledgers: ZeroDivisionError", "Fix it"),
        ("@hookimpl\ndef usage_register_ledgers(): pass", "expected a list; found NoneType", "a list of LedgerBackend"),
        ("@hookimpl\ndef usage_register_ledgers(): return [5]", "expected objects of LedgerBackend; found int", "a list of LedgerBackend"),
        (f"{RESOLVER}\n@hookimpl\ndef usage_register_identity_resolvers(): return [Resolver]", "found the class Resolver", "a list of IdentityResolver objects"),
        (f"{RESOLVER}\n@hookimpl\ndef usage_register_storage_backends(): return [Resolver()]", "expected objects of StorageBackend; found Resolver", "StorageBackend"),
        (f"{RESOLVER.replace('name = ', 'title = ')}\n@hookimpl\ndef usage_register_identity_resolvers(): return [Resolver()]", "without a name", "Add name"),
        (
            "class Mine(interface.StorageBackend):\n    name = 'mine'\n    def open(self, options, context): ...\n@hookimpl\ndef usage_register_storage_backends(): return [Mine()]",
            "without an options_model", "NoOptions",
        ),
        (f"{RESOLVER}\n@hookimpl\ndef usage_register_identity_resolvers(): return [Resolver(), Resolver()]", "both register the identity resolver", "Disable one"),
    ],
)  # fmt: skip
def test_what_does_not_fit_names_plugin_hook_and_remedy(
    workplace: Workplace, source: str, said: str, remedy: str
) -> None:
    """A plugin that would silently not be called, or not as its author thinks, stops the start."""
    path = workplace.folder / "mine.py"
    path.write_text(f"from usage_plugin.plugins import hookimpl, interface\n{source}\n")
    path.chmod(0o600)
    with pytest.raises(PluginError) as error:
        load(path)
    assert "mine" in error.value.message
    assert str(path) in error.value.message
    assert said in error.value.message
    assert remedy in str(error.value.hint)


def test_two_backends_of_one_name_are_named(workplace: Workplace) -> None:
    """A plugin that uses the name of a built-in backend is an error that names both."""
    path = workplace.write(
        "mine.py",
        """
        from usage_plugin.backends.memory import MemoryBackend
        @hookimpl
        def usage_register_storage_backends(): return [MemoryBackend()]
    """,
    )
    with pytest.raises(PluginError, match="both register the storage backend 'memory'") as error:
        load(path)
    assert "usage_plugin.backends.memory" in str(error.value)
    assert str(path) in str(error.value)


def test_two_plugins_of_one_name_are_named(workplace: Workplace, packages: Path, tmp_path: Path) -> None:
    """Plugins are known by their names: the second of one name stops the start, and both places are said."""
    (tmp_path / "other").mkdir()
    workplace.write("mine.py", LISTENS)
    workplace.write("other/mine.py", LISTENS)
    with pytest.raises(PluginError, match=r"found two named mine: .*mine\.py and .*other/mine\.py"):
        load_plugins(workplace.config("[{path: mine.py}, {path: other/mine.py}]"))
    (packages / "acme_one.py").write_text(f"from usage_plugin.plugins import hookimpl\n{LISTENS}")
    install(packages, "acme-one", "acme = acme_one")
    install(packages, "acme-two", "acme = acme_one")
    with pytest.raises(PluginError, match=r"found two named acme: .*acme-one 1\.2|acme-two 1\.2"):
        load_plugins(workplace.config("[]"))


def test_registering_can_be_traced(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`USAGE_PLUGIN_TRACE_PLUGINS`=1 prints each call of a registering hook, with its result."""
    path = workplace.write("mine.py", REGISTERS)
    load(path)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("USAGE_PLUGIN_TRACE_PLUGINS", "1")
    load(path)
    traced = capsys.readouterr().err
    assert f"usage_register_identity_resolvers of mine ({path}) -> [<" in traced
    assert "usage_register_ledgers of usage_plugin.ledgers.sqlite" in traced


def test_what_is_loaded_is_known(workplace: Workplace) -> None:
    """Each plugin is listed with its source, its hooks and its registered objects."""
    plugins = load(workplace.write("mine.py", REGISTERS + LISTENS))
    *builtin, mine = plugins.loaded
    assert [plugin.found.name for plugin in builtin] == list(BUILTIN_PLUGINS)
    assert mine.hooks == ("usage_register_identity_resolvers", "usage_event_recorded")
    assert mine.registers == ("identity resolver people",)
    assert plugins.resolvers["people"].groups_of("ann") == ["power"]


def test_the_builtin_plugins_alone_need_nothing() -> None:
    """Without a YAML only the built-in plugins are loaded, and none of the installed ones here."""
    plugins = Plugins(BUILTIN_PLUGINS, entry_points=False)
    assert plugins.brought == []
    assert set(plugins.storage_backends) >= {"sqlite", "memory"}
    assert NO_CONTEXT.config_dir == Path()
    assert metadata.version("usage-plugin") in plugins.loaded[0].found.location
