"""The committed stubs are those of the committed protos; CI makes them anew and compares every byte."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools import protogen

STUBS = protogen.REPO / protogen.PACKAGE


def test_stubs_match_their_fingerprint() -> None:
    assert protogen.stale() == [], "run `make proto` and commit agentd/v1"


def test_a_changed_proto_makes_stubs_stale(tmp_path: Path) -> None:
    folder = tmp_path / protogen.PACKAGE
    folder.mkdir(parents=True)
    for proto in protogen.protos():
        (tmp_path / proto).write_bytes((protogen.PROTO_ROOT / proto).read_bytes())
    assert protogen.stale(proto_root=tmp_path) == []
    changed = folder / "run.proto"
    changed.write_text(changed.read_text() + "// one more word\n")
    assert protogen.stale(proto_root=tmp_path) == ["agentd/v1/run.proto"]


def test_an_edited_stub_is_stale(tmp_path: Path) -> None:
    for path in [*protogen.stubs(STUBS), STUBS / protogen.FINGERPRINT]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    edited = tmp_path / "run_pb2.py"
    edited.write_text(edited.read_text() + "# mine\n")
    assert protogen.stale(tmp_path) == ["agentd/v1/run_pb2.py"]


@pytest.mark.timeout(300)
@pytest.mark.skipif(
    os.environ.get("CI") != "true" and not protogen.VENV.exists(),
    reason="regenerates in CI, or where `make proto` has built its environment",
)
def test_generating_again_gives_the_same_stubs(tmp_path: Path) -> None:
    protogen.generate(tmp_path)
    made = {path.name: path.read_bytes() for path in protogen.stubs(tmp_path)}
    assert made == {path.name: path.read_bytes() for path in protogen.stubs(STUBS)}
