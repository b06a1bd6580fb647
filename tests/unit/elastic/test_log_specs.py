"""Where workers write, by torch's layout, and that no attempt ever takes another's folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from agentd.elastic.multiprocessing.logs import DefaultLogsSpecs, LogsDest, RoundLogsSpecs, Std


def _envs(size: int, *, run_id: str = "the-run", restarts: int = 0) -> dict[int, dict[str, str]]:
    env = {
        "TORCHELASTIC_RUN_ID": run_id,
        "TORCHELASTIC_RESTART_COUNT": str(restarts),
        "AGENTD_ROUND": "7",
    }
    return {rank: dict(env) for rank in range(size)}


def _relative(dest: LogsDest, root: Path) -> list[str]:
    run = next(root.iterdir())
    return [os.path.relpath(path, run) for path in [*dest.stdouts.values(), *dest.stderrs.values()] if path]


def test_the_layout_is_torchs(tmp_path: Path) -> None:
    envs = _envs(2, restarts=3)
    dest = DefaultLogsSpecs(str(tmp_path), redirects=Std.ALL).reify(envs)
    (run,) = tmp_path.iterdir()
    assert run.name.startswith("the-run_")
    assert _relative(dest, tmp_path) == [
        "attempt_3/0/stdout.log",
        "attempt_3/1/stdout.log",
        "attempt_3/0/stderr.log",
        "attempt_3/1/stderr.log",
    ]
    assert dest.error_files == {rank: str(run / "attempt_3" / str(rank) / "error.json") for rank in (0, 1)}
    assert {rank: env["TORCHELASTIC_ERROR_FILE"] for rank, env in envs.items()} == dest.error_files
    assert dest.filtered_stdout == str(run / "attempt_3" / "filtered_stdout.log")
    assert dest.filtered_stderr == str(run / "attempt_3" / "filtered_stderr.log")
    assert sorted(path.name for path in (run / "attempt_3").iterdir()) == ["0", "1"]


def test_an_attempt_folder_is_never_used_again(tmp_path: Path) -> None:
    specs = DefaultLogsSpecs(str(tmp_path), redirects=Std.OUT)
    paths = []
    for restarts in (0, 0, 0, 1, 0):
        path = specs.reify(_envs(1, restarts=restarts)).stdouts[0]
        Path(path).write_text("kept")
        paths.append(path)
    names = [Path(path).parent.parent.name for path in paths]
    assert names == ["attempt_0", "attempt_0.1", "attempt_0.2", "attempt_1", "attempt_0.3"]
    assert all(Path(path).read_text() == "kept" for path in paths)
    assert len(list(tmp_path.iterdir())) == 1


def test_two_objects_share_no_run_folder(tmp_path: Path) -> None:
    for _ in range(2):
        DefaultLogsSpecs(str(tmp_path)).reify(_envs(1))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_run_folder_that_was_cleaned_away_is_made_again(tmp_path: Path) -> None:
    specs = DefaultLogsSpecs(str(tmp_path / "logs"))
    specs.reify(_envs(1))
    (tmp_path / "logs").rename(tmp_path / "gone")
    assert Path(specs.reify(_envs(1, restarts=1)).error_files[0]).parent.is_dir()


@pytest.mark.parametrize("run_id", ["../../etc", "a/b", "x" * 500, "ä" * 300, "nul\0", ""])
def test_any_run_id_stays_inside(tmp_path: Path, run_id: str) -> None:
    dest = DefaultLogsSpecs(str(tmp_path)).reify(_envs(1, run_id=run_id))
    assert Path(dest.error_files[0]).resolve().is_relative_to(tmp_path.resolve())
    assert Path(dest.error_files[0]).parent.is_dir()


@pytest.mark.parametrize(
    ("redirects", "tee", "files", "teed"),
    [
        (Std.NONE, Std.NONE, [], []),
        (Std.OUT, Std.NONE, ["0/stdout.log", "1/stdout.log"], []),
        (Std.NONE, Std.ERR, ["0/stderr.log", "1/stderr.log"], ["0/stderr.log", "1/stderr.log"]),
        ({0: Std.ALL}, {1: Std.OUT}, ["0/stdout.log", "1/stdout.log", "0/stderr.log"], ["1/stdout.log"]),
    ],
)
def test_streams_go_where_redirects_and_tee_say(
    tmp_path: Path, redirects: Std, tee: Std, files: list[str], teed: list[str]
) -> None:
    dest = DefaultLogsSpecs(str(tmp_path), redirects, tee).reify(_envs(2))
    assert _relative(dest, tmp_path) == [f"attempt_0/{file}" for file in files]
    shown = [*dest.tee_stdouts.values(), *dest.tee_stderrs.values()]
    assert ["/".join(path.split("/")[-2:]) for path in shown] == teed
    assert set(dest.stdouts) == set(dest.stderrs) == {0, 1}


def test_ranks_outside_the_filter_show_nothing(tmp_path: Path) -> None:
    dest = DefaultLogsSpecs(str(tmp_path), redirects=Std.NONE, tee=Std.OUT, local_ranks_filter={1})
    found = dest.reify(_envs(3))
    assert set(found.tee_stdouts) == {1}
    assert [Path(path).name for path in found.stdouts.values()] == ["stdout.log"] * 3
    assert found.stderrs == {0: os.devnull, 1: "", 2: os.devnull}


def test_an_empty_filter_is_none(tmp_path: Path) -> None:
    found = DefaultLogsSpecs(str(tmp_path), local_ranks_filter=set()).reify(_envs(2))
    assert found.stdouts == {0: "", 1: ""}


def test_dev_null_leaves_no_files_and_the_console(tmp_path: Path) -> None:
    envs = _envs(2)
    specs = DefaultLogsSpecs(os.devnull, tee=Std.ALL)
    dest = specs.reify(envs)
    assert specs.root_log_dir == os.devnull
    assert (dest.stdouts, dest.stderrs) == ({0: "", 1: ""}, {0: "", 1: ""})
    assert (dest.tee_stdouts, dest.tee_stderrs, dest.filtered_stdout) == ({}, {}, "")
    assert dest.error_files == {0: os.devnull, 1: os.devnull}
    assert [env["TORCHELASTIC_ERROR_FILE"] for env in envs.values()] == ["", ""]


def test_without_a_folder_one_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root = Path(DefaultLogsSpecs().root_log_dir)
    assert root.is_dir()
    assert (root.parent, root.name[:13]) == (tmp_path, "torchelastic_")


def test_a_missing_folder_is_made_and_a_file_refused(tmp_path: Path) -> None:
    DefaultLogsSpecs(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is a file; name a folder"):
        DefaultLogsSpecs(str(tmp_path / "file"))


def test_workers_get_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    envs = _envs(1)
    dest = DefaultLogsSpecs("logs", redirects=Std.OUT).reify(envs)
    assert dest.stdouts[0].startswith(f"{tmp_path}/logs/")
    assert envs[0]["TORCHELASTIC_ERROR_FILE"] == dest.error_files[0]
    assert dest.error_files[0].startswith(f"{tmp_path}/logs/")


def test_specs_are_equal_by_what_was_asked(tmp_path: Path) -> None:
    one, two = DefaultLogsSpecs(str(tmp_path), Std.OUT), DefaultLogsSpecs(str(tmp_path), Std.OUT)
    two.reify(_envs(1))
    assert one == two
    assert one != DefaultLogsSpecs(str(tmp_path), Std.ERR)
    assert one != "specs"
    assert "redirects=" in repr(one)


def test_rounds_have_a_place_for_gathered_lines(tmp_path: Path) -> None:
    dest = RoundLogsSpecs(str(tmp_path)).reify(_envs(1))
    assert dest.filtered_stdout == str(tmp_path / "round_7" / "filtered_stdout.log")
