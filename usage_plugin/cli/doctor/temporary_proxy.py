"""A temporary proxy: LiteLLM with the user's settings and callbacks, in front of the mock provider.

The user's files and services are not touched. The YAML is copied, the data folder is a new one, and the copy names no
database, cache server or provider. Omitted settings are reported, since they are not tested.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from usage_plugin.cli.doctor.http_client import fetch
from usage_plugin.cli.doctor.mock_provider import MockProvider
from usage_plugin.config import RESOLVER, Config, ProxyYaml, load_config
from usage_plugin.errors import NotStartedError

if TYPE_CHECKING:
    from collections.abc import Iterator

SECTION = "usage_plugin"
OPENAI_MODEL = "usage-doctor-openai"
ANTHROPIC_MODEL = "usage-doctor-anthropic"
BLOCKED = "usage-doctor-blocked"
START_SECONDS = 180
_STOP_SECONDS = 20
_PRICES = {"input_cost_per_token": 0.000001, "output_cost_per_token": 0.000002}
_NOT_OURS = re.compile(
    r"database|store_model|custom_auth|custom_ui|background_health|alert|key_management|enable_jwt|enable_oauth"
    r"|redis|allowed_ips|master_key|use_shared_health_check|supported_db_objects"
)
"""Settings that name a service, or that would reject the doctor's own key."""
_SECTIONS_LEFT_OUT = ("guardrails", "mcp_servers", "prompts", "vector_store_registry", "search_tools")
_ENVIRONMENT_LEFT_OUT = re.compile(
    r"USAGE_PLUGIN_(CONFIG|DATA_DIR)|CONFIG_FILE_PATH|WORKER_CONFIG|NUM_WORKERS|DATABASE_|REDIS_|STORE_MODEL|LITELLM_"
    r"|(HTTP|HTTPS|ALL)_PROXY$",
    re.IGNORECASE,
)
_SECRETS = re.compile(r"sk-[\w-]+|(?<=://)[^/@\s]+@")


class RunningProxy(NamedTuple):
    """The running proxy.

    Attributes:
        config: the configuration of the copy, for reading its data folder.
        left_out: the user's settings that the copy omits.
    """

    url: str
    key: str
    config: Config
    provider: MockProvider
    left_out: list[str]


@contextmanager
def start_temporary_proxy(path: Path, own_section: Path) -> Iterator[RunningProxy]:
    """Start a proxy for the length of a context.

    Args:
        path: the proxy's YAML.
        own_section: the file that contains our section; usually the same file.

    Raises:
        NotStartedError: the proxy did not start; the hint has the last lines of its log.
    """
    with ExitStack() as stack:
        stack.enter_context(_exit_on_sigterm())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="usage-doctor-")))
        provider = MockProvider()
        provider.start()
        stack.callback(provider.stop)
        document = {**ProxyYaml(path).document(), SECTION: ProxyYaml(own_section).document().get(SECTION)}
        copy, left_out = adapted_config(document, provider.url, folder / "data")
        _link_python_files(path, folder)
        copied = folder / "config.yaml"
        copied.write_text(yaml.safe_dump(copy, allow_unicode=True), encoding="utf-8")
        key = f"sk-{secrets.token_urlsafe(32)}"
        port = _free_port()
        process = _start(folder, port, key)
        stack.callback(_stop, process)
        _wait(f"http://127.0.0.1:{port}", process, folder / "proxy.log")
        config = load_config(copied).model_copy(update={"data_dir": folder / "data"})
        yield RunningProxy(f"http://127.0.0.1:{port}", key, config, provider, left_out)


