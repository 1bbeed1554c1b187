"""The URL of the server: check it, and name the server without credentials. No driver is needed for that.

    valkey://user:password@host:6379/0
    valkeys://host:6380/0?ssl_ca_certs=/etc/ssl/our-ca.pem
    unix:///run/valkey/valkey.sock?db=0
    valkey+sentinel://user:password@host1:26379,host2:26379/mymaster/0?sentinel_password=other

The last form is that of redis-sentinel-url, docket and Prefect: user and password are the primary's, the sentinels have
their own, and `valkeys+sentinel` is TLS for both. No message repeats a URL, since any part may be one of a password.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from usage_plugin.errors import ConfigError

WHERE = "usage_plugin.ledger.options.url"
HAS_TLS = {"valkey": False, "redis": False, "valkeys": True, "rediss": True}
"""The schemes, besides `unix`; each also with `+sentinel`."""

_EXAMPLES = "valkey://user:password@host:6379/0 or valkey+sentinel://host1:26379,host2:26379/mymaster/0"
_ENCODE = "In a password, write characters other than letters and digits percent-encoded: @ as %40, / as %2F, % as %25."
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:@/\[\]]+)(?::(\d{1,5}))?")
_PORT, _SENTINEL_PORT, _MOST_PORT = 6379, 26379, 65535
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_CHOICES: dict[str, dict[str, object]] = {
    "ssl_check_hostname": {"true": True, "false": False},
    "ssl_cert_reqs": {"required": "required", "none": "none"},
}
_TLS_PARAMETERS = (*_FILES, *_CHOICES)
_SENTINEL_PARAMETERS = ("sentinel_username", "sentinel_password")


class Login(NamedTuple):
    """A user and a password; None for either if there is none."""

    username: str | None = None
    password: str | None = None


class Address:
    """A server, or the sentinels that know which server is the primary.

    Attributes:
        location: The URL without credentials and parameters, for people.
        path: The socket; None for a server on the network.
        hosts: Hosts and ports: one server, or the sentinels; empty for a socket.
        primary: The name under which the sentinels know the primary; None if `hosts` is the server.
        database: The number of the database.
        login: For the server.
        sentinel_login: For the sentinels.
        tls: The driver's options for TLS, for the server and the sentinels; None without TLS.
    """

    def __init__(self, url: str) -> None:
        """Take a URL.

        Raises:
            ConfigError: The URL is invalid.
        """
        scheme, _, rest = url.strip().partition("://")
        kind, _, sentinel = scheme.partition("+")
        if not rest or (scheme != "unix" and (kind not in HAS_TLS or sentinel not in ("", "sentinel"))):
            raise _invalid(f"expected a URL such as {_EXAMPLES}")
        if re.search(r"%(?![0-9a-fA-F]{2})", rest):
            raise _invalid("found a % that is not followed by two hexadecimal digits")
        if re.search(r"\s", rest) or "#" in rest:
            raise _invalid("found a space or #")
        place, _, query = rest.partition("?")
        authority, _, path = place.partition("/")
        credentials, _, hosts = authority.rpartition("@")
        if "@" in credentials + path + query:
            raise _invalid("found an @ that does not end the credentials")
        self.location = f"{scheme}://{hosts}" + f"/{unquote(path)}" * bool(path)
        self.login = _login(credentials)
        parameters = _parameters(query, _known_parameters(scheme))
        self.tls = _tls_options(parameters) if HAS_TLS.get(kind) else None
        self.sentinel_login = Login(parameters.get("sentinel_username"), parameters.get("sentinel_password"))
        self.path: str | None = None
        self.hosts: tuple[tuple[str, int], ...] = ()
        self.primary: str | None = None
        if scheme == "unix":
            if hosts or not path:
                raise _invalid("expected a socket such as unix:///run/valkey/valkey.sock")
            self.path = f"/{unquote(path)}"
            self.database = _database(parameters.get("db", ""))
            return
        self.hosts = _hosts(hosts, _SENTINEL_PORT if sentinel else _PORT)
        if sentinel:
            name, _, path = path.partition("/")
            if not name:
                raise _invalid("expected the primary's name behind the sentinels, such as /mymaster/0")
            self.primary = unquote(name)
        elif len(self.hosts) > 1:
            raise _invalid("found several hosts; only valkey+sentinel:// takes them")
        self.database = _database(path)


def _invalid(found: str) -> ConfigError:
    return ConfigError(f"{WHERE}: {found}.", hint=f"{_ENCODE} The URL is not repeated here.")


def _login(credentials: str) -> Login:
    if not credentials:
        return Login()
    username, colon, password = credentials.partition(":")
    if not colon or not password:
        raise _invalid("expected user:password@, or :password@ for a password alone")
    return Login(unquote(username) or None, unquote(password))


def _hosts(text: str, port: int) -> tuple[tuple[str, int], ...]:
    found = []
    for host in text.split(","):
        parts = _HOST.fullmatch(host)
        if parts is None or not 1 <= int(parts[2] or port) <= _MOST_PORT:
            raise _invalid("found an invalid host or port")
        found.append((parts[1].strip("[]"), int(parts[2] or port)))
    return tuple(found)


def _database(text: str) -> int:
    if not re.fullmatch(r"[0-9]{0,9}", text, re.ASCII):
        raise _invalid("expected the number of a database, such as 0, at the end of the URL")
    return int(text or 0)


def _known_parameters(scheme: str) -> tuple[str, ...]:
    if scheme == "unix":
        return ("db",)
    kind, _, sentinel = scheme.partition("+")
    return (_TLS_PARAMETERS if HAS_TLS[kind] else ()) + (_SENTINEL_PARAMETERS if sentinel else ())


def _parameters(query: str, known: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for parameter in filter(None, query.split("&")):
        name, equals, value = parameter.partition("=")
        if not equals or name not in known:
            needed = "; ssl_… parameters need valkeys://" if name in _TLS_PARAMETERS else ""
            raise _invalid(f"found an unknown parameter; expected {' or '.join(known) or 'none'}{needed}")
        found[name] = unquote(value)
    return found


def _tls_options(parameters: dict[str, str]) -> dict[str, object]:
    options: dict[str, object] = {}
    for name in _FILES:
        if name in parameters:
            if not Path(parameters[name]).is_file():
                raise _invalid(f"{name}: file not found: {parameters[name]}")
            options[name] = parameters[name]
    for name, choices in _CHOICES.items():
        if name in parameters:
            if parameters[name] not in choices:
                raise _invalid(f"{name}: expected {' or '.join(choices)}")
            options[name] = choices[parameters[name]]
    return options
