"""agentd starts, says where it serves, and shares its places with no other."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from agentd.daemon.exits import ExitCode
from agentd.v1 import agent_service_pb2 as pb
from tests.integration.daemon.rig import (
    CALL_S,
    Daemon,
    calling,
    ending,
    health_of,
    is_serving,
    refused,
    running,
)
from tests.support.fleet import count_descriptors
from tests.support.waiting import wait_until


def node(target: str) -> pb.GetNodeResponse:
    with calling(target) as agent:
        answer: pb.GetNodeResponse = agent.GetNode(pb.GetNodeRequest(), timeout=CALL_S)
        return answer


def agentd(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agentd", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, **env},
    )


def test_by_default_it_serves_a_socket_that_only_its_user_can_reach(folder: Path) -> None:
    with ending(Daemon(folder, flags=())) as daemon:
        daemon.serving()
        path = folder / "agentd" / "agentd.sock"
        assert daemon.targets == [f"unix:{path}"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        info = node(daemon.targets[0])
        assert (info.node_id, info.pid) == ("n", daemon.process.pid)
        daemon.signal()
        assert daemon.ended() == ExitCode.OK
        assert list(path.parent.iterdir()) == []


def test_a_free_port_is_printed_and_in_the_port_file(folder: Path) -> None:
    with running(folder, "--listen", "127.0.0.1:0", "--listen", f"unix:{folder}/s") as daemon:
        (tcp, unix) = daemon.targets
        assert (folder / "port").read_text() == f"{tcp.rpartition(':')[2]}\n"
        for target in (tcp, unix):
            info = node(target)
            assert list(info.listen_addresses) == [tcp, unix]
            assert info.advertised_address == tcp


def test_ipv6_loopback_works(folder: Path) -> None:
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        pytest.skip("needs IPv6")
    with running(folder, "--listen", "[::1]:0") as daemon:
        assert daemon.targets[0].startswith("[::1]:")
        assert node(daemon.targets[0]).advertised_address == daemon.targets[0]


def test_a_proxy_in_the_environment_changes_nothing(folder: Path) -> None:
    with running(
        folder, env={"http_proxy": "http://127.0.0.1:1", "grpc_proxy": "http://127.0.0.1:1"}
    ) as daemon:
        with health_of(daemon.targets[0]) as health:
            assert is_serving(health)


def test_loopback_warns_and_anything_else_is_refused_with_the_reason(folder: Path) -> None:
    with running(folder) as daemon:
        (warning,) = [event for event in daemon.events() if event["level"] == "warning"]
        assert "any of them can run programs" in warning["event"]
    code, words = refused(folder, "--listen", "0.0.0.0:0")
    assert code == ExitCode.ADDRESS_UNUSABLE
    assert "--insecure" in words


def test_insecure_serves_every_address(folder: Path) -> None:
    with running(folder, "--listen", "0.0.0.0:0", "--insecure") as daemon:
        port = daemon.targets[0].rpartition(":")[2]
        info = node(f"127.0.0.1:{port}")
        assert info.advertised_address.endswith(f":{port}")
        assert not info.advertised_address.startswith("0.0.0.0")


@pytest.mark.parametrize("shared", ["state", "port", "socket"])
def test_a_second_daemon_is_refused_and_names_the_first(folder: Path, shared: str) -> None:
    listen = f"unix:{folder}/s"
    with running(folder, "--listen", "127.0.0.1:0", "--listen", listen) as first:
        flags = {
            "state": ("--state-dir", str(first.state_dir), "--listen", "127.0.0.1:0"),
            "port": ("--listen", first.targets[0]),
            "socket": ("--listen", listen),
        }[shared]
        code, words = refused(folder / "second", *flags)
        assert code == ExitCode.ALREADY_RUNNING, words
        assert f"pid {first.process.pid}" in words
        assert node(listen).pid == first.process.pid


def test_after_kill_9_the_same_places_are_free_again(folder: Path) -> None:
    flags = ("--listen", f"unix:{folder}/s")
    with running(folder, *flags) as first:
        uid = node(first.targets[0]).agent_uid
        first.signal(signal.SIGKILL)
        first.ended()
    (folder / "port").unlink()
    with running(folder, *flags) as second:
        info = node(second.targets[-1])
        assert info.pid == second.process.pid
        assert info.agent_uid == uid


def test_the_one_who_started_it_is_told_and_its_end_is_a_shutdown(folder: Path) -> None:
    ready_read, ready_write = os.pipe()
    life_read, life_write = os.pipe()
    flags = ("--listen", "127.0.0.1:0", "--ready-fd", str(ready_write), "--lifeline-fd", str(life_read))
    try:
        with ending(Daemon(folder, flags, pass_fds=(ready_write, life_read))) as daemon:
            os.close(ready_write)
            ready_write = -1
            with open(ready_read, "rb", closefd=False) as told:
                facts = json.loads(told.readline())
                # The pipe is closed behind the line.
                assert told.readline() == b""
            daemon.serving()
            assert facts["addresses"] == daemon.targets
            assert facts["pid"] == daemon.process.pid
            os.close(life_write)
            life_write = -1
            assert daemon.ended() == ExitCode.OK
            assert daemon.event("shutting down")["reason"] == "the process that started it is gone"
    finally:
        for fd in (ready_read, ready_write, life_read, life_write):
            if fd >= 0:
                os.close(fd)


def test_wrong_settings_are_named_before_anything_is_touched(folder: Path) -> None:
    file = folder / "a.toml"
    file.write_text('[log]\nformta = "json"\n')
    state = folder / "none"
    done = agentd("--config", str(file), "--state-dir", str(state))
    assert done.returncode == ExitCode.USAGE
    assert "did you mean 'log.format'" in done.stderr
    assert agentd("--no-such-flag").returncode == ExitCode.USAGE
    assert agentd("--config", str(folder / "absent.toml")).returncode == ExitCode.USAGE
    assert not state.exists()


def test_a_state_directory_that_cannot_be_is_named(folder: Path) -> None:
    (folder / "file").write_text("")
    code, words = refused(folder, "--state-dir", str(folder / "file" / "state"), "--listen", "127.0.0.1:0")
    assert code == ExitCode.STATE_DIR_UNUSABLE
    assert "not a directory" in words


def test_config_shows_values_and_origins_with_options_before_or_behind(folder: Path) -> None:
    before = agentd("--node-id", "x", "config", AGENTD_LOG_LEVEL="debug")
    behind = agentd("config", "--node-id", "x", AGENTD_LOG_LEVEL="debug")
    assert before.stdout == behind.stdout
    assert before.returncode == 0
    shown = json.loads(agentd("config", "--node-id", "x", "-o", "json", AGENTD_LOG_LEVEL="debug").stdout)
    assert shown["node_id"] == {"value": "x", "origin": "flag --node-id"}
    assert shown["log.level"] == {"value": "debug", "origin": "environment AGENTD_LOG_LEVEL"}


def test_version_is_told() -> None:
    assert agentd("version").stdout == agentd("--version").stdout
    assert agentd("version").stdout.startswith("agentd ")


def news(systemd: socket.socket) -> bytes:
    """What systemd hears next besides the status line, which comes at its own times."""
    while (heard := systemd.recv(100)).startswith(b"STATUS="):
        pass
    return heard


def test_a_systemd_notification_comes_when_it_serves(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(folder / "notify"))
        systemd.settimeout(20)
        with running(folder, env={"NOTIFY_SOCKET": str(folder / "notify")}) as daemon:
            assert news(systemd) == b"READY=1"
            daemon.signal()
            assert news(systemd) == b"STOPPING=1"
            daemon.ended()


def test_idle_it_is_small_and_quiet(folder: Path) -> None:
    with running(folder) as daemon:
        info = node(daemon.targets[0])
        assert 0 < info.agentd_resident_bytes < 80 * 1024 * 1024
        fds = wait_until(lambda: count_descriptors(daemon.process.pid))
        for _ in range(50):
            node(daemon.targets[0])
        wait_until(lambda: count_descriptors(daemon.process.pid) <= fds + 2)
