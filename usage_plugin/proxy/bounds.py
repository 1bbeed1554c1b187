"""Bounds: the maximum use of a request, and everything that it may be billed for, from its body alone.

The input is bounded by its bytes (`input_bounds`), the output by the limit in the body. References to content outside
the body are not bounded: the caller then uses the model's whole context. Anything else without a bound gives None.

A body is walked once. Only the fields present are read, not all known ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.domain.prices import ONLY_TEXT, PriceExposure, Units
from usage_plugin.domain.usage import MOST_TOKENS
from usage_plugin.pricing.sheets import SERVICES, route_of
from usage_plugin.proxy.body_fields import (
    ANSWERS_FIELDS,
    JUDGED,
    KNOWN,
    KNOWN_BY_PROVIDERS,
    MODALITIES,
    MOST_PLACES,
    NESTED,
    OUTPUT_FIELDS,
    PLAIN,
    PROVIDER_RUN,
    holder_of,
    places_of,
    whole,
)
from usage_plugin.proxy.client_tools import is_client_tool, listed
from usage_plugin.proxy.input_bounds import Media, are_tokens, input_tokens, text_size, tokens_of_messages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MOST_ANSWERS = 100_000
MOST_COUNT = 2**31 - 1
_ORDINARY_SERVICES = ("", "auto", "default", "standard", "standard_only")
_ALONE = {field: frozenset({field}) for field in OUTPUT_FIELDS}
_WITHOUT_PROMPT = ("aresponses", "anthropic_messages")
_FILES_APART = ("transcription", "atranscription", "image_edit", "aimage_edit")
"""Call types whose audio or images are outside the body that hooks see."""
_SPEEDS = ("fast",)
"""Anthropic's modes that multiply the price of tokens; models without such a price do not have them."""
_RERANK_UNIT = 100
_RERANK_BYTES = 500
"""Cohere's unit is a query with up to 100 documents. A document above 500 tokens, the query's included, counts as
several.
"""


class Bounds(NamedTuple):
    """The bounds that a request's body sets.

    Attributes:
        input_tokens: The maximum input; None if the body refers to content outside it.
        output_is_bounded: Whether the request's output limit bounds the billed amount.
        asked_output: The requested maximum output of each answer; None without a valid number.
        answers: The number of answers requested; the output limit applies to each.
        reach: Everything other than text that the request may be billed for.
        named: The fields with a valid output limit, in the place where the route reads it.
        largest_output: The largest valid output limit in any place; 0 if there is none.
        predicted: The tokens that the client predicts; those that the provider rejects are billed too.
        models: Other models that the provider itself may choose.
        unknown: The fields of unknown cost.
    """

    input_tokens: int | None
    output_is_bounded: bool
    asked_output: int | None
    answers: int
    reach: PriceExposure
    named: frozenset[str] = frozenset()
    largest_output: int = 0
    predicted: int = 0
    models: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def read(call_type: str, body: Mapping[str, Any], *, trusted: bool = False) -> Bounds:
    """Read a body, once.

    Unknown fields of a trusted body are the operator's or LiteLLM's, and cost nothing extra.
    """
    if body.keys() <= PLAIN and route_of(call_type) == "text":
        return _of_messages(body)
    if trusted:
        body = {name: value for name, value in body.items() if name in KNOWN}
    places = places_of(body)
    count = _answers(body, places)
    media = Media()
    tokens = None if call_type in _FILES_APART or route_of(call_type) == "other" else input_tokens(body, places, media)
    services = _services(places)
    sounds = [_media_output(place) for place in places]
    asked, largest = _asked_output(body, places)
    unknown = () if trusted or route_of(call_type) != "text" else _unknown(body, places)
    models = _models(places)
    return Bounds(
        input_tokens=tokens,
        output_is_bounded=count <= MOST_ANSWERS
        and len(places) <= MOST_PLACES
        and services is not None
        and None not in sounds
        and not unknown
        and models is not None
        and not _is_stored(call_type, body.get("prompt"))
        and all(map(_output_is_bounded, places)),
        asked_output=asked,
        answers=count,
        named=_named(holder_of(call_type, body)),
        largest_output=largest,
        predicted=sum([text_size(place["prediction"]) for place in places if "prediction" in place]),
        models=models or (),
        unknown=unknown,
        reach=PriceExposure(
            media_input=media.any or tokens is None,
            media_output=any(sounds),
            services=services or (),
            units=_units(call_type, places, count),
            modes=tuple(speed for speed in _SPEEDS if any(place.get("speed") == speed for place in places)),
        ),
    )


def _of_messages(body: Mapping[str, Any]) -> Bounds:
    """Read the most common kind of body: messages and an output limit, and no other field that needs a check."""
    media = Media()
    tokens = tokens_of_messages(body, media)
    reach = PriceExposure(media_input=True) if media.any or tokens is None else ONLY_TEXT
    if OUTPUT_FIELDS.isdisjoint(body):
        return Bounds(tokens, True, None, 1, reach)
    limits = OUTPUT_FIELDS & body.keys()
    if len(limits) == 1:
        (field,) = limits
        number = body[field]
        if type(number) is int and 0 < number < MOST_TOKENS:
            # The usual case.
            return Bounds(tokens, True, number, 1, reach, _ALONE[field], number)
    asked, largest = _asked_output(body, [body])
    return Bounds(tokens, True, asked, 1, reach, _named(body), largest)


