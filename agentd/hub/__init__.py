"""The run-wide rendezvous: a hub that forms rounds, and each node's session with it.

`Hub` serves runs, `MemberSession` is a node's side. Everything that decides is pure and takes the
time as an argument: `core.step(state, event, now) -> (state, effects)`.
"""
