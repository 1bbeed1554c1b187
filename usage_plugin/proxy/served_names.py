"""The names under which a proxy's YAML allows requests to be billed: model names, team models, wildcards, providers.

This module does not import LiteLLM, so that the command line starts fast.
"""

from __future__ import annotations

import difflib
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.domain.globs import fits, meet
from usage_plugin.pricing.price_map import map_entry, shipped_price_map

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from usage_plugin.config import ProxyYaml

_LIKENESS = 0.5


class _Entry(NamedTuple):
    """One deployment of the YAML: its names for clients, and the provider's model."""

    names: tuple[str, ...]
    served: str
    custom_provider: str | None
    deployment_id: str | None


class ServedNames:
    """The names that the `model_list` of a YAML serves.

    Attributes:
        is_complete: Whether no other model can be served; models may also come from LiteLLM's database.
    """

    def __init__(self, proxy_yaml: ProxyYaml) -> None:
        """Read the YAML."""
        listed = proxy_yaml.value("model_list")
        self._entries = [found for entry in _list(listed) if (found := _entry(entry)) is not None]
        names = dict.fromkeys(name for entry in self._entries for name in entry.names)
        self._names = [name for name in names if "*" not in name]
        self._known = frozenset(self._names)
        self._wildcards = [name for name in names if "*" in name]
        self._aliases = _aliases(_mapping(proxy_yaml.value("router_settings")).get("model_group_alias"))
        self.is_complete = bool(self._entries) and not _serves_more(proxy_yaml)

    def bills(self, glob: str, *others: Sequence[str]) -> bool:
        """Whether a request can be billed under a name that matches `glob`, and one glob of each other condition."""
        globs = [(glob,), *map(tuple, others)]
        if any(all(fits(one, name) for one in globs) for name in self._names):
            return True
        return any(meet(combined, wildcard) for wildcard in self._wildcards for combined in _combinations(globs))

    def serves(self, model: str) -> bool:
        """Whether LiteLLM can route a request for this model: by a name, an alias, an id or the provider's name."""
        if model in self._known or model in self._aliases:
            return True
        if any(model in (entry.served, entry.deployment_id) for entry in self._entries):
            return True
        return any(_fits_wildcard(model, wildcard) for wildcard in self._wildcards)

    def remedy(self, glob: str) -> str:
        """Return the replacement to suggest for a glob that matches no name."""
        targets = [target for alias, target in self._aliases.items() if fits((glob,), alias)]
        if targets:
            return f"it is an alias; requests are billed as {_quoted(targets)}: write that"
        served = [
            name
            for entry in self._entries
            if fits((glob,), entry.served) or fits((glob,), entry.served.rpartition("/")[2])
            for name in entry.names
        ]
        if served:
            return f"it fits the provider's model of {_quoted(served)}: write that model_name"
        return self._nearest(glob)

    def remedy_of_model(self, model: str) -> str:
        """Return the replacement to suggest for a model that is not served."""
        return self._nearest(model)

    def _nearest(self, name: str) -> str:
        everything = [*self._names, *self._wildcards]
        close = difflib.get_close_matches(name.replace("*", ""), everything, n=1, cutoff=_LIKENESS)
        if close:
            return f'did you mean "{close[0]}"?'
        return f"the model names are {_quoted(everything)}"

    def providers(self) -> frozenset[str] | None:
        """Return every provider that may get a request; None if the list may be incomplete."""
        price_map = shipped_price_map()
        found: set[str] = set()
        for entry in self._entries:
            if entry.custom_provider:
                found.add(entry.custom_provider)
                continue
            prefix, slash, _ = entry.served.partition("/")
            mapped = str(map_entry(price_map, entry.served).get("litellm_provider") or "")
            if "*" in prefix or not (slash or mapped):
                return None
            for name in filter(None, (prefix if slash else "", mapped)):
                found |= {name, name.partition("_converse")[0], name.partition("-")[0]}
        return frozenset(found)


def _entry(entry: object) -> _Entry | None:
    if not isinstance(entry, dict) or not isinstance(name := entry.get("model_name"), str):
        return None
    parameters, info = _mapping(entry.get("litellm_params")), _mapping(entry.get("model_info"))
    names = [name]
    if info.get("team_id") is not None and isinstance(public := info.get("team_public_model_name"), str):
        names.append(public)
    provider = {**parameters, **info}.get("custom_llm_provider")
    deployment_id = info.get("id")
    return _Entry(
        tuple(names),
        str(parameters.get("model") or ""),
        provider if isinstance(provider, str) else None,
        deployment_id if isinstance(deployment_id, str) else None,
    )


def _aliases(found: object) -> dict[str, str]:
    """Map each alias to its model_name."""
    targets = {
        str(alias): target.get("model") if isinstance(target, dict) else target
        for alias, target in _mapping(found).items()
    }
    return {alias: target for alias, target in targets.items() if isinstance(target, str)}


def _serves_more(proxy_yaml: ProxyYaml) -> bool:
    """Whether LiteLLM may serve models that the YAML does not list."""
    general = _mapping(proxy_yaml.value("general_settings"))
    router = _mapping(_mapping(proxy_yaml.value("router_settings")).get("router_general_settings"))
    in_database = str(general.get("store_model_in_db", os.environ.get("STORE_MODEL_IN_DB", ""))).lower() == "true"
    return in_database or bool(router.get("pass_through_all_models"))


def _combinations(globs: Sequence[Sequence[str]]) -> Iterable[tuple[str, ...]]:
    """Return all combinations of one glob for each condition."""
    combined: list[tuple[str, ...]] = [()]
    for one in globs:
        combined = [(*before, glob) for before in combined for glob in one]
    return combined


def _fits_wildcard(model: str, wildcard: str) -> bool:
    return fits((wildcard.replace("[", "[[]").replace("?", "[?]"),), model)


def _quoted(names: Iterable[str]) -> str:
    shown = list(dict.fromkeys(names))
    more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
    return ", ".join(f'"{name}"' for name in shown[:5]) + more


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()
