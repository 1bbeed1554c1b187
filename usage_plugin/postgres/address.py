"""The URL of the server: check it, strip Prisma's parameters from it, and name the server without credentials.

The driver's errors can quote parts of an invalid URL, and so of a password. So an invalid URL is found here, and no
message repeats it.
"""

from __future__ import annotations

import re
from copy import copy
from urllib.parse import unquote, urlsplit

from usage_plugin.errors import ConfigError

PRISMA_PARAMETERS = frozenset(
    {
        "connection_limit",
        "pgbouncer",
        "pool_timeout",
        "schema",
        "single_use_connections",
        "socket_timeout",
        "sslaccept",
        "sslidentity",
        "statement_cache_size",
    }
)
"""Parameters of Prisma, LiteLLM's own driver, that PostgreSQL's does not know. A URL may be shared with LiteLLM."""

_EXAMPLE = "postgresql://user:password@host:5432/database"
_ENCODE = "In a password, write characters other than letters and digits percent-encoded: @ as %40, / as %2F, % as %25."
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:@/\[\]]*)(:\d{1,5})?")


class Address:
    """A server, or several of which one is the primary.

    Attributes:
        conninfo: The URL for the driver. It may contain a password.
        location: The hosts and the database, for people.
        connect_timeout: Seconds until a host counts as unreachable.
        where: The key of the URL in the YAML.
    """

    def __init__(self, url: str, connect_timeout: int, where: str) -> None:
        """Take the URL of a key of the YAML.

        Raises:
            ConfigError: The URL is invalid.
        """
        scheme, _, rest = url.strip().partition("://")
        if scheme not in ("postgresql", "postgres") or not rest:
            raise ConfigError(f"{where}: expected a URL such as {_EXAMPLE}.", hint="It is not repeated here.")
        if re.search(r"%(?![0-9a-fA-F]{2})", rest):
            raise ConfigError(f"{where}: found a % that is not followed by two hexadecimal digits.", hint=_ENCODE)
        if re.search(r"\s", rest) or "#" in rest:
            raise ConfigError(f"{where}: found a space or #.", hint=_ENCODE)
        try:
            parts = urlsplit(f"postgresql://{rest}")
        except ValueError:
            raise ConfigError(f"{where}: expected a URL such as {_EXAMPLE}.", hint=_ENCODE) from None
        credentials, _, hosts = parts.netloc.rpartition("@")
        if "@" in credentials + parts.path or not all(_HOST.fullmatch(host) for host in hosts.split(",")):
            raise ConfigError(f"{where}: found an invalid host or port.", hint=f"{_ENCODE} An example: {_EXAMPLE}.")
        parameters = list(filter(None, parts.query.split("&")))
        if "@" in parts.query or not all("=" in one for one in parameters):
            raise ConfigError(f"{where}: expected parameters such as ?sslmode=require after the ?.", hint=_ENCODE)
        parameters = [one for one in parameters if one.partition("=")[0] not in PRISMA_PARAMETERS]
        # Not `geturl`, which leaves out the slashes before an empty host.
        self.conninfo = f"postgresql://{parts.netloc}{parts.path}" + "?" * bool(parameters) + "&".join(parameters)
        # Without a host, the driver takes it from a parameter or the environment.
        named = [one.partition("=")[2] for one in parameters if one.partition("=")[0] == "host"]
        place = hosts or ",".join(map(unquote, named))
        self.location = f"postgresql://{place}{unquote(parts.path)}"
        self.connect_timeout = connect_timeout
        self.where = where

    def within(self, seconds: int) -> Address:
        """Return the same servers, of which each counts as unreachable after this time, if not sooner."""
        other = copy(self)
        other.connect_timeout = min(self.connect_timeout, seconds)
        return other
