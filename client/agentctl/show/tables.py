"""Tables for people: rich on a terminal, plain aligned columns elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from agentctl import caller
from agentctl.show.words import clock_time, exit_of, failed_one, node_label, plural, size
from agentd.api.errors import AgentError, Code
from agentd.api.types import TERMINAL, NodeInfo, Phase, RunStatus
from agentd.quickdata import dataclass

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


PHASE_STYLES: Final = {
    Phase.RUNNING: "green",
    Phase.SUCCEEDED: "cyan",
    Phase.DONE: "cyan",
    Phase.FAILED: "red",
    Phase.LOST: "red",
    Phase.RESTARTING: "yellow",
    Phase.STOPPING: "yellow",
    Phase.RENDEZVOUS: "yellow",
}

STATE_STYLES: Final = {
    "ending": "yellow",
    "draining": "yellow",
    "drained": "yellow",
    "unreachable": "red",
    "failed": "red",
    "FAILED": "red",
}

NOTHING: Final = MappingProxyType[str, AgentError]({})
_SILENT: Final = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED})


@dataclass(frozen=True, slots=True, kw_only=True)
class TableData:
    """Columns and rows of text."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def runs_table(runs: Sequence[RunStatus]) -> TableData:
    """`ps`."""
    return TableData(
        columns=("RUN", "PHASE", "ROUND", "RESTARTS", "NODES", "STARTED", "REASON"),
        rows=tuple(
            (
                run.run_id,
                str(run.phase),
                str(run.round),
                f"{run.restart_count}/{run.max_restarts}",
                str(_nodes_in(run)),
                clock_time(run.started_at),
                hub_silence(run) or run.reason or "-",
            )
            for run in runs
        ),
    )


def run_table(run: RunStatus) -> TableData:
    """`status RUN`: a line for each worker, or for a group that has none."""
    rows: list[tuple[str, ...]] = []
    for node in run.nodes:
        label = node_label(node) + (" (detached)" if node.detached else "")
        if not node.groups:
            rows.append((label, "-", str(node.phase), "-", "-", "-", "-", node.reason or "-"))
        for group in node.groups:
            if not group.workers:
                rows.append(
                    (
                        label,
                        group.role,
                        str(group.phase),
                        "-",
                        "-",
                        "-",
                        "-",
                        group.reason or node.reason or "-",
                    )
                )
            rows.extend(
                (
                    label,
                    group.role,
                    str(group.phase),
                    str(worker.rank),
                    str(worker.local_rank),
                    str(worker.pid),
                    str(worker.state),
                    exit_of(worker) or "-",
                )
                for worker in group.workers
            )
    return TableData(
        columns=("NODE", "ROLE", "PHASE", "RANK", "LOCAL RANK", "PID", "STATE", "EXIT"), rows=tuple(rows)
    )


def run_summary(run: RunStatus) -> list[str]:
    """The lines above the table of one run."""
    counts = f"{plural(_nodes_in(run), 'node')} (from {run.min_members} to {run.max_members})"
    restarts = f"{run.restart_count} of {run.max_restarts} restarts"
    changes = plural(run.membership_changes, "membership change")
    lines = [
        f"run {run.run_id}: {run.phase}",
        f"  incarnation {run.incarnation}, round {run.round}, {restarts}, {changes}",
        f"  {counts}, started {clock_time(run.started_at)}"
        + (f", finished {clock_time(run.finished_at)}" if run.finished_at else ""),
    ]
    if run.reason:
        lines.append(f"  {run.reason}")
    if run.join_deadline and run.phase is Phase.RENDEZVOUS:
        lines.append(f"  fails at {clock_time(run.join_deadline)} unless enough join: {_how_to_join(run)}")
    if run.controller_lease_until:
        lines.append(f"  stopped at {clock_time(run.controller_lease_until)} unless it is renewed")
    if run.hub_unreachable_since:
        lines.append(f"  {hub_silence(run)}; workers go on, what needs the hub waits for it")
    if run.missing:
        lines.append(f"  missing: {', '.join(run.missing)}")
    if run.spares:
        lines.append(f"  spares: {', '.join(run.spares)}")
    for node in run.nodes:
        lines.extend(f"  {node_label(node)}: {name}: {said}" for name, said in node.conditions.items())
    if run.first_failure is not None:
        failure = run.first_failure
        lines.append(
            f"  first failure: {failed_one(failure)} on node {failure.node_id}"
            f"{f', pid {failure.pid}' if failure.pid else ''}: "
            f"{exit_of(failure) or failure.message} in round {failure.round}"
        )
    return lines


