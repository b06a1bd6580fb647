"""Which of the caller's environment goes with a run to its workers.

Over a Unix socket all of it: the node is this machine and the reader this user. Over the network only what is
named, because an environment holds secrets and paths that mean nothing elsewhere.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Final

from agentd.quickdata import dataclass
from agentd_client.nodes import Node

DEFAULT_PATTERNS: Final = ("NCCL_*", "TORCH_*", "CUDA_*", "OMP_*", "PYTHONPATH")


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedEnvironment:
    """The caller's environment, as this machine and as others get it."""

    local: Mapping[str, str] = field(default_factory=dict)
    remote: Mapping[str, str] = field(default_factory=dict)

    def of(self, node: Node) -> Mapping[str, str]:
        """What goes to a node."""
        return self.local if node.is_local_socket else self.remote


def choose_environment(
    environ: Mapping[str, str] | None = None, patterns: Sequence[str] = DEFAULT_PATTERNS
) -> PassedEnvironment:
    """The environment to pass: `environ` (this process's own by default), and of it what `patterns` name."""
    everything = {
        name: value
        for name, value in (os.environ if environ is None else environ).items()
        # What no wire and no other program could read is left at home.
        if _is_text(name) and _is_text(value)
    }
    named = {
        name: value
        for name, value in everything.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }
    return PassedEnvironment(local=everything, remote=named)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
