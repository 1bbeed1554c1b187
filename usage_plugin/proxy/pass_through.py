"""Pass-through routes: let LiteLLM read the usage of streams from gateways and relays of a provider.

LiteLLM tells whose stream it is by the host name: with `ANTHROPIC_API_BASE` set to anything but `api.anthropic.com` it
reads no usage, so that a stream has no cost. Of whole answers it goes by the path, which is asked here as well.
"""

from __future__ import annotations

from typing import Any

from litellm.proxy.pass_through_endpoints.pass_through_endpoints import HttpPassThroughEndpointHelpers
from litellm.proxy.pass_through_endpoints.success_handler import PassThroughEndpointLogging
from litellm.types.passthrough_endpoints.pass_through_endpoints import EndpointType


def read_streams_of_gateways() -> None:
    """Have LiteLLM go by the path, or by the provider of the route, where the host name says nothing."""
    by_host = HttpPassThroughEndpointHelpers.get_endpoint_type
    is_anthropic_route = PassThroughEndpointLogging().is_anthropic_route

    def by_host_path_or_route(url: str, *arguments: Any, **named: Any) -> EndpointType:  # LiteLLM's
        found = by_host(url, *arguments, **named)
        if found is EndpointType.GENERIC and is_anthropic_route(url):
            return EndpointType.ANTHROPIC
        provider = next(iter((*arguments, *named.values())), None)
        if found is EndpointType.GENERIC and getattr(provider, "value", provider) == "openai":
            return EndpointType.OPENAI
        return found

    HttpPassThroughEndpointHelpers.get_endpoint_type = staticmethod(by_host_path_or_route)
