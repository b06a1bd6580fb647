"""A worker's standard output and error: files of its own, behind streams that modules may hold already."""

from __future__ import annotations

import os
import sys

from agentd_zygote.system import flush

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def redirect(out: int, err: int) -> None:
    """Let both streams write to their files; the objects stay, as imported modules may hold them."""
    flush()
    for fd, standard, name in ((out, 1, "stdout"), (err, 2, "stderr")):
        former = _kind(standard)
        os.dup2(fd, standard)
        os.close(fd)
        if _kind(standard) != former and getattr(sys, name) is getattr(sys, f"__{name}__"):
            renew_stream(standard, name)


def renew_stream(fd: int, name: str) -> None:
    """The stream as the interpreter makes it: it depends on the kind of file."""
    import io

    former: Any = getattr(sys, name)
    unbuffered = former.write_through
    raw: Any = open(fd, "wb", 0 if unbuffered else -1, closefd=False)  # noqa: SIM115
    (raw if unbuffered else raw.raw).name = f"<{name}>"
    stream: Any = io.TextIOWrapper(
        raw,
        former.encoding,
        former.errors,
        "\n",
        line_buffering=not unbuffered and (raw.isatty() or fd == 2),
        write_through=unbuffered,
    )
    stream.mode = "w"
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


def _kind(fd: int) -> tuple[int, bool]:
    import stat

    return stat.S_IFMT(os.fstat(fd).st_mode), os.isatty(fd)
