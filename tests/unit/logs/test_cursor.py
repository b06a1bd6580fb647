"""Which files a request means, where reading starts, and where a chunk is cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentd.api.channel import CHUNK_LIMIT
from agentd.api.types import LogPosition, LogsRequest, LogStream
from agentd.groups.logcursor import PATIENCE, Cursor, Selection, WorkerLog, read_batch, tail_offset


def log(round: int, rank: int, *, role: str = "default") -> WorkerLog:
    return WorkerLog(
        role=role, round=round, local_rank=rank, rank=rank, directory=f"/logs/round_{round}/{rank}"
    )


LOGS = [log(number, rank) for number in (1, 2, 3) for rank in (0, 1)]


def chosen(request: LogsRequest, logs: list[WorkerLog] = LOGS) -> list[tuple[int, int, str]]:
    selection = Selection.begin(request, LOGS)
    return [(found.round, found.rank, stream.value) for found, stream in selection.of(logs)]


def test_without_a_round_the_newest_is_meant() -> None:
    assert chosen(LogsRequest(run_id="r", streams=(LogStream.STDOUT,))) == [
        (3, 0, "stdout"),
        (3, 1, "stdout"),
    ]


def test_following_goes_on_with_later_rounds_but_not_with_earlier_ones() -> None:
    later = [*LOGS, log(4, 0)]
    rounds = {number for number, _, _ in chosen(LogsRequest(run_id="r", follow=True), later)}
    assert rounds == {3, 4}


def test_not_following_ends_with_the_round_that_was_newest() -> None:
    assert {number for number, _, _ in chosen(LogsRequest(run_id="r"), [*LOGS, log(4, 0)])} == {3}


def test_all_rounds_come_in_order_from_the_first() -> None:
    found = chosen(LogsRequest(run_id="r", all_rounds=True, round=2, ranks=(1,), streams=(LogStream.STDERR,)))
    assert found == [(1, 1, "stderr"), (2, 1, "stderr"), (3, 1, "stderr")]


def test_resuming_an_older_round_reads_it_to_its_end_before_the_newer_ones() -> None:
    position = LogPosition(role="default", round=2, local_rank=0, stream=LogStream.STDOUT, offset=5)
    request = LogsRequest(
        run_id="r", follow=True, resume=(position,), ranks=(0,), streams=(LogStream.STDOUT,)
    )
    assert chosen(request) == [(2, 0, "stdout"), (3, 0, "stdout")]
    selection = Selection.begin(request, LOGS)
    assert selection.resumed_at(log(2, 0), LogStream.STDOUT) == 5
    assert selection.resumed_at(log(3, 0), LogStream.STDOUT) is None


def test_a_role_hides_the_others() -> None:
    logs = [log(1, 0, role="trainer"), log(1, 1, role="reader")]
    selection = Selection.begin(LogsRequest(run_id="r", role="reader"), logs)
    assert {found.role for found, _ in selection.of(logs)} == {"reader"}


@pytest.mark.parametrize(
    ("text", "lines", "rest"),
    [
        (b"", 3, b""),
        (b"a\nb\nc\n", 0, b""),
        (b"a\nb\nc\n", 1, b"c\n"),
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc", 1, b"c"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\nb\n", 9, b"a\nb\n"),
        (b"\n\n\n", 2, b"\n\n"),
        (b"x" * 200_000 + b"\n" + b"y" * 100_000 + b"\nz\n", 2, b"y" * 100_000 + b"\nz\n"),
        (b"x" * 200_000, 1, b"x" * 200_000),
    ],
)
def test_the_tail_begins_where_the_last_lines_begin(
    tmp_path: Path, text: bytes, lines: int, rest: bytes
) -> None:
    file = tmp_path / "stdout.log"
    file.write_bytes(text)
    assert text[tail_offset(str(file), lines) :] == rest


def take(cursor: Cursor, data: bytes, *, final: bool = False, now: float = 0.0) -> bytes:
    chunk = cursor.take(data, final=final, now=now, node_id="n")
    return chunk.data if chunk else b""


def test_a_chunk_ends_at_a_line_and_the_rest_waits_a_moment_for_its_end() -> None:
    cursor = Cursor(log(1, 0), LogStream.STDOUT)
    assert take(cursor, b"one\ntw") == b"one\n"
    assert cursor.offset == 4
    assert take(cursor, b"tw", now=1.0) == b""
    assert take(cursor, b"two", now=1.0 + PATIENCE / 2) == b""
    assert take(cursor, b"two", now=1.0 + 2 * PATIENCE) == b"two"
    assert cursor.offset == 7


def test_nothing_is_held_back_when_nothing_can_follow() -> None:
    assert take(Cursor(log(1, 0), LogStream.STDOUT), b"no newline", final=True) == b"no newline"


def test_a_line_longer_than_a_chunk_is_given_out_in_pieces() -> None:
    assert len(take(Cursor(log(1, 0), LogStream.STDOUT), b"x" * CHUNK_LIMIT)) == CHUNK_LIMIT


def test_a_batch_is_bounded_and_a_missing_file_is_empty(tmp_path: Path) -> None:
    file = tmp_path / "big"
    file.write_bytes(b"x" * CHUNK_LIMIT)
    places = [(str(tmp_path / "none"), 0, 10), *[(str(file), 0, CHUNK_LIMIT)] * 20]
    batch = read_batch(places)
    assert batch[0].data == b""
    assert [len(piece.data) for piece in batch[1:]] == [CHUNK_LIMIT] * 4


def test_an_offset_that_no_file_has_reads_nothing(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"line\n")
    batch = read_batch([(str(tmp_path / "log"), offset, 10) for offset in (6, (1 << 64) - 1)])
    assert [piece.data for piece in batch] == [b"", b""]
