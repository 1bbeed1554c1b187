"""The commands and what they have in common: where the configuration is, how to print, how to fail."""

from __future__ import annotations

import asyncio
import functools
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

import usage_plugin
from usage_plugin.cli import adjustments as adjustments_command
from usage_plugin.cli import check as check_command
from usage_plugin.cli import erasure as erasure_commands
from usage_plugin.cli import events as events_command
from usage_plugin.cli import explain as explain_command
from usage_plugin.cli import forecast as forecast_command
from usage_plugin.cli import import_spend_logs as spend_logs_command
from usage_plugin.cli import limits as limits_command
from usage_plugin.cli import migrate as migrate_command
from usage_plugin.cli import patterns as patterns_command
from usage_plugin.cli import plugins as plugins_command
from usage_plugin.cli import profiles as profiles_command
from usage_plugin.cli import report as report_command
from usage_plugin.cli import restore as restore_command
from usage_plugin.cli import similar as similar_commands
from usage_plugin.cli import simulate as simulate_command
from usage_plugin.cli import status as status_command
from usage_plugin.cli.doctor import command as doctor_command
from usage_plugin.cli.export import command as export_command
from usage_plugin.cli.export.formats import FORMATS as FORMATS_OF_RECORDS
from usage_plugin.cli.output import FORMATS, Output
from usage_plugin.config import Config, find_config, load_config
from usage_plugin.domain.patterns import PATTERN_TYPES
from usage_plugin.domain.store import UsageFilter
from usage_plugin.errors import UsagePluginError
from usage_plugin.runtime import Parts, Reader, open_reader
from usage_plugin.tracking.forecasting import FORECAST_WINDOWS
from usage_plugin.tracking.patterns import MOST_USERS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

CommandT = TypeVar("CommandT", bound="Callable[..., Any]")
_WHOLE = 1000


def _accept_every_name() -> None:
    """Print names of any script where the locale has only ASCII: escaped, not with a crash."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _Group(click.Group):
    """Lists its commands with whole sentences."""

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands; click would cut their sentences off at the edge of the terminal."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, self.commands[name].get_short_help_str(_WHOLE)) for name in self.list_commands(context)]
            )


class _Failing(_Group):
    """Turns our errors into a message and exit code 1."""

    def invoke(self, context: click.Context) -> Any:
        _accept_every_name()
        try:
            return super().invoke(context)
        except UsagePluginError as error:
            click.echo(f"usage-plugin: {error.message}", err=True)
            if error.hint:
                click.echo(error.hint, err=True)
            context.exit(1)
        except BrokenPipeError:
            # The reader of a pipe has had enough. Python would complain once more when it closes stdout.
            sys.stdout = None
            context.exit(0)


def _with_config(command: CommandT) -> CommandT:
    return click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        help="The proxy's YAML. Else: USAGE_PLUGIN_CONFIG, CONFIG_FILE_PATH, ./config.yaml.",
    )(command)


def _common(
    *, formats: tuple[str, ...] = FORMATS, told: str = "How to print it: a table for people, the others for programs."
) -> Callable[[CommandT], CommandT]:
    """Give a command `--config`, also where it stands before the command, and `--format`."""

    def decorate(command: CommandT) -> CommandT:
        @functools.wraps(command)
        @click.pass_context
        def run(context: click.Context, /, *args: Any, config_path: Path | None, output: str, **options: Any) -> Any:
            path = config_path or context.find_root().params.get("config_path")
            return command(path, Output(output), *args, **options)

        with_format = click.option(
            "--format", "output", type=click.Choice(formats), default=formats[0], show_default=True,
            help=told,
        )(run)  # fmt: skip
        return _with_config(with_format)  # type: ignore[return-value]

    return decorate


_SUBJECT_OPTIONS = (
    "user", "team", "api-key", "end-user", "organization", "session", "model", "provider", "tag"
)  # fmt: skip


def _subject_options(command: CommandT) -> CommandT:
    """Give a command an option for each dimension that has names."""
    for name in reversed(_SUBJECT_OPTIONS):
        told = "A key, LiteLLM's hash of it, or what is shown (k-…)." if name == "api-key" else "Its exact name."
        command = click.option(f"--{name}", metavar="NAME", help=told)(command)
    return command


def _read(path: Path | None, use: Callable[[Reader], Awaitable[None]]) -> None:
    """Open what the configuration names, and use it."""
    config: Config = load_config(find_config(path))

    async def reading() -> None:
        async with open_reader(config) as reader:
            await use(reader)

    asyncio.run(reading())


@click.group(cls=_Failing, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(usage_plugin.__version__, prog_name="usage-plugin")
@_with_config
def main(config_path: Path | None) -> None:
    """See what the LiteLLM proxy's users spend, and how their limits stand."""
    del config_path


