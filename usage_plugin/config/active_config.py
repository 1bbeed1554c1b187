"""The configuration in force in a worker, which changes when the YAML does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from usage_plugin.config.sections import Config


class ActiveConfig:
    """Holds the configuration in force, so that its users see the changes.

    Attributes:
        current: The configuration; replaced when the YAML changes.
        enforce: Whether limits refuse requests at all, as `USAGE_PLUGIN_ENFORCE` said at the start.
    """

    __slots__ = ("current", "enforce")

    def __init__(self, config: Config, *, enforce: bool) -> None:
        """Start with the configuration of the start."""
        self.current = config
        self.enforce = enforce
