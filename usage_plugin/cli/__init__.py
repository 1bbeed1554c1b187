"""The command line, `usage-plugin`: reads the proxy's records, whether the proxy runs or not.

Exit codes: 0 success, 1 failure (with a message), 2 invalid arguments. It never imports LiteLLM, which takes six
seconds.
"""

from __future__ import annotations

from usage_plugin.cli.main import main

__all__ = ["main"]
