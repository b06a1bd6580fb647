"""What agentd was told: one frozen tree, read from flags, environment, file and defaults, in that order."""

from agentd.config.load import ConfigError, Loaded, load
from agentd.config.model import Config, DrainConfig, LogConfig, LogFormat, LogLevel, RetentionConfig

__all__ = [
    "Config",
    "ConfigError",
    "DrainConfig",
    "Loaded",
    "LogConfig",
    "LogFormat",
    "LogLevel",
    "RetentionConfig",
    "load",
]
