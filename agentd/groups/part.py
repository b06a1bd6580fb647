"""A node's part of a run: what was asked of it, and what its hosts are told of that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from agentd.api.types import RunSpec, RunStatus
from agentd.core import defaults
from agentd.groups import layout
from agentd.groups.admission import RolePlan
from agentd.groups.facilities import Facilities
from agentd.groups.records import RunRow
from agentd.host.wire import HostSpec
from agentd.quickdata import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a node takes on of a run."""

    spec: RunSpec
    incarnation: int
    request_id: str
    node_id: str
    address: str
    """Where others reach this node."""
    plans: tuple[RolePlan, ...]
    node_name: str = ""
    hub_address: str = ""
    """Empty: the hub is here."""
    passed_env: Mapping[str, str] = field(default_factory=dict)
    started_at: float

    @property
    def hub_here(self) -> bool:
        """Whether this node is the run's hub."""
        return not self.hub_address

    @property
    def key(self) -> tuple[str, int]:
        """The run among all runs."""
        return self.spec.run_id, self.incarnation

    @property
    def stop_grace(self) -> float:
        """From SIGTERM to SIGKILL, if a stop does not say."""
        return defaults.STOP_GRACE if self.spec.stop_grace is None else self.spec.stop_grace

    @property
    def reattach_window(self) -> float:
        """How long workers here go on without agentd, if they do."""
        window = self.spec.rendezvous.reattach_window
        return defaults.REATTACH_WINDOW if window is None else window

    def row(self, status: RunStatus, wish: str = "") -> RunRow:
        """The run for the journal. `wish`: the Stop that was accepted, if one was."""
        return RunRow(
            run_id=self.spec.run_id,
            incarnation=self.incarnation,
            request_id=self.request_id,
            spec=self.spec,
            status=status,
            node_name=self.node_name,
            hub_address=self.hub_address,
            passed_env=self.passed_env,
            wish=wish,
        )


def host_spec(part: Part, plan: RolePlan, facilities: Facilities) -> HostSpec:
    """What a host of one role is told; its token is made for each host."""
    spec, role = part.spec, plan.role
    return HostSpec(
        run_id=spec.run_id,
        incarnation=part.incarnation,
        role=role.role,
        node_id=part.node_id,
        token="",
        local_world_size=plan.local_world_size,
        argv=plan.argv,
        env=plan.env,
        cwd=plan.cwd,
        stop_grace_s=part.stop_grace,
        monitor_interval_s=spec.monitor_interval or defaults.MONITOR_INTERVAL,
        log_root=layout.log_root(
            facilities.state_dir, plan.log_root, spec.run_id, part.incarnation, role.role
        ),
        mode=facilities.host_mode,
        on_isolation=spec.on_isolation.value,
        max_restarts=spec.max_restarts,
        master_addr=role.master_addr,
        master_port=role.master_port,
        preload=spec.preload,
        standby=spec.standby,
    )
