"""The mock model of `config.example.yaml`: a provider in the proxy itself, with the same cost on every route.

LiteLLM's own `mock_response` has a different cost on each. It reports 30 tokens on chat, 123 on the Responses API and
2,598 on `/v1/messages`. The last is 27 cents of a limit of five.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litellm import Choices, CustomLLM, Message, ModelResponse, Usage
from litellm.types.utils import ChatCompletionUsageBlock, GenericStreamingChunk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_USAGE = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
_TEXT = "Hello! I am a mock model: every word of mine is the same."


class MockModel(CustomLLM):  # type: ignore[misc]  # LiteLLM's is untyped
    """Returns the same answer to every request, like LiteLLM's mock on chat."""

    def completion(self, *_: Any, **call: Any) -> ModelResponse:  # LiteLLM's
        """Return a whole answer."""
        return ModelResponse(
            model=call.get("model"),
            choices=[Choices(finish_reason="stop", message=Message(role="assistant", content=_TEXT))],
            usage=Usage(**_USAGE),
        )

    async def acompletion(self, *_: Any, **call: Any) -> ModelResponse:  # LiteLLM's
        """Return a whole answer."""
        return self.completion(**call)

    def streaming(self, *_: Any, **__: Any) -> Iterator[GenericStreamingChunk]:  # LiteLLM's
        """Yield the answer word by word."""
        words = _TEXT.split()
        for at, word in enumerate(words):
            is_last = at == len(words) - 1
            yield GenericStreamingChunk(
                text=word if is_last else f"{word} ",
                is_finished=is_last,
                finish_reason="stop" if is_last else "",
                usage=ChatCompletionUsageBlock(**_USAGE) if is_last else None,
                index=0,
                tool_use=None,
            )

    async def astreaming(self, *_: Any, **call: Any) -> AsyncIterator[GenericStreamingChunk]:  # LiteLLM's
        """Yield the answer word by word."""
        for chunk in self.streaming(**call):
            yield chunk


mock_model = MockModel()
