"""The `usage_plugin:` section of the proxy's YAML, read strictly.

`load_config` reads the section and gives a `Config`, or raises a `ConfigError` that lists every mistake with its line,
its path, the value found and the remedy; `ConfigFile` notices when the file changes. Inside, `values` knows how one
value is written, `limits` and `sections` which keys there are, `yaml_text` what YAML makes of a text, `proxy_yaml` what
LiteLLM makes of a file and those that it includes, and `file` where the section stands. Knows nothing of LiteLLM beyond
the place where it is told its own file and how it merges.
"""

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
