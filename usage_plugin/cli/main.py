"""The commands: each validates its options and calls the module that implements it."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from usage_plugin.cli import move_ledger as move_command
from usage_plugin.cli import patterns as patterns_command
from usage_plugin.cli import plugins as plugins_command
from usage_plugin.cli import profiles as profiles_command
from usage_plugin.cli import report as report_command
from usage_plugin.cli import restore as restore_command
from usage_plugin.cli import secret as secret_command
from usage_plugin.cli import similar as similar_commands
from usage_plugin.cli import simulate as simulate_command
from usage_plugin.cli import status as status_command
from usage_plugin.cli.doctor import command as doctor_command
from usage_plugin.cli.export import command as export_command
from usage_plugin.cli.export.formats import FORMATS as FORMATS_OF_RECORDS
from usage_plugin.cli.groups import ErrorReportingGroup, ListingGroup
from usage_plugin.cli.options import (
    adjustment_options,
    common_options,
    config_option,
    date_options,
    filter_options,
    subject_options,
    with_reader,
)
from usage_plugin.cli.output import Output
from usage_plugin.config import find_config, load_config
from usage_plugin.domain.patterns import PATTERN_TYPES
from usage_plugin.runtime import Parts
from usage_plugin.tracking.analysis.forecasting import FORECAST_WINDOWS
from usage_plugin.tracking.analysis.patterns import MOST_USERS

if TYPE_CHECKING:
    from datetime import datetime

    from usage_plugin.domain.store import UsageFilter

_WEEK = click.DateTime(("%Y-%m-%d",))


@click.group(
    cls=ErrorReportingGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(usage_plugin.__version__, prog_name="usage-plugin")
@config_option
def main(config_path: Path | None) -> None:
    """Report the spend of the LiteLLM proxy's users and the state of their limits."""
    del config_path


# ── look ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@main.command()
@click.option("--by", default="user", show_default=True, help="user, team, api_key, organization, end_user, model, "
              "provider, day, week, month, session, agent; several with commas.")  # fmt: skip
@click.option("--top", type=click.IntRange(1), help="Show the top N groups by cost, and the others in one row. "
              "Default: all; at a terminal 50, unless the first grouping is a day, week or month.")  # fmt: skip
@date_options()
@filter_options
@common_options()
def report(path: Path | None, output: Output, **options: Any) -> None:
    """Sum requests, tokens and cost, by user or by the groupings of --by."""
    with_reader(path, functools.partial(report_command.run, output=output, **options))


@main.command()
@date_options()
@click.option("--type", "types", type=click.Choice(PATTERN_TYPES), multiple=True, help="Only these; can be repeated.")
@click.option("--users", type=click.IntRange(0), default=MOST_USERS, show_default=True, help="The number of users to "
              "examine: the top N by spend in four weeks. 0 is fast and names no users.")  # fmt: skip
@common_options()
def patterns(path: Path | None, output: Output, **options: Any) -> None:
    """Find notable patterns: expensive models, sudden changes, costly caches and failures, limits soon exceeded."""
    with_reader(path, functools.partial(patterns_command.run, output=output, **options))


@main.command()
@click.option("--user", help="Only the accounts that count this user.")
@common_options()
def limits(path: Path | None, output: Output, user: str | None) -> None:
    """Show every account: the amount of each limit, spent, reserved and left."""
    with_reader(path, functools.partial(limits_command.run, output=output, user=user))


@main.command()
@click.option("--user", help="Only events of this user.")
@click.option("--session", help="Only events of this session.")
@click.option("--agent", help="Only events of this agent.")
@click.option("--last", type=click.IntRange(1), default=20, show_default=True, help="The number of events.")
@click.option("--follow", is_flag=True, help="Keep printing new events; end with Ctrl-C.")
@common_options()
def events(path: Path | None, output: Output, **options: Any) -> None:
    """Show the last usage events, one for each request."""
    with_reader(path, functools.partial(events_command.run, output=output, **options))


@main.command()
@common_options()
def status(path: Path | None, output: Output) -> None:
    """Show the state on one screen: workers, outbox, reservations, refusals, blocked subjects."""
    with_reader(path, functools.partial(status_command.run, output=output))


