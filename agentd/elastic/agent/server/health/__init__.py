"""Health checks of an agent, behind `agent.server.health_check_server`, which says what alive is.

`http` is the built-in server: `listener` has its port and clients, `answers` what they are told. `serving`
gives an agent its server while it runs.
"""