def adapted_config(document: dict[str, Any], model_url: str, data_dir: Path) -> tuple[dict[str, Any], list[str]]:
    """Return a copy of a YAML with the same settings, other models, another data folder and no services."""
    left_out: list[str] = [name for name in _SECTIONS_LEFT_OUT if document.get(name)]
    copy = {name: value for name, value in document.items() if name not in (*_SECTIONS_LEFT_OUT, "model_list")}
    for section in ("general_settings", "router_settings", "litellm_settings"):
        settings = _mapping(copy.get(section))
        dropped = [name for name in settings if _NOT_OURS.search(name)]
        left_out += [f"{section}.{name}" for name in dropped if name != "master_key"]
        copy[section] = {name: value for name, value in settings.items() if name not in dropped}
    variables = _mapping(copy.get("environment_variables"))
    copy["environment_variables"] = {
        name: value for name, value in variables.items() if not _ENVIRONMENT_LEFT_OUT.match(name)
    }
    cache = _mapping(copy["litellm_settings"].get("cache_params"))
    if copy["litellm_settings"].get("cache") and cache.get("type", "redis") != "local":
        left_out.append("litellm_settings.cache_params")
        copy["litellm_settings"]["cache_params"] = {"type": "local", "mode": cache.get("mode", "default_on")}
    copy["general_settings"]["master_key"] = "os.environ/LITELLM_MASTER_KEY"
    copy["model_list"] = [
        _model(OPENAI_MODEL, "openai", f"{model_url}/v1"),
        _model(ANTHROPIC_MODEL, "anthropic", model_url),
    ]
    ours = dict(_mapping(copy.get(SECTION)))
    left_out += [f"{SECTION}.{name}" for name in ("storage", "ledger") if ours.pop(name, None)]
    ours["data_dir"] = str(data_dir)
    # The temporary data folder makes a secret of its own: the real one is written nowhere else.
    privacy = _mapping(ours.get("privacy"))
    ours["privacy"] = {name: value for name, value in privacy.items() if not name.startswith("secret")}
    left_out += _without_files(ours)
    # The only key of the copy is the doctor's, which belongs to no user.
    ours["identity"] = {**_mapping(ours.get("identity")), "on_missing": "shared"}
    blocking = {"name": BLOCKED, "per": "end_user", "match": {"end_user": BLOCKED}, "window": "day", "max_requests": 0}
    ours["limits"] = [*(ours.get("limits") or ()), blocking]
    copy[SECTION] = ours
    return copy, left_out


def _without_files(ours: dict[str, Any]) -> list[str]:
    """Remove plugins that are files, which would send notifications of the doctor's requests, and their resolvers."""
    plugins = ours.get("plugins") or []
    ours["plugins"] = [plugin for plugin in plugins if "package" in _mapping(plugin)]
    if ours["plugins"] == plugins:
        return []
    identity = dict(_mapping(ours.get("identity")))
    if identity.pop("groups_from", None):
        # Limits may match groups that only a resolver provides.
        unknown: dict[str, Any] = {group: [] for group in _groups_in(ours.get("limits"))}
        ours["groups"] = unknown | _mapping(ours.get("groups"))
    sources = identity.pop("user", None) or ()
    kept = [source for source in ([sources] if isinstance(sources, str) else sources) if RESOLVER not in source]
    ours["identity"] = {**identity, **({"user": kept} if kept else {})}
    return [f"{SECTION}.plugins"]


def _groups_in(value: Any) -> Iterator[str]:
    """Yield the groups that limits and their overrides match."""
    if isinstance(value, list):
        for item in value:
            yield from _groups_in(item)
    elif isinstance(value, dict):
        groups = _mapping(value.get("match")).get("group", ())
        yield from [groups] if isinstance(groups, str) else groups
        yield from _groups_in(value.get("overrides"))


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into a regular exit, so that the proxy is stopped."""
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    except ValueError:  # only the main thread may set handlers
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _model(name: str, provider: str, base: str) -> dict[str, Any]:
    parameters = {"model": f"{provider}/{name}", "api_base": base, "api_key": "none-needed", **_PRICES}
    return {"model_name": name, "litellm_params": parameters}


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _link_python_files(path: Path, folder: Path) -> None:
    """Link the Python files of the YAML's folder, where LiteLLM looks for callbacks first."""
    for found in path.parent.iterdir():
        package = found.is_dir() and not found.name.startswith(".") and any(found.glob("*.py"))
        if found.suffix == ".py" or package:
            (folder / found.name).symlink_to(found.resolve())


def _start(folder: Path, port: int, key: str) -> subprocess.Popen[bytes]:
    program = Path(sys.executable).with_name("litellm")
    found = str(program) if program.is_file() else shutil.which("litellm")
    if found is None:
        raise NotStartedError(
            "Program not found in this environment: litellm.", hint="Install usage-plugin where the proxy runs."
        )
    environment = {name: value for name, value in os.environ.items() if not _ENVIRONMENT_LEFT_OUT.match(name)}
    environment |= {"LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1"}
    with (folder / "proxy.log").open("wb") as log:
        return subprocess.Popen(  # noqa: S603  # all arguments are our own
            [found, "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
        )  # fmt: skip


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError, urllib.error.URLError):
            if fetch(f"{url}/health/liveliness", seconds=5).status == 200:
                return
        time.sleep(0.2)
    ended = process.poll()
    reason = f"It ended with {ended}." if ended is not None else f"It did not answer within {START_SECONDS} s."
    raise NotStartedError(f"The temporary proxy did not start. {reason}", hint=last_lines(log))


def last_lines(log: Path) -> str:
    """Return the last five lines of a log, preferably errors, with secrets removed."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"error|exception|refus", line, re.IGNORECASE)] or lines
    return _SECRETS.sub("…", "\n".join(line[:500] for line in errors[-5:]))


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
