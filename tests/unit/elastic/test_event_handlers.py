"""Event handlers are found by name: built in, registered, or offered by an installed package."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import uuid
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from agentd.elastic import events
from agentd.elastic.events import Event, EventSource
from agentd.elastic.events.handlers import ENTRY_POINTS, JsonLinesHandler


class Offered(logging.Handler):
    """What an installed package offers."""


@pytest.fixture
def name() -> str:
    """A destination nobody else uses: the registry is the process'."""
    return f"test-{uuid.uuid4().hex}"


@pytest.mark.parametrize(
    ("destination", "kind"),
    [
        ("null", logging.NullHandler),
        ("dynamic_rendezvous", logging.NullHandler),
        ("console", logging.StreamHandler),
    ],
)
def test_the_handlers_of_torch_are_there(destination: str, kind: type) -> None:
    assert type(events.get_logging_handler(destination)) is kind
    assert events.get_logging_handler(destination) is events.get_logging_handler(destination)


def test_an_unknown_destination_is_a_key_error_that_names_the_known() -> None:
    with pytest.raises(KeyError) as raised:
        events.record(Event("a", EventSource.AGENT), "consol")
    assert "is called 'consol'; there are " in str(raised.value)
    assert "console, dynamic_rendezvous, jsonl" in str(raised.value)
    assert isinstance(raised.value, events.UnknownEventHandler)
    assert raised.value.destination == "consol"
    assert {"console", "null"} <= set(raised.value.known)


def test_the_journal_is_said_to_be_agentd_s() -> None:
    with pytest.raises(KeyError, match="only inside a worker group that agentd runs"):
        events.get_logging_handler("journal")


def test_a_registered_maker_is_asked_once_and_late(name: str) -> None:
    made: list[logging.Handler] = []

    def make() -> logging.Handler:
        made.append(Offered())
        return made[-1]

    events.register(name, make)
    assert not made
    assert events.get_logging_handler(name) is events.get_logging_handler(name)
    assert len(made) == 1


def test_a_name_is_taken_once_unless_it_is_replaced(name: str) -> None:
    first, second = Offered(), Offered()
    events.register(name, first)
    events.register(name, first)
    with pytest.raises(ValueError, match="registered already"):
        events.register(name, second)
    assert events.get_logging_handler(name) is first
    events.register(name, second, replace=True)
    assert events.get_logging_handler(name) is second
    with pytest.raises(ValueError, match="needs a name"):
        events.register("", first)


def test_an_event_after_a_replacement_goes_to_the_new_handler_alone(name: str, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    events.register(name, lambda: JsonLinesHandler(str(old)))
    events.record(Event("a", EventSource.AGENT), name)
    events.register(name, lambda: JsonLinesHandler(str(new)), replace=True)
    events.record(Event("b", EventSource.AGENT), name)
    events.register(name, logging.NullHandler, replace=True)
    assert [json.loads(file.read_text())["name"] for file in (old, new)] == ["a", "b"]


def test_an_installed_package_s_handler_is_found_by_entry_point(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = EntryPoint(name, f"{__name__}:Offered", ENTRY_POINTS)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Offered.__module__])
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [entry] * (group == ENTRY_POINTS))
    assert isinstance(events.get_logging_handler(name), Offered)


def test_what_is_no_handler_is_refused(name: str) -> None:
    events.register(name, lambda: "loud")  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match=r"no logging\.Handler: 'loud'"):
        events.get_logging_handler(name)


def test_json_lines_are_appended_to_the_file_of_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"name": "before"}\n')
    monkeypatch.setenv("AGENTD_EVENTS_FILE", str(path))
    handler = JsonLinesHandler()
    try:
        for line in (Event("a", EventSource.AGENT, 7).serialize(), "two\nlines"):
            handler.handle(logging.makeLogRecord({"msg": line}))
    finally:
        handler.close()
    before, event, other = map(json.loads, path.read_text().splitlines())
    assert before["name"] == "before"
    assert event == {"name": "a", "source": "AGENT", "timestamp": 7, "metadata": {}}
    assert other == "two\nlines"


def test_json_lines_without_a_file_say_which_variable_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTD_EVENTS_FILE", raising=False)
    with pytest.raises(ValueError, match="name it in AGENTD_EVENTS_FILE"):
        JsonLinesHandler()


def test_a_file_that_cannot_be_opened_is_told_with_its_variable_the_cause_and_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = str(tmp_path / "nowhere" / "file")
    monkeypatch.setenv("AGENTD_EVENTS_FILE", nowhere)
    with pytest.raises(FileNotFoundError) as caught:
        JsonLinesHandler()
    assert str(caught.value) == (
        f"the event handler jsonl cannot open {nowhere!r}, its file in AGENTD_EVENTS_FILE: No such file or "
        "directory. Name in AGENTD_EVENTS_FILE a file in a folder that exists, and that this user may write"
    )
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(IsADirectoryError, match=r"cannot open .*, its file: Is a directory\. Name a file"):
        JsonLinesHandler(str(tmp_path))


def test_a_handler_that_could_not_be_made_is_not_closed_at_the_process_end(tmp_path: Path) -> None:
    """What failed is said once, and not once more by logging."""
    script = (
        "from agentd.elastic.events.handlers import JsonLinesHandler\n"
        "try:\n"
        f"    JsonLinesHandler({str(tmp_path / 'nowhere' / 'file')!r})\n"
        "except FileNotFoundError as error:\n"
        "    kept = error\n"
    )
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_line_cut_by_a_full_disk_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    script = f"""
import logging, resource, signal
from agentd.elastic.events.handlers import JsonLinesHandler
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
handler = JsonLinesHandler({str(path)!r})
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
try:
    handler.emit(logging.makeLogRecord({{"msg": "x" * 40}}))
except OSError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
handler.emit(logging.makeLogRecord({{"msg": "whole"}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert "the disk took 10 of 41 bytes" in done.stdout
    assert path.read_text().splitlines() == ["x" * 10, "whole"]


def test_many_processes_share_a_file_without_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    script = """
from agentd.elastic.events import Event, EventSource, record
for number in range(200):
    record(Event("x" * 500, EventSource.WORKER, metadata={"number": number}), "jsonl")
"""
    env = {**os.environ, "AGENTD_EVENTS_FILE": str(path)}
    writers = [subprocess.Popen([sys.executable, "-c", script], env=env) for _ in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    numbers = [Event.deserialize(line).metadata["number"] for line in path.read_text().splitlines()]
    assert sorted(map(int, map(str, numbers))) == sorted([*range(200)] * 3)


@pytest.mark.parametrize(("level", "heard"), [("debug", True), ("nonsense", True), ("WARNING", False)])
def test_the_level_is_loglevel_in_any_case_and_info_if_there_is_no_such(
    name: str, level: str, heard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGLEVEL", level)
    events.register(name, Offered)
    assert events.is_listening(name) is heard
