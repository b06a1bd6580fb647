"""The commands of `agentctl`, imported when they are called."""
