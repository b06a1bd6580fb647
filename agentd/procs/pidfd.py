"""A descriptor of one process, for an event loop of whatever kind: readable once the process has ended."""

from __future__ import annotations

import os

from agentd.procs.identity import ProcessIdentity, identify


def open_process(identity: ProcessIdentity) -> int | None:
    """A pidfd of that very process, which may be an unreaped child; None where the sandbox forbids pidfds.

    Raises `ProcessLookupError` if it is gone.
    """
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        raise
    except OSError:
        return None
    # Opened first, compared second: from here on it cannot be exchanged for a stranger.
    if identify(identity.pid) != identity:
        os.close(pidfd)
        raise ProcessLookupError(f"no process {identity.pid} of that start time")
    return pidfd
