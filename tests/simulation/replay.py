"""Live through a history again: what breaks, told line by line, and with no more faults than it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from unittest import mock

from agentd.hub import core
from agentd.hub.state import Attached, Effect, Event, Publish, RunState, Send, Tick
from tests.simulation.histories import History, make_history, smaller
from tests.simulation.invariants import Breach
from tests.simulation.world import World

TRIES = 100
"""Histories a failing one is compared with, at most, to find a smaller one."""


@dataclass(frozen=True, slots=True)
class Lived:
    """How a history went."""

    breach: Breach | None
    lines: tuple[str, ...] = ()


def live(history: History, *, tracing: bool = False) -> Lived:
    """Go through it. Within `simulated()`."""
    world = World(history, tracing=tracing)
    with ExitStack() as stack:
        if tracing:
            stack.enter_context(mock.patch.object(core, "step", _TracedSteps(world)))
        try:
            world.live()
        except Breach as breach:
            return Lived(breach, tuple(world.lines))
    return Lived(None, tuple(world.lines))


def shrink(history: History) -> History:
    """A failing history that no longer fails with one fault less."""
    for _ in range(TRIES):
        found = next((each for each in smaller(history) if live(each).breach is not None), None)
        if found is None:
            break
        history = found
    return history


def report(seed: int) -> str:
    """All there is to know about a seed that fails."""
    history = shrink(make_history(seed))
    lived = live(history, tracing=True)
    return "\n".join(
        (
            f"seed {seed}: {lived.breach}",
            f"again: SEED={seed} python -m pytest tests/simulation -k replayed -s",
            f"the smallest that fails: {_in_short(history)}",
            *lived.lines,
        )
    )


def _in_short(history: History) -> str:
    rendezvous, spec = history.spec.rendezvous, history.spec
    faults = "; ".join(f"{f.at:g} s {f.kind} {f.node} for {f.seconds:g} s" for f in history.faults)
    return (
        f"nodes {dict(history.starts)}, hub {history.hub}, {len(spec.roles)} roles, "
        f"{rendezvous.min_members} to {rendezvous.max_members} members, {spec.max_restarts} restarts, "
        f"grace {spec.stop_grace:g} s, faults: {faults or 'none'}"
    )


class _TracedSteps:
    """`core.step` that tells what the hub heard and said."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._step = core.step

    def __call__(self, state: RunState, event: Event, now: float) -> tuple[RunState, tuple[Effect, ...]]:
        after, effects = self._step(state, event, now)
        if after is not state or not isinstance(event, Tick):
            told = ", ".join(_said(effect) for effect in effects if not isinstance(effect, Publish))
            self._world.trace("    hub:", _heard(event), "->", " ".join(_where(after)), f"[{told}]")
        return after, effects


def _heard(event: Event) -> str:
    if isinstance(event, Attached):
        hello = event.hello
        members = ", ".join(f"{m.role} {m.condition.value} {m.round}" for m in hello.members)
        return f"hello of {hello.node_id} (epoch {hello.session_epoch}: {members or 'no members'})"
    return str(event)[:240]


def _where(state: RunState) -> Iterator[str]:
    yield f"{state.beat.value} {state.round} restarts {state.restart_count}"
    for name in ("live", "done", "owing", "waiting", "behind"):
        if keys := getattr(state, name):
            yield f"{name} {'+'.join('/'.join(key) for key in keys)}"
    if state.detached:
        yield f"detached {'+'.join(state.detached)}"


def _said(effect: Effect) -> str:
    if isinstance(effect, Send):
        return f"{type(effect.message).__name__} to {effect.node_id}"
    return type(effect).__name__
