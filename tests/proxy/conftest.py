"""The real LiteLLM proxy as a process, in front of the fake upstream. A start takes 15 seconds or more: share it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
import yaml
from click.testing import CliRunner

from tests.proxy.kept import KEPT
from tests.support import plain_http, soak
from tests.support.child_environment import clean_environment
from usage_plugin.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.proxy.kept import Kept

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
START_SECONDS = 600
"""A deadline, not a duration: waiting ends as soon as the proxy answers or its process has ended."""
WORKER_SECONDS = 120
"""The maximum time a worker may take to answer its supervisor; importing LiteLLM is slow."""
COMMANDS = ThreadPoolExecutor(1)
"""Run this plugin's commands in the test process: a separate process takes 0.7 s of CPU, and the tests run some
thousand commands. They need one thread, because click's runner replaces `sys.stdout`. It is not the test's thread,
which may run an event loop."""

# Prices in USD per token; the tests multiply them as integers of nano-dollars.
PRICES = {
    "cent": {"input_cost_per_token": 0, "output_cost_per_token": 0.00001},
    "chat": {"input_cost_per_token": 0.000003, "output_cost_per_token": 0.000015, "cache_read_input_token_cost": 0.0000003},
    "text": {"input_cost_per_token": 0.0000015, "output_cost_per_token": 0.000002},
    "embed": {"input_cost_per_token": 0.00000002},
    "resp": {"input_cost_per_token": 0.000002, "output_cost_per_token": 0.000008, "cache_read_input_token_cost": 0.0000005},
    "claude": {"input_cost_per_token": 0.000003, "output_cost_per_token": 0.000015, "cache_read_input_token_cost": 0.0000003},
    "tiered": {"input_cost_per_token": 0.000003, "output_cost_per_token": 0.000015, "cache_read_input_token_cost": 0.0000003, "cache_creation_input_token_cost": 0.00000375,
               "input_cost_per_token_above_200k_tokens": 0.000006, "output_cost_per_token_above_200k_tokens": 0.0000225, "cache_read_input_token_cost_above_200k_tokens": 0.0000006,
               "input_cost_per_token_flex": 0.0000015, "output_cost_per_token_flex": 0.0000075, "cache_read_input_token_cost_flex": 0.00000015,
               "input_cost_per_token_priority": 0.000007, "output_cost_per_token_priority": 0.000031, "cache_read_input_token_cost_priority": 0.0000007,
               "input_cost_per_audio_token": 0.00004, "output_cost_per_audio_token": 0.00008},
    "claude-kept": {"input_cost_per_token": 0.000003, "output_cost_per_token": 0.000015, "cache_read_input_token_cost": 0.0000003,
                    "cache_creation_input_token_cost": 0.00000375, "cache_creation_input_token_cost_above_1hr": 0.000006,
                    "input_cost_per_token_priority": 0.0000036, "output_cost_per_token_priority": 0.000018},
    "twin": {"input_cost_per_token": 0, "output_cost_per_token": 0},
    "native": {"input_cost_per_token": 0.000003, "output_cost_per_token": 0.000015, "cache_read_input_token_cost": 0.0000003},
    "picture": {"output_cost_per_image": 0.04},
    "gpt-image": {"input_cost_per_token": 0.000005, "input_cost_per_image_token": 0.00001, "output_cost_per_image_token": 0.00004},
    "voice": {"input_cost_per_character": 0.000015},
    "ranks": {"input_cost_per_query": 0.002},
    "judge": {},
    "free": {"input_cost_per_token": 0, "output_cost_per_token": 0},
    "nan": {"input_cost_per_token": float("nan"), "output_cost_per_token": 0.00001},
    "unpriced": {},
    "broken": {"input_cost_per_token": 0, "output_cost_per_token": 0.000001},
    "broken-free": {"input_cost_per_token": 0, "output_cost_per_token": 0},
    "broken-dear": {"input_cost_per_token": 0, "output_cost_per_token": 0.000001},
    "dear": {"input_cost_per_token": 0, "output_cost_per_token": 0.01},
}  # fmt: skip


PROVIDERS = {"claude": "anthropic", "claude-kept": "anthropic", "ranks": "cohere", "native": "gemini"}
SERVED = {"twin": "tiered"}
"""Deployments that serve the provider's model of another deployment, at a price of their own."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def noon_zone() -> str:
    """Return a zone in which it is about noon, so that no test runs past the end of a day."""
    offset = 12 - datetime.now(timezone.utc).hour
    return "UTC" if not offset else f"Etc/GMT{-offset:+d}"


class Upstream:
    """The fake upstream as a process."""

    def __init__(self, url: str) -> None:
        self.url = url

    def handed_out(self) -> dict[str, dict[str, int]]:
        return plain_http.get(f"{self.url}/handed_out").json()

    def answers(self) -> dict[str, dict[str, Any]]:
        return plain_http.get(f"{self.url}/answers").json()

    def seen(self) -> dict[str, int]:
        return plain_http.get(f"{self.url}/seen").json()

    def reset(self) -> None:
        plain_http.post(f"{self.url}/reset")


