"""`agentctl handover`: an agentd ends, and what it started goes on for the next one."""

from __future__ import annotations

import click

from agentctl.options import CONTEXT, deadline_option


@click.command(context_settings=CONTEXT)
@click.argument("node", metavar="NODE")
@deadline_option
def handover(node: str, deadline: float) -> int:
    """End the agentd of NODE and leave its hosts and workers to the next one on its state directory.

    NODE is host, host:port or unix:/path. Start the next agentd within the re-attach window of the runs, 60
    seconds by default; until then the node counts as detached.
    """
    from agentctl.exits import ExitCode
    from agentctl.show.talk import say
    from agentd_client import AgentClient

    with AgentClient(node, timeout_s=deadline) as client:
        before = client.get_node()
        answering = client.handover(before.pid)
    if answering == before.pid:
        say(f"agentd of node {before.node_id} (pid {before.pid}) ends; its workers go on for the next one")
    else:
        say(f"node {before.node_id} has its next agentd already (pid {answering})")
    return ExitCode.OK
