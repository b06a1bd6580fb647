"""`python -m benchmarks`: take all figures, print the table, write build/benchmarks.json."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks import cases, torchrun
from benchmarks.detection import detection
from benchmarks.figures import show, write


def main() -> None:
    """Take the figures one after the other, so that none disturbs another."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=12, help="samples of each figure (default: %(default)s)"
    )
    parser.add_argument(
        "--json", type=Path, default=Path("build/benchmarks.json"), help="default: %(default)s"
    )
    options = parser.parse_args()
    console = Console(stderr=True)
    if not torchrun.available():
        console.print("torchrun is not installed: its column stays empty (`make test-deps` installs it)")
    with tempfile.TemporaryDirectory(prefix="ab-") as name:
        root = Path(name)
        # Standalone runs keep state with the user's, torchrun below /tmp: here both go with the rest.
        os.environ["XDG_STATE_HOME"] = str(root / "state")
        os.environ["TMPDIR"] = name
        console.print("launch ...")
        figures = cases.launch(root, options.rounds)
        for nodes in (1, 2):
            console.print(f"restart on {nodes} node(s) ...")
            figures.append(cases.restart(root, nodes, options.rounds))
        console.print("memory, import, status ...")
        figures += cases.memory(root)
        figures.append(cases.imports(options.rounds))
        figures.append(cases.status(root, calls=500))
        console.print("faults until they are noticed ...")
        figures += detection(root / "detection", options.rounds)
    show(figures, Console(width=None if sys.stdout.isatty() else 150))
    write(figures, options.json)
    console.print(f"samples: {options.json}")


if __name__ == "__main__":
    main()
