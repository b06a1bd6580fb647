"""Runs one command twice: exec'd as ever, and forked from a zygote."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentd.procs.crew import Leader
from agentd.procs.exits import ExitInfo
from agentd.procs.spawn import Order, spawn
from agentd.procs.waiter import Waiter
from agentd.procs.zygote.command import python_command
from agentd.procs.zygote.forked import Blank, ForkedChild
from agentd.procs.zygote.keeper import Keeper
from agentd.procs.zygote.process import Recipe

PATIENCE_S = 60.0
ADDRESS = re.compile("0x[0-9a-f]{6,16}")


@dataclass(frozen=True)
class Outcome:
    """What the outside sees of a worker that has ended."""

    end: str
    stdout: str
    stderr: str


def base_env(**more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LC_ALL") if name in os.environ}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0", **more}


class Commands:
    """Commands in one folder."""

    def __init__(
        self, folder: Path, modules: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.modules = tuple(modules)
        self.env = base_env() if env is None else dict(env)
        self.trial_limit_s = 20.0

    def recipe(self, argv: Sequence[str]) -> Recipe:
        return Recipe(
            argv=tuple(argv),
            command=python_command(argv),
            modules=self.modules,
            env=self.env,
            cwd=str(self.folder),
            trial_limit_s=self.trial_limit_s,
        )

    def order(self, argv: Sequence[str], streams: Streams, **env: str) -> Order:
        return Order(
            argv=argv,
            env={**self.env, **env},
            cwd=str(self.folder),
            stdout_fd=streams.out,
            stderr_fd=streams.err,
        )

    def execed(self, *argv: str, **env: str) -> Outcome:
        with Waiter() as waiter, Streams() as streams:
            child = spawn(
                argv,
                env={**self.env, **env},
                cwd=str(self.folder),
                stdout_fd=streams.out,
                stderr_fd=streams.err,
            )
            return streams.outcome(waited_for(waiter, child))

    def forked(self, *argv: str, **env: str) -> Outcome:
        with Waiter() as waiter, Streams() as streams:
            keeper = Keeper(waiter, self.recipe(argv))
            try:
                keeper.start()
                blanks = keeper.take(1)
                assert blanks, keeper.problem
                child = begin(blanks[0], self.order(argv, streams, **env))
                return streams.outcome(waited_for(waiter, child))
            finally:
                keeper.close()


def begin(blank: Blank, order: Order) -> ForkedChild:
    """The worker that the blank becomes."""
    blank.order(order, python_command(order.argv).arguments)
    return blank.begun(order)


class Streams:
    """Two files that a worker writes to."""

    def __enter__(self) -> Streams:
        self._files = [tempfile.TemporaryFile("w+b") for _ in range(2)]  # noqa: SIM115
        self.out, self.err = (file.fileno() for file in self._files)
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def outcome(self, info: ExitInfo) -> Outcome:
        texts = []
        for file in self._files:
            file.seek(0)
            texts.append(ADDRESS.sub("0x...", file.read().decode(errors="backslashreplace")))
        return Outcome(info.summary, *texts)


def waited_for(waiter: Waiter, child: Leader) -> ExitInfo:
    """How the child ended; it is reaped."""
    ends: list[ExitInfo] = []
    watch = child.watch(waiter, ends.append)
    try:
        assert waiter.wait_until(lambda: bool(ends), waiter.now() + PATIENCE_S), f"{child.pid} does not end"
    finally:
        watch.close()
        if not ends:
            child.signal_group(9)
    child.reap()
    return ends[0]


PYTHON = sys.executable
