"""Writes each usage event as a line of JSON to a file, for a log shipper.

    plugins:
      - {path: ./json_lines.py, options: {file: /var/log/usage.jsonl}}

Delivery is at most once: events that are queued when the proxy is killed are missing. The store has the complete
history.
"""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # pydantic needs it at run time

from usage_plugin import plugins
from usage_plugin.plugins import BackendContext, UsageEvent, encode_event, hookimpl


class Options(plugins.Options):
    """The output file; a relative path starts from the folder of the YAML."""

    file: Path


class Plugin:
    """Append to the file; several workers may do so at once, because each line is one write."""

    def __init__(self, options: Options, context: BackendContext) -> None:
        """Store the path without opening the file, because read-only commands create this object too."""
        self._path = context.config_dir / options.file

    @hookimpl
    def usage_event_recorded(self, event: UsageEvent) -> None:
        """Write one line."""
        with self._path.open("ab", buffering=0) as file:
            file.write(f"{encode_event(event)}\n".encode())
