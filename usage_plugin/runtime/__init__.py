"""Puts the parts together: `Runtime` for a worker of the proxy, `open_reader` for readers."""

from usage_plugin.runtime.parts import BUILTIN_PLUGINS, OPTIONAL_PLUGINS, Parts, load_plugins
from usage_plugin.runtime.reader import Reader, open_reader
from usage_plugin.runtime.worker import Runtime

__all__ = [
    "BUILTIN_PLUGINS",
    "OPTIONAL_PLUGINS",
    "Parts",
    "Reader",
    "Runtime",
    "load_plugins",
    "open_reader",
]
