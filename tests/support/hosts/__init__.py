"""Hosts of earlier versions of the host protocol, as zip files that Python runs (`tools/keephost.py`)."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from agentd.host import door

FOLDER = Path(__file__).parent
PREVIOUS = FOLDER / "version_1.zip"
"""The version before that of `agentd.host.wire`."""


@contextmanager
def hosts_of(archive: Path) -> Iterator[None]:
    """Hosts that this process starts run the code of that file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(door, "PACKAGES", str(archive))
        yield


def wire_of(archive: Path) -> ModuleType:
    """The module `agentd.host.wire` of that file, beside the one of today."""
    with zipfile.ZipFile(archive) as packed:
        source = packed.read("agentd/host/wire.py")
    module = ModuleType(f"wire_of_{archive.stem}")
    # Its dataclasses look their annotations up there.
    sys.modules[module.__name__] = module
    exec(compile(source, f"{archive}/agentd/host/wire.py", "exec"), module.__dict__)
    return module
