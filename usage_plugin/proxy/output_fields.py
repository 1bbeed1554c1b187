"""Output fields: the request fields with an output limit that a provider obeys on a route.

LiteLLM itself translates a test request with a marker value in the field. The provider obeys the field if the marker
survives. A provider without a known output limit drops the field, or fails.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import litellm
from litellm.responses.utils import ResponsesAPIRequestUtils
from litellm.types.router import GenericLiteLLMParams
from litellm.utils import ProviderConfigManager, get_optional_params

from usage_plugin.pricing.catalog import unprinted

if TYPE_CHECKING:
    from collections.abc import Mapping

_MARK = 7_919
"""An output limit that never occurs elsewhere in a translated request."""

_CHAT = ("max_tokens", "max_completion_tokens")
_GEMINI = "maxOutputTokens"
_TRANSLATIONS = {
    "anthropic_messages": "get_provider_anthropic_messages_config",
    "agenerate_content": "get_provider_google_genai_generate_content_config",
    "agenerate_content_stream": "get_provider_google_genai_generate_content_config",
}
"""LiteLLM's functions that tell whether a route is sent unchanged; otherwise it is sent as chat or Responses."""
_FIELD = {"aresponses": "max_output_tokens", "anthropic_messages": "max_tokens", "atext_completion": "max_tokens"}


@lru_cache(maxsize=4_000)
def obeyed_fields(call_type: str, model: str, provider: str | None, dropped: tuple[str, ...]) -> tuple[str, ...]:
    """Return the fields that are still effective after LiteLLM has translated the request for the provider."""
    with warnings.catch_warnings(), unprinted():
        warnings.simplefilter("ignore")  # LiteLLM's models cause warnings when they are first built
        return _asked(call_type, model, provider, dropped)


def _asked(call_type: str, model: str, provider: str | None, dropped: tuple[str, ...]) -> tuple[str, ...]:
    if not model or not provider:
        # LiteLLM may serve it although the provider is unknown to us: use the route's own fields.
        return _CHAT if call_type == "acompletion" else (_FIELD.get(call_type, _GEMINI),)
    bare = model.removeprefix(f"{provider}/")
    native = _TRANSLATIONS.get(call_type)
    responses = _config("get_provider_responses_api_config", bare, provider)
    if native is not None and _config(native, bare, provider) is not None:
        return (_FIELD.get(call_type, _GEMINI),)
    if responses is not None and not _is_sent_on_responses(responses, bare):
        # Chat and messages may also be sent as Responses, depending on the model.
        return ()
    if call_type == "aresponses" and responses is not None:
        return (_FIELD[call_type],)
    chat = tuple(field for field in _CHAT if field not in dropped and _is_sent_on_chat(bare, provider, field, dropped))
    if call_type == "acompletion":
        return chat
    # The other routes are translated into chat, and their limit into `max_tokens`.
    return (_FIELD.get(call_type, _GEMINI),) if "max_tokens" in chat else ()


def _config(look_up: str, model: str, provider: str) -> Any:
    """Return LiteLLM's own translation of a route for a provider; None if it is sent as chat."""
    with suppress(Exception):  # LiteLLM raises an error for unknown providers
        named = litellm.LlmProviders(provider)
        try:
            return getattr(ProviderConfigManager, look_up)(model=model, provider=named)
        except TypeError:
            return getattr(ProviderConfigManager, look_up)(provider=named, model=model)
    return None


def _is_sent_on_chat(model: str, provider: str, field: str, dropped: tuple[str, ...]) -> bool:
    with suppress(Exception):  # LiteLLM raises an error for some models without credentials
        asked: dict[str, Any] = {field: _MARK}
        sent = get_optional_params(
            model=model,
            custom_llm_provider=provider,
            drop_params=True,
            additional_drop_params=list(dropped) or None,
            **asked,
        )
        return _holds_mark(sent)
    return False


def _is_sent_on_responses(config: Any, model: str) -> bool:
    with suppress(Exception):  # a translation that fails here fails for the client too
        params = ResponsesAPIRequestUtils.get_optional_params_responses_api(
            model=model,
            responses_api_provider_config=config,
            response_api_optional_params={"max_output_tokens": _MARK},
        )
        sent = config.transform_responses_api_request(
            model=model,
            input="",
            response_api_optional_request_params=dict(params),
            litellm_params=GenericLiteLLMParams(),
            headers={},
        )
        return _holds_mark(sent)
    return False


def _holds_mark(sent: Mapping[str, Any]) -> bool:
    return any(value == _MARK or (isinstance(value, dict) and _holds_mark(value)) for value in sent.values())
