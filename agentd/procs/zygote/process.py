"""One zygote and its blanks: started, asked for forks, ended. It lives in its owner's `Waiter`."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from agentd.procs.exits import ExitInfo
from agentd.procs.identity import ProcessIdentity, identify, send_group_signal
from agentd.procs.lifeline import Lifeline
from agentd.procs.spawn import Child, SpawnError, find_program
from agentd.procs.waiter import Waiter
from agentd.procs.zygote.command import PythonCommand
from agentd.procs.zygote.forked import Adoption, Blank
from agentd.procs.zygote.wire import MOST_FDS, VERSION, ZygoteError, in_memory, pair, receive, send
from agentd.quickdata import dataclass

HOOK = str(Path(__file__).with_name("hook") / "sitecustomize.py")
MARK = "AGENTD_ZYGOTE"
ARCHIVES = (".zip", ".pyz", ".pyzw", ".egg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a zygote is started with."""

    argv: tuple[str, ...]
    """The command line of one of its workers; others differ in the program's arguments only."""
    command: PythonCommand
    """The same, understood."""
    modules: tuple[str, ...]
    """What it imports, in this order."""
    env: Mapping[str, str]
    """What its workers' environments have in common: interpreter and modules read it when they start."""
    cwd: str | None
    """The workers' directory; `None`: this process' own."""
    trial_limit_s: float = 20.0
    """How long a fork may take for a small matrix product."""


class Zygote:
    """One interpreter that imports, is judged, and forks. Its end is told once, as `over`."""

    def __init__(self, waiter: Waiter, recipe: Recipe, adoption: Adoption) -> None:
        """Start it. Raises `SpawnError`."""
        self._waiter = waiter
        self._adoption = adoption
        self.ready = False
        """Whether it has imported all and may be forked."""
        self.over = False
        """Its process has ended, or never will be of use."""
        self.problem = ""
        """Why it is over, or why it last refused to fork."""
        self.refused = False
        """Whether `problem` is its own judgment, which another one of its kind would repeat."""
        self.started_at = waiter.now()
        """On the waiter's clock, as `ready_at`."""
        self.ready_at = 0.0
        self.blanks: list[Blank] = []
        """Those that were asked for and not given away."""
        self._awaited = 0
        self._connection, theirs = pair()
        try:
            self._child = _start(recipe, theirs.fileno())
        except BaseException:
            self._connection.close()
            raise
        finally:
            theirs.close()
        self._watch = self._child.watch(waiter, self._ended)
        waiter.add(self._connection, self._hear)

    @property
    def identity(self) -> ProcessIdentity:
        """Its process, and the leader of the session that its blanks are in until they begin."""
        return self._child.identity

    def fork(self, count: int) -> None:
        """Ask for so many blanks more. Those that cannot be had are `lost`."""
        while count > 0 and not self.over:
            some = min(count, MOST_FDS)
            count -= some
            with contextlib.ExitStack() as stack:
                theirs: list[int] = []
                for _ in range(some):
                    ours, their = pair()
                    stack.callback(their.close)
                    theirs.append(their.fileno())
                    self.blanks.append(Blank(self._waiter, ours, self._arrived))
                self._await(some)
                try:
                    send(self._connection, {"op": "fork"}, theirs)
                except OSError as error:
                    self.problem = f"it takes no request: {error.strerror}"

    def take(self, count: int) -> list[Blank]:
        """Up to so many blanks that are ready; they are the caller's from then on."""
        found = [blank for blank in self.blanks if blank.ready][:count]
        self.blanks = [blank for blank in self.blanks if blank not in found]
        return found

    def waiting(self) -> int:
        """How many blanks are ready, or will be as far as is known."""
        return sum(not blank.lost for blank in self.blanks)

    @property
    def settled(self) -> bool:
        """Whether of each blank that was asked for it is known whether it is there."""
        return self._awaited == 0

    def kill(self, problem: str) -> None:
        """End it and its blanks."""
        self._finish(problem)
        send_group_signal(self.identity, signal.SIGKILL)

    def reaped(self) -> bool:
        """Reap what has ended of it and its blanks; tells whether all have."""
        self._child.reap()
        gone = self._child.popen.returncode is not None
        self.blanks = [blank for blank in self.blanks if not (blank.lost and blank.reaped())]
        return gone and not self.blanks

    def _hear(self) -> bool:
        """Whether it has said something more."""
        try:
            message = receive(self._connection)
        except BlockingIOError:
            return False
        except ZygoteError as error:
            self.refused = True
            self.kill(str(error))
            return True
        if message is None:
            # What ended it comes with its exit.
            self._waiter.remove(self._connection)
            return False
        kind, problem = message.get("op"), str(message.get("problem", ""))
        if kind == "ready":
            self.ready, self.ready_at = True, self._waiter.now()
        elif kind == "refused":
            self.problem = problem
        elif kind == "failed":
            self.refused = True
            self.kill(problem)
        return True

    def _ended(self, info: ExitInfo) -> None:
        # Its exit may be told before its last word, which says more.
        while not self.over and self._hear():
            pass
        self._finish(f"it ended with {info.summary}")

    def _finish(self, problem: str) -> None:
        if self.over:
            return
        self.over, self.ready, self.problem = True, False, problem
        self._watch.close()
        self._waiter.remove(self._connection)
        self._connection.close()
        for blank in self.blanks:
            blank.close()
        self._await(-self._awaited)

    def _arrived(self, blank: Blank) -> None:
        # Called a second time for one that is lost after it was there.
        if blank.ready or (blank.lost and blank.identity is None):
            self._await(-1)

    def _await(self, count: int) -> None:
        self._awaited += count
        self._adoption.add(count)


