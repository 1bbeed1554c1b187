"""`usage-plugin plugins`: the loaded plugins, their source and their hooks. They are loaded as in the proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usage_plugin.cli.output import Column, Output, table
from usage_plugin.config import load_config
from usage_plugin.runtime import load_plugins

if TYPE_CHECKING:
    from pathlib import Path

    from usage_plugin.plugins.manager import LoadedPlugin

COLUMNS = (Column("plugin"), Column("source"), Column("from"), Column("hooks"), Column("registers"))


def run(path: Path, output: Output) -> None:
    """List the plugins that a configuration loads.

    Raises:
        PluginError: a plugin cannot be loaded.
    """
    rows = [_row(plugin) for plugin in load_plugins(load_config(path)).loaded]
    if output.is_table:
        cells = [[", ".join(v) if isinstance(v, list) else v for v in row.values()] for row in rows]
        table(f"Plugins of {path}", COLUMNS, cells)
    else:
        output.document({"config": str(path), "plugins": rows}, rows)


def _row(plugin: LoadedPlugin) -> dict[str, Any]:
    found = plugin.found
    return {
        "plugin": found.name,
        "source": found.source,
        "from": found.location,
        "hooks": list(plugin.hooks),
        "registers": list(plugin.registers),
    }
