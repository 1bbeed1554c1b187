"""Client tools: the tools that the client runs, so that the provider bills nothing but their text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_ORDINARY_TOOLS = ("function", "custom", None)
_RUN_BY_CLIENT: tuple[Any, ...] = ({"type": "local_shell"}, {"type": "apply_patch"})
"""Tools that OpenAI describes itself and the client runs; with additional fields they may be other tools."""
_NAMESPACE_FIELDS = frozenset({"type", "name", "description", "tools"})
_TOOL_SEARCH_FIELDS = frozenset({"type", "execution", "description", "parameters"})
_CLIENT_TOOL_FIELDS = frozenset({
    "type", "function", "custom", "name", "description", "parameters", "strict", "format", "input_schema",
    "cache_control", "input_examples", "defer_loading", "allowed_callers", "eager_input_streaming",
})  # fmt: skip
_GEMINI_TOOLS = frozenset({"functionDeclarations", "function_declarations"})
_NAMED_TOOL = re.compile(r"(bash|text_editor|computer|memory)_\d{8}")
_NAMED_TOOL_FIELDS = frozenset({
    "type", "name", "cache_control", "display_width_px", "display_height_px", "display_number", "enable_zoom",
    "max_characters", "allowed_callers", "defer_loading", "input_examples",
})  # fmt: skip


def is_client_tool(tool: object) -> bool:
    """Whether the client runs this tool, not the provider, which would bill it."""
    if not isinstance(tool, dict):
        return False
    if _is_function(tool) or (tool and _GEMINI_TOOLS.issuperset(tool)):
        return True
    if is_named(tool) and _NAMED_TOOL_FIELDS.issuperset(tool):
        return True
    if is_run_by_client(tool) or (tool.get("execution") == "client" and _is_tool_search(tool)):
        return True
    nested = tool.get("tools")
    is_namespace = tool.get("type") == "namespace" and _NAMESPACE_FIELDS.issuperset(tool)
    return is_namespace and isinstance(nested, list) and all(map(_is_function, nested))


def _is_tool_search(tool: Mapping[str, Any]) -> bool:
    return tool.get("type") == "tool_search" and _TOOL_SEARCH_FIELDS.issuperset(tool)


def _is_function(tool: object) -> bool:
    """Whether a tool is only described, so that only the client can run it."""
    if not isinstance(tool, dict):
        return False
    if not _CLIENT_TOOL_FIELDS.issuperset(tool):
        # Regardless of its type: LiteLLM finds provider tools such as `googleSearch` in it, and forwards them.
        return False
    return tool.get("type") in _ORDINARY_TOOLS[:2] or (tool.get("type") is None and "input_schema" in tool)


def is_named(tool: object) -> bool:
    """Whether Anthropic itself describes this tool and the client runs it, such as `bash_20250124`."""
    if not isinstance(tool, dict) or (kind := tool.get("type")) in _ORDINARY_TOOLS or not isinstance(kind, str):
        return False
    return _NAMED_TOOL.fullmatch(kind) is not None


def listed(value: object) -> list[Any]:
    """Return a list unchanged, and any other value as a list of one."""
    if isinstance(value, list):
        return value
    return [] if value in (None, {}, "") else [value]


def is_run_by_client(tool: object) -> bool:
    """Whether OpenAI describes this tool itself, and the client runs it."""
    return tool in _RUN_BY_CLIENT
