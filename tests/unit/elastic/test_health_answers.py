"""What bytes on the health port are answered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.elastic.agent.server.health.answers import HEAD_LIMIT, answer_to
from agentd.elastic.agent.server.health_check_server import Liveness

ALIVE = Liveness(True, 1.0, "alive: well")
DEAD = Liveness(False, 99.0, "not alive: stuck")


def answer(received: bytes, liveness: Liveness = ALIVE) -> bytes | None:
    return answer_to(received, lambda: liveness)


def status(received: bytes, liveness: Liveness = ALIVE) -> int | None:
    answered = answer(received, liveness)
    return None if answered is None else int(answered.split()[1])


@pytest.mark.parametrize(
    "request_line",
    [b"GET / HTTP/1.1", b"HEAD / HTTP/1.0", b"GET /healthz?x=1 HTTP/1.1", b"GET http://h/ HTTP/1.1"],
)
@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n", b"\r\nHost: h\r\nAccept: */*\r\n\r\n"])
def test_any_get_or_head_is_200_while_alive_and_503_when_not(request_line: bytes, end: bytes) -> None:
    assert status(request_line + end) == 200
    assert status(request_line + end, DEAD) == 503


def test_the_body_tells_why_and_has_the_length_it_says() -> None:
    head, _, body = (answer(b"GET / HTTP/1.1\r\n\r\n", DEAD) or b"").partition(b"\r\n\r\n")
    assert body == b"not alive: stuck\n"
    assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
    assert b"Connection: close" in head.split(b"\r\n")


def test_head_gets_the_same_head_and_no_body() -> None:
    get, head = answer(b"GET / HTTP/1.1\r\n\r\n"), answer(b"HEAD / HTTP/1.1\r\n\r\n")
    assert get is not None
    assert head == get.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


def test_line_ends_left_over_before_a_request_are_skipped() -> None:
    assert status(b"\r\n\r\nGET / HTTP/1.1\r\n\r\n") == 200


@pytest.mark.parametrize(
    "part", [b"", b"G", b"GET / HTTP/1.1", b"GET / HTTP/1.1\r\nHost: h\r\n", b"\r\n\r\n"]
)
def test_part_of_a_request_waits_for_more(part: bytes) -> None:
    assert answer(part) is None


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
        (b"\x00\xff\x00", 400),
        (b"hello\n", 400),
        (b"GET /\r\n", 400),  # HTTP/0.9
        (b"GET HTTP/1.1\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"POST / HTTP/1.1\r\n", 405),
        (b"get / HTTP/1.1\r\n", 405),
        (b"G" * HEAD_LIMIT, 431),
        (b"\r\n" * HEAD_LIMIT, 431),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * HEAD_LIMIT, 431),
    ],
)
def test_what_can_never_be_a_health_check_is_refused_at_once(received: bytes, expected: int) -> None:
    assert status(received) == expected


def test_a_tls_client_is_told_of_its_mistake() -> None:
    assert b"without TLS" in (answer(b"\x16\x03\x01") or b"")


def test_the_callback_is_asked_for_whole_requests_only() -> None:
    def asked() -> Liveness:
        raise AssertionError("asked")

    for received in (b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\n\r\n", b"\x16"):
        answer_to(received, asked)


@given(st.binary(max_size=300) | st.text("GETHAD /P1.0\r\n", max_size=60).map(str.encode))
def test_any_bytes_get_an_answer_of_http_or_none(received: bytes) -> None:
    answered = answer(received)
    if answered is not None:
        line = answered.partition(b"\r\n")[0].split(b" ")
        assert line[0] == b"HTTP/1.1"
        assert line[1] in {b"200", b"400", b"405", b"431", b"505"}


@given(st.binary(min_size=1, max_size=20))
def test_nothing_may_go_on_beyond_the_limit(part: bytes) -> None:
    assert answer(part * HEAD_LIMIT) is not None
