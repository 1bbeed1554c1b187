"""The real proxy with pseudonyms: the persons behind requests are recorded nowhere, and limits count all the same."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from tests.proxy.conftest import Upstream, proxy_config, running
from tests.proxy.test_requests import CHAT, chat
from tests.support.waiting import wait_until
from usage_plugin.domain.pseudonyms import Pseudonyms

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.proxy.conftest import Proxy

pytestmark = pytest.mark.proxy
NAME = "eva.example@corp"
CLAIM = "bo.example@corp"
ALIAS = "evas-laptop"
KEY = "sk-evas-own-key-1234"
AUTH = f"""
from litellm.proxy._types import UserAPIKeyAuth

async def user_api_key_auth(request, api_key):
    if api_key == "{KEY}":
        return UserAPIKeyAuth(api_key=api_key, user_id="{NAME}", key_alias="{ALIAS}")
    return UserAPIKeyAuth(api_key=api_key)
"""
LIMITS = [
    {"name": "corp", "per": "user", "match": {"user": "*@corp"}, "window": "day", "max_cost": "0.025"},
    {"name": "laptops", "per": "api_key", "match": {"api_key": "*-laptop"}, "window": "day", "max_cost": 1},
    {"name": "key", "per": "api_key", "match": {"api_key": hashlib.sha256(KEY.encode()).hexdigest()}, "window": "day",
     "max_cost": 1, "alert_at": [1]},
]  # fmt: skip


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    folder: Path = tmp_path_factory.mktemp("private")
    (folder / "who.py").write_text(AUTH)
    config = proxy_config(upstream, {"limits": LIMITS, "privacy": {"user": "pseudonym"}})
    config["general_settings"]["custom_auth"] = "who.user_api_key_auth"
    with running(folder, config) as proxy:
        yield proxy


def test_no_name_and_no_key_is_written_down(private: Proxy) -> None:
    """Names, aliases, keys and LiteLLM's hashes are in none of the plugin's files and log lines."""
    as_eva = {"Authorization": f"Bearer {KEY}"}
    for _ in range(2):
        assert private.post(CHAT, chat(CLAIM), **as_eva).status_code == 200
    answer = private.post(CHAT, chat(CLAIM), **as_eva)
    assert answer.status_code == 402
    told = answer.json()["error"]
    assert told["message"].startswith(f"{NAME} has used ")
    private.settled()

    (event, *_) = private.events(NAME)
    pseudonym, key = event["user"], event["api_key"]
    assert (pseudonym[:2], key[:2]) == ("p-", "k-")
    assert private.events(pseudonym) == private.events(NAME)
    accounts = {row["name"]: row["subject"] for row in private.cli("limits")["limits"]}
    assert accounts == {"corp": {"user": pseudonym}, "laptops": {"api_key": key}, "key": {"api_key": key}}
    assert private.cli("limits", "--user", NAME)["limits"]
    assert private.cli("explain", "--api-key", KEY)["subject"] == {"api_key": key}
    # Refusals are written once a second, and so are alerts.
    explained = wait_until(lambda: private.cli("explain", told["provider_specific_fields"]["ref"]))
    assert explained["user"] == pseudonym

    secrets = (NAME, CLAIM, ALIAS, KEY, hashlib.sha256(KEY.encode()).hexdigest())
    for path in (private.folder / "data").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
        if path.is_file():
            content = path.read_bytes()
            assert [name for name in secrets if name.encode() in content] == [], path
    wait_until(lambda: "limit.threshold_crossed" in private.log_path.read_text())
    ours = [line for line in private.log_path.read_text().splitlines() if "usage_plugin" in line]
    assert [line for line in ours if "limit.threshold_crossed" in line]
    assert [line for line in ours for name in secrets if name in line] == []


def test_somebody_is_forgotten_while_the_proxy_runs(private: Proxy) -> None:
    """After a person is forgotten during operation, only the audit has the pseudonym, and requests continue."""
    as_eva = {"Authorization": f"Bearer {KEY}"}
    pseudonym = private.events(NAME)[0]["user"]
    private.settled()
    forgotten = private.cli("forget", NAME, "--yes", "--open-windows", "--reason", "left in May")
    assert forgotten["deleted"]["history"] >= 2
    assert private.events(NAME) == []
    assert private.events(pseudonym) == []
    with_pseudonym = {
        path.name for path in (private.folder / "data").rglob("*") if pseudonym.encode() in _content(path)
    }
    assert with_pseudonym <= {"ledger.db", "ledger.db-wal"}
    (audited,) = private.cli("audit", "--user", NAME)["audit"]
    assert (audited["subject"], audited["reason"]) == (pseudonym, "left in May")
    (left,) = [row for row in private.cli("limits", "--user", NAME)["limits"] if row["name"] == "corp"]
    assert left["spent"] == "0.00"
    assert private.post(CHAT, chat(CLAIM), **as_eva).status_code == 200
    assert len(private.events(NAME)) == 1
    assert private.cli("status")["problems"] == []


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def test_a_configured_secret_serves_the_proxy_and_its_commands(tmp_path: Path, upstream: Upstream) -> None:
    """A mounted secret makes the same pseudonyms everywhere and is written nowhere; another one stops the start."""
    first, second = "0123456789abcdef" * 4, "fedcba9876543210" * 4
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "usage").write_text(f"{first}\n")
    (tmp_path / "usage").symlink_to("..data/usage")
    config = proxy_config(upstream, {"privacy": {"user": "pseudonym", "secret_file": "usage"}})
    with running(tmp_path, config) as proxy:
        assert proxy.post(CHAT, chat("eva")).status_code == 200
        proxy.settled()
        (event,) = proxy.events("eva")
    assert event["user"] == Pseudonyms(bytes.fromhex(first), hides_persons=True).of_person("eva")
    assert not (tmp_path / "data" / "secret").exists()
    written = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert [path for path in (*written, proxy.log_path) if first.encode() in path.read_bytes()] == []

    (tmp_path / "..data" / "usage").write_text(f"{second}\n")
    with pytest.raises(AssertionError, match="did not start") as caught:
        proxy.start()
    assert "has another secret" in str(caught.value)
    assert "accept-secret" in str(caught.value)
    assert first not in proxy.log_path.read_text()
    assert second not in proxy.log_path.read_text()
