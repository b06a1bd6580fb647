"""The smallest worker: says who it is, works for a while, and ends. Needs nothing but Python.

agentctl run --standalone --nproc-per-node 2 examples/hello.py --seconds 3
"""

from __future__ import annotations

import argparse
import os
import sys
import time


def main() -> int:
    """Print one line a beat; end with the wished status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="how long to work (default: %(default)s)")
    parser.add_argument(
        "--beat", type=float, default=1.0, help="seconds between two lines (default: %(default)s)"
    )
    parser.add_argument("--exit-code", type=int, default=0, help="status to end with (default: %(default)s)")
    options = parser.parse_args()

    rank, world_size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    restarts = os.environ["TORCHELASTIC_RESTART_COUNT"]
    print(f"hello from rank {rank} of {world_size}, pid {os.getpid()}, restart {restarts}", flush=True)
    end = time.monotonic() + options.seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(options.beat, left))
        print(f"rank {rank} works, {max(0.0, end - time.monotonic()):.0f} s to go", flush=True)
    return int(options.exit_code)


if __name__ == "__main__":
    sys.exit(main())
