"""Client rules: refuse, limit or add fields of a client's body, so that the request costs at most the amount held.

`client_fields` has the lists of fields; the rules here apply them to one body.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from usage_plugin.proxy.body_fields import whole
from usage_plugin.proxy.client_fields import NEEDS_CHECK, controls_in_extra_body, controls_of
from usage_plugin.proxy.client_response import bad_request
from usage_plugin.proxy.price_book import FALLBACK_LISTS, overriding_fallbacks

if TYPE_CHECKING:
    from collections.abc import Mapping

SEARCH = "asearch"
"""LiteLLM's call type of a web search."""

CLIENT_TIMEOUTS = frozenset({"timeout", "request_timeout", "stream_timeout"})
"""The fields with which a client sets its own timeout for a provider."""

_MOST_RETRIES = 3
"""The maximum retries: a provider may bill a failed attempt unnoticed. SDKs retry twice by default."""

_STREAMS_WITH_OPTIONS = frozenset({"acompletion", "atext_completion"})


def apply_rules(body: dict[str, Any], call_type: str, *, is_limited: bool) -> None:
    """Refuse or change the fields of a body with which a client could spend more than is held.

    Args:
        body: A copy of the body; its nested values are not changed.
        call_type: LiteLLM's call type.
        is_limited: Whether any limit may stop the request.

    Raises:
        ProxyException: A field must not be sent; the error names it.
    """
    if is_limited:
        _refuse_controls(body, call_type)
        _ask_for_usage(body, call_type)
    if call_type == "atext_completion" and body.get("stream"):
        # LiteLLM asks the provider for usage on chat streams only, and counts nothing without it.
        body["stream_options"] = with_usage(body.get("stream_options"))
    if client_set_timeout(body):
        # Each abandoned attempt may still be billed, and only the last one is reported.
        body["num_retries"] = 0


def with_usage(stream_options: object) -> dict[str, Any]:
    """Return a stream's options, with the one that asks for its usage."""
    return {**(stream_options if isinstance(stream_options, dict) else {}), "include_usage": True}


def client_set_timeout(body: Mapping[str, Any]) -> bool:
    """Whether the client sets the provider's timeout itself."""
    if body.keys().isdisjoint(CLIENT_TIMEOUTS):
        return False
    return any(body[name] is not None for name in CLIENT_TIMEOUTS & body.keys())


def _refuse_controls(body: dict[str, Any], call_type: str) -> None:
    """Refuse fields that would change the call from the one that was bounded.

    Raises:
        ProxyException: A field must not be sent; the error names it.
    """
    if body.keys().isdisjoint(NEEDS_CHECK):
        return
    extra = body.get("extra_body")
    controls = controls_of(body)
    if call_type == SEARCH:
        # The route itself requires the first, and LiteLLM derives the second from it.
        controls = [name for name in controls if name not in ("search_tool_name", "custom_llm_provider")]
    if extra is not None:
        if not isinstance(extra, dict):
            raise bad_request("extra_body must be an object.", param="extra_body")
        controls += [f"extra_body.{name}" for name in controls_in_extra_body(extra)]
    if controls:
        raise bad_request(
            f"{controls[0]} must not be sent by clients of this proxy that have a limit: it changes how the request is"
            " routed, retried, answered or billed. Leave it out, or ask the operator to set it for the model.",
            param=controls[0],
        )
    for name in FALLBACK_LISTS:
        if name in body and overriding_fallbacks(body[name]):
            raise bad_request("A fallback may only name a model, without parameters of its own.", param=name)
    # LiteLLM's client does these retries itself, so no hook sees them.
    body.pop("max_retries", None)
    if "num_retries" in body:
        body["num_retries"] = min(whole(body["num_retries"]) or 0, _MOST_RETRIES)


def _ask_for_usage(body: dict[str, Any], call_type: str) -> None:
    """Make a stream end with the provider's usage, even if the client opts out of it."""
    stream = body.get("stream")
    if not stream or call_type not in _STREAMS_WITH_OPTIONS:
        return
    options = body.get("stream_options")
    if stream is True and (options is None or (isinstance(options, dict) and options.get("include_usage") is True)):
        # LiteLLM already asks for it, or the operator has disabled it.
        return
    body["stream"] = True
    body["stream_options"] = with_usage(options)
    body["_litellm_strip_stream_usage"] = True
