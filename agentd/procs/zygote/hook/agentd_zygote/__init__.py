"""The zygote's own code: standard library only, Python 3.8 or newer; it runs where no agentd is installed."""
