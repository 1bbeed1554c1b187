"""Wiring checks, from files alone: LiteLLM finds the plugin once, and no setting silences it."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import usage_plugin
from usage_plugin.cli.doctor.findings import Finding, ok, problem, warning
from usage_plugin.config import CONFIG_VARIABLE, ENFORCE_VARIABLE, Config, ProxyYaml, proxy_yaml_of
from usage_plugin.config.proxy_yaml import text_of
from usage_plugin.errors import ConfigError
from usage_plugin.pricing.model_list import unpriced_models
from usage_plugin.proxy.config_warnings import CALLBACK, config_warnings

if TYPE_CHECKING:
    from collections.abc import Iterator

_PACKAGE = "usage_plugin"
_HANDLER = "UsageHandler_PROXY_"
_OWN_HOOKS = ("async_pre_call_hook", "async_log_success_event", "async_post_call_failure_hook")
_OTHER_LISTS = ("success_callback", "failure_callback", "service_callback", "input_callback", "audit_log_callbacks")
_LITELLM_CONFIG = "CONFIG_FILE_PATH"


def check_wiring(config: Config) -> Iterator[Finding]:
    """Check the path from the YAML to the plugin."""
    path = proxy_yaml_of(config.path)
    proxy_yaml = ProxyYaml(path)
    yield from _our_section(config)
    if proxy_yaml.value("model_list") is None:
        yield warning(
            "wiring",
            f"{path} is not the proxy's YAML, so its callbacks cannot be checked.",
            f"Name the proxy's YAML with {_LITELLM_CONFIG}=FILE.",
        )
        return
    found = proxy_yaml.value("litellm_settings")
    settings = found if isinstance(found, dict) else {}
    yield from callbacks(settings)
    yield from _shadows(path)
    yield from _subclasses(path, settings)
    yield from _check_no_log(settings)
    yield from _settings_that_break(settings)
    for warned in config_warnings(config, proxy_yaml):
        yield warning(
            "wiring", f"{warned.text[:1].upper()}{warned.text[1:]}.", f"{warned.remedy[:1].upper()}{warned.remedy[1:]}."
        )
    unpriced = unpriced_models(proxy_yaml.value("model_list"))
    if unpriced and any(limit.max_cost is not None for limit in config.limits):
        yield warning(
            "wiring",
            f"Without a price, so refused under cost limits: {', '.join(unpriced)}.",
            "Give them input_cost_per_token and output_cost_per_token, or list them in allow_unpriced.",
        )


def is_enforced() -> bool:
    """Whether a proxy with this environment enforces limits."""
    return os.environ.get(ENFORCE_VARIABLE, "on").strip().lower() not in ("off", "0", "false", "no")


def callbacks(settings: dict[str, Any]) -> Iterator[Finding]:
    """Check that the list of callbacks names the plugin once, and no other list does."""
    listed = settings.get("callbacks")
    count = listed.count(CALLBACK) if isinstance(listed, list) else int(listed == CALLBACK)
    if count == 0:
        yield problem(
            "wiring", "litellm_settings.callbacks does not name the plugin.", f'Add it: callbacks: ["{CALLBACK}"].'
        )
    elif count > 1:
        yield problem("wiring", f"litellm_settings.callbacks names {CALLBACK} {count} times.", "List it once.")
    else:
        yield ok("wiring", f"litellm_settings.callbacks names {CALLBACK} once.")
    for name in _OTHER_LISTS:
        other = settings.get(name)
        if CALLBACK in (other if isinstance(other, list) else [other]):
            yield problem(
                "wiring",
                f"litellm_settings.{name} names {CALLBACK}, but LiteLLM calls none of its hooks from there.",
                "List it in litellm_settings.callbacks only.",
            )


def _our_section(config: Config) -> Iterator[Finding]:
    names = ", ".join(limit.name for limit in config.limits)
    yield ok("wiring", f"{config.path} is valid; limits: {names or 'none, so no request is refused'}.")
    if not is_enforced():
        yield warning(
            "wiring",
            f"{ENFORCE_VARIABLE} is off in this environment: no request is refused.",
            f"Unset {ENFORCE_VARIABLE}.",
        )
    if own := os.environ.get(CONFIG_VARIABLE):
        yield ok("wiring", f"{CONFIG_VARIABLE} names {own}, which the proxy reads instead of its YAML.")


def _shadows(path: Path) -> Iterator[Finding]:
    """Detect files that LiteLLM or Python would load instead of the package."""
    ours = Path(usage_plugin.__file__).resolve().parent
    exact = path.parent / _PACKAGE / "proxy.py"
    if exact.is_file():
        # LiteLLM looks for a callback's module in the folder of the YAML before it imports the package.
        yield problem("wiring", f"LiteLLM would load {exact} instead of the plugin.", "Rename that folder.")
        return
    for folder in dict.fromkeys((path.parent.resolve(), Path.cwd().resolve())):
        for found in (folder / f"{_PACKAGE}.py", folder / _PACKAGE):
            if found.exists() and found != ours:
                yield warning(
                    "wiring",
                    f"{found} hides the installed package from a proxy that is started in that folder with python -m.",
                    f"Rename {found}.",
                )
                return
    yield ok("wiring", f"No file next to the YAML hides the package {ours}.")


def _subclasses(path: Path, settings: dict[str, Any]) -> Iterator[Finding]:
    """Check the user's own callbacks next to the YAML: our handler can be neither subclassed nor wrapped."""
    listed = settings.get("callbacks")
    for name in listed if isinstance(listed, list) else [listed]:
        if not isinstance(name, str) or name == CALLBACK or "." not in name:
            continue
        source = path.parent.joinpath(*name.split(".")[:-1]).with_suffix(".py")
        if not source.is_file():
            continue
        try:
            tree = ast.parse(text_of(source))
        except (ConfigError, SyntaxError, ValueError) as error:
            yield problem("wiring", f"The callback {name} cannot be loaded: {error}.", f"Fix {source}.")
            continue
        yield from _uses_of_ours(tree, name, source)


