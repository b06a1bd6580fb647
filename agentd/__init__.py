"""agentd: runs a training fleet's worker groups on this node, driven over gRPC."""

__version__ = "0.1.0"
