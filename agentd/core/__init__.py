"""Decisions without a clock and without I/O: the life of a worker group, what a spec means."""
