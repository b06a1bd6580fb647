"""The command line of agentd, an ordinary client of its API."""
