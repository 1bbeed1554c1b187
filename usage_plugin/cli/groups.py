"""Command groups: list their commands with whole sentences, and turn errors into messages and exit codes."""

from __future__ import annotations

import io
import sys
from typing import Any

import click

from usage_plugin.errors import UsagePluginError

_UNTRUNCATED = 1000


class ListingGroup(click.Group):
    """A group whose help shows the whole first sentence of each command."""

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands; click would truncate their sentences at the edge of the terminal."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, self.commands[name].get_short_help_str(_UNTRUNCATED)) for name in self.list_commands(context)]
            )


class ErrorReportingGroup(ListingGroup):
    """A group that turns our errors into a message on standard error and exit code 1."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        _escape_unprintable_names()
        try:
            return super().invoke(context)
        except UsagePluginError as error:
            click.echo(f"usage-plugin: {error.message}", err=True)
            if error.hint:
                click.echo(error.hint, err=True)
            context.exit(1)
        except BrokenPipeError:
            # The reader closed the pipe. Without this, Python would report it again when it closes stdout.
            sys.stdout = None
            context.exit(0)


def _escape_unprintable_names() -> None:
    """Escape names of any script where the locale has only ASCII, instead of failing on them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
