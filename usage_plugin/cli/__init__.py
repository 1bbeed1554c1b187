"""The command line, `usage-plugin`: reads what the proxy records, whether the proxy runs or not.

Exit codes: 0 all is well, 1 something is wrong (the message says what), 2 the command was written wrongly. It never
imports LiteLLM, which takes six seconds.
"""

from __future__ import annotations

from usage_plugin.cli.main import main

__all__ = ["main"]
