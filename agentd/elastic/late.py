"""Public names of a package that are imported when they are first asked for (PEP 562).

A training script pays for the names it uses; to import the whole library takes ten times as long.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from importlib import import_module

__all__ = ["found_late"]


def found_late(package: str, names: Collection[str], homes: Sequence[str]) -> Callable[[str], object]:
    """The `__getattr__` of a package with these public names, each at home in one of these modules of it.

    The first home that has a name is taken, so that the lightest come first. The homes' own names are
    attributes too, as if all had been imported.
    """

    def find(name: str) -> object:
        within = [home for home in homes if home.partition(".")[0] == name]
        for home in within:
            import_module(f"{package}.{home}")
        if within:
            return import_module(f"{package}.{name}")
        if name in names:
            for home in homes:
                module = import_module(f"{package}.{home}")
                if hasattr(module, name):
                    found = getattr(module, name)
                    # Kept, as an import keeps it: a training asks for its timer in each step.
                    setattr(sys.modules[package], name, found)
                    return found
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
