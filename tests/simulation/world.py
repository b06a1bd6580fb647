"""A hub, its members and their network, living through one history on one clock."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Callable, Iterator
from dataclasses import fields
from random import Random
from typing import Any, TypeAlias
from unittest import mock

from agentd.api.errors import AgentError
from agentd.hub.hub import Hub
from tests.simulation.clock import START, Clock, Process
from tests.simulation.histories import Fault, History
from tests.simulation.invariants import Judge
from tests.simulation.network import Network
from tests.simulation.node import INCARNATION, RUN, Agentd, Node

Undo: TypeAlias = Callable[[], object] | None
PATIENCE = 120.0
"""Within it from the last fault the run ends everywhere: longer than each of its deadlines."""
SLICE = 2.0


class World:
    """One run. `live` takes it to its end, or raises a `Breach`."""

    def __init__(self, history: History, *, tracing: bool = False) -> None:
        self.history = history
        self.spec = history.spec
        self.random = Random(history.seed)
        self.clock = Clock()
        self._world = Process(self.clock, "the world")
        self.network = Network(self.clock, self.random, delay=history.delay, spike=history.spike)
        self.judge = Judge(self)
        self.judge.gentle = history.gentle
        self.terminated = False
        self.lines: list[str] = []
        self._tracing = tracing
        self._ports = 20_000
        self._slow_disks: set[str] = set()
        self._slow_stops = False
        roles = tuple(role.role for role in self.spec.roles)
        self.nodes = {name: Node(self, name, roles, is_hub=name == history.hub) for name, _ in history.starts}
        if history.hub not in self.nodes:
            self.nodes[history.hub] = Node(self, history.hub, (), is_hub=True)

    @property
    def hub(self) -> Node:
        return self.nodes[self.history.hub]

    def live(self) -> None:
        """From the first agentd to the end of the run everywhere."""
        starts = {self.history.hub: 0.0, **dict(self.history.starts)}
        for name, at in starts.items():
            self._world.call_later(at, self.nodes[name].start)
        for fault in self.history.faults:
            self._world.call_later(fault.at, self._strike, fault)
        self._world.call_later(self.history.calm_at, self._calm_down)
        try:
            self._pass_time(START + self.history.calm_at)
            while not self._over() and self.clock.now < START + self.history.calm_at + PATIENCE:
                self._pass_time(self.clock.now + SLICE)
            self.judge.at_the_end()
            if self.judge.breach is not None:
                raise self.judge.breach
        finally:
            for node in self.nodes.values():
                node.lose_power()

    def trace(self, *words: object) -> None:
        """Note what happens, if somebody wants to know."""
        if self._tracing:
            said = " ".join(str(word) for word in words)
            self.lines.append(f"{self.clock.now - START:8.3f}  {said}")

    # --- what its inhabitants ask -----------------------------------------------------------------------

    def next_port(self) -> int:
        self._ports += 1
        return self._ports

    def disk_latency(self, node: Node) -> float:
        """How long a write takes."""
        if node.name in self._slow_disks:
            return self.random.choice((0.3, 0.9, 3.0))
        latency = self.history.disk_latency
        return self.random.random() * latency if latency else 0.0

    def stop_time(self) -> float:
        """How long workers take to end when they are told to."""
        if self._slow_stops or self.random.random() < 0.1:
            return self.random.random() * 5.0
        return self.random.random() * 0.2

    # --- time -------------------------------------------------------------------------------------------

    def _pass_time(self, until: float) -> None:
        while self.clock.now < until:
            self.clock.run_until(min(until, self.clock.now + SLICE))
            if self.judge.breach is not None:
                raise self.judge.breach

    def _over(self) -> bool:
        return self.judge.outcome is not None and all(
            node.ended and not node.running() for node in self.nodes.values() if node.agentd is not None
        )

    def _calm_down(self) -> None:
        """Faults stop; workers that live from now on have a moment's work left."""
        self.trace("calm")
        self._slow_disks.clear()
        self._slow_stops = False
        for node in self.nodes.values():
            node.powered = True
            node.start()
            self._finish_soon(node)

    def _finish_soon(self, node: Node) -> None:
        for host in list(node.hosts):
            if host.running:
                host.succeed()
        self._world.call_later(0.5 + self.random.random(), self._finish_soon, node)

    # --- faults -----------------------------------------------------------------------------------------

    def _strike(self, fault: Fault) -> None:
        node = self.nodes[fault.node]
        self.trace("FAULT", fault.kind, fault.node, f"for {fault.seconds:g} s")
        undo = _FAULTS[fault.kind](self, node)
        if undo is not None:
            self._world.call_later(fault.seconds, self._undo, fault, undo)

    def _undo(self, fault: Fault, undo: Callable[[], object]) -> None:
        self.trace("end of", fault.kind, fault.node)
        undo()

    def kill_agentd(self, node: Node) -> Undo:
        node.kill_agentd()
        return node.start

    def hand_over(self, node: Node) -> Undo:
        agentd = node.agentd
        if agentd is not None and not agentd.process.stopped:
            agentd.process.live(agentd.hand_over())
        return lambda: self._replace(node, agentd)

    def _replace(self, node: Node, old: Agentd | None) -> None:
        if node.agentd is old:
            node.kill_agentd()
        node.start()

    def freeze_agentd(self, node: Node) -> Undo:
        return self._freeze([node.agentd.process] if node.agentd else [])

    def freeze_host(self, node: Node) -> Undo:
        return self._freeze([host.process for host in node.hosts])

    def freeze_machine(self, node: Node) -> Undo:
        processes = [host.process for host in node.hosts]
        return self._freeze([*processes, node.agentd.process] if node.agentd else processes)

    def _freeze(self, processes: list[Process]) -> Undo:
        for process in processes:
            process.freeze()
        return lambda: self._thaw(processes)

    def _thaw(self, processes: list[Process]) -> None:
        for process in processes:
            process.thaw()

    def cut(self, node: Node) -> Undo:
        if node is self.hub:
            return self._cut(list(self.nodes.values()))
        return self._cut([node])

    def _cut(self, nodes: list[Node]) -> Undo:
        for node in nodes:
            self.network.cut(node.name)
        return lambda: self._heal(nodes)

    def _heal(self, nodes: list[Node]) -> None:
        for node in nodes:
            self.network.heal(node.name)

    def reset(self, node: Node) -> None:
        self.network.reset(node.name)

    def slow_disk(self, node: Node) -> Undo:
        self._slow_disks.add(node.name)
        return lambda: self._slow_disks.discard(node.name)

    def slow_stop(self, _node: Node) -> None:
        self._slow_stops = True

    def lose_power(self, node: Node) -> Undo:
        node.lose_power()
        return lambda: self._power_up(node)

    def _power_up(self, node: Node) -> None:
        node.powered = True
        node.start()

    def worker_fails(self, node: Node) -> None:
        for host in node.hosts[:1]:
            if host.running:
                host.fail()

    def all_fail(self, _node: Node) -> None:
        for each in self.nodes.values():
            self._world.call_later(self.random.random() * 0.5, self.worker_fails, each)

    def kill_host(self, node: Node) -> None:
        for host in node.hosts[:1]:
            host.die("killed by the world")

    def succeed(self, node: Node) -> None:
        for host in list(node.hosts):
            host.succeed()

    def unkillable(self, node: Node) -> None:
        for host in node.hosts[:1]:
            if host.running:
                host.stuck = True

    def leave(self, node: Node) -> None:
        if node.agentd is not None and not node.ended and not node.agentd.process.stopped:
            node.agentd.leave()

    def terminate(self, _node: Node) -> None:
        """Somebody asks the hub, until it answers."""
        agentd = self.hub.agentd
        if agentd is None or agentd.hub is None or agentd.process.stopped:
            self._world.call_later(1.0, self.terminate, self.hub)
            return
        self.terminated = True
        agentd.process.call_soon(self._terminate, agentd.hub)

    def _terminate(self, hub: Hub) -> None:
        grace = self.random.choice((None, 0.5))
        with contextlib.suppress(AgentError):
            hub.terminate(RUN, INCARNATION, grace, "the world asks")


