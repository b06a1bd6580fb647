"""torchrun beside us: the same script, the same machine, the same minute."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.fleet import BIN

TORCHRUN = BIN / "torchrun"


def available() -> bool:
    """Whether torchrun is installed in this environment."""
    return TORCHRUN.exists()


def run(*arguments: str) -> None:
    """One torchrun from start to end."""
    subprocess.run(
        [str(TORCHRUN), *arguments], check=True, timeout=120, env=_environment(), capture_output=True
    )


@contextlib.contextmanager
def group(
    nodes: int, root: Path, *arguments: str, env: Mapping[str, str] | None = None
) -> Iterator[list[int]]:
    """`nodes` torchruns of one job on the dynamic rendezvous; their process ids."""
    endpoint = f"127.0.0.1:{_free_port()}"
    common = [
        str(TORCHRUN),
        f"--nnodes={nodes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={endpoint}",
        "--rdzv-id=bench",
        *arguments,
    ]
    with contextlib.ExitStack() as stack:
        processes = []
        for node in range(nodes):
            log = stack.enter_context((root / f"torchrun-{node}.log").open("wb"))
            processes.append(
                subprocess.Popen(
                    common,
                    stdout=log,
                    stderr=log,
                    env={**_environment(), **(env or {})},
                    start_new_session=True,
                )
            )
        try:
            yield [process.pid for process in processes]
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(40)
                process.kill()
                process.wait()


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
