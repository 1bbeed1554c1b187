"""`usage-plugin doctor`: everything the doctor can look at, in one go."""

from __future__ import annotations

import asyncio
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import click
from rich.console import Console

from usage_plugin.cli.doctor import books, probes, screen, surroundings, wiring
from usage_plugin.cli.doctor.findings import ok, problem, warning
from usage_plugin.cli.doctor.temporary import (
    ANTHROPIC_MODEL,
    BLOCKED,
    OPENAI_MODEL,
    temporary_proxy,
)
from usage_plugin.cli.doctor.web import check_url
from usage_plugin.cli.imperfections import counts, plain_counts
from usage_plugin.config import load_config, proxy_yaml_of
from usage_plugin.domain.clock import SystemClock
from usage_plugin.errors import UsagePluginError
from usage_plugin.runtime import NothingRecordedError, Parts, open_reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from usage_plugin.cli.doctor.findings import Finding
    from usage_plugin.cli.doctor.temporary import Temporary
    from usage_plugin.cli.output import Output
    from usage_plugin.config import Config
    from usage_plugin.domain.ledger import Ledger
    from usage_plugin.domain.operations import Anomaly
    from usage_plugin.runtime import Reader

    Progress = Callable[[str], None]

_FLUSH_LOOKS = 100


class Target(NamedTuple):
    """A running proxy to send requests to.

    Attributes:
        embedding_model: for /v1/embeddings, which most models do not serve.
    """

    url: str
    key: str
    model: str
    embedding_model: str


def read_target(url: str | None, key: str | None, model: str | None, embedding_model: str | None) -> Target | None:
    """Take the options that name a running proxy together; None if there is none.

    Raises:
        click.UsageError: some are missing.
    """
    if url is None:
        if model or embedding_model:
            raise click.UsageError("--model is for a running proxy: name it with --url.")
        return None
    if model is None:
        raise click.UsageError(
            "--url needs --model: a model that the proxy serves; some short requests are sent to it."
        )
    if key is None and not sys.stdin.isatty():
        raise click.UsageError("--url needs a key: set LITELLM_MASTER_KEY, or type it at the prompt of a terminal.")
    key = key or click.prompt("Key of the proxy", hide_input=True, err=True)
    return Target(check_url(url), key, model, embedding_model or model)


def run(path: Path, output: Output, *, target: Target | None, static: bool) -> None:
    """Look at everything; exit code 1 if something would break."""
    with _progress() as progress:
        examination = _Examination(progress)
        config = asyncio.run(examination.examine(path, target))
        if config is not None and target is None and not static:
            examination.try_out(config)
    findings = [*examination.findings, *probes.findings_of(examination.results)]
    if output.is_table:
        counted = None if examination.imperfections is None else counts(examination.imperfections)
        screen.show(findings, examination.results, counted or ())
    else:
        rows = [finding._asdict() for finding in findings]
        document = {
            "ok": all(finding.level != "problem" for finding in findings),
            "findings": rows,
            "requests": [screen.plain_result(result) for result in examination.results],
            "imperfections": plain_counts(examination.imperfections or ()),
        }
        output.document(document, rows)
    if any(finding.level == "problem" for finding in findings):
        raise click.exceptions.Exit(1)


