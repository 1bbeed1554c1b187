"""Open and close a tracker: the program joins the data folder as a worker, like each worker of the proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from usage_plugin.api.tracker import UsageTracker
from usage_plugin.config import Config, config_of, find_config, load_config
from usage_plugin.runtime import Runtime
from usage_plugin.tracking.history.reader import UsageReader

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator

    from usage_plugin.domain.clock import Clock
    from usage_plugin.plugins.manager import Plugins

Source: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | Config | None"


@asynccontextmanager
async def open_tracker(
    source: Source = None, *, plugins: Plugins | None = None, clock: Clock | None = None
) -> AsyncIterator[UsageTracker]:
    """Open the usage of a data folder for recording and reading.

    Several programs and proxies may have the same folder open, on one host. They should share one YAML: a request
    counts on the limits of the program that records it.

    Args:
        source: a YAML with a section `usage_plugin:` (`.yaml` or `.yml`), a data folder, or the section as a dict.
            None is the default YAML of the command line. A folder alone has no limits.
        plugins: the plugins to use; by default the built-in ones and those of installed packages.
        clock: a substitute for the system clock, for tests.

    Raises:
        ConfigError: the configuration is not valid or not found.
        LedgerError: the ledger cannot be opened.
    """
    runtime = Runtime(_config(source), plugins=plugins, clock=clock)
    ticking = asyncio.create_task(runtime.tick())
    try:
        async with runtime.parts.open_store_for_reading() as store:
            reader = UsageReader(runtime.ledger, store, runtime.cache, runtime.config.timezone, runtime.clock)
            yield UsageTracker(runtime, reader)
    finally:
        ticking.cancel()
        await runtime.close()


def _config(source: Source) -> Config:
    if isinstance(source, Config):
        return source
    if isinstance(source, Mapping):
        return config_of(source)
    if source is None:
        return load_config(find_config())
    path = Path(source).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return load_config(find_config(path))
    return config_of({"data_dir": str(path)})
