"""`python -m benchmarks`: take all figures, print the table, write build/benchmarks.json."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console

from benchmarks import cases, path, scale, streams, torchrun
from benchmarks.deaths import deaths
from benchmarks.detection import detection
from benchmarks.fanout import fanout
from benchmarks.figures import Figure, show, write
from benchmarks.idle import idle
from benchmarks.preload import preload
from benchmarks.spawning import spawning
from benchmarks.startup import startup


class Wish(NamedTuple):
    """What a group of figures is told."""

    root: Path
    rounds: int
    full: bool


GROUPS: Final[Mapping[str, Callable[[Wish], list[Figure]]]] = {
    "launch": lambda wish: cases.launch(wish.root, wish.rounds),
    "startup": lambda wish: startup(wish.root, wish.rounds),
    "restart": lambda wish: [cases.restart(wish.root, nodes, wish.rounds) for nodes in (1, 2)],
    "memory": lambda wish: cases.memory(wish.root),
    "imports": lambda wish: cases.imports(wish.rounds),
    "status": lambda wish: [cases.status(wish.root, calls=500)],
    "path": lambda wish: path.paths(wish.root, wish.rounds),
    "spawning": lambda wish: spawning(wish.rounds),
    "idle": lambda wish: idle(wish.root, wish.rounds),
    "preload": lambda wish: preload(wish.root, wish.rounds),
    "detection": lambda wish: detection(wish.root, wish.rounds),
    "rendezvous": lambda wish: scale.rendezvous(wish.root, scale.sizes(wish.full), wish.rounds),
    "fanout": lambda wish: fanout(wish.rounds),
    "deaths": lambda wish: deaths(wish.root, wish.rounds),
    "watching": lambda wish: streams.watching(wish.root),
    "logs": lambda wish: streams.logs(wish.root, wish.rounds),
}


def main() -> None:
    """Take the figures one after the other, so that none disturbs another."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=12, help="samples of each figure (default: %(default)s)"
    )
    parser.add_argument(
        "--json", type=Path, default=Path("build/benchmarks.json"), help="default: %(default)s"
    )
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="default: all")
    parser.add_argument("--full", action="store_true", help="also what takes minutes: 4,000 agents")
    options = parser.parse_args()
    console = Console(stderr=True)
    if not torchrun.available():
        console.print("torchrun is not installed: its column stays empty (`make test-deps` installs it)")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="ab-") as name:
        # Standalone runs keep state with the user's, torchrun below /tmp: here both go with the rest.
        os.environ["XDG_STATE_HOME"] = str(Path(name, "state"))
        os.environ["TMPDIR"] = name
        for group in options.only:
            console.print(f"{group} ...")
            root = Path(name, group)
            root.mkdir()
            figures += GROUPS[group](Wish(root, options.rounds, options.full))
    show(figures, Console(width=None if sys.stdout.isatty() else 150))
    write(figures, options.json)
    console.print(f"samples: {options.json}")


if __name__ == "__main__":
    main()