@main.command()
@click.argument("ref_or_id", required=False)
@subject_options
@common_options()
def explain(path: Path | None, output: Output, ref_or_id: str | None, **names: str | None) -> None:
    """Explain a refusal (by its ref), an admitted request (by its event id), or the limits that a subject meets now."""
    if ref_or_id is None and not any(names.values()):
        raise click.UsageError("Give the ref of a refusal, the id of an event, or a subject such as --user.")
    if ref_or_id is not None and any(names.values()):
        raise click.UsageError("A ref or an event id cannot be combined with --user and other subjects.")
    if ref_or_id is not None:
        with_reader(path, functools.partial(explain_command.run, output=output, ref_or_id=ref_or_id))
    else:
        with_reader(path, functools.partial(explain_command.run_subject, output=output, names=names))


@main.command()
@click.option("--week", type=_WEEK, help="Any day of the week. Default: the user's last week with requests.")
@click.argument("user")
@click.option("--most", type=click.IntRange(1, 1000), default=10, show_default=True, help="The number of users.")
@common_options()
def similar(path: Path | None, output: Output, user: str, week: datetime | None, most: int) -> None:
    """Find users who behave like the given one; needs the plugin chroma."""
    run = similar_commands.run_similar
    with_reader(path, functools.partial(run, output=output, user=user, week=week and week.date(), most=most))


@main.command()
@click.option("--week", type=_WEEK, help="Any day of the week. Default: the last complete week.")
@click.option("--most", type=click.IntRange(1, 1000), default=10, show_default=True, help="The number of users.")
@click.option("--in-background", is_flag=True, hidden=True)
@common_options()
def outliers(path: Path | None, output: Output, week: datetime | None, most: int, in_background: bool) -> None:
    """Find users whose behaviour changed most against their earlier weeks; needs the plugin chroma."""
    if in_background:
        with_reader(path, similar_commands.run_in_background)
    else:
        run = similar_commands.run_outliers
        with_reader(path, functools.partial(run, output=output, week=week and week.date(), most=most))


@main.command()
@common_options()
def check(path: Path | None, output: Output) -> None:
    """Validate the configuration without starting the proxy, and list models without a price."""
    check_command.run(find_config(path), output)


@main.command()
@click.option("--url", help="Send requests through this running proxy instead of a temporary one.")
@click.option(
    "--key", envvar="LITELLM_MASTER_KEY", help="A key of the running proxy. Safer: LITELLM_MASTER_KEY or the prompt."
)
@click.option("--model", help="With --url: a model that the proxy serves; it gets ten short requests.")
@click.option("--embedding-model", help="With --url: a model for /v1/embeddings, if --model does not serve it.")
@click.option("--static", is_flag=True, help="Read files only: send no requests and start no proxy.")
@common_options()
def doctor(path: Path | None, output: Output, url: str | None, key: str | None, model: str | None,
           embedding_model: str | None, static: bool) -> None:  # fmt: skip
    """Prove that requests are gated, recorded and settled on every route, and name configuration that would break."""
    target = doctor_command.read_target(url, key, model, embedding_model)
    if target and static:
        raise click.UsageError("--static sends no requests, and --url sends some: choose one.")
    doctor_command.run(find_config(path), output, target=target, static=static)


@main.command()
@common_options()
def plugins(path: Path | None, output: Output) -> None:
    """List the loaded plugins: their source, their hooks and their registrations."""
    plugins_command.run(find_config(path), output)


# ── plan ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@main.command()
@click.option("--by", help="user, team, api_key, organization, end_user, model, provider; several with commas. "
              "Default: all requests together.")  # fmt: skip
@click.option("--limit", "limit_name", help="Forecast the accounts of this limit, and the day they run out.")
@click.option("--window", type=click.Choice(FORECAST_WINDOWS), help="Forecast the end of this window. Default: month.")
@filter_options
@click.option("--top", type=click.IntRange(1), default=20, show_default=True, help="The top N groups by spend.")
@click.option("--backtest", is_flag=True, help="Show the error of such forecasts on past days.")
@common_options()
def forecast(path: Path | None, output: Output, **options: Any) -> None:
    """Forecast the spend at the end of the month, or the day a limit runs out, with a range."""
    with_reader(path, functools.partial(forecast_command.run, output=output, **options))


@main.command()
@click.option("--limits", type=click.Path(path_type=Path), required=True, help="A YAML with `limits:`, written as in "
              "the proxy's; groups and the time zone are taken from the configuration.")  # fmt: skip
@date_options()
@click.option("--top", type=click.IntRange(1), default=20, show_default=True, help="The number of affected subjects in "
              "a table.")  # fmt: skip
