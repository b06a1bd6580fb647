"""Becomes another program that dies with its parent. One file, standard library only, run as a script:

    python -I -S deathlink.py SIGNAL PARENT_PID REPORT_FD LIFELINE_FD PROGRAM ARGUMENT...

For parents with threads, where no code may run between fork and exec. A failure to start the program is
written to REPORT_FD as its errno; success closes it. The process group lives by LIFELINE_FD, tied as
`Lifeline.tie` does it; -1: there is none.
"""

import ctypes
import fcntl
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    signum, parent, report, lifeline = map(int, sys.argv[1:5])
    os.set_inheritable(report, False)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0)
    # The parent may have died before the link was made.
    if os.getppid() != parent:
        os._exit(128 + signum)
    if lifeline >= 0:
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signum)  # type: ignore[attr-defined, unused-ignore]
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        os.execv(sys.argv[5], sys.argv[6:])
    except OSError as error:
        os.write(report, str(error.errno).encode())
        os._exit(127)


if __name__ == "__main__":
    main()
