"""Makes agentd/v1 from proto/agentd/v1: messages, gRPC stubs, types for both, and a fingerprint of it all.

    python tools/protogen.py              regenerate agentd/v1 (make proto)
    python tools/protogen.py --check      only compare fingerprints; needs no tool and no network
    python tools/protogen.py --into DIR   generate elsewhere, to compare
    python tools/protogen.py --tools      only build .venv-proto

Generated code works with every runtime newer than the generator and with none older, so the generator is
old on purpose and lives in a virtual environment of its own, .venv-proto. It needs the standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
PROTO_ROOT = REPO / "proto"
PACKAGE = Path("agentd/v1")
FINGERPRINT = "PROTOS.sha256"
VENV = REPO / ".venv-proto"

# grpcio-tools 1.59.0 is the oldest with wheels for three of our Pythons (3.10, 3.11, 3.12), and its output
# carries no version check: it loads on protobuf 4.21 to 7. From 1.65 on the output refuses every runtime
# older than itself. mypy-protobuf 3.6.0 types both stubs and is the newest to run on these tools' protobuf.
PINS = (
    "grpcio-tools==1.59.0",
    "grpcio==1.59.0",
    "protobuf==4.25.9",
    "mypy-protobuf==3.6.0",
    "types-protobuf==4.25.0.20240417",
    "setuptools==75.8.0",  # grpc_tools imports pkg_resources, which later setuptools drop
)
SERVICE = re.compile(r"^service\s", re.MULTILINE)
PYTHONS = ((3, 12), (3, 11), (3, 10))


class ProtogenError(Exception):
    """Generation cannot go on; the sentence says what to do."""


def protos(root: Path = PROTO_ROOT) -> list[Path]:
    """The proto files, relative to their root, in a fixed order."""
    found = sorted(path.relative_to(root) for path in (root / PACKAGE).glob("*.proto"))
    if not found:
        raise ProtogenError(f"no .proto file in {root / PACKAGE}")
    return found


def fingerprint(package_dir: Path, proto_root: Path = PROTO_ROOT) -> str:
    """What the stubs were made from and what they are, one line a fact, so that a diff names the file."""
    lines = [f"{pin}  generator" for pin in PINS]
    lines += [f"{_sha256(proto_root / proto)}  {proto}" for proto in protos(proto_root)]
    lines += [f"{_sha256(stub)}  {PACKAGE / stub.name}" for stub in stubs(package_dir)]
    return "\n".join(lines) + "\n"


def stubs(package_dir: Path) -> list[Path]:
    """The generated files in a folder, and nothing else that lies there."""
    return sorted(path for path in package_dir.glob("*_pb2*.py*") if path.suffix in {".py", ".pyi"})


def stale(package_dir: Path | None = None, proto_root: Path = PROTO_ROOT) -> list[str]:
    """The files for which the committed fingerprint and the tree disagree; empty when the stubs are fresh."""
    package_dir = package_dir or REPO / PACKAGE
    recorded_file = package_dir / FINGERPRINT
    recorded = set(recorded_file.read_text().splitlines()) if recorded_file.exists() else set()
    actual = set(fingerprint(package_dir, proto_root).splitlines())
    return sorted({line.split("  ")[1] for line in recorded ^ actual})


def generate(into: Path, proto_root: Path = PROTO_ROOT) -> None:
    """Writes stubs and fingerprint into a folder, replacing what was generated there before."""
    python = ensure_venv()
    with tempfile.TemporaryDirectory(prefix="protogen-") as scratch:
        made = Path(scratch)
        _protoc(python, proto_root, made)
        fresh = stubs(made / PACKAGE)
        into.mkdir(parents=True, exist_ok=True)
        for old in stubs(into):
            if old.name not in {path.name for path in fresh}:
                old.unlink()
        for path in fresh:
            _replace(into / path.name, path.read_bytes())
    _replace(into / FINGERPRINT, fingerprint(into, proto_root).encode())


def ensure_venv() -> Path:
    """The interpreter of .venv-proto, which is built unless it is there with exactly these pins."""
    python, stamp = VENV / "bin" / "python", VENV / "pins.txt"
    wanted = "\n".join(PINS)
    if stamp.exists() and stamp.read_text() == wanted and python.exists():
        return python
    print(f"protogen: building {VENV.name} with {PINS[0]} ...", flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    _run([find_python(), "-m", "venv", str(VENV)])
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*install, "--only-binary", ":all:", *PINS])
    stamp.write_text(wanted)
    return python


def find_python() -> str:
    """An interpreter for which the pinned tools have wheels: PROTO_PYTHON, this one, or one on PATH."""
    names = [f"python{major}.{minor}" for major, minor in PYTHONS]
    chosen = os.environ.get("PROTO_PYTHON")
    for candidate in [chosen] if chosen else [sys.executable, *names]:
        if candidate and _version_of(candidate) in PYTHONS:
            return candidate
    tried = chosen or ", ".join(["this interpreter", *names])
    raise ProtogenError(
        f"{PINS[0]} has wheels for Python 3.10 to 3.12 only, and none was found (tried {tried}). "
        "Install one, or name it: PROTO_PYTHON=/path/to/python3.12 make proto"
    )


def _version_of(python: str) -> tuple[int, int] | None:
    probe = [python, "-c", "import sys; print(*sys.version_info[:2])"]
    try:
        out = subprocess.run(probe, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return int(out[0]), int(out[1])


def _protoc(python: Path, proto_root: Path, out: Path) -> None:
    names = [str(proto) for proto in protos(proto_root)]
    services = [name for name in names if SERVICE.search((proto_root / name).read_text())]
    # The root of imports is proto/, so that the stubs say `from agentd.v1 import ...`.
    base = [str(python), "-W", "ignore", "-m", "grpc_tools.protoc", f"-I{proto_root}"]
    plugins = {"PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"}
    _run([*base, f"--python_out={out}", f"--mypy_out=quiet:{out}", *names], env=plugins)
    if services:
        _run([*base, f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}", *services], env=plugins)


def _run(command: list[str], env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env={**os.environ, **(env or {})}, cwd=REPO, timeout=600, check=False)
    if done.returncode:
        raise ProtogenError(f"exit code {done.returncode} from: {' '.join(command)}")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _replace(path: Path, content: bytes) -> None:
    """Others may import the package while it is regenerated: a file is old or new, never half."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description="Generate agentd/v1 from proto/agentd/v1.")
    parser.add_argument("--check", action="store_true", help="compare fingerprints only")
    parser.add_argument("--into", type=Path, default=REPO / PACKAGE, help="write elsewhere than agentd/v1")
    parser.add_argument("--tools", action="store_true", help="only build the generator's environment")
    args = parser.parse_args()
    try:
        if args.check:
            return _check(args.into)
        if args.tools:
            ensure_venv()
            return 0
        generate(args.into)
    except ProtogenError as error:
        print(f"protogen: {error}", file=sys.stderr)
        return 1
    print(f"protogen: {len(stubs(args.into))} files in {args.into}")
    return 0


def _check(package_dir: Path) -> int:
    names = stale(package_dir)
    if names:
        print(f"protogen: stale: {', '.join(names)}; run `make proto` and commit agentd/v1", file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
