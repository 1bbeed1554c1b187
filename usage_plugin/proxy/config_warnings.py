"""Warnings about a valid configuration: rules without effect, and callbacks that run after ours.

`usage-plugin check`, `doctor` and the first line of the log report the same ones. This module does not import LiteLLM.
"""

from __future__ import annotations

import ast
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from usage_plugin.config.proxy_yaml import text_of
from usage_plugin.config.yaml_text import FROM_ENVIRONMENT
from usage_plugin.domain.globs import fits
from usage_plugin.errors import ConfigError
from usage_plugin.proxy.served_names import ServedNames

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from usage_plugin.config import Config, LimitConfig, ProxyYaml
    from usage_plugin.domain.limits import Match

CALLBACK = "usage_plugin.proxy.callback"

CHANGING_CALLBACKS = frozenset(
    {
        "anthropic_cache_control_hook", "batch_redis_requests", "bitbucket", "code_interpreter_interception",
        "compression_interception", "dotprompt", "gitlab", "hide_secrets", "humanloop", "litellm_agent", "presidio",
        "vector_store_pre_call_hook", "websearch_interception",
    }
)  # fmt: skip
"""LiteLLM's callbacks that can change a request's model, text or tools. The others only refuse or observe."""

_CHANGING_HOOKS = frozenset(
    {
        "async_pre_call_hook", "async_pre_call_deployment_hook", "async_pre_request_hook",
        "async_get_chat_completion_prompt", "get_chat_completion_prompt", "async_pre_routing_hook",
        "async_moderation_hook",
    }
)  # fmt: skip
_PLAIN_BASES = frozenset({"CustomLogger", "object", "ABC", "Protocol", "NamedTuple", "Enum", "BaseModel"})


class ConfigWarning(NamedTuple):
    """A setting that does not work as it reads.

    Attributes:
        text: The problem; with `remedy` it makes one line.
    """

    text: str
    remedy: str

    def __str__(self) -> str:
        """Return the warning as one line."""
        return f"{self.text}; {self.remedy}"


def config_warnings(config: Config, proxy_yaml: ProxyYaml) -> list[ConfigWarning]:
    """Return all warnings.

    Args:
        config: The plugin's section.
        proxy_yaml: The proxy's YAML, which may be another file.
    """
    served = ServedNames(proxy_yaml)
    found = [ConfigWarning(*deprecation) for deprecation in config.deprecations]
    found += _unset_models(proxy_yaml)
    if served.is_complete:
        found += _Effect(config, served).warnings()
    found += _split_history(config)
    found += _empty_groups(config)
    found += _later_callbacks(proxy_yaml)
    return found


_OF_HOSTS = ("postgres", "valkey")
_OF_ONE_HOST = ("sqlite", "partitioned", "hybrid", "memory")


def _split_history(config: Config) -> Iterator[ConfigWarning]:
    """Find a store on one host under a ledger that hosts share: each keeper writes to the store of its own host."""
    ledger, storage = config.ledger.backend, config.storage.backend
    if ledger in _OF_HOSTS and storage in _OF_ONE_HOST:
        yield ConfigWarning(
            f"usage_plugin.storage.backend: hosts share the ledger {ledger}, but the history is in files of one host"
            f" ({storage}), that of the present keeper",
            "with more than one host use storage: {backend: postgres}, or objects",
        )


