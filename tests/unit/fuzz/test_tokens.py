"""Tokens that callers bring back, perhaps not as they got them."""

from __future__ import annotations

import base64
import contextlib
import json
import math

from hypothesis import example, given
from hypothesis import strategies as st

from agentd.api.errors import InvalidSpec
from agentd.api.types import RunStatus
from agentd.groups import archive
from agentd.rpc.paging import page
from tests.unit.fuzz.hostile import examples, nested, texts, values


def packed(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode()


tokens = st.one_of(
    texts,
    st.binary(max_size=20).map(packed),
    values.map(json.dumps).map(str.encode).map(packed),
    st.tuples(values, values).map(json.dumps).map(str.encode).map(packed),
    st.tuples(values, values, values).map(json.dumps).map(str.encode).map(packed),
)
DEEP = packed(b"[" + nested(960) + b",1]")
ENDLESS = packed(b'["r", 1e999]')


@examples(25)
@given(token=tokens)
@example(token=DEEP)
@example(token=packed(nested(100_000)))
@example(token=ENDLESS)
def test_a_page_of_runs_is_given_or_refused_by_name(token: str) -> None:
    runs = [RunStatus(run_id=name, incarnation=7) for name in ("a", "r", "z")]
    with contextlib.suppress(InvalidSpec):
        page(runs, size=1, token=token, cost=lambda _run: 1)


@examples(25)
@given(token=tokens)
@example(token=DEEP)
@example(token=packed(b'[1, "\\ud800", 1]'))
@example(token=packed(b'[1, "r", -1' + b"0" * 40 + b"]"))
@example(token=packed(b'[NaN, "r", 1]'))
def test_a_token_of_ended_runs_is_one_for_the_database_or_refused(token: str) -> None:
    with contextlib.suppress(InvalidSpec):
        ended_at, run_id, incarnation = archive._read_token(token)
        run_id.encode()
        assert not math.isnan(ended_at)
        assert -(2**63) <= incarnation < 2**63
