"""worker.sh again, for runs with `--preload`: FOLDER SECONDS MANNER."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

NAMES = "AGENTD_ROUND RANK WORLD_SIZE TORCHELASTIC_RESTART_COUNT TORCHELASTIC_MAX_RESTARTS AGENTD_NODE_ID"
ROLE = "ROLE_NAME ROLE_RANK ROLE_WORLD_SIZE"


def main() -> None:
    folder, seconds, manner = sys.argv[1:]
    env = os.environ
    meeting = f"{env['MASTER_ADDR']}:{env['MASTER_PORT']}"
    me = [
        *(env[name] for name in NAMES.split()),
        meeting,
        str(os.getpid()),
        *(env[name] for name in ROLE.split()),
    ]

    def note(event: str) -> None:
        with open(f"{folder}/{env['TORCHELASTIC_RUN_ID']}", "a") as file:
            file.write(f"{event} {' '.join(me)}\n")

    note("began")
    first, restarts = env["RANK"] == "0", int(env["TORCHELASTIC_RESTART_COUNT"])
    if manner == "polite":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    elif manner == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif manner == "family":
        for alone in (False, True):
            subprocess.Popen(["sleep", "1000"], start_new_session=alone)
    elif manner == "failing" and first and restarts < 2:
        time.sleep(0.3)
        sys.exit(3)
    elif manner == "hopeless" and first:
        time.sleep(0.5)
        sys.exit(3)
    time.sleep(float(seconds))
    note("done")


if __name__ == "__main__":
    main()