@main.command()
@click.option("--by", default="user", show_default=True, help="user, team, api_key, organization, end_user, model, "
              "provider, day, week, month, session, agent; several with commas.")  # fmt: skip
@click.option("--top", type=click.IntRange(1), help="The dearest so many, and the others in one row. Default: all, but "
              "50 at a terminal, where the days do not come first.")  # fmt: skip
@click.option("--since", help="7d (today included), today, yesterday or YYYY-MM-DD. Default: 30d.")
@click.option("--until", help="The last day, included: today, yesterday or YYYY-MM-DD. Default: today.")
@click.option("--month", help="A whole month instead: YYYY-MM.")
@click.option("--user", help="Only what this user did.")
@click.option("--team", help="Only what was done for this team.")
@click.option("--model", help="Only what this model did.")
@_common()
def report(
    path: Path | None, output: Output, user: str | None, team: str | None, model: str | None, **options: Any
) -> None:
    """Sum requests, tokens and cost, by user or whatever --by says."""
    usage_filter = UsageFilter(user=user, team=team, model=model)
    _read(path, functools.partial(report_command.run, output=output, usage_filter=usage_filter, **options))


@main.command()
@click.option("--since", help="7d (today included), today, yesterday or YYYY-MM-DD. Default: 30d.")
@click.option("--until", help="The last day, included: today, yesterday or YYYY-MM-DD. Default: today.")
@click.option("--month", help="A whole month instead: YYYY-MM.")
@click.option("--type", "types", type=click.Choice(PATTERN_TYPES), multiple=True, help="Only these; can be repeated.")
@click.option(
    "--users",
    type=click.IntRange(0),
    default=MOST_USERS,
    show_default=True,
    help="How many users to look at, those who spent most in four weeks; 0 is fast and names nobody.",
)
@_common()
def patterns(path: Path | None, output: Output, **options: Any) -> None:
    """Show what stands out: dear models, sudden changes, caches and failures that cost, limits that will be passed."""
    _read(path, functools.partial(patterns_command.run, output=output, **options))


@main.command()
@click.option("--user", help="Only the accounts that count this user.")
@_common()
def limits(path: Path | None, output: Output, user: str | None) -> None:
    """Show every account: what each limit allows, what is spent, reserved and left."""
    _read(path, functools.partial(limits_command.run, output=output, user=user))


@main.command()
@click.option("--user", help="Only this user's.")
@click.option("--session", help="Only this session's.")
@click.option("--agent", help="Only this agent's.")
@click.option("--last", type=click.IntRange(1), default=20, show_default=True, help="How many.")
@click.option("--follow", is_flag=True, help="Go on with new events as they come; end with Ctrl-C.")
@_common()
def events(path: Path | None, output: Output, **options: Any) -> None:
    """Show the last usage events, one for each request."""
    _read(path, functools.partial(events_command.run, output=output, **options))


@main.command()
@_common()
def status(path: Path | None, output: Output) -> None:
    """Show on one screen how things are: workers, outbox, reservations, refusals, who is blocked."""
    _read(path, functools.partial(status_command.run, output=output))


@main.command()
@click.argument("ref_or_id", required=False)
@_subject_options
@_common()
def explain(path: Path | None, output: Output, ref_or_id: str | None, **names: str | None) -> None:
    """Say why a request was refused (by its ref) or admitted (by its event id), or what a subject may still do."""
    if ref_or_id is None and not any(names.values()):
        raise click.UsageError("Name the ref of a refusal, the id of an event, or a subject such as --user.")
    if ref_or_id is not None and any(names.values()):
        raise click.UsageError("A ref or an id stands alone, without --user and the like.")
    if ref_or_id is not None:
        _read(path, functools.partial(explain_command.run, output=output, ref_or_id=ref_or_id))
    else:
        _read(path, functools.partial(explain_command.run_subject, output=output, names=names))


