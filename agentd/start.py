"""Where the program begins: signals first, then all that takes time to import."""

from __future__ import annotations

from agentd.daemon.early import hold_signals


def main() -> None:
    """The console script. Exits with a code of `ExitCode`."""
    hold_signals()
    from agentd.cli import main as run

    run()
