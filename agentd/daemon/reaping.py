"""`agentd reap`: ends what a dead agentd left, and says what it was."""

from __future__ import annotations

from collections.abc import Callable

from agentd.api.errors import JournalUnavailable
from agentd.config import Config
from agentd.daemon.exits import ExitCode, StateDirUnusable
from agentd.daemon.places import state_dir_locked
from agentd.groups import reap as leftovers


def reap(config: Config, say: Callable[[str], object]) -> ExitCode:
    """End it while nobody else has the state directory.

    Raises `StartFailed` if its agentd lives, or if its journal cannot be read.
    """
    if not leftovers.has_journal(config.state_dir):
        say(f"no agentd has kept its state in {config.state_dir}, so nothing was ended. Is it the right one?")
        return ExitCode.OK
    with state_dir_locked(config.state_dir):
        try:
            found = leftovers.reap(config.state_dir)
        except JournalUnavailable as error:
            raise StateDirUnusable(config.state_dir, error.facts["problem"]) from None
    for group in found:
        pids = " ".join(map(str, group.pids))
        say(f"ended {group.run_id} (incarnation {group.incarnation}), role {group.role}: pids {pids}")
    stuck = [pid for group in found for pid in group.stuck]
    if stuck:
        say(f"could not end pids {' '.join(map(str, stuck))}: SIGKILL did not end them")
        return ExitCode.LEFTOVERS
    if not found:
        say(f"nothing was left of the agentd of {config.state_dir}")
    return ExitCode.OK
