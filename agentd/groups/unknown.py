"""Hosts of a dead agentd that its journal does not know: a slow or full disk kept them from it.

One that the next agentd refuses has its stop grace, in which its workers would live beside those of another
round. So each is found before any host is started, and ended with all it has. Touches /proc and the disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from agentd.api.types import TERMINAL, Phase
from agentd.groups import layout
from agentd.groups.records import GroupRow
from agentd.procs import procfs, tree
from agentd.procs.identity import ProcessIdentity, boot_id, is_alive

_MODULE = b"\0-m\0agentd.host\0"
"""In the command line of every host."""


class _Host(NamedTuple):
    process: ProcessIdentity
    token: str
    folder: tuple[int, int]


def find_unknown(groups: Iterable[GroupRow], state_dir: str) -> tuple[GroupRow, ...]:
    """For each host in the folder of one of these groups, the row that should have been written.

    A group whose known host is alive has no other.
    """
    known = _by_folder(groups, state_dir)
    found = {host.token: host for host in (_hosts() if known else ()) if host.folder in known}
    return tuple(
        replace(
            known[host.folder],
            phase=Phase.PENDING,
            token=host.token,
            host_pid=host.process.pid,
            host_start_time=host.process.start_time,
            boot_id=boot_id(),
        )
        for host in found.values()
        if host.token != known[host.folder].token
    )


def _by_folder(groups: Iterable[GroupRow], state_dir: str) -> Mapping[tuple[int, int], GroupRow]:
    """By what tells a folder from any other: its name may mean another one to who lives in a container."""
    found: dict[tuple[int, int], GroupRow] = {}
    for row in groups:
        folder = row.directory or layout.group_dir(state_dir, row.run_id, row.incarnation, row.role)
        if row.phase not in TERMINAL and not _lives(row) and (place := _place(folder)):
            found[place] = replace(row, directory=folder)
    return found


def _lives(row: GroupRow) -> bool:
    return row.boot_id == boot_id() and is_alive(ProcessIdentity(row.host_pid, row.host_start_time))


def _hosts() -> Iterator[_Host]:
    """Every host on this machine: it works in its group's folder."""
    for stat in procfs.processes():
        if stat.state == "D" or _MODULE not in procfs.read_command(stat.pid):
            # Whoever reads what hangs in the kernel may hang as well.
            continue
        token = tree.token_of(stat.pid)
        if token and (folder := _place(f"{procfs.PROC}/{stat.pid}/cwd")):
            yield _Host(ProcessIdentity(stat.pid, stat.start_time), token, folder)


def _place(folder: str) -> tuple[int, int] | None:
    try:
        found = os.stat(folder)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
