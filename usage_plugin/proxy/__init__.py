"""The adapter to the LiteLLM proxy, and the only package that knows LiteLLM.

The proxy's YAML names `usage_plugin.proxy.callback`. That attribute is created on first access, so that importing this
package neither opens a file nor loads LiteLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from usage_plugin.proxy.handler import UsageHandler_PROXY_

_made: list[UsageHandler_PROXY_] = []


def __getattr__(name: str) -> UsageHandler_PROXY_:
    """Start the plugin in this worker on the first access to `callback`; later accesses return the same handler."""
    if name != "callback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not _made:
        from usage_plugin.proxy.lifecycle import start  # noqa: PLC0415  # imports LiteLLM

        _made.append(start())
    return _made[0]
