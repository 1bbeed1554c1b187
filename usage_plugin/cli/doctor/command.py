"""`usage-plugin doctor`: run all checks."""

from __future__ import annotations

import asyncio
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import click

from usage_plugin.cli.anomalies import counts, plain_counts
from usage_plugin.cli.doctor import consistency, environment, probes, rendering, wiring
from usage_plugin.cli.doctor.findings import ok, problem, warning
from usage_plugin.cli.doctor.http_client import check_url
from usage_plugin.cli.doctor.temporary_proxy import (
    ANTHROPIC_MODEL,
    BLOCKED,
    OPENAI_MODEL,
    start_temporary_proxy,
)
from usage_plugin.cli.progress import status_line
from usage_plugin.config import load_config, proxy_yaml_of
from usage_plugin.domain.clock import SystemClock
from usage_plugin.errors import NothingRecordedError, UsagePluginError
from usage_plugin.runtime import Parts, open_reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from usage_plugin.cli.doctor.findings import Finding
    from usage_plugin.cli.doctor.temporary_proxy import RunningProxy
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
        embedding_model: the model for /v1/embeddings, which most models do not serve.
    """

    url: str
    key: str
    model: str
    embedding_model: str


def read_target(url: str | None, key: str | None, model: str | None, embedding_model: str | None) -> Target | None:
    """Return the running proxy that the options name; None without `--url`.

    Raises:
        click.UsageError: a required option is missing.
    """
    if url is None:
        if model or embedding_model:
            raise click.UsageError("--model and --embedding-model need --url, the address of a running proxy.")
        return None
    if model is None:
        raise click.UsageError("--url needs --model: a model that the proxy serves; it gets ten short requests.")
    if key is None and not sys.stdin.isatty():
        raise click.UsageError("--url needs a key: set LITELLM_MASTER_KEY, or enter it at the prompt of a terminal.")
    key = key or click.prompt("Key of the proxy", hide_input=True, err=True)
    return Target(check_url(url), key, model, embedding_model or model)


def run(path: Path, output: Output, *, target: Target | None, static: bool) -> None:
    """Run all checks; exit code 1 if there is a problem."""
    with _progress() as progress:
        examination = _Examination(progress)
        config = asyncio.run(examination.examine(path, target))
        if config is not None and target is None and not static:
            examination.probe_temporary_proxy(config)
    findings = [*examination.findings, *probes.findings_of(examination.results)]
    if output.is_table:
        counted = None if examination.anomalies is None else counts(examination.anomalies)
        rendering.show(findings, examination.results, counted or ())
    else:
        rows = [finding._asdict() for finding in findings]
        document = {
            "ok": all(finding.level != "problem" for finding in findings),
            "findings": rows,
            "requests": [rendering.plain_result(result) for result in examination.results],
            "anomalies": plain_counts(examination.anomalies or ()),
            "imperfections": plain_counts(examination.anomalies or ()),  # deprecated
        }
        output.document(document, rows)
    if any(finding.level == "problem" for finding in findings):
        raise click.exceptions.Exit(1)


class _Examination:
    """Runs one check after another, and collects the findings."""

    def __init__(self, progress: Progress) -> None:
        self.findings: list[Finding] = []
        self.results: list[probes.Result] = []
        self.anomalies: list[Anomaly] | None = None
        self._progress = progress
        self._clock = SystemClock()

    async def examine(self, path: Path, target: Target | None) -> Config | None:
        """Check the files, the data and the environment; return None if the configuration is invalid."""
        self._progress("files")
        try:
            config = load_config(path)
            Parts(config)
            self.findings += wiring.check_wiring(config)
        except UsagePluginError as error:
            # Without a configuration, no other check is possible.
            self.findings = [problem("wiring", error.message, error.hint or "")]
            return None
        newest, workers = await self._check_data(config, target)
        self.findings += environment.check_environment(config, self._clock.now(), newest, workers)
        return config

    def probe_temporary_proxy(self, config: Config) -> None:
        """Send requests through a temporary proxy.

        Not in an event loop, which would not handle Ctrl-C while the proxy starts.
        """
        self._progress("routes with a temporary proxy, which takes 15 to 40 seconds to start")
        try:
            with start_temporary_proxy(proxy_yaml_of(config.path), config.path) as proxy:
                if proxy.left_out:
                    self.findings.append(
                        warning(
                            "routes",
                            f"The temporary proxy omits {', '.join(proxy.left_out)}.",
                            "To test these settings as well, name the running proxy with --url.",
                        )
                    )
                asyncio.run(self._probe_temporary(proxy))
        except UsagePluginError as error:
            self.findings.append(problem("routes", error.message, error.hint or ""))

    async def _check_data(self, config: Config, target: Target | None) -> tuple[int | None, list[str]]:
        """Check the data, and the running proxy if one is named; return the newest event's time and the workers."""
        try:
            async with open_reader(config) as reader:
                newest = await _newest_event(reader)
                self.findings += await consistency.check_data(reader)
                self.findings += environment.check_ledger_server(reader.parts)
                self.anomalies = reader.operations.anomalies()
                if target:
                    await self._probe_running(target, config, reader.ledger)
                return newest, reader.workers.living_here()
        except NothingRecordedError as error:
            if target is None:
                self.findings.append(ok("books", error.message))
            else:
                self.findings.append(
                    problem(
                        "books",
                        f"A running proxy was named ({target.url}), but {config.data_dir} has no records.",
                        "Give the YAML that the proxy was started with, and run the doctor on the proxy's host.",
                    )
                )
                await self._probe_running(target, config, None)
        except UsagePluginError as error:
            self.findings.append(problem("books", error.message, error.hint or ""))
        return None, []

    async def _probe_running(self, target: Target, config: Config, ledger: Ledger | None) -> None:
        if (wrong := await asyncio.to_thread(probes.check_access, target.url, target.key)) is not None:
            self.findings.append(wrong)
            return
        wanted = probes.all_probes(target.model, target.model, target.embedding_model)
        self.results = await probes.run_probes(
            target.url, target.key, wanted, ledger, headers=_identity_headers(config), progress=self._progress
        )

    async def _probe_temporary(self, proxy: RunningProxy) -> None:
        blocked = BLOCKED if wiring.is_enforced() else None
        wanted = probes.all_probes(OPENAI_MODEL, ANTHROPIC_MODEL, OPENAI_MODEL, blocked)
        async with open_reader(proxy.config) as reader:
            self.results = await probes.run_probes(
                proxy.url,
                proxy.key,
                wanted,
                reader.ledger,
                headers=_identity_headers(proxy.config),
                calls=lambda: proxy.provider.calls,
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
    """Return the headers that identify the user: without them, `on_missing: deny` would refuse the requests."""
    return [source.removeprefix("header:") for source in config.identity.user if source.startswith("header:")]


async def _newest_event(reader: Reader) -> int | None:
    async for event in reader.tracker.events(newest_first=True):
        return event.started_at
    return None


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show the current check at a terminal."""
    with status_line() as show:
        yield lambda check: show(f"Checking {check} …")