class _Examination:
    """Looks at one thing after another, and keeps what it finds."""

    def __init__(self, progress: Progress) -> None:
        self.findings: list[Finding] = []
        self.results: list[probes.Result] = []
        self.imperfections: list[Anomaly] | None = None
        self._progress = progress
        self._clock = SystemClock()

    async def examine(self, path: Path, target: Target | None) -> Config | None:
        """Look at everything that is there; None if the configuration cannot be read."""
        self._progress("the files")
        try:
            config = load_config(path)
            Parts(config)
            self.findings += wiring.check_wiring(config)
        except UsagePluginError as error:
            # Nothing else can be known.
            self.findings = [problem("wiring", error.message, error.hint or "")]
            return None
        newest, workers = await self._books(config, target)
        self.findings += surroundings.check_surroundings(config, self._clock.now(), newest, workers)
        return config

    def try_out(self, config: Config) -> None:
        """Send requests through a temporary proxy.

        Not in an event loop, where Ctrl-C would not be heard while the proxy starts.
        """
        self._progress("a temporary proxy, which takes 15 to 40 seconds to start")
        try:
            with temporary_proxy(proxy_yaml_of(config.path), config.path) as proxy:
                if proxy.left_out:
                    self.findings.append(
                        warning(
                            "routes",
                            f"The temporary proxy does without {', '.join(proxy.left_out)}.",
                            "To prove those too, name the running proxy with --url.",
                        )
                    )
                asyncio.run(self._prove(proxy))
        except UsagePluginError as error:
            self.findings.append(problem("routes", error.message, error.hint or ""))

    async def _books(self, config: Config, target: Target | None) -> tuple[int | None, list[str]]:
        """Look at what is recorded, and at the running proxy if one is named; say what the surroundings depend on."""
        try:
            async with open_reader(config) as reader:
                newest = await _newest_event(reader)
                self.findings += await books.check_books(reader)
                self.imperfections = reader.operations.anomalies()
                if target:
                    await self._running(target, config, reader.ledger)
                return newest, reader.workers.living()
        except NothingRecordedError as error:
            if target is None:
                self.findings.append(ok("books", error.message))
            else:
                self.findings.append(
                    problem(
                        "books",
                        f"The proxy at {target.url} runs, but nothing is recorded in {config.data_dir}.",
                        "Name the YAML that it was started with, and run the doctor where it runs.",
                    )
                )
                await self._running(target, config, None)
        except UsagePluginError as error:
            self.findings.append(problem("books", error.message, error.hint or ""))
        return None, []

    async def _running(self, target: Target, config: Config, ledger: Ledger | None) -> None:
        if (wrong := await asyncio.to_thread(probes.knock, target.url, target.key)) is not None:
            self.findings.append(wrong)
            return
        wanted = probes.all_probes(target.model, target.model, target.embedding_model)
        self.results = await probes.run_probes(
            target.url, target.key, wanted, ledger, headers=_identity_headers(config), progress=self._progress
        )

    async def _prove(self, proxy: Temporary) -> None:
        blocked = BLOCKED if wiring.is_enforced() else None
        wanted = probes.all_probes(OPENAI_MODEL, ANTHROPIC_MODEL, OPENAI_MODEL, blocked)
        async with open_reader(proxy.config) as reader:
            self.results = await probes.run_probes(
                proxy.url,
                proxy.key,
                wanted,
                reader.ledger,
                headers=_identity_headers(proxy.config),
                calls=lambda: proxy.model.calls,
                progress=self._progress,
            )
            left = reader.ledger.waiting().events
            for _ in range(_FLUSH_LOOKS):
                if not left:
                    break
                await asyncio.sleep(0.1)
                left = reader.ledger.waiting().events
        if left:
            self.findings.append(problem("routes", f"{left} events of the temporary proxy did not reach its store."))
        else:
            self.findings.append(ok("routes", "The temporary proxy's events reached its store."))


def _identity_headers(config: Config) -> list[str]:
    """Name the headers that say who the user is, so that requests without them are not refused."""
    return [source.removeprefix("header:") for source in config.identity.user if source.startswith("header:")]


async def _newest_event(reader: Reader) -> int | None:
    async for event in reader.tracker.events(newest_first=True):
        return event.started_at
    return None


@contextmanager
def _progress() -> Iterator[Progress]:
    """Say what is being done, where somebody sits before a terminal."""
    screen_of_errors = Console(stderr=True)
    if not screen_of_errors.is_terminal:
        yield lambda _: None
        return
    with screen_of_errors.status("") as status:
        yield lambda what: status.update(f"Looking at {what} …")
