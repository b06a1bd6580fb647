"""What agentd was told: one frozen tree, read from flags, environment, file and defaults, in that order."""

from agentd.config.load import ConfigError, Loaded, load
from agentd.config.model import Config, LogConfig, LogFormat, LogLevel, RetentionConfig, ShutdownConfig

__all__ = [
    "Config",
    "ConfigError",
    "Loaded",
    "LogConfig",
    "LogFormat",
    "LogLevel",
    "RetentionConfig",
    "ShutdownConfig",
    "load",
]