@common_options()
def simulate(path: Path | None, output: Output, **options: Any) -> None:
    """Replay recorded events against proposed limits: the requests, users and costs that they would have refused."""
    with_reader(path, functools.partial(simulate_command.run, output=output, **options))


# ── change an amount for a while ─────────────────────────────────────────────────────────────────────────────────────


@main.command(name="raise")
@click.argument("limit")
@subject_options
@click.option("--to", required=True, help="The temporary amount, in the limit's unit; it may also be lower.")
@adjustment_options
@common_options()
def raise_(path: Path | None, output: Output, limit: str, to: str, duration: str, reason: str,
           **names: str | None) -> None:  # fmt: skip
    """Change a limit's amount for one subject for a while."""
    wanted = adjustments_command.Change(limit=limit, names=names, to=to, duration=duration, reason=reason)
    with_reader(path, functools.partial(adjustments_command.change, output=output, wanted=wanted))


@main.command()
@click.argument("limit")
@subject_options
@adjustment_options
@common_options()
def pause(path: Path | None, output: Output, limit: str, duration: str, reason: str, **names: str | None) -> None:
    """Stop enforcing a limit for one subject for a while; spend is still recorded."""
    wanted = adjustments_command.Change(limit=limit, names=names, to=None, duration=duration, reason=reason)
    with_reader(path, functools.partial(adjustments_command.change, output=output, wanted=wanted))


@main.command()
@click.argument("limit")
@subject_options
@common_options()
def resume(path: Path | None, output: Output, limit: str, **names: str | None) -> None:
    """End the adjustments of raise and pause for one subject before they expire."""
    with_reader(path, functools.partial(adjustments_command.resume, output=output, limit_name=limit, names=names))


@main.command()
@click.option("--all", "everything", is_flag=True, help="Include expired and ended ones.")
@common_options()
def adjustments(path: Path | None, output: Output, everything: bool) -> None:
    """List the adjustments of raise and pause: actor, reason, beginning and end."""
    with_reader(path, functools.partial(adjustments_command.show, output=output, everything=everything))


# ── persons ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@main.command()
@click.argument("user")
@click.option("--reason", default="", help="The reason; it is kept with your name, and must not name the person.")
@click.option("--open-windows", is_flag=True, help="Also delete the counts of open windows, which restart at zero.")
@click.option("--yes", is_flag=True, help="Skip the confirmation prompt.")
@common_options()
def forget(path: Path | None, output: Output, user: str, reason: str, open_windows: bool, yes: bool) -> None:
    """Delete a user's records; the sums of teams and models do not change."""
    run = erasure_commands.run_forget
    with_reader(path, functools.partial(run, output=output, user=user, reason=reason, open_windows=open_windows,
                                        confirmed=yes))  # fmt: skip


@main.command()
@click.option("--user", help="Only actions on this user's records.")
@common_options()
def audit(path: Path | None, output: Output, user: str | None) -> None:
    """List the deletions and exports of records: actor, time and reason."""
    with_reader(path, functools.partial(erasure_commands.run_audit, output=output, user=user))


@main.command(name="accept-secret")
@click.option("--yes", is_flag=True, help="Skip the confirmation prompt.")
@config_option
@click.pass_context
def accept_secret(context: click.Context, config_path: Path | None, yes: bool) -> None:
    """Go on with another secret of the pseudonyms than the one that the ledger was used with."""
    path = config_path or context.find_root().params.get("config_path")
    secret_command.accept(load_config(find_config(path)), confirmed=yes)


@main.command()
@click.option("--user", help="Only this user's profile.")
@common_options()
def profiles(path: Path | None, output: Output, user: str | None) -> None:
    """List user profiles: name, email, tier."""
    with_reader(path, functools.partial(profiles_command.run, output=output, user=user))


@main.command()
@click.argument("user")
@click.option("--username", help="A display name.")
@click.option("--email", help="An email address.")
@click.option("--tier", help="Any word, for example free, premium or enterprise.")
@click.option("--active/--inactive", "is_active", default=None, help="Whether the user is active; it has no effect on "
              "limits.")  # fmt: skip
@common_options()
def profile(path: Path | None, output: Output, user: str, **fields: Any) -> None:
    """Create or change a user's profile."""
    profiles_command.change(load_config(find_config(path)), user, output=output, **fields)


