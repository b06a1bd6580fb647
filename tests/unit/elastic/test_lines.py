"""However a stream is cut up, its lines come out whole, once, each with one prefix."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.elastic.multiprocessing.tails.lines import MAX_HELD, LineCutter, LineFilter, LineMerger, Piece

CHUNKS = st.lists(st.text(alphabet="ab \n\r\x85\u2028", max_size=6))


def _through(chunks: Sequence[str], keep: LineFilter | None = None, prefix: str = "> ") -> str:
    """What one stream becomes."""
    cutter, merger = LineCutter(keep), LineMerger()
    pieces = [piece for chunk in chunks for piece in cutter.feed(chunk)] + cutter.finish()
    return "".join(merger.put(0, prefix, piece) for piece in pieces)


def _lines(text: str) -> list[str]:
    *whole, last = text.split("\n")
    return [*whole, last] if last else whole


@given(CHUNKS)
def test_every_cut_gives_the_same_lines(chunks: list[str]) -> None:
    assert _through(chunks) == "".join(f"> {line}\n" for line in _lines("".join(chunks)))


@given(CHUNKS)
def test_a_filter_sees_whole_lines(chunks: list[str]) -> None:
    seen: list[str] = []

    def keep(line: str) -> bool:
        seen.append(line)
        return "a" in line

    wanted = _lines("".join(chunks))
    assert _through(chunks, keep) == "".join(f"> {line}\n" for line in wanted if "a" in line)
    assert seen == [line + "\n" for line in wanted]


def test_a_line_is_held_until_its_newline() -> None:
    cutter = LineCutter()
    assert cutter.feed("half") == []
    assert cutter.feed(" a line\nnext") == [Piece("half a line\n", starts=True, ends=True)]
    assert cutter.finish() == [Piece("next\n", starts=True, ends=True)]
    assert cutter.finish() == []


def test_a_line_without_an_end_is_never_held_whole() -> None:
    cutter, out = LineCutter(), 0
    for _ in range(100):
        out += sum(len(piece.text) for piece in cutter.feed("x" * (MAX_HELD // 10)))
        assert cutter._held_length <= MAX_HELD
    assert out > 9 * MAX_HELD


@pytest.mark.parametrize("end", ["", "\n", "tail\nnext"])
def test_a_line_in_pieces_has_one_prefix(end: str) -> None:
    text = "x" * (3 * MAX_HELD)
    chunks = [text[i : i + 1000] for i in range(0, len(text), 1000)]
    assert _through([*chunks, end]) == "".join(f"> {line}\n" for line in _lines(text + end))


@pytest.mark.parametrize(("word", "expected"), [("key", 2), ("nothing", 0)])
def test_a_filter_judges_a_long_line_once_by_its_beginning(word: str, expected: int) -> None:
    out = _through(["key" + "x" * MAX_HELD, "z" * MAX_HELD, "\nkey\nother\n"], lambda line: word in line)
    assert out.count("> ") == expected
    assert out.count("z") == (MAX_HELD if expected else 0)


def test_a_progress_bar_is_seen_while_it_grows() -> None:
    cutter, merger = LineCutter(), LineMerger()
    shown = ""
    for percent in (10, 20, 30):
        shown += "".join(merger.put(0, "> ", piece) for piece in cutter.feed(f"\r{percent}%"))
    assert shown == "> \r10%\r20%\r"
    shown += "".join(merger.put(0, "> ", piece) for piece in [*cutter.feed("\n"), *cutter.finish()])
    assert shown == "> \r10%\r20%\r30%\n"


def test_a_newline_of_two_characters_is_not_torn() -> None:
    cutter = LineCutter()
    assert cutter.feed("line\r") == []
    assert cutter.feed("\n") == [Piece("line\r\n", starts=True, ends=True)]


def test_lines_of_two_sources_never_share_a_line() -> None:
    merger = LineMerger()
    out = merger.put(0, "0:", Piece("long", starts=True, ends=False))
    out += merger.put(1, "1:", Piece("short\nsecond\n", starts=True, ends=True))
    out += merger.put(0, "0:", Piece(" more", starts=False, ends=False))
    out += merger.put(0, "0:", Piece(" end\n", starts=False, ends=True))
    assert out == "0:long\n1:short\n1:second\n0: more end\n"


def test_a_line_that_another_source_ended_gets_no_empty_rest() -> None:
    merger = LineMerger()
    out = merger.put(0, "0:", Piece("bar", starts=True, ends=False))
    out += merger.put(1, "1:", Piece("x\n", starts=True, ends=True))
    out += merger.put(0, "0:", Piece("\n", starts=False, ends=True))
    assert out == "0:bar\n1:x\n"


@given(st.lists(st.tuples(st.integers(0, 2), st.text(alphabet="ab\r\n", max_size=5))))
def test_each_source_keeps_its_lines_in_order_beside_others(writes: list[tuple[int, str]]) -> None:
    """With carriage returns lines may be parted by others', but nothing is lost, doubled or mixed."""
    cutters, merger, out = [LineCutter() for _ in range(3)], LineMerger(), ""
    for source, text in writes:
        out += "".join(merger.put(source, f"{source}:", piece) for piece in cutters[source].feed(text))
    for source, cutter in enumerate(cutters):
        out += "".join(merger.put(source, f"{source}:", piece) for piece in cutter.finish())
    for source in range(3):
        written = "".join(text for by, text in writes if by == source)
        got = "".join(line[2:] for line in _lines(out) if line.startswith(f"{source}:"))
        assert got == written.replace("\n", "")
    assert all(line[:2] in {"0:", "1:", "2:"} for line in _lines(out))
