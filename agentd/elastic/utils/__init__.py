"""Small parts that several rooms of the elastic library share, and helpers under torch's names."""

from agentd.elastic.utils.api import get_env_variable_or_raise, get_socket_with_port, macros

__all__ = ["get_env_variable_or_raise", "get_socket_with_port", "macros"]
