"""Builds the project's virtual environment, or leaves alone one built from the same pyproject.toml.

    python3 tools/venv.py .venv

Runs on any Python 3, in order to tell the owner of an old one what is missing.
"""

import hashlib
import subprocess
import sys
import time
from pathlib import Path

MINIMUM = (3, 10)
REPO = Path(__file__).resolve().parent.parent


def main() -> int:
    if sys.version_info[:2] < MINIMUM:
        have = ".".join(map(str, sys.version_info[:3]))
        return _refuse(
            "agentd needs Python >= 3.10, and " + sys.executable + " is " + have,
            "name a newer one: make venv PYTHON=/path/to/python3.12",
        )
    try:
        import ensurepip  # noqa: F401  Debian's python3 has venv without it
        import venv  # noqa: F401
    except ImportError:
        return _refuse(
            sys.executable + " lacks the venv module or ensurepip",
            "install it, on Debian and Ubuntu with: apt install python3-venv",
        )
    return _build(REPO / sys.argv[1])


def _build(target: Path) -> int:
    stamp, python = target / ".stamp", target / "bin" / "python"
    wanted = _recipe()
    if stamp.exists() and stamp.read_text() == wanted and python.exists():
        stamp.touch()
        return 0
    began = time.monotonic()
    if not (target / "bin" / "pip").exists():  # comes last: without it an earlier attempt was cut short
        print(f"venv: building {target.name} with Python {sys.version.split()[0]}", flush=True)
        _run([sys.executable, "-m", "venv", str(target)])
    print("venv: installing agentd, agentctl and the tools (a minute the first time)", flush=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    _run([*pip, "--editable", f"{REPO}[dev]"])
    stamp.write_text(wanted)
    took = time.monotonic() - began
    print(f"venv: ready in {took:.0f} s: {target.name}/bin/agentd, {target.name}/bin/agentctl")
    return 0


def _recipe() -> str:
    """What the environment depends on: a changed digest means install again."""
    return hashlib.sha256((REPO / "pyproject.toml").read_bytes()).hexdigest() + "\n"


def _run(command: "list[str]") -> None:
    done = subprocess.run(command, cwd=str(REPO), check=False)
    if done.returncode:
        print(f"venv: exit code {done.returncode} from: {' '.join(command)}", file=sys.stderr)
        raise SystemExit(1)


def _refuse(fact: str, step: str) -> int:
    print("make: " + fact + "; " + step, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
