"""Builds build/oldest: an environment with the oldest release of each dependency that we allow.

The client shares its user's environment, so the floors are promises; tests import the packages on them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))  # run as a script, this folder is the path

from tools import protogen  # noqa: E402

VENV = REPO / "build" / "oldest"
PYTHON = VENV / "bin" / "python"
FLOOR = re.compile(r'^    "(?P<name>[a-z-]+)>=(?P<version>[\d.]+)(?P<marker>;[^"]*)?",$', re.MULTILINE)


def floors() -> list[str]:
    """The runtime dependencies, each pinned to its floor."""
    text = (REPO / "pyproject.toml").read_text()
    runtime = text.partition("\ndependencies = [\n")[2].partition("\n]")[0]
    found = [f"{m['name']}=={m['version']}{m['marker'] or ''}" for m in FLOOR.finditer(runtime)]
    if len(found) != len(runtime.strip().splitlines()):
        raise SystemExit("oldest: a dependency in pyproject.toml has no floor of the form name>=version")
    return found


def main() -> int:
    stamp, wanted = VENV / "floors.txt", "\n".join(floors())
    if stamp.exists() and stamp.read_text() == wanted and PYTHON.exists():
        return 0
    print("oldest: building build/oldest with the floors of pyproject.toml", flush=True)
    # The old grpcio has wheels for the same Pythons as the old grpcio-tools.
    subprocess.run([protogen.find_python(), "-m", "venv", "--clear", str(VENV)], check=True, timeout=120)
    install = [
        str(PYTHON),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "-qq",
        "--only-binary",
        ":all:",
    ]
    subprocess.run([*install, *floors()], check=True, timeout=600)
    stamp.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
