"""Pass-through routes: make LiteLLM read the usage of streams from a provider's gateways and relays.

LiteLLM infers a stream's provider from the host name. With `ANTHROPIC_API_BASE` set to anything but `api.anthropic.com`
it reads no usage, so a stream has no cost. For whole answers it uses the path, which is also used here.
"""

from __future__ import annotations

from typing import Any

from litellm.proxy.pass_through_endpoints.pass_through_endpoints import HttpPassThroughEndpointHelpers
from litellm.proxy.pass_through_endpoints.success_handler import PassThroughEndpointLogging
from litellm.types.passthrough_endpoints.pass_through_endpoints import EndpointType


def read_streams_of_gateways() -> None:
    """Make LiteLLM use the path, or the route's provider, where the host name is unknown."""
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
