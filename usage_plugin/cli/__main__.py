"""Entry point by which a running proxy starts commands with its own Python: `python -m usage_plugin.cli`."""

from __future__ import annotations

from usage_plugin.cli.main import main

if __name__ == "__main__":
    main(prog_name="usage-plugin")
