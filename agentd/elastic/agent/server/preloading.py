"""An agent's workers as forks of an interpreter that has imported their modules: `WorkerSpec.preload`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from agentd.elastic.agent.server.spec import WorkerSpec
from agentd.elastic.agent.server.worker_env import shared_env, with_macros
from agentd.procs.waiter import Waiter

if TYPE_CHECKING:
    from agentd.procs.zygote.keeper import Keeper
    from agentd.procs.zygote.process import Recipe

log = logging.getLogger(__name__)


class Preloading:
    """Of one agent. Whatever fails costs time only: workers are started without it, and it is said why."""

    def __init__(self, spec: WorkerSpec, base_env: Mapping[str, str], cwd: str | None, token: str) -> None:
        self._spec = spec
        self._base_env = base_env
        self._cwd = cwd
        self._token = token
        self.keeper: Keeper | None = None
        """What forks the workers, once `start` was called, if anything can."""
        self.problem = ""
        """Why not all workers of the newest round were forked; empty: they were."""
        self._impossible = ""
        self._told = ""

    def start(self, waiter: Waiter) -> None:
        """Begin to import in the background. For each run of the agent."""
        from agentd.procs.zygote.command import NotForkable
        from agentd.procs.zygote.keeper import Keeper

        try:
            recipe = self._recipe()
        except NotForkable as error:
            self._impossible = f"{error}, so that nothing can be preloaded for it"
            return
        self.keeper = Keeper(waiter, recipe)
        self.keeper.start()

    def stock(self) -> None:
        """Workers will be wanted soon."""
        if self.keeper is not None:
            self.keeper.stock(self._spec.local_world_size)

    def started(self) -> None:
        """The workers of a round were started."""
        self.problem = self._impossible if self.keeper is None else self.keeper.problem
        if self.problem and self.problem != self._told:
            log.warning("workers are started without preload: %s", self.problem)
        self._told = self.problem
        if self._spec.standby:
            self.stock()

    def close(self) -> None:
        """End what waits, and what was imported; workers are not touched."""
        if self.keeper is not None:
            self.keeper.close()

    def _recipe(self) -> Recipe:
        from agentd.procs.zygote.command import NotForkable, python_command
        from agentd.procs.zygote.process import Recipe

        spec = self._spec
        if not isinstance(spec.entrypoint, str):
            raise NotForkable("the entrypoint is a function")
        argv = (spec.entrypoint, *map(str, with_macros(spec.args, 0)))
        command = python_command(argv)
        # Only what follows the program may differ from one worker to the next.
        fixed = argv[: len(argv) - len(command.arguments)]
        if fixed != (spec.entrypoint, *map(str, spec.args))[: len(fixed)]:
            raise NotForkable("each local rank runs another program")
        return Recipe(
            argv=argv,
            command=command,
            modules=tuple(spec.preload),
            env={**self._base_env, **shared_env(spec, self._base_env, self._token)},
            cwd=self._cwd,
        )
