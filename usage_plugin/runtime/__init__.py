"""Compose the application: `Runtime` for a worker of the proxy, `open_reader` for readers."""

from usage_plugin.runtime.composition import BUILTIN_PLUGINS, OPTIONAL_PLUGINS, Parts, load_plugins
from usage_plugin.runtime.read_session import Reader, open_reader
from usage_plugin.runtime.worker_runtime import Runtime

__all__ = [
    "BUILTIN_PLUGINS",
    "OPTIONAL_PLUGINS",
    "Parts",
    "Reader",
    "Runtime",
    "load_plugins",
    "open_reader",
]