class _Effect:
    """Finds names and globs that match nothing in the configuration."""

    def __init__(self, config: Config, served: ServedNames) -> None:
        self._config = config
        self._served = served
        self._known: dict[tuple[object, ...], bool] = {}

    def warnings(self) -> Iterator[ConfigWarning]:
        for limit in self._config.limits:
            yield from self._of_limit(limit)
        for glob in self._config.admission.max_output_tokens:
            if not self._bills(glob):
                yield ConfigWarning(
                    f'admission.max_output_tokens: no model_name fits "{glob}"', self._served.remedy(glob)
                )

    @cached_property
    def _providers(self) -> frozenset[str] | None:
        return self._served.providers()

    def _of_limit(self, limit: LimitConfig) -> Iterator[ConfigWarning]:
        where = f"limit {limit.name}"
        can_apply = True
        for warning in self._of_match(where, limit.match, "the limit"):
            can_apply = False
            yield warning
        outer = dict(limit.match.conditions).get("model") if can_apply else None
        for at, override in enumerate(limit.overrides):
            yield from self._of_match(f"{where}, override {at + 1}", override.match, "the override", outer)
        if limit.downgrade_to is not None and not self._served.serves(limit.downgrade_to):
            yield ConfigWarning(
                f'{where}: no model_name fits downgrade_to "{limit.downgrade_to}", so a downgraded request fails',
                self._served.remedy_of_model(limit.downgrade_to),
            )
        for glob in limit.allow_unpriced:
            if not self._bills(glob):
                yield ConfigWarning(f'{where}: no model_name fits allow_unpriced "{glob}"', self._served.remedy(glob))

    def _of_match(
        self, where: str, match: Match, what: str, outer: tuple[str, ...] | None = None
    ) -> Iterator[ConfigWarning]:
        for key, globs in match.conditions:
            if key == "model":
                yield from self._of_models(where, globs, what, outer)
            elif key == "provider" and (providers := self._providers) is not None:
                fitting = [glob for glob in globs if any(fits((glob,), name) for name in providers)]
                for glob in globs if not fitting else ():
                    yield ConfigWarning(
                        f'{where}: no model of model_list has a provider that fits "{glob}", so {what} never applies',
                        f"the providers are {', '.join(sorted(providers))}",
                    )

    def _of_models(
        self, where: str, globs: tuple[str, ...], what: str, outer: tuple[str, ...] | None
    ) -> Iterator[ConfigWarning]:
        fitting = [glob for glob in globs if self._bills(glob)]
        so = f", so {what} never applies" if not fitting else ""
        for glob in globs:
            if glob not in fitting:
                yield ConfigWarning(f'{where}: no model_name fits match.model "{glob}"{so}', self._served.remedy(glob))
        if fitting and outer and not any(self._bills(glob, outer) for glob in fitting):
            yield ConfigWarning(
                f'{where}: no model_name fits both its match.model "{fitting[0]}" and the limit\'s, so {what} never'
                " applies",
                "move it to a limit that counts this model",
            )

    def _bills(self, glob: str, *others: tuple[str, ...]) -> bool:
        key = (glob, *others)
        if key not in self._known:
            self._known[key] = self._served.bills(glob, *others)
        return self._known[key]


def _empty_groups(config: Config) -> Iterator[ConfigWarning]:
    if config.identity.groups_from:
        return  # a resolver may return members
    for limit in config.limits:
        matches = [("limit", limit.match), *[("override of limit", override.match) for override in limit.overrides]]
        for what, match in matches:
            named = dict(match.conditions).get("group")
            if named and not any(config.groups.get(name) for name in named):
                yield ConfigWarning(
                    f"{what} {limit.name}: group {' or '.join(named)} has no members, so it never applies",
                    "name its members under groups",
                )


def _unset_models(proxy_yaml: ProxyYaml) -> Iterator[ConfigWarning]:
    """Yield models that LiteLLM would read from an environment variable that is not set here."""
    written, resolved = proxy_yaml.value("model_list", resolved=False), proxy_yaml.value("model_list")
    for before, after in zip(_list(written), _list(resolved), strict=True):
        model = _parameters(before).get("model")
        if isinstance(model, str) and model.startswith(FROM_ENVIRONMENT) and not _parameters(after).get("model"):
            yield ConfigWarning(
                f"model {before.get('model_name')}: {model} is not set here, so its price is not known",
                f"set {model.removeprefix(FROM_ENVIRONMENT)} as it is for the proxy",
            )


def _later_callbacks(proxy_yaml: ProxyYaml) -> Iterator[ConfigWarning]:
    settings = proxy_yaml.value("litellm_settings")
    listed = settings.get("callbacks") if isinstance(settings, dict) else None
    if not isinstance(listed, list) or CALLBACK not in listed:
        return
    for name in listed[listed.index(CALLBACK) + 1 :]:
        if isinstance(name, str) and name != CALLBACK and may_change_requests(name, proxy_yaml.path.parent):
            yield ConfigWarning(
                f"litellm_settings.callbacks: {name} comes after {CALLBACK}, so it can change a request's model or text"
                " after its cost was held",
                f"list {CALLBACK} last",
            )


def may_change_requests(name: str, folder: Path) -> bool:
    """Whether a callback can change a request; the source of a custom one is read, next to the YAML."""
    if "." not in name:
        return name in CHANGING_CALLBACKS
    source = folder.joinpath(*name.split(".")[:-1]).with_suffix(".py")
    try:
        tree = ast.parse(text_of(source))
    except (ConfigError, SyntaxError, ValueError, RecursionError, MemoryError):
        return True
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    bases = {_last_name(base) for node in classes for base in node.bases} - {node.name for node in classes}
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef)}
    return not classes or bool(defined & _CHANGING_HOOKS) or not bases <= _PLAIN_BASES


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _parameters(entry: Any) -> Mapping[str, Any]:
    found = entry.get("litellm_params") if isinstance(entry, dict) else None
    return found if isinstance(found, dict) else {}


def _list(value: object) -> Iterable[Any]:
    return value if isinstance(value, list) else ()