@main.command()
@click.option("--by", help="user, team, api_key, organization, end_user, model, provider; several with commas. "
              "Default: everybody together.")  # fmt: skip
@click.option("--limit", "limit_name", help="The accounts of this limit instead, and when they run out.")
@click.option("--window", type=click.Choice(FORECAST_WINDOWS), help="To the end of which window. Default: month.")
@click.option("--user", help="Only what this user does.")
@click.option("--team", help="Only what is done for this team.")
@click.option("--model", help="Only what this model does.")
@click.option("--top", type=click.IntRange(1), default=20, show_default=True, help="How many: those that spent most.")
@click.option("--backtest", is_flag=True, help="Say how far off such forecasts would have been on past days.")
@_common()
def forecast(
    path: Path | None, output: Output, user: str | None, team: str | None, model: str | None, **options: Any
) -> None:
    """Say where the spend of this month is heading, or when a limit runs out, with a range."""
    usage_filter = UsageFilter(user=user, team=team, model=model)
    _read(path, functools.partial(forecast_command.run, output=output, usage_filter=usage_filter, **options))


@main.command()
@click.option("--limits", type=click.Path(path_type=Path), required=True, help="A YAML with `limits:`, written as in "
              "the proxy's; groups and the zone are those of the configuration.")  # fmt: skip
@click.option("--since", help="7d (today included), today, yesterday or YYYY-MM-DD. Default: 30d.")
@click.option("--until", help="The last day, included: today, yesterday or YYYY-MM-DD. Default: today.")
@click.option("--month", help="A whole month instead: YYYY-MM.")
@click.option("--top", type=click.IntRange(1), default=20, show_default=True, help="How many rows of who, in a table.")
@_common()
def simulate(path: Path | None, output: Output, **options: Any) -> None:
    """Say what proposed limits would have done: replay them over the recorded events, who, when, how much."""
    _read(path, functools.partial(simulate_command.run, output=output, **options))


@main.command(name="raise")
@click.argument("limit")
@_subject_options
@click.option("--to", required=True, help="The amount meanwhile, in the limit's unit; less than now is a cut.")
@click.option("--for", "duration", required=True, help="For how long: 90m, 12h, 3d; at most 90d.")
@click.option("--reason", required=True, help="Why; it is kept with your name.")
@_common()
def raise_(path: Path | None, output: Output, limit: str, to: str, duration: str, reason: str,
           **names: str | None) -> None:  # fmt: skip
    """Change a limit's amount for one subject, for a while."""
    wanted = adjustments_command.Change(limit=limit, names=names, to=to, duration=duration, reason=reason)
    _read(path, functools.partial(adjustments_command.change, output=output, wanted=wanted))


@main.command()
@click.argument("limit")
@_subject_options
@click.option("--for", "duration", required=True, help="For how long: 90m, 12h, 3d; at most 90d.")
@click.option("--reason", required=True, help="Why; it is kept with your name.")
@_common()
def pause(path: Path | None, output: Output, limit: str, duration: str, reason: str, **names: str | None) -> None:
    """Let a limit refuse one subject nothing, for a while; what is spent is recorded all the same."""
    wanted = adjustments_command.Change(limit=limit, names=names, to=None, duration=duration, reason=reason)
    _read(path, functools.partial(adjustments_command.change, output=output, wanted=wanted))


@main.command()
@click.argument("limit")
@_subject_options
@_common()
def resume(path: Path | None, output: Output, limit: str, **names: str | None) -> None:
    """End what raise and pause have changed for one subject before its time."""
    _read(path, functools.partial(adjustments_command.resume, output=output, limit_name=limit, names=names))


@main.command()
@click.option("--all", "everything", is_flag=True, help="Also those that have ended.")
@_common()
def adjustments(path: Path | None, output: Output, everything: bool) -> None:
    """List what raise and pause have changed: who, why, from when, until when."""
    _read(path, functools.partial(adjustments_command.show, output=output, everything=everything))


