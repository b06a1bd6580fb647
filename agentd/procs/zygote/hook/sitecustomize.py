# ruff: noqa: INP001
"""The zygote's door: `sitecustomize` is what an interpreter imports last before it runs its command line.

The zygote never comes back from that import; its forks do, into the interpreter's own code, which then runs
script, module or command as it always does, with nothing of this folder on the stack. Before that the
interpreter is started once with this file as its script: only if the hook runs then, the command itself is
put in its place, so that no interpreter without the hook ever runs a worker's program.

Interpreters that are too old to be forked must be able to read this file, and say so.
"""

import os
import sys

MARK = "AGENTD_ZYGOTE"
if MARK not in os.environ:
    error = ImportError("only a zygote wants this file")
    error.name = "sitecustomize"
    raise error

problem = ""
if tuple(sys.version_info) < (3, 8) or sys.implementation.name != "cpython":
    problem = "CPython 3.8 or newer can be forked into workers; this is Python " + " ".join(
        sys.version.split()
    )
elif __name__ == "__main__":
    # The first start: this interpreter has not imported the hook before it runs its script.
    problem = "the interpreter imports no sitecustomize from PYTHONPATH"
if problem:
    import json

    # What `agentd_zygote.link` would send.
    message = json.dumps({"v": 1, "op": "failed", "problem": problem})
    os.write(int(os.environ[MARK].split(":")[0]), message.encode())
    os._exit(70)

from agentd_zygote.entry import run  # noqa: E402

run(MARK)
