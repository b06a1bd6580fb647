"""Which addresses agentd may serve on, and who may have them."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from agentd.api.targets import Target
from agentd.daemon.exits import AlreadyRunning, ListenFailed
from agentd.daemon.listen import ListenPlan, claim_port, claim_socket, plan, resolve_host
from agentd.daemon.locks import FileLock

NAMES = {"localhost": ("::1", "127.0.0.1"), "node": ("10.0.0.5",), "0.0.0.0": ("0.0.0.0",), "::": ("::",)}


def planned(*listen: str, insecure: bool = False) -> ListenPlan:
    def resolve(target: Target) -> Sequence[str]:
        return NAMES.get(target.host, (target.host,))

    return plan(listen, insecure=insecure, resolve=resolve)


def test_a_unix_socket_needs_no_word_of_warning() -> None:
    assert planned("unix:/run/a.sock") == ListenPlan((Target(path="/run/a.sock"),), ())


def test_loopback_is_allowed_and_says_who_can_reach_it() -> None:
    found = planned("127.0.0.1:7460", "[::1]:7460")
    assert [str(endpoint) for endpoint in found.endpoints] == ["127.0.0.1:7460", "[::1]:7460"]
    assert all("every user of this machine" in warning for warning in found.warnings)
    assert len(found.warnings) == 2


@pytest.mark.parametrize("address", ["10.0.0.5:7460", "node:7460", "0.0.0.0:7460", "[::]:7460"])
def test_anything_else_is_refused_with_the_reason_unless_insecure(address: str) -> None:
    with pytest.raises(ListenFailed, match="--insecure"):
        planned(address)
    found = planned(address, insecure=True)
    assert "without any security" in found.warnings[0]


def test_a_name_stands_for_all_its_addresses_but_a_free_port_for_one() -> None:
    assert [str(e) for e in planned("localhost:7460").endpoints] == ["127.0.0.1:7460", "[::1]:7460"]
    assert [str(e) for e in planned("localhost:0").endpoints] == ["127.0.0.1:0"]


def test_a_host_that_is_not_here_is_named() -> None:
    with pytest.raises(ListenFailed, match="no address of this machine"):
        resolve_host(Target(host="192.0.2.77", port=1))


def test_a_taken_port_names_its_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(AlreadyRunning, match="pid 4711"):
            claim_port(Target(host="127.0.0.1", port=port), lambda asked: 4711 if asked == port else None)


def private(path: Path) -> Path:
    path.mkdir(mode=0o700)
    return path


def test_a_socket_has_one_owner_and_leaves_nothing(tmp_path: Path) -> None:
    folder = private(tmp_path / "run")
    endpoint = Target(path=str(folder / "a.sock"))
    lock = claim_socket(endpoint, private=True)
    with pytest.raises(AlreadyRunning, match=f"pid {os.getpid()}"):
        claim_socket(endpoint, private=True)
    lock.release()
    assert list(folder.iterdir()) == []


def test_the_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    claim_socket(Target(path=str(tmp_path / "new" / "a.sock")), private=True).release()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("mode", "strict", "accepted"), [(0o755, True, False), (0o755, False, True), (0o777, False, False)]
)
def test_a_directory_that_others_could_use_is_refused(
    tmp_path: Path, mode: int, strict: bool, accepted: bool
) -> None:
    folder = private(tmp_path / "run")
    folder.chmod(mode)
    endpoint = Target(path=str(folder / "a.sock"))
    if accepted:
        claim_socket(endpoint, private=strict).release()
    else:
        with pytest.raises(ListenFailed, match="chmod go-rwx"):
            claim_socket(endpoint, private=strict)
    assert list(folder.iterdir()) == []


def test_what_a_dead_daemon_left_is_removed(tmp_path: Path) -> None:
    path = private(tmp_path / "run") / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    claim_socket(Target(path=str(path)), private=True).release()
    assert not path.exists()


def test_a_socket_that_another_program_serves_is_left_alone(tmp_path: Path) -> None:
    path = private(tmp_path / "run") / "a.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(AlreadyRunning):
            claim_socket(Target(path=str(path)), private=True)
    assert path.exists()


def test_a_file_in_the_sockets_place_is_left_alone(tmp_path: Path) -> None:
    path = private(tmp_path / "run") / "a.sock"
    path.write_text("precious")
    with pytest.raises(ListenFailed, match="no socket"):
        claim_socket(Target(path=str(path)), private=True)
    assert path.read_text() == "precious"


def test_a_path_too_long_for_the_kernel_is_named(tmp_path: Path) -> None:
    with pytest.raises(ListenFailed, match="107 bytes"):
        claim_socket(Target(path=f"/tmp/{'x' * 120}"), private=True)


def test_a_lock_that_its_holder_removed_is_made_anew(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    first = FileLock.acquire(path, "it")
    first.release()
    second = FileLock.acquire(path, "it")
    with pytest.raises(AlreadyRunning, match="it is in use"):
        FileLock.acquire(path, "it")
    second.release()
    second.release()
    assert not Path(path).exists()
