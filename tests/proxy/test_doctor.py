"""The doctor sends real requests: through a temporary proxy, and through one that is already running."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.proxy.conftest import BIN, ROOT, clean_environment

if TYPE_CHECKING:
    from tests.proxy.conftest import Proxy

pytestmark = pytest.mark.proxy

ROUTES = {
    *((name, streams) for name in ("chat", "completions", "responses", "messages") for streams in (False, True)),
    ("embeddings", False),
    ("chat, no-log", False),
}
CALLBACK = """
from litellm.integrations.custom_logger import CustomLogger

callback = CustomLogger()
"""


def doctor(config: Path, *arguments: str, **environment: str) -> tuple[int, dict[str, Any], str]:
    """Run the doctor as users do; return its exit code, its findings, and all its output."""
    done = subprocess.run(
        [BIN / "usage-plugin", "--config", config, "doctor", *arguments, "--format", "json"],
        capture_output=True, text=True, check=False, timeout=250, cwd=config.parent,
        env={**clean_environment(), **environment},
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stdout + done.stderr


def problems(document: dict[str, Any]) -> list[str]:
    return [f"{found['text']} {found['remedy']}" for found in document["findings"] if found["level"] == "problem"]


def with_callback(folder: Path, code: str) -> Path:
    """Write the example's YAML with the user's own callback next to it, and return its path."""
    document = yaml.safe_load((ROOT / "config.example.yaml").read_text())
    document["litellm_settings"]["callbacks"].append("mine.callback")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    (folder / "mine.py").write_text(code)
    return path


@pytest.fixture
def own_temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for temporary files that nothing else uses."""
    return tmp_path_factory.mktemp("temporary")


def test_a_temporary_proxy_proves_a_good_configuration(tmp_path: Path, own_temporary: Path) -> None:
    """Without --url, every route is proved on a temporary proxy, and nothing of that proxy remains."""
    config = with_callback(tmp_path, CALLBACK)
    code, document, _ = doctor(config, TMPDIR=str(own_temporary))
    assert (code, document["ok"], problems(document)) == (0, True, [])
    rows = {(row["route"], row["stream"]): row for row in document["requests"]}
    assert set(rows) == ROUTES | {("chat, refused", False)}
    refused = rows.pop(("chat, refused", False))
    assert (refused["gate"]["ok"], refused["note"]) == (True, "refused as expected")
    for row in rows.values():
        assert [row[mark]["ok"] for mark in ("gate", "record", "settle")] == [True] * 3, row
        assert row["note"].startswith(f"success, 10 + {0 if row['route'] == 'embeddings' else 5} tokens, 0.0000"), row
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "mine.py"]
    assert list(own_temporary.iterdir()) == []
    assert not working_in(own_temporary)


def working_in(folder: Path) -> list[str]:
    """Return the processes whose working directory is a folder or below it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink().is_relative_to(folder):
                found.append(process.name)
    return found


def test_a_running_proxy_is_proved(proxy: Proxy) -> None:
    """With --url the same requests go through the running proxy and its books; the key never appears in the output."""
    _, document, said = doctor(
        proxy.config_path, "--url", f"{proxy.url}/", "--model", "chat", "--embedding-model", "embed",
        LITELLM_MASTER_KEY=proxy.key,
    )  # fmt: skip
    rows = {(row["route"], row["stream"]): row for row in document["requests"]}
    assert set(rows) == ROUTES
    for row in rows.values():
        assert [row[mark]["ok"] for mark in ("gate", "record", "settle")] == [True] * 3, row
        assert row["note"].startswith("success"), row
    assert [found["level"] for found in document["findings"] if found["area"] == "routes"] == ["ok"]
    assert proxy.key not in said
    mine = [event for event in proxy.events("usage-doctor") if event["call_id"].startswith("usage-doctor-")]
    assert len(mine) == len(ROUTES)

    code, document, said = doctor(proxy.config_path, "--url", proxy.url, "--model", "chat", "--key", "sk-not-the-key")
    assert (code, document["requests"]) == (1, [])
    assert any("rejects the key: 400" in found for found in problems(document))
    assert "sk-not-the-key" not in said


@pytest.mark.soak
def test_a_callback_that_breaks_the_proxy_is_a_problem(tmp_path: Path) -> None:
    """A proxy that does not start is a problem, reported with its last output."""
    code, document, _ = doctor(with_callback(tmp_path, "raise RuntimeError('my callback is broken')\n"))
    assert code == 1
    assert any("did not start" in found and "my callback is broken" in found for found in problems(document))


@pytest.mark.soak
def test_another_callback_that_takes_our_requests_away_is_seen(tmp_path: Path) -> None:
    """A callback that replaces the others after the start removes the gate, and the doctor detects it."""
    code, document, _ = doctor(with_callback(tmp_path, CALLBACK + "import litellm\n\n\nclass Thief(CustomLogger):\n"
        "    async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):\n"
        "        litellm.callbacks[:] = [self]\n\n\ncallback = Thief()\n"))  # fmt: skip
    assert code == 1
    assert any("requests failed" in found for found in problems(document)), document["requests"]


@pytest.mark.soak
def test_a_package_that_hides_ours_is_a_problem(tmp_path: Path) -> None:
    """A file that LiteLLM loads in place of the plugin is named, and the proxy does not start with it."""
    config = with_callback(tmp_path, CALLBACK)
    (tmp_path / "usage_plugin").mkdir()
    shutil.copy(ROOT / "usage_plugin" / "proxy" / "__init__.py", tmp_path / "usage_plugin" / "proxy.py")
    code, document, _ = doctor(config, PYTHONPATH=os.environ.get("PYTHONPATH", ""))
    assert code == 1
    assert any("instead of the plugin" in found for found in problems(document))


@pytest.mark.soak
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_doctor_that_is_sent_away_leaves_nothing(tmp_path: Path, own_temporary: Path, how: signal.Signals) -> None:
    """A doctor that is interrupted while its temporary proxy runs leaves nothing behind."""
    config = with_callback(tmp_path, CALLBACK)
    process = subprocess.Popen(
        [BIN / "usage-plugin", "--config", config, "doctor"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**clean_environment(), "TMPDIR": str(own_temporary)},
        # A background process of a script ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  # no threads here
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not working_in(own_temporary):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(how)
    _, complaint = process.communicate(timeout=120)
    assert b"Traceback" not in complaint
    assert process.returncode not in (0, None)
    assert list(own_temporary.iterdir()) == []
    assert not working_in(own_temporary)
