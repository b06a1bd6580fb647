"""What /proc tells of a process is what it says of itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]


def _own_account(*lines: str, env: dict[str, str], room: int = 40) -> list[bytes]:
    """What a process that does this finds of itself, in /proc/self."""
    script = "\n".join(
        ("import sys; sys.path.insert(0, sys.argv[1])", "from agentd.procs.appearance import *", *lines)
    )
    tell = "\nfor name in 'cmdline', 'environ': print(open(f'/proc/self/{name}').read().encode().hex())"
    done = subprocess.run(
        [sys.executable, "-S", "-c", script + tell, REPO, "." * room],
        env=env,
        capture_output=True,
        check=True,
    )
    return [bytes.fromhex(line) for line in done.stdout.decode().splitlines()]


def test_new_arguments_are_shown_in_place_of_the_old_ones() -> None:
    command, environ = _own_account("show_arguments(['host', 'a b', ''])", env={"FIRST": "1"})
    assert command.startswith(b"host\0a b\0\0")
    assert command.strip(b"\0") == b"host\0a b"
    assert environ == b"FIRST=1\0"


def test_arguments_that_find_no_room_are_cut_and_harm_nothing() -> None:
    command, environ = _own_account("show_arguments(['x' * 100_000])", env={"FIRST": "1"})
    assert command.strip(b"x") == b"\0"
    assert environ == b"FIRST=1\0"


def test_a_variable_is_shown_and_set_with_its_new_value() -> None:
    env = {"FIRST": "1", "TOKEN": "00", "TOKENS": "00", "LAST": "TOKEN=00"}
    lines = ("show_variable('TOKEN', '98')", "import os; assert os.environ['TOKEN'] == '98'")
    _, environ = _own_account(*lines, env=env)
    assert environ.split(b"\0") == [b"FIRST=1", b"TOKEN=98", b"TOKENS=00", b"LAST=TOKEN=00", b""]
    _, environ = _own_account(*lines, env={"TOKEN": "00"})
    assert environ == b"TOKEN=98\0"


def test_what_has_no_place_is_refused_and_changes_nothing() -> None:
    tries = (
        "import os; os.environ['LATE'] = '0'",
        "for name, value in ('TOKEN', '123'), ('LATE', '1'):",
        "    try: show_variable(name, value)",
        "    except ValueError: continue",
        "    raise SystemExit(name)",
    )
    _, environ = _own_account(*tries, env={"TOKEN": "00"})
    assert environ == b"TOKEN=00\0"
    assert "LATE" not in os.environ
