"""Child entry: `python -m agentd.host STATE_DIR GROUP_DIR RUN_ID INCARNATION ROLE PARENT_PID PARENT_START`.

Or `--in-stock ROOM`: these come later (`agentd.host.stock`). Started by agentd only; the group's token is in
the environment, which is also how a sweep finds the host.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from agentd.host import stock
from agentd.host.session import Birth, live
from agentd.host.stock import IN_STOCK
from agentd.procs import prctl
from agentd.procs.identity import ProcessIdentity
from agentd.procs.tree import TOKEN_VARIABLE


def main() -> int:
    # A lost terminal ends no training, and what workers leave behind comes to this process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    prctl.become_subreaper()
    arguments = stock.told() if IN_STOCK in sys.argv else sys.argv[1:]
    if arguments is None:
        return 0
    state_dir, group_dir, run_id, incarnation, role, parent, parent_start = arguments
    os.chdir(group_dir)
    birth = Birth(
        state_dir=state_dir,
        group_dir=group_dir,
        run_id=run_id,
        incarnation=int(incarnation),
        role=role,
        token=os.environ[TOKEN_VARIABLE],
        parent=ProcessIdentity(int(parent), int(parent_start)),
    )
    return live(birth)


if __name__ == "__main__":
    code = main()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # All is reported and closed; to take the interpreter apart would only keep agentd waiting.
    os._exit(code)
