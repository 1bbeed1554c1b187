"""The URL of a Valkey ledger, and the backend's options: checked without a driver, and never repeated."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usage_plugin.errors import ConfigError
from usage_plugin.ledgers.valkey import ValkeyLedgerBackend, ValkeyOptions
from usage_plugin.ledgers.valkey.address import Address
from usage_plugin.plugins.interface import BackendContext, check_options

CONTEXT = BackendContext(Path(), ZoneInfo("UTC"))


def test_one_server_has_a_host_and_a_database():
    """The schemes of Redis mean the same."""
    for scheme, tls in (("valkey", None), ("redis", None), ("valkeys", {}), ("rediss", {})):
        found = Address(f"{scheme}://ann:p%40ss@db.example:6380/3")
        assert found.hosts == (("db.example", 6380),)
        assert (found.primary, found.path, found.database, found.tls) == (None, None, 3, tls)
        assert found.login == ("ann", "p@ss")
        assert found.location == f"{scheme}://db.example:6380/3"
    assert Address("valkey://[::1]").hosts == (("::1", 6379),)
    assert Address("valkey://:s3cret@db").login == (None, "s3cret")


def test_a_socket_has_a_path():
    """Also with a login and a database."""
    found = Address("unix://:s3cret@/run/val%20key/s?db=2")
    assert (found.path, found.database, found.login) == ("/run/val key/s", 2, (None, "s3cret"))
    assert found.location == "unix:///run/val key/s"


def test_sentinels_have_a_name_and_their_own_login():
    """As in the URLs of redis-sentinel-url, docket and Prefect."""
    found = Address(
        "valkey+sentinel://ann:one@a,b:1,[::1]:2/my%20master/4?sentinel_username=bo&sentinel_password=t%40o"
    )
    assert found.hosts == (("a", 26379), ("b", 1), ("::1", 2))
    assert (found.primary, found.database, found.tls) == ("my master", 4, None)
    assert (found.login, found.sentinel_login) == (("ann", "one"), ("bo", "t@o"))
    assert found.location == "valkey+sentinel://a,b:1,[::1]:2/my master/4"
    assert Address("rediss+sentinel://a/mymaster").tls == {}


def test_tls_has_files(tmp_path: Path):
    """They must be there, and are for the server and for sentinels."""
    ca = tmp_path / "ca.pem"
    ca.touch()
    for place in ("valkeys://db", "valkeys+sentinel://a/mymaster"):
        found = Address(f"{place}?ssl_ca_certs={ca}&ssl_check_hostname=false&ssl_cert_reqs=required")
        assert found.tls == {"ssl_ca_certs": str(ca), "ssl_check_hostname": False, "ssl_cert_reqs": "required"}
    with pytest.raises(ConfigError, match=f"ssl_keyfile: file not found: {tmp_path}/key.pem"):
        Address(f"valkeys://db?ssl_keyfile={tmp_path}/key.pem")


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("s3cret", "expected a URL"),
        ("http://s3cret", "expected a URL"),
        ("valkey+cluster://ann:s3cret@db", "expected a URL"),
        ("unix+sentinel://s3cret/x", "expected a URL"),
        ("valkey://", "expected a URL"),
        ("valkey:/db/s3cret", "expected a URL"),
        ("valkey://ann:s3cret%@db", "found a %"),
        ("valkey://ann:s3 cret@db", "found a space or #"),
        ("valkey://ann:s3cret#x@db", "found a space or #"),
        ("valkey://ann:s3cret@x@db", "found an @"),
        ("valkey://ann:s3cret/x@db", "found an @"),
        ("valkey://ann:s3cret?x@db", "found an @"),
        ("valkey://s3cret@db", "expected user:password@"),
        ("valkey://ann:s3cret@", "invalid host or port"),
        ("valkey://ann:s3cret@db:port", "invalid host or port"),
        ("valkey://ann:s3cret@db:70000", "invalid host or port"),
        ("valkey://ann:s3cret@db:0", "invalid host or port"),
        ("valkey+sentinel://ann:s3cret@a,,b/mymaster", "invalid host or port"),
        ("valkey://ann:s3cret@one,two/0", "several hosts; only valkey+sentinel"),
        ("valkey+sentinel://ann:s3cret@one,two", "the primary's name"),
        ("valkey+sentinel://ann:s3cret@one,two/mymaster/s3cret", "the number of a database"),
        ("valkey://ann:s3cret@db/s3cret", "the number of a database"),
        ("valkey://ann:s3cret@db/0?s3cret", "unknown parameter; expected none"),
        ("valkey://ann:s3cret@db/0?retry=s3cret", "unknown parameter; expected none"),
        ("valkey://ann:s3cret@db?ssl_ca_certs=s3cret", "need valkeys://"),
        ("valkey://ann:s3cret@db?sentinel_password=s3cret", "unknown parameter"),
        ("valkeys://db?ssl_cert_reqs=s3cret", "expected required or none"),
        ("unix://s3cret/x", "invalid|expected"),
        ("unix://", "expected"),
    ],
)
def test_an_invalid_url_is_not_repeated(url: str, found: str):
    """The error has the key and a remedy, and no part of a password."""
    options = ValkeyOptions.model_validate({"url": url})
    with pytest.raises(ConfigError, match=r"^usage_plugin\.ledger\.options\.url: ") as raised:
        ValkeyLedgerBackend().check(options, CONTEXT)
    assert "s3cret" not in str(raised.value)
    assert found.split("|", maxsplit=1)[0] in str(raised.value) or found.rsplit("|", maxsplit=1)[-1] in str(
        raised.value
    )
    assert raised.value.hint


@given(
    st.text("aZ09:/?#[]@!%& é=,+", min_size=6, max_size=12),
    st.sampled_from(
        ["valkey://{}@db/0", "valkey://a:{}@db", "valkey+sentinel://a/m?sentinel_password={}", "{}", "valkey://db/{}"]
    ),
)
def test_no_error_has_a_part_of_the_url(secret: str, form: str):
    """Any text in place of a password is either taken as it is, or refused without being repeated."""
    try:
        Address(form.format(secret))
    except ConfigError as error:
        assert secret.strip() not in f"{error}"


@pytest.mark.parametrize(
    "options",
    [
        {"ur": "valkey://ann:s3cret@db"},
        {"url": "valkey://ann:s3cret@db", "prefix": "{x}"},
        {"url": "valkey://ann:s3cret@db", "replicas": "many"},
        {"url": "valkey://ann:s3cret@db", "replicas": -1},
        {"url": "valkey://ann:s3cret@db", "table": "x"},
    ],
)
def test_invalid_options_do_not_show_the_password(options: dict[str, Any]):
    """Errors of options, a misspelt `url` included, leave out the credentials."""
    with pytest.raises(ConfigError) as raised:
        check_options("usage_plugin.ledger.options", ValkeyOptions, options)
    assert "s3cret" not in str(raised.value)
    assert "usage_plugin.ledger.options" in str(raised.value)


def test_options_do_not_show_the_password():
    """Neither the validated options nor their text contain it."""
    options = ValkeyOptions.model_validate({"url": "valkey://ann:s3cret@db"})
    assert "s3cret" not in f"{options!r} {options} {options.model_dump()}"


def test_the_driver_is_an_extra(monkeypatch: pytest.MonkeyPatch):
    """Without redis-py the error has the command that installs it."""
    backend, options = ValkeyLedgerBackend(), ValkeyOptions.model_validate({"url": "valkey://db"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for use in (backend.check, backend.exists, backend.open, backend.trouble):
        with pytest.raises(ConfigError, match=r'pip install "usage-plugin\[valkey\]"'):
            use(options, CONTEXT)


def test_importing_the_backend_loads_no_driver():
    """A proxy with another ledger does not pay for the driver."""
    code = "import sys, usage_plugin.ledgers.valkey; sys.exit('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
