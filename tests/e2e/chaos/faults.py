"""Each fault: how it is done, and how its cause goes away again."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence

from agentd.api.types import DrainMode
from tests.e2e.chaos.observe import Role, Seen, send
from tests.e2e.chaos.plan import Fault, Kind
from tests.e2e.chaos.world import STOP_S, Limit, Place, Undo, Wished, World
from tests.support.shortage import cannot_limit_processes, no_more_files, no_more_processes

FILLER = "filler"
INODES = 65536
SPARE_INODES = 16
HANDOVER_S = 0.1
"""A handover takes about so long."""
MOST_DRAINED = 2
_DRAINS = (Wished(DrainMode.WAIT), Wished(DrainMode.WAIT, deadline=0.5), Wished(DrainMode.MOVE))


async def strike(world: World, fault: Fault) -> Undo | None:
    """Do it. None: there is nothing that it could hit now."""
    return await _HOW[fault.kind](world, fault)


async def _kill_worker(world: World, fault: Fault) -> Undo | None:
    return await _signalled(_picked(_workers(world, fault), fault), signal.SIGKILL)


async def _freeze_worker(world: World, fault: Fault) -> Undo | None:
    return await _signalled(_picked(_workers(world, fault), fault), signal.SIGSTOP, signal.SIGCONT)


async def _kill_host(world: World, fault: Fault) -> Undo | None:
    return await _signalled(_picked(world.look.of(Role.HOST, fault.node), fault), signal.SIGKILL)


async def _freeze_host(world: World, fault: Fault) -> Undo | None:
    host = _picked(world.look.of(Role.HOST, fault.node), fault)
    thaw = await _signalled(host, signal.SIGSTOP, signal.SIGCONT)
    return _ill(world.places[fault.node], fault, thaw) if thaw else None


async def _kill_zygote(world: World, fault: Fault) -> Undo | None:
    return await _signalled(_picked(world.look.of(Role.ZYGOTE, fault.node), fault), signal.SIGKILL)


async def _freeze_zygote(world: World, fault: Fault) -> Undo | None:
    found = _picked(world.look.of(Role.ZYGOTE, fault.node), fault)
    return await _signalled(found, signal.SIGSTOP, signal.SIGCONT)


async def _kill_agentd(world: World, fault: Fault) -> Undo | None:
    place = world.places[fault.node]
    if not place.up:
        return None
    world.kill(place)
    return _ill(place, fault, lambda: _begin_again(world, place))


async def _freeze_agentd(world: World, fault: Fault) -> Undo | None:
    place = world.places[fault.node]
    if place.frozen or not place.up or place.process is None:
        return None  # frozen twice, it would be thawed by the first that ends
    frozen = place.process
    place.frozen = True
    frozen.send_signal(signal.SIGSTOP)

    async def thaw() -> None:
        place.frozen = False
        frozen.send_signal(signal.SIGCONT)

    return _ill(place, fault, thaw)


async def _hand_over(world: World, fault: Fault) -> Undo | None:
    place = world.places[fault.node]
    if not place.up or place.process is None:
        return None
    leaving = place.process
    place.may_forget()
    leaving.send_signal(signal.SIGUSR2)

    async def begin_again() -> None:
        code = await asyncio.to_thread(leaving.wait, STOP_S)
        # One that has just begun knows no handover yet, and one may be killed at it.
        assert code in (0, -signal.SIGKILL, -signal.SIGUSR2), (
            f"the handover on {place.name} ended with {code}"
        )
        await _begin_again(world, place)

    return _ill(place, fault, begin_again)


async def _hand_over_struck(world: World, fault: Fault) -> Undo | None:
    undo = await _hand_over(world, fault)
    if undo is None:
        return None
    within, which = math.modf(fault.pick * len(_BESIDE_HANDOVER))
    await asyncio.sleep(within * HANDOVER_S)
    await _BESIDE_HANDOVER[int(which)](world, fault)
    return undo


async def _kill_leaving(world: World, fault: Fault) -> None:
    world.kill(world.places[fault.node])


async def _kill_peers_agentd(world: World, fault: Fault) -> None:
    """Both begin again at once."""
    peer = world.places[fault.peer]
    if not peer.up or peer.ailments:
        return
    peer.fall_ill(fault.number)
    world.kill(peer)
    world.launch(peer)
    peer.get_well(fault.number)


async def _drain(world: World, fault: Fault) -> Undo | None:
    place = world.places[fault.node]
    drained = sum(each.wished.mode is not None for each in world.places.values())
    if place.wished.mode is not None or drained >= MOST_DRAINED:
        return None
    place.wish(_DRAINS[int(fault.pick * len(_DRAINS))])
    if not place.frozen:
        await place.tell_wish()

    async def undrain() -> None:
        place.wish(Wished())
        await place.tell_wish()

    return undrain


async def _lose_node(world: World, fault: Fault) -> Undo | None:
    place = world.places[fault.node]
    if not place.up:
        return None
    undo = _ill(place, fault, lambda: _begin_again(world, place))
    world.kill(place)
    # What a process begins while the others die is found by the next look.
    while there := [seen for seen in world.see().processes.values() if seen.node == place.name]:
        for seen in there:
            send(seen, signal.SIGKILL)
        await asyncio.sleep(0.005)
    return undo


async def _pull_cable(world: World, fault: Fault) -> Undo | None:
    place = world.places[fault.node]
    if place.unplugged:
        return None
    place.unplugged = True
    await asyncio.to_thread(world.net.partition, place.name)

    async def plug_in() -> None:
        place.unplugged = False
        await asyncio.to_thread(world.net.heal, place.name)

    return _ill(place, fault, plug_in)


async def _cut(world: World, fault: Fault) -> Undo | None:
    sender, receiver = world.places[fault.node], world.places[fault.peer]
    if receiver.name in sender.cut_from:
        return None
    sender.cut_from.add(receiver.name)
    await asyncio.to_thread(world.net.cut, sender.name, receiver.name)

    async def mend() -> None:
        sender.cut_from.discard(receiver.name)
        await asyncio.to_thread(world.net.mend, sender.name, receiver.name)

    return _ill(sender, fault, _ill(receiver, fault, mend))


async def _fill_disk(world: World, fault: Fault) -> Undo | None:
    place = world.places[fault.node]
    filler = place.seen_state / FILLER
    if filler.exists():
        return None
    place.disk_ails(fault.number)
    await asyncio.to_thread(_fill, str(filler))

    async def clear() -> None:
        filler.unlink()
        place.disk_is_well(fault.number)

    return _ill(place, fault, clear)


def _fill(path: str) -> None:
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        block = b"\0" * (1 << 20)
        while len(block) > 64:
            try:
                file.write(block)
            except OSError:
                block = block[: len(block) // 2]


async def _take_inodes(world: World, fault: Fault) -> Undo | None:
    place = world.places[fault.node]
    if place.no_inodes:
        return None
    place.no_inodes = True
    place.disk_ails(fault.number)
    disk = os.statvfs(place.seen_state)
    # A few more: the kernel refuses fewer than there are, and some are made just now.
    most = disk.f_files - disk.f_ffree + SPARE_INODES
    await asyncio.to_thread(world.net.limit_inodes, place.name, place.state, most)

    async def give_back() -> None:
        await asyncio.to_thread(world.net.limit_inodes, place.name, place.state, INODES)
        place.no_inodes = False
        place.disk_is_well(fault.number)

    return _ill(place, fault, give_back)


async def _take_files(world: World, fault: Fault) -> Undo | None:
    return await _limited(world, fault, no_more_files)


async def _take_processes(world: World, fault: Fault) -> Undo | None:
    return None if cannot_limit_processes() else await _limited(world, fault, no_more_processes)


async def _limited(world: World, fault: Fault, limit: Limit) -> Undo | None:
    """The agentd of now is, if it serves; the next one would not be."""
    place = world.places[fault.node]
    if place.well_since is None or place.process is None or limit in place.limits:
        return None
    place.limits.append(limit)
    stack = contextlib.ExitStack()
    stack.enter_context(limit(place.process.pid))

    async def lift() -> None:
        await asyncio.to_thread(stack.close)
        place.limits.remove(limit)

    return _ill(place, fault, lift)


async def _begin_again(world: World, place: Place) -> None:
    if not place.up:
        world.launch(place)


def _ill(place: Place, fault: Fault, undo: Undo) -> Undo:
    """The node is ill until the fault is undone; only an answer of its agentd after that proves it well."""
    place.fall_ill(fault.number)

    async def heal() -> None:
        await undo()
        place.get_well(fault.number)

    return heal


def _workers(world: World, fault: Fault) -> Sequence[Seen]:
    return [seen for seen in world.look.of(Role.WORKER, fault.node) if seen.leads]


def _picked(among: Sequence[Seen], fault: Fault) -> Seen | None:
    return among[int(fault.pick * len(among))] if among else None


async def _signalled(seen: Seen | None, signum: int, undone_by: int | None = None) -> Undo | None:
    if seen is None or not send(seen, signum):
        return None

    async def undo() -> None:
        if undone_by is not None:
            send(seen, undone_by)

    return undo


_BESIDE_HANDOVER: Sequence[Callable[[World, Fault], Awaitable[object]]] = (
    _kill_worker,
    _kill_host,
    _kill_leaving,
    _kill_peers_agentd,
)
_HOW: Mapping[Kind, Callable[[World, Fault], Awaitable[Undo | None]]] = {
    Kind.WORKER_KILL: _kill_worker,
    Kind.WORKER_FREEZE: _freeze_worker,
    Kind.HOST_KILL: _kill_host,
    Kind.HOST_FREEZE: _freeze_host,
    Kind.ZYGOTE_KILL: _kill_zygote,
    Kind.ZYGOTE_FREEZE: _freeze_zygote,
    Kind.AGENTD_KILL: _kill_agentd,
    Kind.AGENTD_FREEZE: _freeze_agentd,
    Kind.HANDOVER: _hand_over,
    Kind.HANDOVER_STRUCK: _hand_over_struck,
    Kind.NODE_LOSS: _lose_node,
    Kind.PARTITION: _pull_cable,
    Kind.CUT: _cut,
    Kind.DISK_FULL: _fill_disk,
    Kind.NO_INODES: _take_inodes,
    Kind.NO_FILES: _take_files,
    Kind.NO_FORKS: _take_processes,
    Kind.DRAIN: _drain,
}
assert set(_HOW) == set(Kind)
