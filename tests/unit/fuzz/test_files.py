"""Files that others write, or a full disk cut short: `host.jsonl`, error files, the round file, `/proc`."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentd.api.types import Phase
from agentd.elastic import current_round
from agentd.elastic.agent.server import recording
from agentd.elastic.current_round import StaleRoundError, assert_current_round
from agentd.elastic.multiprocessing.errors.failure import MAX_ERROR_FILE_BYTES, ProcessFailure
from agentd.groups import reported
from agentd.groups.records import GroupRow
from agentd.host.reports import FILE_NAME, ReportLog, read_reports
from agentd.host.wire import Done, as_json
from tests.unit.fuzz.hostile import DEEP, examples, json_of, nested, values
from tests.unit.fuzz.test_frames import payloads


@contextmanager
def file_of(content: bytes, name: str = "file") -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        yield path


@examples(35)
@given(lines=st.lists(payloads, max_size=5), cut=st.integers(0, 3))
def test_host_jsonl_is_read_around_what_nobody_can_read(lines: list[bytes], cut: int) -> None:
    known = Done(round=7, sequence=2**40, time=5.0)
    content = b"\n".join([*lines, as_json(known), b""])
    with file_of(content[: len(content) - cut] if cut > 1 else content, FILE_NAME) as path:
        folder = str(path.parent)
        found = read_reports(folder, 0, now=10.0)
        log = ReportLog(folder)
        try:
            again = log.append(Done(round=8))
        finally:
            log.close()
        row = GroupRow(run_id="r", incarnation=1, role="default", phase=Phase.RUNNING, directory=folder)
        list(reported.logs_on_disk(row))
        list(reported.sessions(row))
        if cut <= 1:
            assert found[-1:] == (known,) or found[-1].sequence > known.sequence
            assert again.sequence > known.sequence
        assert read_reports(folder, again.sequence - 1)[-1] == again


reports = st.fixed_dictionaries(
    {},
    optional={
        "message": st.fixed_dictionaries(
            {},
            optional={
                "message": values,
                "extraInfo": st.fixed_dictionaries(
                    {}, optional={"timestamp": values, "py_callstack": values}
                ),
                "errorCode": values,
            },
        )
        | values,
        "timestamp": values,
    },
)


@examples(25)
@given(content=json_of(reports) | st.binary(max_size=100))
@example(content=b'{"message": {"message": "a\\udcffb"}}')
@example(content=b"x" * (MAX_ERROR_FILE_BYTES + 1))
def test_an_error_file_is_a_report_or_said_to_be_none(content: bytes) -> None:
    with file_of(content) as path:
        failure = ProcessFailure(0, 4711, 1, str(path))
        # All that is made of it: for people, for other nodes, for the journal.
        assert failure.message_text().encode()
        assert isinstance(failure.timestamp, int)
        assert failure.timestamp_isoformat()
        assert failure.age_s() >= 0
        assert (recording._raw_error(failure) or "").encode()


def test_an_error_file_may_be_nested_as_deep_as_it_likes() -> None:
    for depth in (*range(900, 1_000, 7), *DEEP):
        for content in (
            b'{"message": {"message": ' + nested(depth) + b"}}",
            b'{"message": "m", "more": ' + nested(depth) + b"}",
        ):
            with file_of(content) as path:
                failure = ProcessFailure(0, 4711, 1, str(path))
                assert failure.message_text()
                assert recording._raw_error(failure)


round_files = st.fixed_dictionaries(
    {
        "run_id": values | st.just("r"),
        "incarnation": values | st.just(7),
        "round": values | st.just(3),
        "valid_until": values | st.just(1e15),
    }
)


@examples(50)
@given(content=json_of(round_files))
@example(content=b'{"round": 3, "valid_until": 1' + b"0" * 400 + b"}")
def test_a_round_file_confirms_the_round_or_it_is_stale(content: bytes) -> None:
    environment = {
        "AGENTD_ROUND": "3", "AGENTD_RUN_ID": "r", "AGENTD_INCARNATION": "7",
    }  # fmt: skip
    with file_of(content) as path, pytest.MonkeyPatch.context() as patch:
        for name, value in {**environment, current_round.ROUND_FILE_VARIABLE: str(path)}.items():
            patch.setenv(name, value)
        try:
            until = assert_current_round(timeout=0.0)
        except StaleRoundError:
            pass
        else:
            told: dict[str, Any] = json.loads(content)
            assert (told["round"], told["valid_until"]) == (3, until)


@pytest.mark.parametrize(
    "name", [b") S 1 1 1", b"a b) (c", b"\n\n", b"\xff\xfe)", b"Z) Z 1", b"x\x0bSigCgt:"]
)
def test_a_process_may_have_any_name(name: bytes) -> None:
    """The kernel shows it in the middle of numbers."""
    import ctypes

    from agentd.procs import kernel_view, procfs

    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(15, name, 0, 0, 0)  # PR_SET_NAME
        os.kill(os.getpid(), 19)
        os._exit(0)
    try:
        os.waitpid(pid, os.WUNTRACED)
        stat = procfs.read_stat(pid)
        assert stat is not None
        assert (stat.parent, stat.state, stat.session) == (os.getpid(), "T", os.getsid(0))
        assert stat.start_time > 0
        assert not kernel_view.is_pending(pid, 10)
        assert f"thread {pid}" in kernel_view.describe_threads(pid)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
