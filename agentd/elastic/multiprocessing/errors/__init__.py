"""How workers report why they failed, and how an agent reads it, in torch's error file format."""

from agentd.elastic.multiprocessing.errors.failure import ProcessFailure

__all__ = ["ProcessFailure"]
