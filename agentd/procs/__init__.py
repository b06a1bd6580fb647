"""Processes: start, identify, watch, signal, sweep. The only package that touches the process table."""
