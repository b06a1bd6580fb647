"""A real systemd as the init of namespaces of its own, with agentd's unit as it is shipped.

Its cgroups are those of version 2 alone, as on a machine of today. Where version 2 has no memory controller,
/run/memory/small is a version 1 cgroup of 64 MiB, in which a process can meet the OOM killer.

It has its own process ids, mounts, network, host name and cgroups; of this machine's files it sees all, but
writes only below the test's folder. Ended by SIGKILL to its pid 1, which the kernel passes on to all within.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from agentd.procs import cgroups
from agentd_client import AgentClient
from tests.support.fleet import BIN, CALL_S, is_gone
from tests.support.waiting import wait_until

SYSTEMD = Path("/usr/lib/systemd/systemd")
UNIT = Path(__file__).parents[2] / "deploy" / "agentd.service"
BOOT_S = 60.0
LOG = "agentd.log"
_SHIPPED = Path("/usr/lib/systemd/system")
# What the unit and a power-off need; all else would only start what a test has no use for.
_COPIED = ("shutdown.target", "umount.target", "final.target", "poweroff.target", "systemd-poweroff.service")
_EMPTY = ("sysinit.target", "basic.target", "network-online.target", "multi-user.target")
_V2 = Path("/sys/fs/cgroup/unified")
_MEMORY = Path("/sys/fs/cgroup/memory")

_BOOT = """
set -eu
mount --make-rprivate /
umount --lazy --recursive /sys/fs/cgroup
mount -t tmpfs tmpfs /sys/fs/cgroup
umount /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd /run/lock /run/memory
mount -t cgroup -o memory memory /run/memory
mkdir /run/memory/small
echo 64M >/run/memory/small/memory.limit_in_bytes
mount --bind "$1/lib" /var/lib
mount -t tmpfs tmpfs /opt
ln -s "$2" /opt/agentd
exec /usr/lib/systemd/systemd --system --unit=multi-user.target --log-target=null </dev/null
"""


def missing() -> str:
    """Why no systemd can be booted here; empty if it can."""
    if os.geteuid() != 0:
        return "only root may boot a systemd"
    for path in (SYSTEMD, _V2 / "cgroup.procs", _MEMORY / "cgroup.procs"):
        if not path.exists():
            return f"{path} is not here"
    absent = [name for name in ("unshare", "nsenter", "systemctl") if shutil.which(name) is None]
    return f"no {', '.join(absent)} here" if absent else ""


@dataclass
class Machine:
    """A booted systemd."""

    folder: Path
    init: int
    """Its pid 1, as seen from here."""
    process: subprocess.Popen[bytes] = field(repr=False)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in there to its end."""
        within = ["nsenter", "--target", str(self.init), "--mount", "--pid", "--net", "--uts", "--ipc", "--"]
        done = subprocess.run(
            [*within, *command],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=CALL_S,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}\n{self.log}"
        return done

    def systemctl(self, *arguments: str) -> str:
        """What it says."""
        return self.run("systemctl", *arguments).stdout.strip()

    def show(self, name: str, unit: str = "agentd.service") -> str:
        """A property of a unit."""
        return self.systemctl("show", "--value", "--property", name, unit)

    def agentctl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The real command line, in there."""
        return self.run(str(BIN / "agentctl"), *arguments, check=check)

    def client(self) -> AgentClient:
        """A client of its agentd, from out here."""
        return AgentClient(f"unix:/proc/{self.init}/root/run/agentd/agentd.sock")

    @property
    def log(self) -> str:
        """What agentd has written."""
        file = self.folder / LOG
        return file.read_text(errors="replace") if file.exists() else ""

    def is_down(self) -> bool:
        """Whether nothing of it runs any more."""
        return is_gone(self.init)


@contextlib.contextmanager
def booted(folder: Path, settings: Sequence[str] = ()) -> Iterator[Machine]:
    """systemd with agentd's unit started. `settings`: lines of [Service] over the shipped ones."""
    units, name = folder / "units", f"agentd-test-{uuid.uuid4().hex[:8]}"
    (folder / "lib").mkdir()
    _install(units, settings)
    homes = [_V2 / name, _MEMORY / name]
    for home in homes:
        home.mkdir()
    # Into the cgroups first: its cgroup namespace begins where it is.
    enter = "".join(f"echo $$ >{home}/cgroup.procs; " for home in homes)
    unshare = "exec unshare -m -n -p -C -u -i --fork --kill-child --mount-proc sh -c"
    command = ["sh", "-c", f'{enter}{unshare} "$@"', "sh", _BOOT, "boot", str(folder), str(BIN.parent)]
    env = {**os.environ, "container": "agentd-test", "SYSTEMD_UNIT_PATH": str(units)}
    process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL)
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_until(lambda: children.read_text().strip(), BOOT_S)
        machine = Machine(folder, int(children.read_text()), process)
        wait_until(lambda: _is_up(machine), BOOT_S, what="systemd is up")
        yield machine
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(CALL_S)
        for home in homes:
            wait_until(partial(cgroups.remove, str(home)), CALL_S, what="its cgroups are empty")


def _is_up(machine: Machine) -> bool:
    assert machine.process.poll() is None, f"systemd ended at once:\n{machine.log}"
    return machine.run("systemctl", "is-active", "multi-user.target", check=False).stdout.strip() == "active"


def _install(units: Path, settings: Sequence[str]) -> None:
    units.mkdir()
    for name in _COPIED:
        shutil.copy(_SHIPPED / name, units / name)
    for name in _EMPTY:
        (units / name).write_text(f"[Unit]\nDescription={name}\n")
    shutil.copy(UNIT, units / "agentd.service")
    (units / "multi-user.target.wants").mkdir()
    (units / "multi-user.target.wants" / "agentd.service").symlink_to(units / "agentd.service")
    over = units / "agentd.service.d"
    over.mkdir()
    paths = os.environ.get("PYTHONPATH", "")
    python = [f"Environment=PYTHONPATH={paths}"] if paths else []
    output = [f"StandardOutput=append:{units.parent / LOG}", "StandardError=inherit"]
    (over / "test.conf").write_text("\n".join(["[Service]", *python, *output, *settings, ""]))
