"""The environment of a process that a test starts."""

from __future__ import annotations

import os


def clean_environment() -> dict[str, str]:
    """Return the environment without variables that configure the plugin or LiteLLM."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("USAGE_PLUGIN", "LITELLM", "CONFIG_FILE"))
    }
