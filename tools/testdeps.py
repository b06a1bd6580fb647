"""Installs what the tests can use beyond .venv: torch, buf, grpc-js and, as root, system packages.

    .venv/bin/python tools/testdeps.py

Each tool that is already there is left alone. CI calls it first and then skips no test for want of one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
NODE_HOME = REPO / "build" / "node"

# A range could pull gigabytes; torch warns when numpy is missing, and warnings are errors here.
PYPI = ("torch==2.13.0", "numpy")
NPM = {"@bufbuild/buf": "1.75.0", "@grpc/grpc-js": "1.14.7", "@grpc/proto-loader": "0.8.1"}
# Command -> package that brings it.
APT = {"node": "nodejs", "npm": "npm", "ip": "iproute2", "systemctl": "systemd"}


def main() -> int:
    _system_packages()
    _python_packages()
    _run([sys.executable, str(REPO / "tools" / "oldest.py")])
    _generator()
    _node_packages()
    return 0


def _system_packages() -> None:
    missing = {command: package for command, package in APT.items() if shutil.which(command) is None}
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        _say(f"left out, for want of root or apt: {', '.join(missing.values())}; tests that need them skip")
        return
    _run(["apt-get", "update", "-qq"])
    _run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing.values()])


def _python_packages() -> None:
    _run([sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-qq", *PYPI])


def _generator() -> None:
    """The test of fresh stubs would build it, in the middle of the tests."""
    wanted = subprocess.run(
        [sys.executable, str(REPO / "tools" / "protogen.py"), "--tools"], cwd=REPO, check=False, timeout=600
    )
    if wanted.returncode:
        _say("no Python for the old generator of stubs: the test that regenerates them is left out")


def _node_packages() -> None:
    if shutil.which("npm") is None:
        _say("no npm: buf lint and the grpc-js tests are left out")
        return
    manifest = NODE_HOME / "package.json"
    wanted = json.dumps({"name": "agentd-tests", "private": True, "dependencies": NPM}, indent=2)
    if manifest.exists() and manifest.read_text() == wanted and (NODE_HOME / "node_modules").is_dir():
        return
    NODE_HOME.mkdir(parents=True, exist_ok=True)
    manifest.unlink(missing_ok=True)
    (NODE_HOME / "package.json.new").write_text(wanted)
    shutil.copy(NODE_HOME / "package.json.new", manifest)
    try:
        _run(["npm", "install", "--prefix", str(NODE_HOME), "--no-audit", "--no-fund", "--loglevel=error"])
    except SystemExit:
        manifest.unlink(missing_ok=True)  # the next attempt starts over
        raise


def _run(command: list[str]) -> None:
    _say(" ".join(command))
    done = subprocess.run(command, cwd=REPO, check=False, timeout=1800)
    if done.returncode:
        _say(f"exit code {done.returncode} from: {' '.join(command)}")
        raise SystemExit(1)


def _say(text: str) -> None:
    print(f"test-deps: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
