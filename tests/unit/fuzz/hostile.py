"""What a parser may be given by somebody who means ill, or whose disk was full."""

from __future__ import annotations

import json
import os
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
"""As many times more examples are drawn than by default."""


def examples(count: int) -> settings:
    """That many examples, or `TIMES` as many."""
    return settings(max_examples=count * TIMES, deadline=None)


DEEP = (100, 900, 990, 1_000, 2_500, 100_000)
"""Around what Python takes of nested lists, and beyond."""

numbers = st.one_of(
    st.integers(-2, 70_000),
    st.sampled_from([-(2**63) - 1, -(2**31), 2**31, 2**32, 2**53 + 1, 2**63, 2**64, 10**30, 10**400]),
    st.floats(),
)
texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "\ud800",
            "a\udcffb",
            "\0",
            "a\0b",
            "\n",
            "../..",
            "x" * 5_000,
            "9" * 5_000,
            "-1",
            "1e999",
            "nan",
            "~nobody/x",
        ]
    ),
)
leaves = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def nested(depth: int) -> bytes:
    """A list in a list in a list."""
    return b"[" * depth + b"]" * depth


@st.composite
def json_of(draw: st.DrawFn, bodies: st.SearchStrategy[dict[str, Any]]) -> bytes:
    """Nearly the object that was expected: fields changed, gone, doubled, nested, or bytes destroyed."""
    body = draw(bodies)
    for name in draw(st.lists(st.sampled_from(sorted(body)), max_size=2)) if body else ():
        if draw(st.booleans()):
            body[name] = draw(values)
        else:
            body.pop(name, None)
    text = json.dumps(body).encode()
    kind = draw(st.integers(0, 9))
    if kind == 0 and body:
        key = json.dumps(draw(st.sampled_from(sorted(body)))).encode()
        return text[:-1] + b"," + key + b":" + nested(draw(st.sampled_from(DEEP[:-1]))) + b"}"
    if kind == 1 and body:
        key = json.dumps(draw(st.sampled_from(sorted(body)))).encode()
        return text[:-1] + b"," + key + b":" + json.dumps(draw(leaves)).encode() + b"}"
    if kind == 2:
        return draw(flipped(text))
    if kind == 3:
        return text[: draw(st.integers(0, len(text)))]
    if kind == 4:
        return draw(st.binary(max_size=40) | st.sampled_from([nested(depth) for depth in DEEP[:-1]]))
    return text


@st.composite
def flipped(draw: st.DrawFn, content: bytes) -> bytes:
    """Some bytes of it are others."""
    changed = bytearray(content)
    for where in draw(st.lists(st.integers(0, max(0, len(content) - 1)), max_size=4)):
        changed[where : where + 1] = draw(st.binary(max_size=2))
    return bytes(changed)
