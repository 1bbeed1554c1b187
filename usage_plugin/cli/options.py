"""Options that several commands share, and the reader that the configuration opens for them."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from usage_plugin.cli.date_ranges import TypedDates
from usage_plugin.cli.output import FORMATS, Output
from usage_plugin.config import Config, find_config, load_config
from usage_plugin.domain.store import UsageFilter
from usage_plugin.errors import SecretError
from usage_plugin.runtime import Reader, open_reader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CommandT = TypeVar("CommandT", bound="Callable[..., Any]")

_SUBJECT_OPTIONS = (
    "user", "team", "api-key", "end-user", "organization", "session", "model", "provider", "tag"
)  # fmt: skip


def with_reader(path: Path | None, use: Callable[[Reader], Awaitable[None]]) -> None:
    """Open the data folder of the configuration, and run a command with its reader."""
    config: Config = load_config(find_config(path))

    async def reading() -> None:
        async with open_reader(config) as reader:
            try:
                reader.check_secret()
            except SecretError as error:
                # Sums and limits are readable all the same, but no name leads to its pseudonym.
                click.echo(f"usage-plugin: {error.message} Names and keys are not found.", err=True)
            await use(reader)

    asyncio.run(reading())


def config_option(command: CommandT) -> CommandT:
    """Add `--config`."""
    return click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        help="The proxy's YAML. Default: USAGE_PLUGIN_CONFIG, CONFIG_FILE_PATH, then ./config.yaml.",
    )(command)


def common_options(
    *,
    formats: tuple[str, ...] = FORMATS,
    help_text: str = "Output format: a table for people, the others for programs.",
) -> Callable[[CommandT], CommandT]:
    """Add `--format` and `--config`; the latter is also accepted before the command."""

    def decorate(command: CommandT) -> CommandT:
        @functools.wraps(command)
        @click.pass_context
        def run(context: click.Context, /, *args: Any, config_path: Path | None, output: str, **options: Any) -> Any:
            path = config_path or context.find_root().params.get("config_path")
            return command(path, Output(output), *args, **options)

        with_format = click.option(
            "--format", "output", type=click.Choice(formats), default=formats[0], show_default=True,
            help=help_text,
        )(run)  # fmt: skip
        return config_option(with_format)  # type: ignore[return-value]

    return decorate


def subject_options(command: CommandT) -> CommandT:
    """Add an option for each dimension that has names."""
    for name in reversed(_SUBJECT_OPTIONS):
        text = "A key, LiteLLM's hash of it, or the form shown (k-…)." if name == "api-key" else "Its exact name."
        command = click.option(f"--{name}", metavar="NAME", help=text)(command)
    return command


def filter_options(command: CommandT) -> CommandT:
    """Add `--user`, `--team` and `--model`, passed on as `usage_filter`."""

    @functools.wraps(command)
    def run(*args: Any, user: str | None, team: str | None, model: str | None, **options: Any) -> Any:
        return command(*args, usage_filter=UsageFilter(user=user, team=team, model=model), **options)

    decorated: Any = run
    for name in ("model", "team", "user"):
        decorated = click.option(f"--{name}", help=f"Only requests of this {name}.")(decorated)
    return decorated  # type: ignore[no-any-return]


def date_options(*, since: str = "30d", through: str = "today") -> Callable[[CommandT], CommandT]:
    """Add `--since`, `--through` and `--month`, passed on as `dates`; the arguments are the defaults shown.

    `--until` is the former name of `--through`. It goes on working for one minor version, with a warning: elsewhere
    `until` is exclusive (the Python API), and `--through` includes its day.
    """

    def decorate(command: CommandT) -> CommandT:
        @functools.wraps(command)
        def run(
            *args: Any, since: str | None, through: str | None, until: str | None, month: str | None, **options: Any
        ) -> Any:
            if until is not None:
                if through is not None:
                    raise click.UsageError("--until is the former name of --through: give only --through.")
                click.echo("--until is deprecated: use --through, which also includes the last day.", err=True)
            return command(*args, dates=TypedDates(since, through or until, month), **options)

        decorated: Any = run
        for option in (
            click.option("--month", help="A whole month instead: YYYY-MM."),
            click.option("--until", hidden=True),
            click.option(
                "--through", help=f"The last day, included: today, yesterday or YYYY-MM-DD. Default: {through}."
            ),
            click.option(
                "--since", help=f"The first day: 7d (today included), today, yesterday or YYYY-MM-DD. Default: {since}."
            ),
        ):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


def adjustment_options(command: CommandT) -> CommandT:
    """Add `--for` and `--reason`, which `raise` and `pause` need."""
    reason = click.option("--reason", required=True, help="The reason; it is kept with your name.")(command)
    return click.option("--for", "duration", required=True, help="How long: 90m, 12h, 3d; at most 90d.")(reason)
