"""Agents: what starts, watches and restarts the workers of a node."""
