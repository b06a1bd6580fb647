"""One agentd's life: start, serve, shut down, exit. The only place that puts the parts together."""
