"""`usage-plugin similar` and `outliers`: users with similar and with changed behaviour, by the plugin chroma's vectors.

Both update the vectors first, so that they include every settled request, as all commands do.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.text import Text

from usage_plugin.cli.output import Column, Output, console, escape_control, table, thousands
from usage_plugin.cli.progress import Bar
from usage_plugin.contrib.chroma import Plugin
from usage_plugin.contrib.chroma.indexer import Indexer, only_one
from usage_plugin.contrib.chroma.similarity import EARLIER_WEEKS, LEAST_REQUESTS, Compared, outliers, similar_to
from usage_plugin.contrib.chroma.vector_store import INSTALL
from usage_plugin.domain.money import format_usd
from usage_plugin.domain.windows import monday_of
from usage_plugin.errors import PluginError, VectorsError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from usage_plugin.runtime import Reader

_COLUMNS = (Column("user"), Column("distance", number=True), Column("mostly by"))
_USED = (Column("requests", number=True), Column("cost USD", number=True))


async def run_similar(reader: Reader, *, output: Output, user: str, week: date | None, most: int) -> None:
    """Print the users most similar to one user in a week; by default in the user's last week with requests."""
    plugin = _plugin(reader)
    await _follow(reader, plugin)
    kept = reader.kept("user", user)
    with plugin.open_vectors() as vectors:
        monday = monday_of(week) if week else vectors.newest_week(kept)
        found = vectors.of([kept], [monday]) if monday else []
        if not found:
            when = f"in the week of {monday}" if monday else f"in the last {plugin.weeks} weeks"
            raise VectorsError(
                f"{escape_control(user)} made no requests {when}, so there is nothing to compare.",
                hint="usage-plugin report --by user,week lists the active weeks of each user.",
            )
        compared = similar_to(vectors, found[0], most)
    if output.is_table:
        used = found[0].totals
        table(
            f"Similar to {user} in the week of {found[0].week}: "
            f"{thousands(used.requests)} requests, {format_usd(used.cost)} USD",
            [*_COLUMNS, *_USED],
            [[*_cells(one), *_used(one)] for one in compared],
        )
        return
    rows = [_plain(one) for one in compared]
    output.document({"user": kept, "week": found[0].week.isoformat(), "similar": rows}, rows)


async def run_in_background(reader: Reader) -> None:
    """Update the vectors only; the plugin starts this as a process next to the proxy."""
    plugin = _plugin(reader)
    with only_one(plugin.folder) as is_one:
        if is_one:
            await _follow(reader, plugin)


async def run_outliers(reader: Reader, *, output: Output, week: date | None, most: int) -> None:
    """Print the users who differ most from their own earlier weeks; by default in the last complete week."""
    plugin = _plugin(reader)
    await _follow(reader, plugin)
    monday = monday_of(week) if week else monday_of(reader.tracker.today()) - timedelta(days=7)
    with plugin.open_vectors() as vectors:
        compared = outliers(vectors, monday, most)
    if output.is_table:
        table(
            f"Largest change against earlier weeks, in the week of {monday}",
            [*_COLUMNS, Column("weeks compared", number=True), *_USED],
            [[*_cells(one), str(one.weeks), *_used(one)] for one in compared],
        )
        if not compared:
            console().print(
                Text(
                    f"A user is compared with at least {LEAST_REQUESTS} requests in this week, and in one of the "
                    f"{EARLIER_WEEKS} weeks before."
                )
            )
        return
    rows = [{**_plain(one), "weeks": one.weeks} for one in compared]
    output.document({"week": monday.isoformat(), "outliers": rows}, rows)


def _plugin(reader: Reader) -> Plugin:
    """Return the plugin.

    Raises:
        PluginError: the plugin is disabled.
    """
    for loaded in reader.plugins.loaded:
        if isinstance(loaded.found.implements, Plugin):
            return loaded.found.implements
    raise PluginError(
        "The plugin chroma is disabled, and without it there are no vectors to compare users by.",
        hint=f"To enable it, run {INSTALL} and add this to {reader.config.path}, under usage_plugin: "
        "plugins: [{name: chroma}]",
    )


async def _follow(reader: Reader, plugin: Plugin) -> None:
    bar = Bar()
    shown: list[date] = []

    def progress(week: date, done: int, users: int) -> None:
        if week not in shown[-1:]:
            shown.append(week)
            bar.begin(f"Week of {week}", users)
        bar.advance(done)

    with bar.shown():
        following = Indexer(reader.tracker, reader.config.timezone, plugin.open_vectors, progress)
        await following.catch_up(plugin.weeks)


def _cells(one: Compared) -> Sequence[str]:
    return one.vector.user, f"{one.distance:.3f}", one.mostly


def _used(one: Compared) -> Sequence[str]:
    return thousands(one.vector.totals.requests), format_usd(one.vector.totals.cost)


def _plain(one: Compared) -> dict[str, Any]:
    return {
        "user": one.vector.user,
        "distance": round(one.distance, 6),
        "mostly": one.mostly,
        "requests": one.vector.totals.requests,
        "cost": format_usd(one.vector.totals.cost),
    }