def _output_is_bounded(place: Mapping[str, Any]) -> bool:
    if place.get("background") or any(place[field] is not None for field in PROVIDER_RUN & place.keys()):
        return False
    if place.get("speed") not in (None, "standard", *_SPEEDS):
        return False
    if not JUDGED.isdisjoint(place) and not (
        place.get("transforms") in _SHORTENING
        and place.get("route") in (None, "fallback")
        and place.get("usage") in (None, {}, {"include": True})
        and _only_clears(place.get("context_management"))
    ):
        return False
    return all(map(is_client_tool, listed(place.get("tools"))))


_SHORTENING: tuple[Any, ...] = (None, [], ["middle-out"])
"""OpenRouter's only transform removes text."""


def _only_clears(management: object) -> bool:
    """Whether the provider only removes earlier parts of the conversation; a summary of them would be more output."""
    if management in (None, {}, []):
        return True
    edits = management.get("edits") if isinstance(management, dict) else management
    return isinstance(edits, list) and all(
        isinstance(edit, dict) and str(edit.get("type")).startswith("clear_") for edit in edits
    )


def _is_stored(call_type: str, prompt: object) -> bool:
    """Whether a prompt refers to a stored one, which has tools and a model of its own."""
    return isinstance(prompt, dict) or (prompt is not None and call_type in _WITHOUT_PROMPT)


def _models(places: Sequence[Mapping[str, Any]]) -> tuple[str, ...] | None:
    """Return the models that the provider may choose from, as OpenRouter does; None if the list is invalid."""
    listed = [place["models"] for place in places if place.get("models")]
    if not listed:
        return ()
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in listed):
        return None
    return tuple(dict.fromkeys(name for names in listed for name in names))


def _unknown(body: Mapping[str, Any], places: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the fields that may cost extra, since their meaning is unknown."""
    found: list[str] = []
    for place in places:
        known = KNOWN if place is body else KNOWN_BY_PROVIDERS
        for name, value in place.items():
            if value is None:
                continue
            if name in known:
                if name in NESTED and not isinstance(value, dict):
                    # A value of another type hides its fields.
                    found.append(name)
            elif not str(name).startswith("_litellm_"):
                found.append(str(name))
    return tuple(sorted(found)) if found else ()


def _services(places: Sequence[Mapping[str, Any]]) -> tuple[str, ...] | None:
    """Return the service tiers other than the ordinary one, most expensive first; None if any is unknown."""
    asked = [place["service_tier"] for place in places if place.get("service_tier") is not None]
    names = [name.lower() if isinstance(name, str) else None for name in asked]
    if any(name not in _ORDINARY_SERVICES and name not in SERVICES for name in names):
        return None
    return tuple(name for name in reversed(SERVICES) if name in names)


def _media_output(place: Mapping[str, Any]) -> bool | None:
    """Whether the answer may contain audio; None if it may contain a kind that no output limit bounds."""
    kinds = [
        str(kind).lower()
        for field in MODALITIES & place.keys()
        if isinstance(place[field], list)
        for kind in place[field]
    ]
    return None if set(kinds) - {"text", "audio"} else "audio" in kinds


def _units(call_type: str, places: Sequence[Mapping[str, Any]], answers: int) -> Units | None:
    """Return the maximum units that may be billed by the piece; None if unknown."""
    route = route_of(call_type)
    if route == "image":
        return Units(images=answers) if answers <= MOST_ANSWERS else None
    if route == "speech":
        texts = [place["input"] for place in places if place.get("input") is not None]
        return Units(characters=sum(map(len, texts))) if all(isinstance(text, str) for text in texts) else None
    if route == "transcription":
        # Hooks do not see the audio.
        return None
    if route == "rerank":
        try:
            return Units(queries=sum(map(_queries, places)))
        except RecursionError:
            return None
    return Units()


def _queries(place: Mapping[str, Any]) -> int:
    documents = place.get("documents")
    if not isinstance(documents, list):
        return 0
    room = max(_RERANK_BYTES // 5, _RERANK_BYTES - text_size(place.get("query")))
    pieces = sum(1 + text_size(document) // room for document in documents)
    return max(1, -(-pieces // _RERANK_UNIT))


def _asked_output(body: Mapping[str, Any], places: list[Any]) -> tuple[int | None, int]:
    """Find the output limit. Text and floats count too, and the largest of several counts.

    Returns:
        The limit, None if there is none or any is invalid; and the largest valid number.
    """
    asked = [
        place[field]
        for place in places
        for field in OUTPUT_FIELDS & place.keys()
        # In the body itself, null means absent. In an object merged over it, null removes the body's value.
        if not (place is body and place[field] is None)
    ]
    numbers = [whole(value) for value in asked]
    largest = min(MOST_TOKENS, max(filter(None, numbers), default=0))
    return (None if not numbers or None in numbers or 0 in numbers else largest), largest


_NOTHING: frozenset[str] = frozenset()


def _named(holder: Mapping[str, Any]) -> frozenset[str]:
    named = [field for field in OUTPUT_FIELDS & holder.keys() if whole(holder[field])]
    return frozenset(named) if named else _NOTHING


def _answers(body: Mapping[str, Any], places: list[Any]) -> int:
    given = [
        value for place in places for field in ANSWERS_FIELDS & place.keys() if (value := place[field]) is not None
    ]
    # A value that is not a whole number may still be valid for a provider, so the number of answers is unknown.
    counts = [1, *(MOST_COUNT if (count := whole(value)) is None else max(1, count) for value in given)]
    prompts = body.get("prompt")
    several = len(prompts) if isinstance(prompts, list) and not are_tokens(prompts) else 1
    return min(MOST_COUNT, max(counts) * max(1, several))