def _uses_of_ours(tree: ast.Module, name: str, source: Path) -> Iterator[Finding]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any(_last_name(base) == _HANDLER for base in node.bases):
            yield problem(
                "wiring",
                f"{node.name} in {source} subclasses {_HANDLER}; LiteLLM never calls the inherited hooks.",
                f"List {CALLBACK} itself, and your own callback next to it.",
            )
        elif isinstance(node, ast.ImportFrom) and node.module == "usage_plugin.proxy":
            yield problem(
                "wiring",
                f"The callback {name} imports the plugin's callback from usage_plugin.proxy, which registers it again.",
                f"List {CALLBACK} itself, once.",
            )


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _check_no_log(settings: dict[str, Any]) -> Iterator[Finding]:
    """Check that a client cannot silence the callback: LiteLLM exempts classes with _PROXY_ in their names."""
    source = Path(usage_plugin.__file__).parent / "proxy" / "handler.py"
    classes = [node for node in ast.parse(source.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    handler = next((node for node in classes if "_PROXY_" in node.name), None)
    if handler is None and not settings.get("global_disable_no_log_param"):
        yield problem(
            "wiring",
            'A client\'s "no-log": true silences the plugin.',
            "Set litellm_settings.global_disable_no_log_param: true.",
        )
        return
    yield ok("wiring", 'A client\'s "no-log": true does not silence the plugin.')
    defined = {node.name for node in ast.walk(handler or classes[0]) if isinstance(node, ast.AsyncFunctionDef)}
    missing = [hook for hook in _OWN_HOOKS if hook not in defined]
    if missing:
        yield problem("wiring", f"The installed handler lacks {', '.join(missing)}.", "Install usage-plugin again.")


def _settings_that_break(settings: dict[str, Any]) -> Iterator[Finding]:
    if settings.get("disable_streaming_logging"):
        yield warning(
            "wiring",
            "With litellm_settings.disable_streaming_logging, the plugin does not see the end of a stream that the"
            " client aborts. It charges such a stream as reserved, a minute later.",
            "Remove the setting.",
        )
    parameters = settings.get("cache_params")
    mode = parameters.get("mode") if isinstance(parameters, dict) else None
    if settings.get("cache") and mode != "default_off":
        yield warning(
            "wiring",
            "LiteLLM's cache is enabled: an answer that one user paid for is returned to others at no cost, and counts"
            " as a request without tokens.",
            "To use the cache only for requests that ask for it, set cache_params.mode: default_off.",
        )
