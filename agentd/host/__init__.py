"""The host: one small process per worker group, parent of its workers. `handle` is agentd's side of it."""
