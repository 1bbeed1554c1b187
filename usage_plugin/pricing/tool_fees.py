"""Tool fees: the part of a price sheet for the tools that a provider runs, such as searches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usage_plugin.domain.prices import ToolRates, atto_each

if TYPE_CHECKING:
    from collections.abc import Mapping

# List prices in LiteLLM's code that its map lacks: Google's grounding, xAI's and OpenAI's searches, Groq's browser
# (https://ai.google.dev/pricing, https://docs.x.ai/developers/pricing, https://groq.com/pricing).
_GOOGLE = frozenset({"gemini", "vertex_ai", "vertex_ai-language-models"})
_SEARCH_OF_GOOGLE = 35 * 10**15
_MAPS_BY_PROMPT = 25 * 10**15
_MAPS_BY_QUERY = 14 * 10**15
_SEARCH_OF_XAI = 5 * 10**15
_FILE_SEARCH = 25 * 10**14
_PAGE_OF_GROQ = 10**15
_SEARCH_SIZE = "search_context_size_"


def tool_rates(sheet: Mapping[str, Any], *, is_free: bool) -> ToolRates:
    """Return the fees for tool calls; LiteLLM's constant is used for a list price that the sheet lacks."""
    provider = str(sheet.get("litellm_provider") or "")
    is_google = provider in _GOOGLE
    by_prompt = is_google and sheet.get("web_search_billing_unit") != "per_query"
    search = _search_rate(sheet, provider)
    maps = atto_each(sheet.get("google_maps_grounding_cost_per_query"))
    if is_google and not is_free and sheet.get("mode") in (None, "chat"):
        search = _SEARCH_OF_GOOGLE if search is None else search
        maps = (_MAPS_BY_PROMPT if by_prompt else _MAPS_BY_QUERY) if maps is None else maps
    if provider == "xai" and search is None and not is_free:
        search = _SEARCH_OF_XAI
    return ToolRates(
        search=search or 0,
        map_search=maps or 0,
        page=_PAGE_OF_GROQ if provider == "groq" and search else 0,
        file_search=atto_each(sheet.get("file_search_cost_per_1k_calls"))
        or (_FILE_SEARCH if provider == "openai" and not is_free else 0),
        code_session=atto_each(sheet.get("code_interpreter_cost_per_session")) or 0,
        by_prompt=by_prompt,
        search_by_size=_search_sizes(sheet),
    )


def _search_rate(sheet: Mapping[str, Any], provider: str) -> int | None:
    """Return the fee of a web search: Perplexity's default is its fee for a small context."""
    stated = sheet.get("search_context_cost_per_query")
    if isinstance(stated, dict):
        stated = stated.get(f"{_SEARCH_SIZE}{'low' if provider == 'perplexity' else 'medium'}")
    return atto_each(stated)


def _search_sizes(sheet: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    """Return the fee of a web search by context size; empty if all sizes cost the same."""
    stated = sheet.get("search_context_cost_per_query")
    sizes = stated.items() if isinstance(stated, dict) else ()
    rates = [
        (str(size).removeprefix(_SEARCH_SIZE), rate) for size, each in sizes if (rate := atto_each(each)) is not None
    ]
    return tuple(rates) if len({rate for _, rate in rates}) > 1 else ()
