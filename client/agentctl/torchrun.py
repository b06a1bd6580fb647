"""torchrun's flags that mean something else here, or nothing: what each becomes and what the user is told.

Pure. `ValueError` refuses a value; a note is one sentence for standard error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Final

from agentctl.flags import parse_seconds
from agentd.quickdata import dataclass

BACKENDS: Final = ("static", "c10d", "etcd", "etcd-v2", "agentd")

UNSUPPORTED: Final[Mapping[str, str]] = {
    "run-path": "the script runs as given; use -m for a module",
    "event-log-handler": "`agentctl status -o jsonl --watch` tells every change of a run",
    "logs-specs": "logs always go to files on the node; --log-dir chooses where, `agentctl logs` reads them",
    "numa-binding": "bind in the program, or start it by `--no-python numactl ...`",
    "signals-to-handle": "`agentctl signal` sends any signal; SIGTERM and Ctrl-C stop the run with its grace",
    "virtual-local-rank": "--devices chooses the devices that workers see",
    "duplicate-stdout-filters": "use `agentctl logs` and a filter of your own",
    "duplicate-stderr-filters": "use `agentctl logs` and a filter of your own",
}
"""Flags that are refused, and what replaces each."""

_CONF_NAMES: Final[Mapping[str, str]] = {
    "join_timeout": "join_timeout",
    "last_call_timeout": "last_call",
    "last_call": "last_call",
    "timeout": "hub_timeout",
    "hub_timeout": "hub_timeout",
    "keep_alive_interval": "heartbeat",
    "heartbeat": "heartbeat",
    "lease": "lease",
    "reattach_window": "reattach_window",
}
_CONF_WITHOUT_MEANING: Final[Mapping[str, str]] = {
    "is_host": "the first node of --nodes is the hub, or --rdzv-endpoint names it",
    "store_type": "ranks come from the hub, no store is needed",
    "read_timeout": "no store is read",
    "close_timeout": "the hub says at once when a run is over",
    "rank": "the hub gives out ranks",
    "use_libuv": "no store is needed",
    "local_addr": "agentd's --advertise-addr says how a node is reached",
    "protocol": "no etcd is needed",
    "cert": "no etcd is needed",
    "key": "no etcd is needed",
    "cacert": "no etcd is needed",
    "ssl_cert": "no etcd is needed",
    "ssl_cert_key": "no etcd is needed",
    "ca_cert": "no etcd is needed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RendezvousFlags:
    """torchrun's rendezvous flags as given; None: not given."""

    backend: str | None = None
    conf: Mapping[str, str] = field(default_factory=dict)
    node_rank: str | None = None
    local_addr: str | None = None
    start_method: str | None = None
    endpoint: str | None = None
    standalone: bool = False


def durations(conf: Mapping[str, str]) -> dict[str, float]:
    """`--rdzv-conf` as fields of the rendezvous spec, in seconds."""
    found: dict[str, float] = {}
    for key, value in conf.items():
        if key in _CONF_NAMES:
            found[_CONF_NAMES[key]] = _seconds(key, value)
        elif key == "keep_alive_max_attempt":
            continue
        elif key not in _CONF_WITHOUT_MEANING:
            known = ", ".join(sorted(_CONF_NAMES))
            raise ValueError(f"{key!r} is not known; there are {known}")
    if "keep_alive_max_attempt" in conf:
        attempts = _seconds("keep_alive_max_attempt", conf["keep_alive_max_attempt"])
        found.setdefault("lease", attempts * found.get("heartbeat", 1.0))
    return found


def notes(flags: RendezvousFlags) -> list[str]:
    """What the user is told about flags that do nothing here."""
    said: list[str] = []
    if flags.backend not in (None, "agentd"):
        said.append(
            f"--rdzv-backend {flags.backend} is not needed: every agentd can be the hub of a run, "
            "and the first node is."
        )
    if flags.node_rank not in (None, "0"):
        said.append(
            "--node-rank is not needed: the hub gives out ranks in the order of the node list, and one "
            "`agentctl run` starts all nodes."
        )
    if flags.local_addr is not None:
        said.append("--local-addr is not needed: agentd's --advertise-addr says how a node is reached.")
    if flags.start_method not in (None, "spawn"):
        said.append("--start-method has no meaning for programs: each worker is a process of its own.")
    if flags.standalone and flags.endpoint is not None:
        said.append("--rdzv-endpoint is not needed with --standalone: the embedded agentd is the hub.")
    said.extend(
        f"--rdzv-conf {key} is not needed: {_CONF_WITHOUT_MEANING[key]}."
        for key in flags.conf
        if key in _CONF_WITHOUT_MEANING
    )
    return said


def _seconds(key: str, value: str) -> float:
    try:
        return parse_seconds(value)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
