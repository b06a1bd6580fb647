"""One agentd's life: start, serve, drain, exit. The only place that puts the parts together."""