def _start(recipe: Recipe, connection: int) -> Child:
    """The interpreter with the hook, which links itself to this process: nothing happens before its exec."""
    program = find_program(recipe.argv[0], recipe.env)
    with contextlib.ExitStack() as stack:
        memory = in_memory(_order(recipe, program))
        stack.callback(os.close, memory)
        nothing = stack.enter_context(open(os.devnull, "rb"))
        lifeline = stack.enter_context(Lifeline())
        fds = (connection, memory, lifeline.theirs)
        try:
            popen = subprocess.Popen(
                [recipe.argv[0], *recipe.command.flags, HOOK],
                executable=program,
                env=_environment(recipe, fds),
                cwd=recipe.cwd,
                stdin=nothing,
                start_new_session=True,
                pass_fds=fds,
            )
        except (OSError, ValueError) as error:
            raise SpawnError(getattr(error, "errno", None) or errno.EINVAL, program, str(error)) from error
        identity = identify(popen.pid)
        assert identity is not None, "an unreaped child is always in /proc"
        return Child(identity, popen, lifeline=lifeline)


def _order(recipe: Recipe, program: str) -> dict[str, object]:
    command, env = recipe.command, recipe.env
    cwd = str(Path(recipe.cwd or os.curdir).absolute())
    script = os.path.join(cwd, command.target) if command.kind == "script" else ""
    return {
        "v": VERSION,
        "program": program,
        "argv": recipe.argv,
        "modules": recipe.modules,
        "parent": os.getpid(),
        "pythonpath": env.get("PYTHONPATH"),
        "path0": None if command.safe_path or env.get("PYTHONSAFEPATH") else _path0(script, cwd),
        "file": script,
        "trial_limit_s": recipe.trial_limit_s,
    }


def _path0(script: str, cwd: str) -> str:
    """What the interpreter puts first on the program's path."""
    if not script:
        return cwd
    is_own_folder = Path(script).is_dir() or script.endswith(ARCHIVES)
    return script if is_own_folder else str(Path(script).resolve().parent)


def _environment(recipe: Recipe, fds: Iterable[int]) -> dict[str, str]:
    former = recipe.env.get("PYTHONPATH")
    folder = str(Path(HOOK).parent)
    return {
        **recipe.env,
        "PYTHONPATH": f"{folder}{os.pathsep}{former}" if former else folder,
        MARK: ":".join([*map(str, fds), "prove"]),
    }
