"""Where the program begins: while it imports what it needs, Ctrl-C ends it without a word."""

from __future__ import annotations

import signal


def main() -> int:
    """The console script. It ends the process with a code of `agentctl.exits`."""
    # As for a program in C. Where somebody has it ignored, it stays so.
    is_heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_heard:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from agentctl.cli import main as run

    if is_heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()
