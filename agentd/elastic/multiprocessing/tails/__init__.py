"""How lines of log files come to a console. `TailLog`, at torch's path `tail_log`, puts the parts together.

`following` reads files that grow, `lines` cuts and mixes what was read, `sinks` writes it, also to consoles
that are stuck; `console` has all copies of a group.
"""