def hub_silence(run: RunStatus) -> str:
    """Since when the hub has not answered the node that tells of the run; empty if it does."""
    since = run.hub_unreachable_since
    return f"hub {run.hub_address} unreachable since {clock_time(since)}" if since else ""


def _how_to_join(run: RunStatus) -> str:
    if run.nodes and not any(node.address for node in run.nodes):
        return "start more of its agents"
    return f"agentctl join {run.run_id} --nodes NODE --via {run.hub_address or 'NODE'}"


def _nodes_in(run: RunStatus) -> int:
    """Nodes of the run, less those that have left a live one or were lost."""
    over = run.phase in TERMINAL
    return sum(over or node.phase not in TERMINAL for node in run.nodes)


def nodes_table(nodes: Sequence[NodeInfo], problems: Mapping[str, AgentError] = NOTHING) -> TableData:
    """`nodes`. `problems`: of those that told nothing, by the name the user has for them."""
    silent = tuple((name, "-", no_answer(error), *("-" * 7)) for name, error in problems.items())
    return TableData(
        columns=(
            "NODE",
            "ADDRESS",
            "STATE",
            "VERSION",
            "CPUS",
            "GPUS",
            "LOAD",
            "MEMORY FREE",
            "DISK FREE",
            "GROUPS",
        ),
        rows=tuple(
            (
                node.node_id,
                node.advertised_address or "-",
                _state(node) or ", ".join(node.conditions) or "ready",
                node.version,
                str(node.cpus),
                str(node.gpus),
                f"{node.load_1m:.2f}",
                size(node.memory_available_bytes),
                size(node.state_dir_free_bytes),
                str(len(node.groups)),
            )
            for node in nodes
        )
        + silent,
    )


def no_answer(problem: AgentError) -> str:
    """The word for a node that told nothing of itself."""
    return "unreachable" if problem.code in _SILENT else "failed"


def _state(node: NodeInfo) -> str:
    """What keeps a node from new runs though nothing is wrong with it."""
    if node.ending:
        return "ending"
    if node.drain is None:
        return ""
    return "draining" if node.groups else "drained"


def write_table(data: TableData) -> None:
    """To standard output, for who reads there."""
    if sys.stdout.isatty():
        _write_rich(data)
    else:
        sys.stdout.write(plain(data))
        sys.stdout.flush()


def plain(data: TableData) -> str:
    """Aligned columns, nothing cut off: also for programs that split at two spaces."""
    lines = [data.columns, *data.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(data.columns))]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )
    return "".join(f"{line.rstrip()}\n" for line in padded)


def rich_table(data: TableData) -> Table:
    """The table as rich draws it."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in data.columns:
        table.add_column(column, overflow="fold")
    for row in data.rows:
        table.add_row(
            *(Text(cell, style=_style(column, cell)) for column, cell in zip(data.columns, row, strict=True))
        )
    return table


def make_console() -> Console:
    """Standard output as rich writes to it: plain text stays as it is."""
    from rich.console import Console

    no_color = bool(caller.ENVIRON.get("NO_COLOR")) or None
    return Console(no_color=no_color, highlight=False, markup=False, emoji=False)


def _write_rich(data: TableData) -> None:
    make_console().print(rich_table(data))


def _style(column: str, cell: str) -> str:
    if column == "PHASE":
        return next((style for phase, style in PHASE_STYLES.items() if phase.value == cell), "")
    return STATE_STYLES.get(cell, "")
