"""Whatever comes in, a named error goes out and the daemon lives."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import grpc
import pytest

from agentd.api.channel import CLIENT_OPTIONS
from agentd.api.errwire import RpcFailure, from_rpc_error
from agentd.v1 import agent_service_pb2 as service
from agentd.v1 import run_pb2 as run
from agentd.v1.agent_service_pb2_grpc import AgentServiceStub
from tests.support.fleet import Node, agentctl, agentd, count_descriptors, write_script
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from agentd.v1.agent_service_pb2_grpc import AgentServiceAsyncStub

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One daemon takes all the abuse of this module."""
    with agentd(tmp_path_factory.mktemp("abused"), "a") as one:
        yield one
        assert one.process.poll() is None


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return write_script(tmp_path / "s.py", "pass")


@pytest.fixture(autouse=True)
def the_daemon_lives_and_works(node: Node, script: Path) -> Iterator[None]:
    yield
    done = agentctl("run", "--nodes", node.target, str(script))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in node.log.read_text()


def status_code(failed: grpc.RpcError) -> grpc.StatusCode:
    return cast(RpcFailure, failed).code()


def refused(node: Node, *arguments: str, says: str, code: int | None = None) -> None:
    done = agentctl("run", "--nodes", node.target, *arguments)
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    if code is not None:
        assert done.returncode == code


def test_a_script_that_is_not_there(node: Node) -> None:
    refused(node, "/nowhere/train.py", says="/nowhere/train.py")


def test_a_program_without_its_exec_bit(node: Node, tmp_path: Path) -> None:
    program = write_script(tmp_path / "program", "#!/bin/sh")
    program.chmod(0o644)
    refused(node, "--no-python", str(program), says=str(program))


def test_a_directory_that_is_not_there(node: Node, script: Path) -> None:
    refused(node, "--workdir", "/nowhere", str(script), says="/nowhere")


def test_an_interpreter_that_is_not_there(node: Node, script: Path) -> None:
    refused(node, "--python", "/nowhere/python", str(script), says="/nowhere/python")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--nproc-per-node", "0"], "nproc-per-node"),
        (["--nproc-per-node", "gpu"], "gpu"),
        (["--nproc-per-node", "10000"], "10000"),
        (["--nnodes", "3:2"], "nnodes"),
        (["--nnodes", "0"], "nnodes"),
        (["--env", "=x"], "env"),
        (["--env", "NOVALUE"], "env"),
        (["--max-restarts", "-1"], "max-restarts"),
        (["--run-id", "../../etc"], "run"),
        (["--run-id", ""], "run"),
        (["--run-id", "a/b"], "run"),
        (["--rdzv-endpoint", "127.0.0.1:1"], "127.0.0.1:1"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--stop-grace", "-3"], "stop-grace"),
    ],
    ids=lambda value: "_".join(value).replace("/", "") if isinstance(value, list) else None,
)
def test_a_bad_flag_is_named(node: Node, script: Path, flags: list[str], says: str) -> None:
    refused(node, *flags, str(script), says=says)


def test_a_node_twice_in_the_list(node: Node, script: Path) -> None:
    refused(node, "--nodes", f"{node.target},{node.target}", str(script), says=node.target)


def test_a_log_folder_that_cannot_be_made_ends_the_run_with_the_reason(node: Node, script: Path) -> None:
    # Root may write anywhere, as far as access() tells; procfs takes no folder from anybody.
    refused(node, "--log-dir", "/proc/agentd-logs", str(script), says="/proc/agentd-logs")