@contextmanager
def fake_provider(module: str, ready: str) -> Iterator[str]:
    """Run a fake provider as a process, and yield its URL once it answers the path `ready`."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-m", module, str(port)], cwd=ROOT)
    try:
        wait_for(f"{url}{ready}", process)
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def upstream(request: pytest.FixtureRequest) -> Iterator[Upstream]:
    if kept := request.config.stash.get(KEPT, None):
        yield Upstream(kept.upstream)
        return
    with fake_provider("tests.proxy.fake_upstream", "/handed_out") as url:
        yield Upstream(url)


def wait_for(url: str, process: subprocess.Popen[Any], seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the process ended with {process.returncode} before it answered")
        try:
            if plain_http.get(url).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise AssertionError(f"{url} did not answer in {seconds} s")


def run_here(command: list[str]) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, command)
    return done.exit_code, done.stdout, done.stderr or repr(done.exception)


def run_as_process(command: list[str]) -> tuple[int, str, str]:
    done = subprocess.run(
        [BIN / "usage-plugin", *command], capture_output=True, text=True, check=False, env=clean_environment()
    )
    return done.returncode, done.stdout, done.stderr


class Proxy:
    """A LiteLLM proxy with the plugin: its process, its files and its clients."""

    has_own_plugins = False
    """Whether plugins are installed only for this test's processes; if so, its commands also run as processes."""

    def __init__(
        self, folder: Path, config: dict[str, Any], *, workers: int = 1, environment: dict[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.config_path = folder / "config.yaml"
        self.config_path.write_text(yaml.safe_dump(config))
        self.workers = workers
        self.environment = environment or {}
        self.key = f"sk-{secrets.token_urlsafe(32)}"
        self.process: subprocess.Popen[bytes] | None = None
        self.log_path = folder / "proxy.log"

    @classmethod
    def attached(cls, kept: Kept) -> Proxy:
        """Return the proxy that `make kept-proxy` keeps; stopping it has no effect."""
        folder = Path(kept.folder)
        proxy = cls(folder, yaml.safe_load((folder / "config.yaml").read_text()))
        proxy.key, proxy.port, proxy.url = kept.key, kept.port, f"http://127.0.0.1:{kept.port}"
        return proxy

    def start(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        log = self.log_path.open("ab")
        began = self._started_workers()
        self.process = subprocess.Popen(
            [BIN / "litellm", "--config", self.config_path, "--port", str(self.port), "--host", "127.0.0.1",
             "--num_workers", str(self.workers), "--timeout_worker_healthcheck", str(WORKER_SECONDS), "--keepalive_timeout", "300"],
            cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
            env={**clean_environment(), "LITELLM_MASTER_KEY": self.key, "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                 "PYTHONFAULTHANDLER": "1", **self.environment},
        )  # fmt: skip
        log.close()
        try:
            wait_for(f"{self.url}/health/liveliness", self.process)
            deadline = time.monotonic() + START_SECONDS
            # Workers that were killed meanwhile have been replaced, and their replacements are counted.
            while self._started_workers() - began < self.workers:
                assert time.monotonic() < deadline, "not all workers came up"
                time.sleep(0.2)
        except AssertionError:
            self.stop(signal.SIGKILL)
            raise AssertionError(f"the proxy did not start:\n{self.log_path.read_text()[-5000:]}") from None

    def check_alive(self) -> None:
        ended = self.process and self.process.poll()
        assert ended is None, f"the proxy ended with {ended}:\n{self.log_path.read_text()[-5000:]}"

    def _started_workers(self) -> int:
        return self.log_path.read_text().count("Application startup complete")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is None:
            return
        if how == signal.SIGKILL:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.send_signal(how)
        # The supervisor handles no signals while it waits for the answer of a worker that was killed just then.
        self.process.wait(WORKER_SECONDS + 60)
        self.process = None

    def client(self, **options: Any) -> openai.AsyncOpenAI:
        options.setdefault("http_client", openai.DefaultAsyncHttpxClient(verify=False, trust_env=False, timeout=60))
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=60, **options)

    def post(self, route: str, body: dict[str, Any] | str | bytes, **headers: str) -> httpx.Response:
        content = json.dumps(body) if isinstance(body, dict) else body
        return plain_http.post(
            f"{self.url}{route}", content=content, timeout=60,
            headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/json", **headers},
        )  # fmt: skip

    def cli(self, *arguments: str) -> Any:
        """Run one of this plugin's commands with --format json; the proxy may be running or stopped."""
        command = ["--config", str(self.config_path), *arguments, "--format", "json"]
        run = run_as_process if self.has_own_plugins else run_here
        code, out, err = COMMANDS.submit(run, command).result(120)
        assert code == 0, err
        return json.loads(out)

    def limit(self, name: str, **subject: str) -> dict[str, Any]:
        """Return one account, by the limit's name and its subject."""
        (found,) = [row for row in self.cli("limits")["limits"] if row["name"] == name and row["subject"] == subject]
        return found

    def events(self, user: str, last: int = 100_000) -> list[dict[str, Any]]:
        return self.cli("events", "--user", user, "--last", str(last))["events"]

    def settled(self, *, seconds: float = 60, but: int = 0) -> None:
        """Wait until at most `but` reservations are open: streams are settled a moment after their last byte."""
        deadline = time.monotonic() + seconds
        while (status := self.cli("status"))["reservations"]["open"] > but:
            assert time.monotonic() < deadline, status
            time.sleep(0.1)


def proxy_config(upstream: Upstream, usage: dict[str, Any]) -> dict[str, Any]:
    """Return a proxy's YAML with all the models and the plugin's section."""
    models = []
    for name, prices in PRICES.items():
        provider, base = PROVIDERS.get(name, "openai"), f"{upstream.url}/v1"
        if provider != "openai":
            base = upstream.url
        models.append(
            {"model_name": name, "litellm_params": {"model": f"{provider}/{SERVED.get(name, name)}-up", "api_base": base, "api_key": "none", **prices}}
        )  # fmt: skip
    return {
        "model_list": models,
        "litellm_settings": {
            "callbacks": ["usage_plugin.proxy.callback"],
            "cache": True,
            "cache_params": {"type": "local", "mode": "default_off"},
        },
        "router_settings": {
            "num_retries": 0,
            "disable_cooldowns": True,
            "fallbacks": [{"broken": ["cent"]}, {"broken-free": ["cent"]}, {"broken-dear": ["dear"]}],
        },
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
        "usage_plugin": {"data_dir": "./data", "timezone": noon_zone(), **usage},
    }


LIMITS = [
    {"name": "dollar", "per": "user", "match": {"user": "dollar-*"}, "window": "day", "max_cost": 1},
    {"name": "rate", "per": "user", "match": {"user": "rate-*"}, "window": "minute", "max_requests": 3},
    {"name": "tokens", "per": "user", "match": {"user": "tokens-*"}, "window": "day", "max_total_tokens": 5000},
    {"name": "single", "per": "user", "match": {"user": "single-*"}, "window": "request", "max_cost": "0.02"},
    {"name": "blocked", "per": "user", "match": {"user": "blocked-*"}, "window": "day", "max_cost": 0},
    {"name": "dry", "per": "user", "match": {"user": "dry-*"}, "window": "day", "max_cost": "0.005", "dry_run": True},
    {"name": "warned", "per": "user", "match": {"user": "warned-*"}, "window": "day", "max_cost": "0.005", "action": "warn"},
    {"name": "local-ok", "per": "user", "match": {"user": "local-*"}, "window": "day", "max_cost": 1, "allow_unpriced": ["unpr*"]},
    {"name": "mixed", "per": "user", "match": {"user": "mixed-*"}, "window": "day", "max_cost": 1000},
    {"name": "team-wide", "per": "global", "match": {"user": "shared-*"}, "window": "day", "max_cost": "0.015"},
    {"name": "everything", "per": "global", "window": "day", "max_cost": 1_000_000},
]  # fmt: skip


@contextmanager
def running(folder: Path, config: dict[str, Any], **options: Any) -> Iterator[Proxy]:
    proxy = Proxy(folder, config, **options)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()


def shared_config(upstream: Upstream) -> dict[str, Any]:
    """Return the YAML of the proxies that tests share."""
    section = {"limits": LIMITS, "contact": "Ask #ai-platform for more", "admission": {"orphan_grace": "10s"}}
    return proxy_config(upstream, section)


@pytest.fixture(scope="session")
def proxies(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, upstream: Upstream
) -> Iterator[Callable[[int], Proxy]]:
    """Return a function that gives the proxy with the requested number of workers; each is started once and kept."""
    started: dict[int, Proxy] = {}
    if kept := request.config.stash.get(KEPT, None):
        started[1] = Proxy.attached(kept)

    def with_workers(count: int) -> Proxy:
        if count not in started:
            config = shared_config(upstream)
            started[count] = Proxy(tmp_path_factory.mktemp(f"proxy-{count}"), config, workers=count)
            started[count].start()
        started[count].check_alive()
        return started[count]

    yield with_workers
    for proxy in started.values():
        proxy.stop()


@pytest.fixture(params=[1, pytest.param(2, marks=soak.REPETITIONS), 4], ids=lambda workers: f"{workers}-workers")
def any_proxy(request: pytest.FixtureRequest, proxies: Callable[[int], Proxy]) -> Proxy:
    return proxies(request.param)


@pytest.fixture(params=[1, 4], ids=lambda workers: f"{workers}-workers")
def one_or_many(request: pytest.FixtureRequest, proxies: Callable[[int], Proxy]) -> Proxy:
    return proxies(request.param)


@pytest.fixture
def proxy(proxies: Callable[[int], Proxy]) -> Proxy:
    return proxies(1)
