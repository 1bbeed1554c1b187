"""The section `usage_plugin:` of the proxy's YAML, validated strictly.

`load_config` returns a `Config`, or raises a `ConfigError` that lists every mistake with its line, path, value and
remedy. `ConfigFile` detects changes of the file; `ActiveConfig` holds the configuration in force.

`field_types` parses single values; `limit_config` and `sections` define the keys, `deprecated_keys` their old names.
`yaml_text` parses YAML. `proxy_yaml` merges included files as LiteLLM does. `loader` finds and loads the section.
Of LiteLLM, this package knows only the environment variable of its file, and its way of merging.
"""

from usage_plugin.config.active_config import ActiveConfig
from usage_plugin.config.limit_config import LimitConfig
from usage_plugin.config.loader import (
    CONFIG_VARIABLE,
    DATA_DIR_VARIABLE,
    ENFORCE_VARIABLE,
    SECTION,
    ConfigFile,
    config_of,
    find_config,
    load_config,
    proxy_yaml_of,
    read_proxy_section,
    with_limits,
)
from usage_plugin.config.proxy_yaml import ProxyYaml
from usage_plugin.config.sections import (
    RESOLVER,
    AdmissionConfig,
    CacheConfig,
    Config,
    IdentityConfig,
    PluginConfig,
    PrivacyConfig,
    RetentionConfig,
    StorageConfig,
)

__all__ = [
    "CONFIG_VARIABLE",
    "DATA_DIR_VARIABLE",
    "ENFORCE_VARIABLE",
    "RESOLVER",
    "SECTION",
    "ActiveConfig",
    "AdmissionConfig",
    "CacheConfig",
    "Config",
    "ConfigFile",
    "IdentityConfig",
    "LimitConfig",
    "PluginConfig",
    "PrivacyConfig",
    "ProxyYaml",
    "RetentionConfig",
    "StorageConfig",
    "config_of",
    "find_config",
    "load_config",
    "proxy_yaml_of",
    "read_proxy_section",
    "with_limits",
]