def test_ten_mebibytes_of_arguments(node: Node, script: Path) -> None:
    request = service.RunRequest(
        request_id="x",
        spec=run.RunSpec(
            run_id="huge",
            roles=[run.RoleSpec(command=run.Command(entrypoint=str(script), arguments=["x" * 10 * 2**20]))],
        ),
    )
    with grpc.insecure_channel(node.target, options=[("grpc.max_send_message_length", -1)]) as channel:
        with pytest.raises(grpc.RpcError) as failed:
            AgentServiceStub(channel).Run(request, timeout=30)
    assert status_code(failed.value) is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (run.RunSpec(), "run_id"),
        (run.RunSpec(run_id="../x"), "run_id"),
        (run.RunSpec(run_id="x" * 200), "run_id"),
        (run.RunSpec(run_id="x\0y"), "run_id"),
        (run.RunSpec(run_id="x"), "roles"),
        (run.RunSpec(run_id="x", roles=[run.RoleSpec()]), "entrypoint"),
        (
            run.RunSpec(
                run_id="x",
                roles=[run.RoleSpec(command=run.Command(entrypoint="/bin/true"), env={"A=B": "x"})],
            ),
            "env",
        ),
        (
            run.RunSpec(
                run_id="x",
                roles=[run.RoleSpec(command=run.Command(entrypoint="/bin/true", arguments=["a\0b"]))],
            ),
            "arguments",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "spec",
)
def test_a_bad_spec_names_its_field(node: Node, spec: run.RunSpec, field: str) -> None:
    with grpc.insecure_channel(node.target, options=CLIENT_OPTIONS) as channel:
        with pytest.raises(grpc.RpcError) as failed:
            AgentServiceStub(channel).Run(service.RunRequest(request_id="x", spec=spec), timeout=30)
    error = from_rpc_error(cast(RpcFailure, failed.value), node.target)
    assert error.reason == "INVALID_SPEC"
    assert field in error.facts["field"]


def test_garbage_bytes_on_the_port(node: Node) -> None:
    address = ("127.0.0.1", int(node.target.rpartition(":")[2]))
    for garbage in (
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(4096),
        b"\0" * 100,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff",
    ):
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(10)
            try:
                while connection.recv(4096):
                    pass
            except ConnectionResetError:
                pass


def test_a_client_that_vanishes_in_mid_stream(node: Node, script: Path) -> None:
    started = agentctl("run", "--detach", "--nodes", node.target, "--run-id", "vanish", str(script))
    assert started.returncode == 0, started.stderr
    before = count_descriptors(node.pid)
    channels = [
        grpc.insecure_channel(node.target, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(20)
    ]
    for channel in channels:
        stream = AgentServiceStub(channel).Watch(service.WatchRequest(run_id="vanish"), timeout=60)
        next(iter(stream))
        channel.close()
    wait_until(lambda: count_descriptors(node.pid) <= before + 2, 60)


def test_two_hundred_idle_watchers_do_not_hold_up_status(node: Node) -> None:
    async def watchers_and_a_question() -> int:
        async with grpc.aio.insecure_channel(node.target, options=CLIENT_OPTIONS) as channel:
            stub = cast("AgentServiceAsyncStub", AgentServiceStub(channel))
            request = service.WatchRequest()
            request.heartbeat.seconds = 1
            streams = [stub.Watch(request) for _ in range(200)]
            await asyncio.wait_for(asyncio.gather(*(anext(aiter(stream)) for stream in streams)), 60)
            answers = [await stub.Status(service.StatusRequest(), timeout=10) for _ in range(20)]
            for stream in streams:
                stream.cancel()
            return len(answers)

    assert asyncio.run(watchers_and_a_question()) == 20


def test_an_rpc_of_a_newer_client_gets_a_clear_answer(node: Node) -> None:
    with grpc.insecure_channel(node.target, options=CLIENT_OPTIONS) as channel:
        newer: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/agentd.v1.AgentService/FromTheFuture"
        )
        with pytest.raises(grpc.RpcError) as failed:
            newer(b"", timeout=10)
    assert status_code(failed.value) is grpc.StatusCode.UNIMPLEMENTED
    error = from_rpc_error(cast(RpcFailure, failed.value), node.target, method="FromTheFuture")
    assert "Upgrade" in str(error)
