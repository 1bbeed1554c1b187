"""The extension points, on pluggy: hooks register typed objects, the objects act.

A plugin is a module with hook implementations: a file that the YAML names, or an installed one with an entry point in
the group `usage_plugin`:

    from usage_plugin.plugins import hookimpl

    @hookimpl
    def usage_register_storage_backends():
        return [MyBackend()]

`hookspecs` defines every hook, and `interface` the types of the registered objects. Inside, `discovery` and
`file_loader` load plugins, `manager` validates and registers them, and `identity_resolvers` isolates resolvers.
"""

import pluggy

from usage_plugin.domain.alerts import Alert
from usage_plugin.domain.limits import Unit
from usage_plugin.domain.money import format_usd, to_decimal
from usage_plugin.domain.refusals import RefusedRequest
from usage_plugin.domain.usage import UsageEvent
from usage_plugin.domain.windows import to_datetime
from usage_plugin.encoding import decode_event, encode_event
from usage_plugin.errors import (
    ConfigError,
    LedgerBusyError,
    LedgerError,
    PluginError,
    StorageError,
    StorageUnavailableError,
    UsagePluginError,
)
from usage_plugin.plugins.interface import (
    BackendContext,
    Claim,
    IdentityResolver,
    LedgerBackend,
    NoOptions,
    Options,
    StorageBackend,
)

__all__ = [
    "Alert",
    "BackendContext",
    "Claim",
    "ConfigError",
    "IdentityResolver",
    "LedgerBackend",
    "LedgerBusyError",
    "LedgerError",
    "NoOptions",
    "Options",
    "PluginError",
    "RefusedRequest",
    "StorageBackend",
    "StorageError",
    "StorageUnavailableError",
    "Unit",
    "UsageEvent",
    "UsagePluginError",
    "decode_event",
    "encode_event",
    "format_usd",
    "hookimpl",
    "to_datetime",
    "to_decimal",
]

PROJECT = "usage_plugin"

hookimpl = pluggy.HookimplMarker(PROJECT)

MARK = f"{PROJECT}_impl"
"""The attribute by which pluggy marks an implementation of a hook."""
