"""Lifecycle: start the plugin in a worker of the proxy, and end it in order.

LiteLLM imports its callbacks inside the ASGI lifespan, in each worker, with the event loop running. It has no hook for
the end, so its shutdown function is wrapped. By then the server has waited for all requests. Queued log events are
settled first, then requests without a log event, then everything is written to disk.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER
from litellm.litellm_core_utils.streaming_handler import CustomStreamWrapper
from litellm.proxy import proxy_server
from litellm.proxy.auth import user_api_key_auth as authentication

import usage_plugin
from usage_plugin.config import CONFIG_VARIABLE, Config, ProxyYaml, find_config, load_config
from usage_plugin.errors import UsagePluginError
from usage_plugin.log import get_logger, short_error, show_log
from usage_plugin.pricing.model_list import unpriced_models
from usage_plugin.proxy.config_warnings import ConfigWarning, config_warnings
from usage_plugin.proxy.handler import UsageHandler_PROXY_
from usage_plugin.proxy.litellm_endpoint_patch import read_streams_of_gateways
from usage_plugin.proxy.price_book import PriceBook
from usage_plugin.proxy.request_scope import RequestScopeMiddleware, requests_here
from usage_plugin.proxy.streams import remember_streams
from usage_plugin.runtime import Runtime

FLUSH_SECONDS = 10.0
STARTING_SECONDS = 5.0
LOOKS_FOR_LOGS = 10
_LAST_STEP = "_authorize_authenticated_request"

log = get_logger()


def start() -> UsageHandler_PROXY_:
    """Start the plugin in this worker.

    Raises:
        UsagePluginError: The configuration does not work; LiteLLM then refuses to start.
    """
    show_log()
    _check_not_shadowed()
    _drop_finalizer_of_streams()
    remember_streams(requests_here)
    read_streams_of_gateways()
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise UsagePluginError(
            "usage_plugin.proxy.callback works inside the LiteLLM proxy only.",
            hint="Name it in litellm_settings.callbacks of the proxy's YAML.",
        ) from None
    # A config file of our own overrides the one that LiteLLM was started with.
    path = find_config(None if os.environ.get(CONFIG_VARIABLE) else proxy_server.user_config_file_path)
    runtime = Runtime(load_config(path))
    handler = UsageHandler_PROXY_(runtime, PriceBook())
    ticking = loop.create_task(runtime.tick())
    _wrap_app(handler)
    _wrap_authentication(handler)
    _wrap_shutdown(runtime, handler, ticking)
    _announce(runtime)
    set_apart()
    # LiteLLM's start has hardly begun: later it creates as many objects as a report has rows.
    loop.call_later(STARTING_SECONDS, set_apart)
    return handler


def set_apart() -> None:
    """Exclude all current objects from later garbage collections.

    LiteLLM's modules are about 700,000 objects. Scanning them takes a third of a second in which no request moves, and
    a few reports trigger such a collection.
    """
    gc.collect()
    gc.freeze()


def _check_not_shadowed() -> None:
    """Refuse to run from a file next to the YAML that hides the package."""
    found = find_spec("usage_plugin")
    ours = Path(usage_plugin.__file__).resolve()
    if found is None or found.origin is None or Path(found.origin).resolve() != ours:
        raise UsagePluginError(f"{ours} hides the installed package usage_plugin.", hint="Rename that file or folder.")


def _drop_finalizer_of_streams() -> None:
    """Keep Python before 3.12 from crashing when it garbage-collects a stream.

    LiteLLM's streams set context variables in their finalizer, so that log lines after an abandoned stream do not carry
    its ids. Before 3.12 a collection may begin while a context variable is being set, and then reads freed memory
    (python/cpython#148891). That crashed workers, with all their requests.
    """
    if sys.version_info < (3, 12) and "__del__" in vars(CustomStreamWrapper):
        del CustomStreamWrapper.__del__


def _wrap_app(handler: UsageHandler_PROXY_) -> None:
    # `add_middleware` raises an error once the app has started; its built stack can still be wrapped.
    app = proxy_server.app
    app.middleware_stack = RequestScopeMiddleware(
        app.middleware_stack, on_start=handler.answer_begins, on_end=handler.request_ended
    )


def _wrap_authentication(handler: UsageHandler_PROXY_) -> None:
    """Pass each request to the handler once LiteLLM has authenticated it.

    Routes, WebSockets and code that authenticates by itself all call one function, which looks up another at each call.
    That other one is wrapped. FastAPI's own way, an override, would resolve all dependencies of a request again.
    """
    original = getattr(authentication, _LAST_STEP, None)
    if original is None:
        raise UsagePluginError(
            f"This version of LiteLLM does not authenticate requests as expected: {_LAST_STEP} is missing.",
            hint="Install a version of LiteLLM that the README names.",
        )

    async def authorize(user_api_key_auth_obj: Any, request: Any, request_data: Any, route: str, **rest: Any) -> Any:
        recovered = await original(
            user_api_key_auth_obj=user_api_key_auth_obj, request=request, request_data=request_data, route=route, **rest
        )
        await handler.authenticated(recovered or user_api_key_auth_obj, request, request_data, route)
        return recovered

    setattr(authentication, _LAST_STEP, authorize)


def _wrap_shutdown(runtime: Runtime, handler: UsageHandler_PROXY_, ticking: asyncio.Task[None]) -> None:
    original = proxy_server.proxy_shutdown_event

    async def shutdown(*args: Any, **kwargs: Any) -> Any:  # LiteLLM's
        ticking.cancel()
        try:
            await asyncio.wait_for(_let_logging_end(handler), FLUSH_SECONDS)
        except Exception as error:  # noqa: BLE001  # LiteLLM's queue must not keep us from writing ours
            log.warning("shutdown.queue_not_flushed", **short_error(error))
        handler.close()
        try:
            await runtime.close(FLUSH_SECONDS)
        except Exception:
            log.exception("shutdown.failed")
        return await original(*args, **kwargs)

    proxy_server.proxy_shutdown_event = shutdown


async def _let_logging_end(handler: UsageHandler_PROXY_) -> None:
    """Wait until LiteLLM's queued log events are settled; those of requests that just ended may not be queued yet."""
    for _ in range(LOOKS_FOR_LOGS):
        await GLOBAL_LOGGING_WORKER.flush()
        if not handler.has_unsettled:
            return
        await asyncio.sleep(0.1)


def _look_through(config: Config) -> tuple[list[str], list[ConfigWarning]]:
    """Return models without a price, and warnings, from the proxy's YAML, since the router does not exist yet.

    An error here never stops a proxy that LiteLLM can start.
    """
    try:
        proxy_yaml = ProxyYaml(config.path)
        named = proxy_server.user_config_file_path
        if named and "model_list" not in proxy_yaml:
            proxy_yaml = ProxyYaml(Path(named))
        return unpriced_models(proxy_yaml.value("model_list")), config_warnings(config, proxy_yaml)
    except Exception as error:  # noqa: BLE001  # LiteLLM may take what we cannot read
        log.warning("config.not_looked_through", **short_error(error))
        return [], []


def _announce(runtime: Runtime) -> None:
    """Log the active configuration in one line."""
    config = runtime.config
    unpriced, warnings = _look_through(config)
    for warning in warnings:
        log.warning("config.warning", message=warning.text, hint=warning.remedy)
    log.info(
        "usage_plugin.started",
        version=usage_plugin.__version__,
        limits=[limit.name for limit in config.limits],
        enforce=runtime.active_config.enforce,
        unpriced_models=unpriced,
        warnings=[str(warning) for warning in warnings],
        ledger=runtime.ledger.location,
        storage=config.storage.backend,
        identity=list(config.identity.user),
        plugins=[str(found) for found in runtime.plugins.brought],
        config=str(config.path),
    )
