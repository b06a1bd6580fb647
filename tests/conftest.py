"""Every test leaves nothing behind, markers skip what this machine cannot do, and in CI a skip is a failure.

In `tests/integration` and `tests/e2e` a random token in the environment finds every process of a test, and
the temporary directory is a new one that must be empty at the end. Elsewhere only what the test process
itself holds is compared (children, threads, descriptors, signals), which costs next to nothing.
`@pytest.mark.allow_leak("files", reason="...")` excuses one kind for one test.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

# gRPC reads these at its first import; both must be there before any test module is.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# A shell has what it starts in the background ignore Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# A developer's own settings must not reach the daemons and clients under test.
for _name in [name for name in os.environ if name.startswith("AGENTD_")]:
    del os.environ[_name]

import hypothesis  # noqa: E402

from tests.support import leaks  # noqa: E402
from tests.support.ownstate import OwnState  # noqa: E402

REPO = Path(__file__).resolve().parent.parent
IN_CI = os.environ.get("CI") == "true"

# A busy machine is no reason to fail an example; in CI the same examples are drawn each time.
hypothesis.settings.register_profile(
    "agentd",
    deadline=None,
    derandomize=IN_CI,
    database=None if IN_CI else hypothesis.settings().database,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("agentd")

# The only reasons for which CI may leave a test out: marker -> why.
CI_MAY_SKIP: Mapping[str, str] = {
    "gpu": "the CI machine has no GPU",
}

FULL_CHECK = ("integration", "e2e")
SETTLE_FULL_S = 20.0
SETTLE_CHEAP_S = 10.0


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind_by_shared_fixtures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Processes of wider fixtures carry the session's token; they must be gone when the session is.

    Temporary files of theirs, of unit tests and of libraries' caches go with the session's directory.
    """
    tmp_path_factory.getbasetemp()  # before a test has a TMPDIR of its own
    with _traced_surroundings() as traced:
        before = leaks.Footprint.now()
        yield
        names = leaks.end_leaked_processes(before, traced.token, SETTLE_FULL_S)
    if names:
        pytest.fail(leaks.report({"processes": names}), pytrace=False)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compares what the test process holds, started and wrote, before and after each test."""
    thorough = any(part in FULL_CHECK for part in request.path.parts)
    leaks.forget_garbage()
    own_state = OwnState.now()
    with _traced_surroundings() if thorough else nullcontext() as traced:
        before = leaks.Footprint.now()
        yield
        token, settle_s = (traced.token, SETTLE_FULL_S) if traced else (None, SETTLE_CHEAP_S)
        excused = {str(mark.args[0]) for mark in request.node.iter_markers("allow_leak")}
        found = leaks.left_behind(before, token=token, settle_s=settle_s, excused=excused)
        if traced and (files := leaks.files_below(traced.root)):
            found["files"] = files
    if changes := own_state.put_back():
        found["this process' own state"] = changes
    found = {kind: items for kind, items in found.items() if kind not in excused}
    if found:
        pytest.fail(leaks.report(found), pytrace=False)


@dataclass(frozen=True)
class _Traced:
    token: str
    root: Path


@contextmanager
def _traced_surroundings() -> Iterator[_Traced]:
    """A token that everything started within inherits, and a temporary directory of its own."""
    traced = _Traced(
        secrets.token_hex(16), Path(tempfile.mkdtemp(prefix="at-", dir="/tmp"))
    )  # short: for sockets
    # Not the test's own monkeypatch: what the test patched must be undone before anything is compared.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(leaks.TOKEN_VARIABLE, traced.token)
        patch.setenv("TMPDIR", str(traced.root))
        patch.setattr(tempfile, "tempdir", None)
        try:
            yield traced
        finally:
            shutil.rmtree(traced.root, ignore_errors=True)


# --- what this machine can do


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, missing in (
        ("root", _no_root),
        ("netns", _no_netns),
        ("torch", _no_torch),
        ("node", _no_node),
        ("gpu", _no_gpu),
    ):
        if item.get_closest_marker(marker) and (reason := missing()):
            pytest.skip(f"{marker}: {reason}")


def _no_root() -> str:
    return "" if os.geteuid() == 0 else "needs root"


@cache
def _no_netns() -> str:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return "needs unshare and ip: apt install util-linux iproute2"
    tried = subprocess.run(["unshare", "-n", "true"], capture_output=True, timeout=10, check=False)
    return "" if tried.returncode == 0 else "this machine refuses new network namespaces"


@cache
def _no_torch() -> str:
    return "" if importlib.util.find_spec("torch") else "needs torch: make test-deps"


@cache
def _no_node() -> str:
    there = shutil.which("node") and (REPO / "build/node/node_modules/@grpc/grpc-js").is_dir()
    return "" if there else "needs node and its packages: make test-deps"


@cache
def _no_gpu() -> str:
    return "" if Path("/dev/nvidiactl").exists() else "needs an NVIDIA GPU"


# --- in CI a skip is a failure


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    expected_failure = hasattr(report, "wasxfail")
    if IN_CI and report.skipped and not expected_failure and not _may_skip(item):
        _fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if IN_CI and report.skipped:  # importorskip at the head of a module
        _fail(report)
    return report


def _may_skip(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(marker) for marker in CI_MAY_SKIP)


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"skipped in CI, where nothing may be: {reason}"
