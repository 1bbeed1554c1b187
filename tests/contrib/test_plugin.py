"""The plugin chroma, enabled by the YAML: the time of its updates, and its failures."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

from tests.plugins.conftest import not_told
from tests.support.waiting import eventually
from tests.tracking.test_tracking import admitted, success
from usage_plugin.config import load_config
from usage_plugin.contrib import chroma
from usage_plugin.contrib.chroma import Options, Plugin, vector_store
from usage_plugin.errors import ConfigError, PluginError, VectorsError
from usage_plugin.plugins.manager import NO_CONTEXT
from usage_plugin.runtime import Runtime, load_plugins
from usage_plugin.testing.clock import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

    from tests.contrib.conftest import Place


def test_it_is_off_by_default(tmp_path: Path) -> None:
    """Without being named it is not loaded."""
    path = tmp_path / "config.yaml"
    path.write_text("usage_plugin: {data_dir: ./data}\n")
    assert load_plugins(load_config(path)).brought == []


def test_its_files_are_in_the_data_folder_unless_told_otherwise(place: Place) -> None:
    """A path of the options starts from the folder of the YAML."""
    assert place.plugin.folder == place.config.data_dir / "chroma"
    text = place.config_path.read_text()
    place.config_path.write_text(text.replace("weeks: 12", "path: ./elsewhere"))
    (found,) = load_plugins(load_config(place.config_path)).brought
    assert found.implements.folder == place.config_path.parent / "elsewhere"  # type: ignore[attr-defined]


@pytest.mark.parametrize("options", ["weeks: 1", "weeks: x", "sort: x"])
def test_its_options_are_checked(place: Place, options: str) -> None:
    """A mistake is named by its key."""
    place.config_path.write_text(place.config_path.read_text().replace("weeks: 12", options))
    with pytest.raises(ConfigError, match=r"usage_plugin\.plugins\.0\.options\."):
        load_plugins(load_config(place.config_path))


def test_without_chromadb_the_start_says_what_to_install(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra."""
    monkeypatch.setattr(chroma, "check_installed", vector_store.check_installed)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(PluginError, match=r"pip install 'usage-plugin\[chroma\]'"):
        load_plugins(place.config)


def test_it_needs_the_configuration_in_a_file() -> None:
    """Another process cannot read a configuration in a program's memory."""
    with pytest.raises(ConfigError, match="requires a configuration file"):
        Plugin(Options(), NO_CONTEXT)


async def test_it_follows_in_another_process_at_most_once_an_hour(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first event starts it, more do not; an hour later the next one does."""
    plugin = place.plugin
    assert plugin._command[:3] == [sys.executable, "-m", "usage_plugin.cli"]
    started = place.config_path.with_name("started")
    plugin._command = [sys.executable, "-c", f"open({str(started)!r}, 'a').write('x')"]
    for _ in range(3):
        plugin.usage_event_recorded()
    await eventually(lambda: started.exists() and plugin._process and plugin._process.poll() == 0)
    for _ in range(3):
        plugin.usage_event_recorded()
    assert started.read_text() == "x"
    monkeypatch.setattr("time.monotonic", lambda now=plugin._not_before: now + 1)
    plugin.usage_event_recorded()
    assert plugin._process
    assert plugin._process.wait(60) == 0
    assert started.read_text() == "xx"


async def test_what_went_wrong_there_is_told_here(place: Place) -> None:
    """So that it is counted and logged under the plugin's name, like any error of a plugin."""
    plugin = place.plugin
    plugin._command = [sys.executable, "-c", "raise SystemExit('the disk is full')"]
    plugin.usage_event_recorded()
    assert plugin._process
    plugin._process.wait(60)
    with pytest.raises(VectorsError, match="the disk is full"):
        plugin.usage_event_recorded()
    plugin.usage_event_recorded()


async def test_a_worker_tells_it(place: Place) -> None:
    """In a worker it receives recorded events in its own thread, and its failures are counted like any plugin's."""
    clock = FakeClock()
    runtime = Runtime(place.config, clock=clock)
    try:
        (found,) = runtime.plugins.brought
        assert isinstance(found.implements, Plugin)
        found.implements._command = [sys.executable, "-c", "raise SystemExit(3)"]
        for times in (1, 2):
            request = await admitted(runtime, clock, cost=1)
            assert runtime.recorder.record(request, success(1))
            await eventually(lambda: found.implements._process is not None or not_told(runtime))
            if times == 1:
                await asyncio.to_thread(found.implements._process.wait, 60)
        await eventually(lambda: not_told(runtime) == {"chroma": 1})
    finally:
        await runtime.close()


def test_forgetting_makes_no_folder(place: Place) -> None:
    """Where nothing is kept there is nothing to forget."""
    place.plugin.usage_user_forgotten("ann")
    assert not place.plugin.folder.exists()
