"""`usage-plugin check`: validate the configuration without starting the proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from usage_plugin.cli.output import Output, console, escape_control
from usage_plugin.config import ProxyYaml, load_config, proxy_yaml_of
from usage_plugin.domain.amounts import format_amount
from usage_plugin.domain.clock import SystemClock
from usage_plugin.domain.windows import duration_words, to_datetime
from usage_plugin.errors import UsagePluginError
from usage_plugin.pricing.model_list import unpriced_models
from usage_plugin.proxy.config_warnings import CALLBACK, config_warnings
from usage_plugin.runtime import Parts
from usage_plugin.tracking.notifications.plugin_failures import PluginFailures

if TYPE_CHECKING:
    from pathlib import Path

    from usage_plugin.domain.limits import Limit

REMEDY_OF_UNPRICED = (
    "Give a model without a price input_cost_per_token and output_cost_per_token in its litellm_params, or list it in"
    " allow_unpriced of the limits"
)


def run(path: Path, output: Output) -> None:
    """Check a file; exit code 1 if the proxy would not start with it, or would not use the plugin.

    Warnings do not change the exit code: the proxy starts, and the valid parts of the file take effect.
    """
    facts: dict[str, Any] = {
        "config": str(path), "ok": False, "problems": [], "warnings": [], "limits": [], "plugins": [],
        "unpriced_models": [], "abilities": [],
    }  # fmt: skip
    try:
        config = load_config(path)
        parts = Parts(config)
        parts.pseudonyms()  # a missing or damaged secret stops the start
        parts.resolvers(PluginFailures(SystemClock()))
        facts["plugins"] = [found.name for found in parts.plugins.brought]
        facts["abilities"] = parts.store_abilities
        limits = config.limit_set().limits
        facts["limits"] = [limit.name for limit in limits]
        proxy_yaml = ProxyYaml(proxy_yaml_of(path))
        facts["unpriced_models"] = unpriced_models(proxy_yaml.value("model_list"))
        facts["warnings"] = [str(warning) for warning in config_warnings(config, proxy_yaml)] + parts.probable_mistakes
        facts["problems"] = _wiring(ProxyYaml(path))
    except UsagePluginError as error:
        facts["problems"] = [str(error)]
        limits = ()
    facts["ok"] = not facts["problems"]
    if output.is_table:
        _show(facts, limits)
    else:
        output.document(facts, [facts])
    if not facts["ok"]:
        raise click.exceptions.Exit(1)


def _wiring(proxy_yaml: ProxyYaml) -> list[str]:
    """Return problems of the callback list: the plugin is missing from a proxy's YAML, or listed twice."""
    if proxy_yaml.value("model_list") is None:
        return []
    settings = proxy_yaml.value("litellm_settings")
    callbacks = settings.get("callbacks") if isinstance(settings, dict) else None
    count = callbacks.count(CALLBACK) if isinstance(callbacks, list) else int(callbacks == CALLBACK)
    if count == 0:
        return [f'litellm_settings.callbacks does not name the plugin; write callbacks: ["{CALLBACK}"]']
    if count > 1:
        return [f"litellm_settings.callbacks names {CALLBACK} {count} times; write it once"]
    return []


def _show(facts: dict[str, Any], limits: tuple[Limit, ...]) -> None:
    screen = console()
    for problem in facts["problems"]:
        screen.print(Text(problem, style="red"))
    if facts["ok"]:
        screen.print(Text(f"{facts['config']} is fine.", style="green"))
    for limit in limits:
        screen.print(Text(f"  {_describe(limit)}"))
    if facts["plugins"]:
        screen.print(Text(f"Plugins: {', '.join(facts['plugins'])}."))
    if facts["plugins"] and facts["ok"]:
        screen.print(Text(f"Abilities of the store: {', '.join(facts['abilities']) or 'none'}."))
    for warning in facts["warnings"]:
        screen.print(Text(f"Warning: {escape_control(warning)}.", style="yellow"))
    if facts["unpriced_models"]:
        screen.print(Text(f"{REMEDY_OF_UNPRICED}.", style="yellow"))
        screen.print(Text("Without a price, so refused under cost limits:", style="yellow"))
        for model in facts["unpriced_models"]:
            screen.print(Text(f"  {model}"))


def _describe(limit: Limit) -> str:
    amount = "unlimited" if limit.amount is None else format_amount(limit.unit, limit.amount)
    per = [", ".join(limit.per).replace("_", " ")] if limit.per != ("global",) else []
    scope = " and ".join([*per, *_window(limit)])
    counts = f"{amount} {limit.unit.replace('_', ' ')} {f'per {scope}' if scope else 'in all'}"
    parts = [f"{limit.name}: {counts}"]
    parts += [f"for {key} {' or '.join(globs)}" for key, globs in limit.match.conditions]
    parts += [
        f"until {to_datetime(o.until, limit.zone):%Y-%m-%d %H:%M} another amount" for o in limit.overrides if o.until
    ]
    if limit.action != "block" or limit.dry_run:
        action = f"downgrade to {limit.downgrade_to}" if limit.downgrade_to else limit.action
        parts.append("dry run" if limit.dry_run else action)
    return ", ".join(parts)


def _window(limit: Limit) -> list[str]:
    if limit.unit == "parallel_requests":
        return []
    rule = limit.window
    return [f"any {duration_words(rule.length)}" if rule.kind == "rolling" else rule.kind]
