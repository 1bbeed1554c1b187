"""LiteLLM's metadata of a request: notes of the proxy and the router, under a key that differs by route.

On most routes the key is `metadata`. Where that is the provider's own parameter, it is `litellm_metadata`. A client may
send either, so the router's names are removed from both when a request is admitted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_KEYS = ("litellm_metadata", "metadata")
_OF_THE_ROUTER = ("model_group", "model_info", "deployment")


def metadata_in(holder: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the metadata in a body or in a call's arguments, under either key."""
    for key in _KEYS:
        found = holder.get(key)
        if isinstance(found, dict):
            yield found


def proxy_metadata(data: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata of a body that stays in the proxy; it is added if it does not exist."""
    key = _KEYS[0] if _KEYS[0] in data else _KEYS[1]
    if not isinstance(data.get(key), dict):
        data[key] = {}
    found: dict[str, Any] = data[key]
    return found


def model_group(kwargs: Mapping[str, Any]) -> object:
    """Return the router's `model_name` for a call; None if the router did not choose it."""
    return next((found["model_group"] for found in metadata_in(kwargs) if found.get("model_group")), None)


def chosen_deployment(kwargs: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the id of the deployment that the router chose, and its `model_name`; None for each that is unknown."""
    for found in metadata_in(kwargs):
        info = found.get("model_info")
        if isinstance(info, dict) and isinstance(info.get("id"), str):
            group = found.get("model_group")
            return info["id"], group if isinstance(group, str) else None
    info = kwargs.get("model_info")
    if isinstance(info, dict) and isinstance(info.get("id"), str):
        return info["id"], None
    return None, None


def remove_names_of_router(data: Mapping[str, Any]) -> None:
    """Remove the keys that only the router may write: on some routes a client's values would set the price."""
    for found in metadata_in(data):
        for name in _OF_THE_ROUTER:
            found.pop(name, None)
