"""Cgroups of worker groups: where one may be made, and that it holds, ends and gives back what it should."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from agentd.procs import cgroups
from tests.support.waiting import wait_until

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
41 31 0:38 {root} {where} rw,relatime shared:9 - cgroup2 cgroup2 rw
"""

here = pytest.mark.skipif(cgroups.own_home() is None, reason="no version 2 cgroup to make others in")


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc/self/cgroup of ours, in which this process is in /kubepods/x."""
    monkeypatch.setattr(cgroups, "PROC", str(tmp_path / "proc"))
    folder = tmp_path / "proc" / "self"
    folder.mkdir(parents=True)
    (folder / "cgroup").write_text("4:memory:/elsewhere\n0::/kubepods/x\n")
    return folder


@pytest.mark.parametrize(
    ("root", "below"), [("/", "kubepods/x"), ("/kubepods", "x"), ("/kubepods/x", ".")], ids=str
)
def test_the_own_cgroup_is_found_below_whatever_is_mounted(
    tmp_path: Path, proc: Path, root: str, below: str
) -> None:
    where = tmp_path / "v2"
    (where / below).mkdir(parents=True)
    (proc / "mountinfo").write_text(HYBRID.format(root=root, where=where))
    assert cgroups.folder_of("self") == where / below


@pytest.mark.parametrize("root", ["/other", "/kubepods/x/deeper"])
def test_a_cgroup_that_is_not_mounted_here_is_none(tmp_path: Path, proc: Path, root: str) -> None:
    (tmp_path / "v2").mkdir()
    (proc / "mountinfo").write_text(HYBRID.format(root=root, where=tmp_path / "v2"))
    assert cgroups.folder_of("self") is None


def test_a_machine_without_version_2_has_none(tmp_path: Path, proc: Path) -> None:
    (proc / "mountinfo").write_text(HYBRID.format(root="/", where=tmp_path).replace("cgroup2", "cgroup"))
    assert cgroups.folder_of("self") is None
    (proc / "cgroup").unlink()
    assert cgroups.folder_of("self") is None
    assert cgroups.make("0" * 32) == ""


def test_under_systemd_only_what_is_delegated_is_divided(
    tmp_path: Path, proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "kubepods" / "x"
    own.mkdir(parents=True)
    (own / "cgroup.procs").touch()
    (proc / "mountinfo").write_text(HYBRID.format(root="/", where=tmp_path))
    monkeypatch.setattr(cgroups, "SYSTEMD", str(tmp_path / "no-systemd"))
    assert cgroups.own_home() == own
    monkeypatch.setattr(cgroups, "SYSTEMD", str(tmp_path))
    assert cgroups.own_home() is None
    try:
        os.setxattr(own, "user.delegate", b"1")
    except OSError:
        pytest.skip("this file system keeps no attributes")
    assert cgroups.own_home() == own


def test_no_cgroup_is_a_cgroup_of_nobody() -> None:
    assert not cgroups.enter("", os.getpid())
    assert cgroups.members("") == set()
    assert not cgroups.kill("")
    assert cgroups.remove("")
    assert not cgroups.enter("/nowhere", os.getpid())
    assert cgroups.members("/nowhere") == set()
    assert cgroups.remove("/nowhere")


@here
def test_all_in_it_and_below_dies_at_once_and_it_is_removed() -> None:
    folder = cgroups.make(os.urandom(16).hex())
    deeper = Path(folder, "deeper")
    deeper.mkdir()
    with subprocess.Popen(["/bin/sleep", "60"]) as one, subprocess.Popen(["/bin/sleep", "60"]) as other:
        assert cgroups.enter(folder, one.pid)
        assert cgroups.enter(str(deeper), other.pid)
        assert cgroups.members(folder) == {one.pid, other.pid}
        assert not cgroups.remove(folder), "not while somebody is in there"
        assert cgroups.kill(folder)
        assert (one.wait(10), other.wait(10)) == (-9, -9)
    wait_until(lambda: cgroups.remove(folder))
    assert not Path(folder).exists()


@here
def test_it_is_never_killed_from_within() -> None:
    home = cgroups.own_home()
    assert home is not None
    assert not cgroups.kill(str(home)), "this very process is in there"


@here
def test_only_old_empty_ones_are_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    empty, busy = cgroups.make(os.urandom(16).hex()), cgroups.make(os.urandom(16).hex())
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        cgroups.enter(busy, process.pid)
        cgroups.clear()
        assert Path(empty).exists(), "somebody may be about to enter it"
        monkeypatch.setattr(cgroups, "PREFIX", Path(empty).name)
        monkeypatch.setattr(cgroups, "YOUNG_S", -1.0)
        cgroups.clear()
        assert not Path(empty).exists()
        monkeypatch.setattr(cgroups, "PREFIX", Path(busy).name)
        cgroups.clear()
        assert Path(busy).exists()
        process.kill()
    wait_until(lambda: cgroups.remove(busy))
