from __future__ import annotations

import copy
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usage_plugin.domain.prices import Units
from usage_plugin.proxy.body_fields import NESTED
from usage_plugin.proxy.bounds import read
from usage_plugin.proxy.input_bounds import ANY_TOOLS, CHARACTERS_PER_AUDIO_TOKEN, PER_IMAGE, PER_MESSAGE
from usage_plugin.proxy.output_limits import write

LONG = "Grüße, 世界 👩‍🔬 " * 200


def input_bound(body, call_type="acompletion"):
    return read(call_type, body).input_tokens


def output_is_bounded(body, call_type="acompletion"):
    return read(call_type, body).output_is_bounded


def asked_output(body, call_type="acompletion"):
    return read(call_type, body).asked_output


def answers(body, call_type="acompletion"):
    return read(call_type, body).answers


texts = st.text(max_size=60)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
parts = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, texts),
    st.builds(lambda text: {"type": "input_text", "text": text}, texts),
    st.builds(lambda text: {"type": "output_text", "text": text, "annotations": []}, texts),
    st.builds(lambda text, name: {"type": "tool_use", "id": name, "name": name, "input": {"text": text}}, texts, texts),
    st.builds(lambda text: {"type": "tool_result", "tool_use_id": "t", "content": text}, texts),
    st.builds(
        lambda text: {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": text}]}, texts
    ),
    st.builds(lambda text: {"type": "thinking", "thinking": text, "signature": text}, texts),
)
messages = st.lists(
    st.builds(
        lambda role, content, name: {"role": role, "content": content, "name": name},
        st.sampled_from(["system", "user", "assistant", "tool"]),
        st.none() | texts | st.lists(parts, max_size=3),
        texts,
    )
    | st.builds(
        lambda arguments: {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}]},
        texts,
    ),
    max_size=4,
)  # fmt: skip


plain = st.fixed_dictionaries({
    "messages": messages | st.lists(st.fixed_dictionaries({"role": texts, "content": texts | anything}), max_size=3) | anything,
}, optional={
    "system": texts | st.lists(parts, max_size=2) | anything, "max_tokens": anything, "max_completion_tokens": anything,
    "response_format": anything, "instructions": texts, "stream": st.booleans(), "temperature": anything,
})  # fmt: skip
"""The body of most requests: messages, and none of the fields that are inspected."""


@given(plain, st.sampled_from(["acompletion", "anthropic_messages"]))
def test_a_request_of_messages_is_read_as_it_would_be_among_other_fields(body, kind):
    """The fast path for ordinary requests gives the same result as the slow path, which a meaningless field selects."""
    assert read(kind, body) == read(kind, {**body, "background": None})


@given(st.text(max_size=30), st.text(max_size=30))
def test_a_role_and_a_content_count_as_in_a_message_with_more(role, content):
    """The fast path for a message of two strings counts them as the slow path does; another name selects the latter."""
    with_name = {"role": role, "content": content, "": ""}
    assert input_bound({"messages": [{"role": role, "content": content}]}) == input_bound({"messages": [with_name]})


def bytes_of(text):
    return len(text.encode("utf-8", "surrogatepass"))


def strings(value):
    """Return all text in a value, without keys."""
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in items for text in strings(item)]


