"""Logging: dotted past-tense events with facts as key-values, on the standard logger `usage_plugin`.

No global logging setting is changed, since the process belongs to its host. No prompt, answer or key is ever logged.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, cast

import structlog

LOGGER = "usage_plugin"


def get_logger() -> structlog.stdlib.BoundLogger:
    """Return the logger; its lines go to the standard `logging`, as the host has configured it."""
    return cast(
        "structlog.stdlib.BoundLogger",
        structlog.wrap_logger(
            logging.getLogger(LOGGER),
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.processors.format_exc_info,
                structlog.processors.KeyValueRenderer(key_order=["event"], drop_missing=True),
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
            context_class=dict,
        ),
    )


def show_log(level: int = logging.INFO) -> None:
    """Write our lines to stderr if the logger has no handler: LiteLLM's own logging setup omits it."""
    logger = logging.getLogger(LOGGER)
    if not logger.handlers:
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s usage_plugin %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False


def short_error(error: BaseException) -> dict[str, Any]:
    """Return the facts of an error for a log line, without a traceback."""
    return {"error": type(error).__name__, "message": str(error)}
