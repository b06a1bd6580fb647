"""A script cannot see whether its process was exec'd or forked from a zygote."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.integration.preload.corpus import SCRIPTS
from tests.integration.preload.rig import PYTHON, Commands, base_env

MODULES = ("random", "logging", "threading", "beside")


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_sees_and_says_the_same(tmp_path: Path, name: str) -> None:
    modules = (*MODULES, "multiprocessing.pool") if name.startswith("mp_") else MODULES
    commands = with_script(tmp_path, name, modules)
    argv = (PYTHON, "-u", f"try_{name}.py", "one", "two")
    assert commands.forked(*argv, OF_THE_WORKER="own") == commands.execed(*argv, OF_THE_WORKER="own")


def with_script(folder: Path, name: str, modules: tuple[str, ...]) -> Commands:
    """A folder with the script, which imports what is preloaded for it, as real ones do."""
    (folder / "beside.py").write_text("NAME = __name__\n")
    text = textwrap.dedent(SCRIPTS[name]).strip("\n") + "\n"
    cookie, rest = text.split("\n", 1) if text.startswith("#") else ("", text)
    script = f"{cookie}\nimport {', '.join(modules)}\n{rest}"
    (folder / f"try_{name}.py").write_text(script, encoding="latin-1" if cookie else "utf-8")
    env = base_env(OF_THE_ZYGOTE="common", NOTES=str(folder / "notes"), PYTHONPATH=str(folder / "elsewhere"))
    return Commands(folder, modules, env)
