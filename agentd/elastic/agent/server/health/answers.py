"""What a health check over HTTP is answered, as a function of the bytes that came. No I/O."""

from __future__ import annotations

from collections.abc import Callable

from agentd.elastic.agent.server.health_check_server import Liveness

HEAD_LIMIT = 8192
"""Bytes of a request up to the blank line that ends its head."""

_REASONS = {
    200: "OK",
    400: "Bad Request",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


def answer_to(received: bytes, liveness: Callable[[], Liveness]) -> bytes | None:
    """The whole answer, or `None` while more of the request must come.

    Any path serves; GET and HEAD are answered 200 or 503. What can never become such a request is refused
    at once, so that a TLS client learns of its mistake instead of waiting.
    """
    request = received.lstrip(b"\r\n")  # left over by some clients before their request
    line, newline, _ = request.partition(b"\n")
    if newline:
        refusal = _refusal(line.rstrip(b"\r"))
        if refusal:
            return refusal
    elif request and not request[:1].isalpha():
        return _answer(400, "this port speaks HTTP without TLS")
    if b"\n\r\n" in request or b"\n\n" in request:
        look = liveness()
        return _answer(200 if look.alive else 503, look.text, head_only=line.startswith(b"HEAD "))
    if len(received) >= HEAD_LIMIT:
        return _answer(431, f"a health check's head has at most {HEAD_LIMIT} bytes")
    return None


def _refusal(line: bytes) -> bytes | None:
    """The answer to a request line that no head can mend."""
    method, _, rest = line.partition(b" ")
    target, _, version = rest.rpartition(b" ")
    if not target or not version.startswith(b"HTTP/"):
        return _answer(400, "this is no HTTP request")
    if not version.startswith(b"HTTP/1."):
        return _answer(505, "this port speaks HTTP/1.1")
    if method not in {b"GET", b"HEAD"}:
        return _answer(405, "ask with GET or HEAD", "Allow: GET, HEAD\r\n")
    return None


def _answer(status: int, text: str, headers: str = "", *, head_only: bool = False) -> bytes:
    body = f"{text}\n".encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\n"
        f"{headers}"
        "Connection: close\r\n"
        "\r\n"
    )
    return head.encode() + (b"" if head_only else body)