_FAULTS: dict[str, Callable[[World, Node], Undo]] = {
    "kill agentd": World.kill_agentd,
    "kill hub": World.kill_agentd,
    "hand over": World.hand_over,
    "freeze agentd": World.freeze_agentd,
    "freeze hub": World.freeze_agentd,
    "freeze host": World.freeze_host,
    "freeze machine": World.freeze_machine,
    "cut": World.cut,
    "reset": World.reset,
    "slow disk": World.slow_disk,
    "slow stop": World.slow_stop,
    "lose power": World.lose_power,
    "worker fails": World.worker_fails,
    "all fail": World.all_fail,
    "kill host": World.kill_host,
    "succeed": World.succeed,
    "unkillable": World.unkillable,
    "leave": World.leave,
    "terminate": World.terminate,
}


@contextlib.contextmanager
def simulated() -> Iterator[None]:
    """What the real code takes from its surroundings, for as many worlds as one likes.

    The hub looks at the clock and shows its status less often than a real one, for the sake of speed.
    """
    logging.disable(logging.CRITICAL)
    gc.disable()
    try:
        with contextlib.ExitStack() as stack:
            for target, value in _SURROUNDINGS.items():
                stack.enter_context(mock.patch(target, value))
            yield
    finally:
        gc.enable()
        gc.collect()
        logging.disable(logging.NOTSET)


def quick_replace(value: Any, **changes: Any) -> Any:
    """`dataclasses.replace` of values with slots, in a fifth of its time: a history has hundreds."""
    kind = type(value)
    new = object.__new__(kind)
    for name, slot in _SLOTS.get(kind) or _slots(kind):
        slot.__set__(new, changes.pop(name) if name in changes else slot.__get__(value))
    assert not changes, f"{kind.__name__} has no {', '.join(changes)}"
    return new


_SLOTS: dict[type, list[tuple[str, Any]]] = {}


def _slots(kind: type) -> list[tuple[str, Any]]:
    _SLOTS[kind] = [(field.name, getattr(kind, field.name)) for field in fields(kind)]
    return _SLOTS[kind]


_SURROUNDINGS = {
    "agentd.hub.turn.replace": quick_replace,
    "agentd.hub.memberbook.replace": quick_replace,
    "agentd.core.group.replace": quick_replace,
    "agentd.hub.member.boottime": lambda: asyncio.get_running_loop().time(),
    "agentd.hub.hub.TICK": 0.5,
    "agentd.hub.hub.STEP": 1.25,
    "agentd.hub.run.VIEW_INTERVAL": 3.0,
}
