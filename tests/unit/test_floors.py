"""Every module imports on the oldest release of each dependency that we allow: the floors are promises."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tools import oldest

SOURCE_ROOTS = {"agentd": ".", "client/agentd_client": "client", "client/agentctl": "client"}
NO_MODULES = oldest.REPO / "agentd/procs/zygote/hook"
"""Only interpreters that are to fork workers want what is there, under other names."""


def _modules() -> list[str]:
    found = []
    for package, root in SOURCE_ROOTS.items():
        for path in sorted((oldest.REPO / package).rglob("*.py")):
            if NO_MODULES in path.parents:
                continue
            parts = path.relative_to(oldest.REPO / root).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def test_every_runtime_dependency_states_its_floor() -> None:
    names = {floor.partition("==")[0] for floor in oldest.floors()}
    assert {"grpcio", "protobuf", "click", "rich"} <= names


@pytest.mark.timeout(180)
@pytest.mark.skipif(
    os.environ.get("CI") != "true" and not oldest.PYTHON.exists(),
    reason="needs build/oldest: make test-deps",
)
def test_every_module_imports_on_the_oldest_dependencies(tmp_path: Path) -> None:
    script = tmp_path / "import_all.py"
    script.write_text(
        "import importlib, sys, traceback\n"
        "failed = []\n"
        "for name in sys.argv[1:]:\n"
        "    try: importlib.import_module(name)\n"
        "    except Exception as error: failed.append(f'{name}: {error!r}')\n"
        "print(*failed, sep='\\n')\n"
    )
    paths = os.pathsep.join(str(oldest.REPO / root) for root in (".", "client"))
    done = subprocess.run(
        [oldest.PYTHON, script, *_modules()],
        env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