# ── move data ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _file_or_output(_context: click.Context, _parameter: click.Parameter, to: str | None) -> Path | None:
    """Return the file; None for standard output, which pipelines call `-`. A file of that name is `./-`."""
    return None if to in (None, "-") else Path(to)


@main.command()
@click.option("--events", is_flag=True, help="The events, one for each request.")
@click.option("--days", is_flag=True, help="The daily sums, by user, team, key, model and so on.")
@filter_options
@date_options(since="the beginning", through="the end")
@click.option("--to", type=click.Path(), callback=_file_or_output, help="A new file; - or nothing for standard output.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--reason", default="", help="The reason; it is kept with your name.")
@common_options(formats=tuple(FORMATS_OF_RECORDS), help_text="Output format. Default: the extension of --to.")
def export(path: Path | None, output: Output, events: bool, days: bool, to: Path | None, force: bool,
           **selection: Any) -> None:  # fmt: skip
    """Export the history, a part of it, or with --user alone all records of one user, to a file or a pipe."""
    if events and days:
        raise click.UsageError("--events and --days are separate exports: choose one.")
    if events or days:
        what = "events" if events else "days"
        wanted = export_command.ExportRequest(what=what, **selection)
        output = _format_of(output, to)
        with_reader(path, functools.partial(export_command.run, output=output, wanted=wanted, to=to, force=force))
        return
    usage_filter: UsageFilter = selection["usage_filter"]
    user = usage_filter.user
    if user is None:
        raise click.UsageError("Choose --events, --days, or --user for all records of one user.")
    if usage_filter.team or usage_filter.model or any(selection["dates"]) or output.kind != "jsonl":
        raise click.UsageError(
            "--user alone exports all records of the user as jsonl; to export a part, add --events or --days."
        )
    run = erasure_commands.run_export
    with_reader(path, functools.partial(run, user=user, to=to, force=force, reason=selection["reason"]))


def _format_of(output: Output, to: Path | None) -> Output:
    """Return the format of --format, or else the one of the file's extension."""
    source = click.get_current_context().get_parameter_source("output")
    extension = "" if to is None else to.suffix.removeprefix(".").lower()
    return Output(extension) if source is ParameterSource.DEFAULT and extension in FORMATS_OF_RECORDS else output


@main.command()
@click.option("--dry-run", is_flag=True, help="Read all files, and change nothing.")
@common_options()
def restore(path: Path | None, output: Output, dry_run: bool) -> None:
    """Rebuild the database of a hybrid store from its files; the old database is kept."""
    parts = Parts(load_config(find_config(path)))
    asyncio.run(restore_command.run(parts, output=output, dry_run=dry_run))


@main.command(name="move-ledger")
@click.option("--to", "new_path", type=click.Path(path_type=Path), required=True,
              help="The YAML of the new place: its ledger, storage and data_dir.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what would be moved, and change nothing.")
@click.option("--undo", is_flag=True, help="Use the old ledger again, if the new one was not used yet.")
@common_options()
def move_ledger(path: Path | None, output: Output, new_path: Path, dry_run: bool, undo: bool) -> None:
    """Move the ledger and its history to the place of another YAML; a repeated run resumes an interrupted one."""
    if dry_run and undo:
        raise click.UsageError("--dry-run shows a move, and --undo takes one back: choose one.")
    source, target = load_config(find_config(path)), load_config(find_config(new_path))
    move_command.run(source, target, output=output, dry_run=dry_run, undo=undo)


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Show the import, and change nothing.")
@click.option("--in-background", is_flag=True, hidden=True)
@common_options()
def migrate(path: Path | None, output: Output, directory: Path, dry_run: bool, in_background: bool) -> None:
    """Import the data directory of the previous usage tracker; a repeated run resumes an interrupted one."""
    config = load_config(find_config(path))
    migrate_command.run(config, directory, output=output, dry_run=dry_run, in_background=in_background)


@main.group(name="import", cls=ListingGroup)
def import_() -> None:
    """Import records of another tracker."""


@import_.command(name="litellm-spend-logs")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--before", type=click.DateTime(), help="Only rows before this time, in the configured time zone: "
              "the time from which usage_plugin records itself.")  # fmt: skip
@common_options()
def litellm_spend_logs(path: Path | None, output: Output, file: Path, before: datetime | None) -> None:
    """Import an export of LiteLLM_SpendLogs (CSV, JSON Lines or a JSON array); repeating it imports each row once."""
    spend_logs_command.spend_logs(load_config(find_config(path)), file, output=output, before=before)