_WEEK = click.DateTime(("%Y-%m-%d",))


@main.command()
@click.argument("user")
@click.option("--week", type=_WEEK, help="Any day of the week. Default: the last in which they did something.")
@click.option("--most", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many.")
@_common()
def similar(path: Path | None, output: Output, user: str, week: datetime | None, most: int) -> None:
    """Find users who behave like one of them; needs the plugin chroma."""
    run = similar_commands.run_similar
    _read(path, functools.partial(run, output=output, user=user, week=week and week.date(), most=most))


@main.command()
@click.option("--week", type=_WEEK, help="Any day of the week. Default: the last that is over.")
@click.option("--most", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many.")
@click.option("--in-background", is_flag=True, hidden=True)
@_common()
def outliers(path: Path | None, output: Output, week: datetime | None, most: int, in_background: bool) -> None:
    """Find users who moved furthest from what they did in earlier weeks; needs the plugin chroma."""
    if in_background:
        _read(path, similar_commands.run_in_background)
    else:
        run = similar_commands.run_outliers
        _read(path, functools.partial(run, output=output, week=week and week.date(), most=most))


@main.command()
@click.argument("user")
@click.option("--reason", default="", help="Why; it is kept with your name, and must not name the person.")
@click.option("--open-windows", is_flag=True, help="Also what limits count in open windows: they begin anew.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_common()
def forget(path: Path | None, output: Output, user: str, reason: str, open_windows: bool, yes: bool) -> None:
    """Delete what is kept of a user; the sums of teams and models stay what they are."""
    run = erasure_commands.run_forget
    _read(path, functools.partial(run, output=output, user=user, reason=reason, open_windows=open_windows,
                                  confirmed=yes))  # fmt: skip


@main.command()
@click.option("--events", is_flag=True, help="The events, one for each request.")
@click.option("--days", is_flag=True, help="The sums of days, by user, team, key, model and so on.")
@click.option("--user", help="Only this user's. Without --events and --days: all that is kept of them, of any kind.")
@click.option("--team", help="Only what was done for this team.")
@click.option("--model", help="Only what this model did.")
@click.option("--since", help="7d (today included), today, yesterday or YYYY-MM-DD. Default: from the beginning.")
@click.option("--until", help="The last day, included: today, yesterday or YYYY-MM-DD. Default: to the end.")
@click.option("--month", help="A whole month instead: YYYY-MM.")
@click.option("--to", type=click.Path(path_type=Path), help="A new file; else it is printed.")
@click.option("--force", is_flag=True, help="Replace the file, if it is there already.")
@click.option("--reason", default="", help="Why; it is kept with your name.")
@_common(formats=tuple(FORMATS_OF_RECORDS), told="How to write it. Without it, the ending of --to decides.")
def export(path: Path | None, output: Output, events: bool, days: bool, to: Path | None, force: bool, reason: str,
           **options: str | None) -> None:  # fmt: skip
    """Write the whole history, a part of it, or everything that is kept of a user, into a file or a pipe."""
    if events and days:
        raise click.UsageError("--events and --days are two exports: choose one.")
    if events or days:
        usage_filter = UsageFilter(**{name: options.pop(name) for name in ("user", "team", "model")})
        what = "events" if events else "days"
        wanted = export_command.Wanted(what=what, usage_filter=usage_filter, reason=reason, **options)
        output = _format_of(output, to)
        _read(path, functools.partial(export_command.run, output=output, wanted=wanted, to=to, force=force))
        return
    user = options.pop("user")
    if user is None:
        raise click.UsageError("Say what: --events, --days, or --user for everything that is kept of somebody.")
    if any(options.values()) or output.kind != "jsonl":
        raise click.UsageError(
            "With --user alone everything that is kept of them is written, as jsonl: a part needs --events or --days."
        )
    _read(path, functools.partial(erasure_commands.run_export, user=user, to=to, force=force, reason=reason))


def _format_of(output: Output, to: Path | None) -> Output:
    """Take the format that was asked for, else the one that the file's name ends with."""
    source = click.get_current_context().get_parameter_source("output")
    ending = "" if to is None else to.suffix.removeprefix(".").lower()
    return Output(ending) if source is ParameterSource.DEFAULT and ending in FORMATS_OF_RECORDS else output


@main.command()
@click.option("--user", help="Only what was done with this user's records.")
@_common()
def audit(path: Path | None, output: Output, user: str | None) -> None:
    """List who forgot a user or exported records, when and why."""
    _read(path, functools.partial(erasure_commands.run_audit, output=output, user=user))


@main.command()
@click.option("--dry-run", is_flag=True, help="Read all files, and change nothing.")
@_common()
def restore(path: Path | None, output: Output, dry_run: bool) -> None:
    """Make the database of a hybrid store anew out of its files; the old one is kept."""
    parts = Parts(load_config(find_config(path)))
    asyncio.run(restore_command.run(parts, output=output, dry_run=dry_run))


@main.command()
@_common()
def check(path: Path | None, output: Output) -> None:
    """Check the configuration without starting anything, and list models without a price."""
    check_command.run(find_config(path), output)


@main.command()
@_common()
def plugins(path: Path | None, output: Output) -> None:
    """List the plugins that are loaded: where each comes from, its hooks, what it registers."""
    plugins_command.run(find_config(path), output)


@main.command()
@click.option("--url", help="Send requests through this running proxy, instead of a temporary one.")
@click.option(
    "--key", envvar="LITELLM_MASTER_KEY", help="A key of the running proxy. Better: LITELLM_MASTER_KEY, or the prompt."
)
@click.option("--model", help="With --url: a model that it serves; it gets ten short requests.")
@click.option("--embedding-model", help="With --url: a model for /v1/embeddings, if --model does not serve it.")
@click.option("--static", is_flag=True, help="Send no requests and start nothing: look at files only.")
@_common()
def doctor(path: Path | None, output: Output, url: str | None, key: str | None, model: str | None,
           embedding_model: str | None, static: bool) -> None:  # fmt: skip
    """Prove that requests are gated, recorded and settled on every route, and name what would break."""
    target = doctor_command.read_target(url, key, model, embedding_model)
    if target and static:
        raise click.UsageError("--static sends no requests, --url sends some: choose one.")
    doctor_command.run(find_config(path), output, target=target, static=static)


@main.command()
@click.option("--user", help="Only this user's.")
@_common()
def profiles(path: Path | None, output: Output, user: str | None) -> None:
    """List what is known of users: name, email, tier."""
    _read(path, functools.partial(profiles_command.run, output=output, user=user))


@main.command()
@click.argument("user")
@click.option("--username", help="A name for people.")
@click.option("--email", help="An address.")
@click.option("--tier", help="Any word, for example free, premium or enterprise.")
@click.option("--active/--inactive", "is_active", default=None, help="Whether it is in use; decides nothing by itself.")
@_common()
def profile(path: Path | None, output: Output, user: str, **fields: Any) -> None:
    """Change a user's profile, or make it."""
    profiles_command.change(load_config(find_config(path)), user, output=output, **fields)


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Say what would be imported, and change nothing.")
@click.option("--in-background", is_flag=True, hidden=True)
@_common()
def migrate(path: Path | None, output: Output, directory: Path, dry_run: bool, in_background: bool) -> None:
    """Import the data directory of the previous usage tracker; it can be repeated, and goes on where it was."""
    config = load_config(find_config(path))
    migrate_command.run(config, directory, output=output, dry_run=dry_run, in_background=in_background)


@main.group(name="import", cls=_Group)
def import_() -> None:
    """Import what another tracker has recorded."""


@import_.command(name="litellm-spend-logs")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--before", type=click.DateTime(), help="Leave out rows from this moment on, in the configured zone: "
              "from when usage_plugin records itself.")  # fmt: skip
@_common()
def litellm_spend_logs(path: Path | None, output: Output, file: Path, before: datetime | None) -> None:
    """Import an export of LiteLLM_SpendLogs (CSV, JSON Lines or a JSON array), each row once, however often it runs."""
    spend_logs_command.spend_logs(load_config(find_config(path)), file, output=output, before=before)