WAYS = {
    "a message": ("acompletion", lambda text: {"messages": [{"role": "user", "content": text}]}),
    "a part of a message": ("acompletion", lambda text: {"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]}),
    "a name": ("acompletion", lambda text: {"messages": [{"role": "user", "content": "x", "name": text}]}),
    "a tool call": ("acompletion", lambda text: {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": text}}]}]}),
    "a tool's answer": ("acompletion", lambda text: {"messages": [{"role": "tool", "tool_call_id": "c", "content": text}]}),
    "a tool's description": ("acompletion", lambda text: {"messages": [], "tools": [{"type": "function", "function": {"name": "f", "description": text}}]}),
    "an old function": ("acompletion", lambda text: {"messages": [], "functions": [{"name": "f", "description": text}]}),
    "a schema": ("acompletion", lambda text: {"messages": [], "response_format": {"type": "json_schema", "json_schema": {"description": text}}}),
    "a prompt": ("atext_completion", lambda text: {"prompt": text}),
    "one of several prompts": ("atext_completion", lambda text: {"prompt": ["a", text]}),
    "a suffix": ("atext_completion", lambda text: {"prompt": "x", "suffix": text}),
    "text to embed": ("aembedding", lambda text: {"input": text}),
    "texts to embed": ("aembedding", lambda text: {"input": [text, "b"]}),
    "an input": ("aresponses", lambda text: {"input": text}),
    "an item of an input": ("aresponses", lambda text: {"input": [{"role": "user", "content": [{"type": "input_text", "text": text}]}]}),
    "a function's output": ("aresponses", lambda text: {"input": [{"type": "function_call_output", "call_id": "c", "output": text}]}),
    "instructions": ("aresponses", lambda text: {"input": "x", "instructions": text}),
    "a text format": ("aresponses", lambda text: {"input": "x", "text": {"format": {"type": "json_schema", "schema": {"description": text}}}}),
    "a system prompt": ("anthropic_messages", lambda text: {"messages": [], "system": text}),
    "a part of a system prompt": ("anthropic_messages", lambda text: {"messages": [], "system": [{"type": "text", "text": text}]}),
    "Anthropic's tool result": ("anthropic_messages", lambda text: {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": text}]}]}]}),
    "Anthropic's tool use": ("anthropic_messages", lambda text: {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "n", "input": {"q": text}}]}]}),
    "Anthropic's tool": ("anthropic_messages", lambda text: {"messages": [], "tools": [{"name": "n", "description": text, "input_schema": {}}]}),
}  # fmt: skip


@pytest.mark.parametrize(("call_type", "body"), WAYS.values(), ids=WAYS.keys())
@settings(max_examples=25)
@given(text=texts)
def test_text_is_bounded_by_its_bytes_wherever_it_stands(call_type, body, text):
    """Text in any field counts at least as many tokens as it has bytes of UTF-8."""
    assert input_bound(body(text)) >= bytes_of(text)


@pytest.mark.parametrize(("call_type", "body"), WAYS.values(), ids=WAYS.keys())
def test_long_text_counts_where_it_stands(call_type, body):
    """A longer text raises the bound by at least as many tokens as bytes."""
    assert input_bound(body(LONG)) - input_bound(body("")) >= bytes_of(LONG)


@given(messages, st.sampled_from(["acompletion", "anthropic_messages"]))
def test_a_conversation_is_bounded_by_all_its_text(found, call_type):
    """A conversation is bounded by the bytes of all its strings, plus a chat template's overhead for each message."""
    bound = input_bound({"messages": found})
    assert bound >= sum(map(bytes_of, strings(found))) + PER_MESSAGE * len(found)


def test_empty_messages_count_too():
    """A chat template adds tokens to each message: 50 empty ones were measured at 203."""
    assert input_bound({"messages": [{"role": "user", "content": ""}] * 50}) >= 203
    assert input_bound({"messages": [{"role": "user", "content": "hi"}]}) >= 8


def test_tools_cost_more_than_their_bytes():
    """A provider's preamble for tools, up to 530 tokens, is in the bound if there is at least one tool."""
    tool = {"name": "f", "input_schema": {}}
    without = input_bound({"messages": []})
    assert input_bound({"messages": [], "tools": [tool]}) - without >= ANY_TOOLS >= 530
    assert input_bound({"messages": [], "tools": []}) == without


@pytest.mark.parametrize(
    ("call_type", "body", "tokens"),
    [
        ("aembedding", {"input": list(range(700))}, 700),
        ("aembedding", {"input": [list(range(300)), list(range(400))]}, 700),
        ("atext_completion", {"prompt": list(range(700))}, 700),
        ("atext_completion", {"prompt": [list(range(300)), list(range(400))]}, 700),
    ],
)
def test_numbers_of_tokens_are_counted_as_tokens(call_type, body, tokens):
    """A prompt of token numbers counts at least its count of numbers, and not many more."""
    assert tokens <= input_bound(body) <= tokens + 1_000


REFERENCES = {
    "an image": {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
    "Anthropic's image": {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
    "an input image": {"type": "input_image", "file_id": "file-1"},
    "a file": {"type": "file", "file": {"file_id": "file-1"}},
    "an input file": {"type": "input_file", "file_id": "file-1"},
    "a document": {"type": "document", "source": {"type": "file", "file_id": "file-1"}},
    "a page that calls itself an image": {"type": "image_url", "image_url": {"url": "data:text/html;base64,AAAA"}},
    "audio by its id": {"type": "input_audio", "input_audio": {"file_id": "file-1"}},
    "an inline document": {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}},
    "an image in the body and one outside": {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "file_id": "file-1"},
    "video": {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}},
    "an unknown part": {"type": "hologram", "hologram": "x"},
    "a part without a type": {"text": "x"},
    "an image in a tool's result": {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": {}}]},
    "an image that calls itself a message": {"type": "image_url", "role": "user", "image_url": {"url": "https://example.com/a.png"}},
}  # fmt: skip


@pytest.mark.parametrize("part", REFERENCES.values(), ids=REFERENCES.keys())
@pytest.mark.parametrize("call_type", ["acompletion", "anthropic_messages"])
def test_a_part_that_is_no_text_is_not_bounded_by_bytes(call_type, part):
    """Images, files and parts that may not be text have no bound in bytes, in any position."""
    assert input_bound({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]}) is None


ITEMS = {
    "an earlier item": {"type": "item_reference", "id": "msg_1"},
    "an earlier item that calls itself a message": {"type": "item_reference", "role": "user", "id": "msg_1"},
    "a screenshot": {"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot", "image_url": "x"}},
    "a function's image": {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": "x"}]},
    "a message with an image": {"role": "user", "content": [{"type": "input_image", "image_url": "x"}]},
    "a message with a file": {"type": "message", "role": "user", "content": [{"type": "input_file", "file_id": "f"}]},
    "stored reasoning": {"type": "reasoning", "id": "rs_1", "summary": []},
}  # fmt: skip


@pytest.mark.parametrize("item", ITEMS.values(), ids=ITEMS.keys())
def test_an_item_that_refers_to_something_is_not_bounded_by_bytes(item):
    """Items of the Responses API that refer to content outside the body have no bound in bytes."""
    assert input_bound({"input": [{"role": "user", "content": "x"}, item]}) is None


@pytest.mark.parametrize(
    ("call_type", "body"),
    [
        ("aresponses", {"input": "x", "previous_response_id": "resp_1"}),
        ("aresponses", {"input": "x", "conversation": "conv_1"}),
        ("aresponses", {"input": "x", "conversation": {"id": "conv_1"}}),
        ("aresponses", {"input": "x", "prompt": {"id": "pmpt_1"}}),
        ("acompletion", {"messages": [], "prompt_id": "p"}),
        ("acompletion", {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}),
    ],
)
def test_a_body_that_refers_to_earlier_ones_is_not_bounded_by_bytes(call_type, body):
    """A body that refers to earlier responses, conversations, audio or stored prompts is not bounded by its bytes."""
    assert input_bound(body) is None


@pytest.mark.parametrize("field", ["previous_response_id", "conversation", "prompt_id"])
def test_an_empty_reference_refers_to_nothing(field):
    """A reference that is null, as SDKs send it, leaves the body bounded."""
    assert input_bound({"input": "x", field: None}) is not None


@pytest.mark.parametrize("other", [None, "", "x", [], {}], ids=repr)
@pytest.mark.parametrize("call_type", ["atext_completion", "acompletion", "aresponses"])
def test_a_second_field_does_not_hide_the_first(call_type, other):
    """A body with both `prompt` and `input` is bounded by both: LiteLLM sends the one that its route knows."""
    for body in ({"prompt": LONG, "input": other}, {"prompt": other, "input": LONG}):
        bound = input_bound(body)
        assert bound is None or bound >= bytes_of(LONG)


def test_what_the_sdk_adds_to_the_body_is_bounded_too():
    """LiteLLM merges `extra_body` into the request for OpenAI-like providers, so its text counts."""
    body = {
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 1,
        "extra_body": {"messages": [{"role": "user", "content": LONG}], "max_tokens": 100_000, "n": 7},
    }
    bound = input_bound(body)
    assert bound is None or bound >= bytes_of(LONG)
    asked = asked_output(body)
    assert not output_is_bounded(body) or asked is None or asked * answers(body) >= 700_000


@given(call_type=st.sampled_from(["acompletion", "atext_completion", "aembedding", "aresponses", "anthropic_messages", "rerank"]), body=st.dictionaries(
    st.sampled_from(["messages", "input", "prompt", "system", "tools", "instructions", "text", "response_format", "n", "best_of", "max_tokens",
                     "max_output_tokens", "max_completion_tokens", "background", "functions", "conversation", "extra_body", "web_search_options"]),
    anything, max_size=4,
))  # fmt: skip
def test_no_body_is_too_strange_to_be_bounded(call_type, body):
    """Any JSON body has an integer bound or none, and never raises."""
    found = read(call_type, body)
    bound = found.input_tokens
    assert bound is None or (isinstance(bound, int) and bound >= 0)
    assert found.reach.units is None or min(found.reach.units) >= 0
    asked = asked_output(body)
    assert asked is None or (isinstance(asked, int) and 0 <= asked < 2**62)
    assert 1 <= answers(body) < 2**31
    assert output_is_bounded(body) in (True, False)


def test_a_body_that_is_nested_too_deeply_is_not_bounded():
    """Nesting that would exhaust the stack leaves the body without a bound, and raises nothing."""
    message = {"role": "user", "content": "x"}
    for _ in range(20_000):
        message = {"role": "user", "content": [message]}
    assert input_bound({"messages": [message]}) is None


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 7}, 7),
        ({"max_output_tokens": 7}, 7),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"max_tokens": 7, "max_completion_tokens": None}, 7),
        ({"max_tokens": 5, "extra_body": {"max_tokens": 9}}, 9),
        ({"max_tokens": 9, "extra_body": {"max_new_tokens": 5}}, 9),
        ({"max_tokens": "50000"}, 50_000),
        ({"max_tokens": 50_000.0}, 50_000),
        ({"max_tokens": -5}, None),
        ({"max_tokens": None}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": "many"}, None),
        ({"max_tokens": 1.5}, None),
        ({"max_tokens": float("nan")}, None),
        ({"max_tokens": 5, "max_completion_tokens": "many"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_the_output_limit_of_a_request_is_found_whatever_it_is_called(body, asked):
    """The allowed output is the largest valid output limit of a request, under any name and in any notation."""
    assert asked_output(body) == asked


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ({}, 1), ({"n": 1}, 1), ({"n": 3}, 3), ({"best_of": 4}, 4), ({"n": 2, "best_of": 4}, 4), ({"n": None}, 1),
        ({"n": 0}, 1),
        ({"prompt": "x"}, 1), ({"prompt": ["x", "y"]}, 2), ({"prompt": ["x", "y"], "n": 3}, 6), ({"prompt": []}, 1),
        ({"prompt": [1, 2, 3]}, 1), ({"prompt": [[1, 2], [3]]}, 2), ({"prompt": {"id": "p"}}, 1),
    ],
    ids=str,
)  # fmt: skip
def test_every_answer_has_the_output_bound_for_itself(body, count):
    """n and best_of request several answers, to each of several prompts."""
    assert answers(body) == count


def test_no_number_of_prompts_is_cut_to_fewer_answers():
    """Each prompt is answered, however many there are: a bound may be large, but never below the number of answers."""
    assert answers({"prompt": ["x"] * 12_000, "n": 2}) >= 24_000


@pytest.mark.parametrize(
    ("body", "bounded"),
    [
        ({}, True),
        ({"tools": None}, True),
        ({"tools": []}, True),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, True),
        ({"tools": [{"type": "custom", "name": "f"}]}, True),
        ({"tools": [{"name": "f", "input_schema": {}}]}, True),
        ({"background": False, "web_search_options": None}, True),
        ({"background": True}, False),
        ({"web_search_options": {"search_context_size": "high"}}, False),
        ({"web_search_options": {}}, False),
        ({"search_parameters": {"mode": "on"}}, False),
        ({"plugins": [{"id": "web"}]}, False),
        ({"inference_geo": "us"}, False),
        ({"tools": [{"type": "web_search"}]}, False),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, False),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search", "input_schema": {}}]}, False),
        ({"tools": [{"type": "file_search", "vector_store_ids": ["v"]}]}, False),
        ({"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, False),
        ({"tools": [{"type": "mcp", "server_url": "https://example.com"}]}, False),
        ({"tools": [{"googleSearch": {}}]}, False),
        ({"tools": [{"type": "function", "function": {"name": "f"}}, {"type": "web_search"}]}, False),
        ({"tools": ["web_search"]}, False),
        ({"tools": [None]}, False),
        ({"mcp_servers": [{"type": "url", "url": "https://example.com"}]}, False),
    ],
    ids=str,
)
def test_what_the_provider_runs_by_itself_is_not_bounded(body, bounded):
    """Background work, and tools that the provider runs and bills, have no bound; tools of the client have one."""
    assert output_is_bounded(body) == bounded


@pytest.mark.parametrize(
    ("call_type", "field"),
    [("acompletion", "max_tokens"), ("atext_completion", "max_tokens"), ("aresponses", "max_output_tokens"), ("anthropic_messages", "max_tokens")],
)  # fmt: skip
@pytest.mark.parametrize(
    "body",
    [{}, {"max_tokens": "many"}, {"max_completion_tokens": -1, "extra_body": {"max_tokens": "x", "top_k": 5}}, {"max_new_tokens": None, "max_output_tokens": True}],
    ids=str,
)  # fmt: skip
def test_a_limit_of_ours_replaces_every_limit_that_is_none(call_type, field, body):
    """The injected output limit has the API's name, and no contradicting limit remains under another name."""
    body = copy.deepcopy(body)
    assert write(call_type, body, field, 4096)
    assert body[field] == 4096
    assert asked_output(body) == 4096
    assert body.get("extra_body", {}).get("top_k", 5) == 5


@pytest.mark.parametrize("odd", [{"n": -3}, {"n": True}, {"n": "3 of them"}, {"n": "5e1"}, {"n": 2.5}], ids=str)
def test_a_number_of_answers_that_is_none_bounds_nothing(odd):
    """A provider may accept an answer count that is not a valid whole number, so the request is not bounded."""
    assert not output_is_bounded({"max_tokens": 5, **odd})


@pytest.mark.parametrize(
    "hidden",
    [
        {"extra_body": {"max_tokens": None}},
        {"options": {"num_predict": 9_000}},
        {"extra_body": {"generationConfig": {"maxOutputTokens": 9_000}}},
        {"n_predict": 9_000},
    ],
    ids=str,
)
def test_a_larger_output_cannot_be_hidden_deeper(hidden):
    """An output limit that is nested, or removed by null, is found."""
    assert asked_output({"max_tokens": 5, **hidden}) in (None, 9_000)


@pytest.mark.parametrize(
    "dear",
    [
        {"service_tier": "scale"}, {"service_tier": 5}, {"extra_body": {"service_tier": "mine"}}, {"speed": "turbo"},
        {"modalities": ["text", "image"]}, {"generationConfig": {"responseModalities": ["IMAGE"]}}, {"background": True},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_billed_by_other_prices_is_not_bounded(dear):
    """An unknown service tier, or an image as an answer, is not bounded by tokens at known prices."""
    assert not output_is_bounded({"max_tokens": 5, **dear})


SOUND = "QUJD" * 5_000
INLINE = {
    "an image": ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, PER_IMAGE),
    "an image as text": ({"type": "input_image", "image_url": "data:image/png;base64,AAAA"}, PER_IMAGE),
    "Anthropic's image": ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}, PER_IMAGE),
    "a sound": ({"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}, len(SOUND) // CHARACTERS_PER_AUDIO_TOKEN),
}  # fmt: skip


@pytest.mark.parametrize(("part", "tokens"), INLINE.values(), ids=INLINE.keys())
def test_an_image_or_a_sound_in_the_body_has_a_bound_of_its_own(part, tokens):
    """Images and audio in the body have their own bound, not their encoded bytes, and may have other prices."""
    message = {"role": "user", "content": [{"type": "text", "text": "x"}, part]}
    found = read("acompletion", {"messages": [message]})
    assert tokens <= found.input_tokens <= tokens + 500
    assert found.reach.media_input
    hidden = {**part, "text": LONG}
    bound = input_bound({"messages": [{"role": "user", "content": [hidden]}]})
    assert bound >= bytes_of(LONG)


def test_what_is_referred_to_may_be_a_sound_or_an_image():
    """A request by reference is priced as the most expensive kind of token; a request of text is not."""
    assert read("aresponses", {"input": "x", "previous_response_id": "r"}).reach.media_input
    assert not read("aresponses", {"input": "x"}).reach.media_input


def test_a_spoken_answer_is_bounded_at_the_price_of_sounds():
    """An answer that may be spoken is bounded by its output limit, and priced as audio."""
    found = read("acompletion", {"messages": [], "max_tokens": 5, "modalities": ["text", "audio"]})
    assert found.output_is_bounded
    assert found.reach.media_output
    assert not read("acompletion", {"messages": [], "modalities": ["text"]}).reach.media_output


@pytest.mark.parametrize(
    ("asked", "services"),
    [("priority", {"priority"}), ("Flex", {"flex"}), ("fast", {"fast"}), ("auto", set()), ("default", set()), ("standard_only", set()), (None, set())],
)  # fmt: skip
def test_the_tier_of_service_that_is_asked_for_is_known(asked, services):
    """A service tier that may be served counts in the worst case; `auto` is the ordinary one."""
    for body in ({"service_tier": asked}, {"extra_body": {"service_tier": asked}}):
        found = read("acompletion", {"messages": [], **body})
        assert set(found.reach.services) == services
        assert found.output_is_bounded


GEMINI = "agenerate_content"


def test_geminis_native_requests_are_bounded():
    """Contents, system instructions and functions of generateContent count by bytes, and its output limit is found."""
    body = {
        "contents": [{"role": "user", "parts": [{"text": LONG}, {"functionResponse": {"name": "f", "response": {"a": LONG}}}]}],
        "systemInstruction": {"parts": [{"text": LONG}]},
        "tools": [{"functionDeclarations": [{"name": "f", "description": LONG}]}],
        "generationConfig": {"maxOutputTokens": 77, "candidateCount": 2},
    }  # fmt: skip
    found = read(GEMINI, body)
    assert 4 * bytes_of(LONG) <= found.input_tokens <= 4 * bytes_of(LONG) + 2_000
    assert (found.asked_output, found.answers, found.output_is_bounded) == (77, 2, True)


@pytest.mark.parametrize(
    ("part", "tokens"),
    [
        ({"inlineData": {"mimeType": "image/png", "data": "AAAA"}}, PER_IMAGE),
        ({"inline_data": {"mime_type": "audio/wav", "data": SOUND}}, len(SOUND) // CHARACTERS_PER_AUDIO_TOKEN),
        ({"inlineData": {"mimeType": "application/pdf", "data": "AAAA"}}, None),
        ({"fileData": {"fileUri": "gs://x"}}, None),
        ({"text": "x", "fileData": {"fileUri": "gs://x"}}, None),
    ],
    ids=str,
)
def test_geminis_parts_are_bounded_like_others(part, tokens):
    """Images and audio in a native request are bounded; documents and files are not."""
    found = read(GEMINI, {"contents": [{"role": "user", "parts": [part]}]})
    if tokens is None:
        assert found.input_tokens is None
    else:
        assert tokens <= found.input_tokens <= tokens + 500
    assert found.reach.media_input


@pytest.mark.parametrize(
    ("body", "place"),
    [({}, "generationConfig"), ({"generationConfig": {"topK": 1}}, "generationConfig"), ({"config": {}}, "config")],
    ids=str,
)
def test_an_output_limit_is_injected_where_gemini_reads_it(body, place):
    """The limit is inserted where LiteLLM reads it, and other fields there remain."""
    before = copy.deepcopy(body)
    assert write(GEMINI, body, "maxOutputTokens", 4096)
    assert body[place] == {**before.get(place, {}), "maxOutputTokens": 4096}
    assert not write(GEMINI, {"generationConfig": "x"}, "maxOutputTokens", 4096)


@pytest.mark.parametrize("tool", [{"googleSearch": {}}, {"functionDeclarations": [], "googleSearch": {}}], ids=str)
def test_geminis_own_tools_are_not_bounded(tool):
    """A search by Gemini is billed in addition to the tokens, so it has no bound."""
    assert not read(GEMINI, {"contents": "x", "tools": [tool]}).output_is_bounded


@pytest.mark.parametrize(
    ("call_type", "body", "units"),
    [
        ("image_generation", {"prompt": "x"}, Units(images=1)),
        ("image_generation", {"prompt": "x", "n": 4}, Units(images=4)),
        ("image_generation", {"prompt": "x", "n": "4"}, Units(images=4)),
        ("image_generation", {"prompt": "x", "n": 2, "extra_body": {"n": 9}}, Units(images=9)),
        ("image_generation", {"prompt": "x", "n": "many"}, None),
        ("aspeech", {"input": "Grüße"}, Units(characters=5)),
        ("aspeech", {"input": "abc", "extra_body": {"input": "defg"}}, Units(characters=7)),
        ("aspeech", {"input": ["abc"]}, None),
        ("rerank", {"query": "q", "documents": ["a"]}, Units(queries=1)),
        ("rerank", {"query": "q", "documents": ["a"] * 101}, Units(queries=2)),
        ("rerank", {"query": "q", "documents": ["a" * 50_000]}, Units(queries=2)),
        ("acompletion", {"messages": []}, Units()),
    ],
    ids=str,
)
def test_what_is_billed_by_the_piece_is_counted(call_type, body, units):
    """Images, spoken characters and queries with their documents have a maximum count, or are marked as unknown."""
    assert read(call_type, body).reach.units == units


LARGE = {
    "one long text": {"messages": [{"role": "user", "content": "hello wor " * 500_000}]},
    "long text beyond ASCII": {"messages": [{"role": "user", "content": "Grüße 世界" * 400_000}]},
    "many messages": {"messages": [{"role": "user", "content": "x" * 980} for _ in range(5_000)]},
    "a long sound": {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA" * 1_250_000}}]}]},
    "token numbers": {"input": list(range(700_000))},
}  # fmt: skip


@pytest.mark.parametrize("body", LARGE.values(), ids=LARGE.keys())
def test_five_megabytes_do_not_stall_the_loop(body):
    """A body of 5 MB is bounded within 30 ms of CPU time, far less than parsing it takes."""
    taken = []
    for _ in range(10):
        started = time.thread_time()
        read("acompletion", body)
        taken.append(time.thread_time() - started)
    assert min(taken) < 0.03


def test_a_number_too_long_to_be_read_bounds_nothing():
    """A truncated number would be a different number, so it bounds nothing."""
    body = {"messages": [], "max_tokens": "0" * 22 + "199999"}
    assert read("acompletion", body).asked_output is None


def test_a_body_with_too_many_places_is_not_bounded():
    """Not all places of such a body are inspected, and one of them may hide a different limit."""
    nested = {name: {other: {} for other in NESTED} for name in NESTED}
    found = read("acompletion", {"messages": [], "max_tokens": 5, **nested})
    assert (found.input_tokens, found.output_is_bounded) == (None, False)
