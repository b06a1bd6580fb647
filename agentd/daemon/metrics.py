"""`GET /metrics`: the node's conditions for Prometheus, where the operator asks for it.

Told are names and counts, nothing that identifies a run: whoever reaches the address may read them. Nothing
that is sent here changes anything, and whoever is slow is hung up on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Final, Protocol

from agentd import __version__
from agentd.api.patience import within
from agentd.api.targets import Target, parse_target
from agentd.api.types import Drain, GroupRef, Phase
from agentd.core.conditions import OF_RUNS, Condition
from agentd.daemon.exits import ListenFailed

PATH: Final = "/metrics"
PATIENCE: Final = 5.0
"""Seconds somebody has to ask, and to read the answer."""
MOST_AT_ONCE: Final = 16

_LONGEST_REQUEST: Final = 8192
_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_log = logging.getLogger("agentd.daemon")


class Node(Protocol):
    """The part of the registry that is told."""

    @property
    def accepting(self) -> bool: ...

    @property
    def drain(self) -> Drain | None: ...

    @property
    def problems(self) -> Mapping[str, str]: ...

    def group_refs(self) -> tuple[GroupRef, ...]: ...


@contextlib.asynccontextmanager
async def served(address: str, node: Node, node_id: str) -> AsyncIterator[Target | None]:
    """Answer at `address` for the length of the block, if it is not empty. Raises `ListenFailed`."""
    if not address:
        yield None
        return
    exporter = _Exporter(node, node_id)
    target = parse_target(address)
    try:
        server = await asyncio.start_server(exporter.answer, target.host, target.port, limit=_LONGEST_REQUEST)
    except OSError as error:
        raise ListenFailed(address, error.strerror or str(error)) from None
    host, port = server.sockets[0].getsockname()[:2]
    bound = Target(host=host, port=port)
    _log.info("serving metrics", extra={"url": f"http://{bound}{PATH}"})
    try:
        yield bound
    finally:
        server.close()
        await exporter.close()


def exposition(node: Node, node_id: str) -> str:
    """All there is to tell, in the text format of Prometheus."""
    standing = node.problems.keys()
    phases = Counter(group.phase for group in node.group_refs())
    lines = [
        *_gauge("agentd_info", "This agentd.", {_labels(node_id=node_id, version=__version__): 1}),
        *_gauge(
            "agentd_condition",
            "1 while the condition of that name degrades the node: see docs/conditions.md.",
            {_labels(name=each.value): each.value in standing for each in Condition if each not in OF_RUNS},
        ),
        *_gauge("agentd_accepting", "1 while the node takes new runs.", {"": node.accepting}),
        *_gauge("agentd_drained", "1 while an operator wants the node empty.", {"": node.drain is not None}),
        *_gauge(
            "agentd_worker_groups",
            "Worker groups that have not ended, by phase.",
            {_labels(phase=phase.value): phases[phase] for phase in Phase if phase in phases},
        ),
    ]
    return "\n".join(lines) + "\n"


def _gauge(name: str, text: str, values: Mapping[str, int]) -> Iterable[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} gauge"
    for labels, value in values.items():
        yield f"{name}{labels} {int(value)}"


def _labels(**values: str) -> str:
    inner = ",".join(f'{name}="{_escaped(value)}"' for name, value in values.items())
    return f"{{{inner}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class _Exporter:
    """Answers one request on each connection."""

    def __init__(self, node: Node, node_id: str) -> None:
        self._node = node
        self._node_id = node_id
        self._connections: set[asyncio.Task[None]] = set()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= MOST_AT_ONCE:
            writer.close()
            return
        self._connections.add(task)
        try:
            # What is said wrongly, or too slowly, is answered by a hang-up.
            with contextlib.suppress(OSError, EOFError, ValueError, asyncio.TimeoutError):
                await within(PATIENCE, self._converse(reader, writer))
        except asyncio.CancelledError:
            pass  # only `close` cancels, and it waits for the task, not for its result
        finally:
            self._connections.discard(task)
            writer.close()

    async def close(self) -> None:
        """Hang up on everybody."""
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, path, _version = head.split(b"\r\n", 1)[0].decode("ascii").split(" ")
        writer.write(self._response(method, path.partition("?")[0]))
        await writer.drain()

    def _response(self, method: str, path: str) -> bytes:
        if path != PATH:
            status, body = "404 Not Found", f"there is only {PATH}\n"
        elif method not in ("GET", "HEAD"):
            status, body = "405 Method Not Allowed", "it can only be read\n"
        else:
            status, body = "200 OK", exposition(self._node, self._node_id)
        content = body.encode()
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {_CONTENT_TYPE}\r\nContent-Length: {len(content)}\r\n"
            "Connection: close\r\n\r\n"
        )
        return head.encode() + (b"" if method == "HEAD" else content)
