"""Small file systems of a test's own, to be filled and freed. For root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILLER = "filler"


def cannot_mount() -> str:
    """Why no file system can be mounted here; empty: it can."""
    return "" if os.geteuid() == 0 and shutil.which("mount") else "mounts a file system, which needs root"


@dataclass(frozen=True)
class SmallDisk:
    """A file system in memory."""

    path: Path

    def fill(self) -> None:
        """Not a byte is left."""
        with contextlib.suppress(OSError), (self.path / FILLER).open("ab", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)

    def fill_inodes(self) -> None:
        """Not a file can be made."""
        folder = self.path / FILLER
        folder.mkdir()
        with contextlib.suppress(OSError):
            for number in range(1 << 20):
                (folder / str(number)).touch()

    def free(self) -> None:
        """As it was before."""
        filler = self.path / FILLER
        if filler.is_dir():
            shutil.rmtree(filler)
        else:
            filler.unlink()


@contextlib.contextmanager
def small_disk(path: Path, options: str = "size=16m") -> Iterator[SmallDisk]:
    """One at `path`, gone at the end, whoever may still hold on to it."""
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "tmpfs", str(path)], check=True)
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
