"""Real hosts and real workers, with the test in agentd's place."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from pathlib import Path

import pytest

from agentd.core.contact import Contact
from agentd.host.link import SOCKET_NAME
from agentd.host.wire import (
    Done,
    Ended,
    Exited,
    Failed,
    FinishHost,
    Ready,
    SignalWorkers,
    StopRound,
)
from tests.support.fleet import is_gone
from tests.support.hosting import Ear, host_spec, open_door, place, python, running_host
from tests.support.waiting import wait_until, wait_until_async

pytestmark = pytest.mark.asyncio


def stderr_of(root: Path, round_: int, local_rank: int) -> str:
    return (root / f"round_{round_}" / str(local_rank) / "stderr.log").read_text()


async def test_success_is_reported_done_and_the_host_leaves(tmp_path: Path) -> None:
    async with running_host(tmp_path, host_spec(tmp_path, *python("pass"))) as ear:
        started = await ear.starts()
        done = await ear.hears(Done)
        assert await ear.ends() == "exit code 0"
    assert [worker.rank for worker in started.workers] == [0, 1]
    assert done.round == 1
    assert {(exit_.rank, exit_.exit_code, exit_.torn_down) for exit_ in ear.all(Exited)} == {
        (0, 0, False),
        (1, 0, False),
    }
    assert ear.all(Ended) == []


async def test_every_report_is_on_disk_with_its_number(tmp_path: Path) -> None:
    async with running_host(tmp_path, host_spec(tmp_path, *python("pass"))) as ear:
        await ear.starts()
        await ear.ends()
    lines = [json.loads(line) for line in (tmp_path / "host.jsonl").read_text().splitlines()]
    assert [line["sequence"] for line in lines] == list(range(1, len(lines) + 1))
    assert [line["type"] for line in lines] == [report.type for report in ear.reports]


async def test_workers_see_the_contract_and_the_round_file(tmp_path: Path) -> None:
    show = python(
        "import json, os, sys",
        "asked = json.load(open(os.environ['AGENTD_ROUND_FILE']))",
        "json.dump({**os.environ, 'ROUND_FILE': asked}, sys.stdout)",
    )
    spec = host_spec(tmp_path, *show, env={"MINE": "x", "MASTER_PORT": "1"}, role="trainer")
    async with running_host(tmp_path, spec) as ear:
        ready = await ear.hears(Ready)
        assert ear.handle is not None
        ear.handle.tell_contact(Contact(sent_at=100.0, valid_until=105.0, stopped_round=2))
        ear.handle.send(
            place(3, 2, 4321, group_rank=1, group_world_size=2, rank_base=4, world_size=6, restart_count=1)
        )
        await ear.hears(Done)
    assert ready.round == 0
    env = json.loads((tmp_path / "round_3" / "1" / "stdout.log").read_text())
    expected = {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "6",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "1",
        "GROUP_WORLD_SIZE": "2",
        "ROLE_NAME": "trainer",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "4321",
        "TORCHELASTIC_RESTART_COUNT": "1",
        "TORCHELASTIC_RUN_ID": "job",
        "TORCHELASTIC_ERROR_FILE": str(tmp_path / "round_3" / "1" / "error.json"),
        "AGENTD_RUN_ID": "job",
        "AGENTD_INCARNATION": "7",
        "AGENTD_NODE_ID": "n1",
        "AGENTD_ROUND": "3",
        "AGENTD_ROUND_FILE": str(tmp_path / "round.json"),
        "AGENTD_GROUP_TOKEN": spec.token,
        "MINE": "x",
    }
    assert {name: env.get(name) for name in expected} == expected
    assert env["ROUND_FILE"] == {
        "run_id": "job",
        "incarnation": 7,
        "round": 3,
        "node_id": "n1",
        "valid_until": 105.0,
    }
    assert not (tmp_path / "round.json").exists()


async def test_a_failure_is_reported_with_its_cause_and_siblings_as_torn_down(tmp_path: Path) -> None:
    fail = python(
        "import os, sys, time",
        "if os.environ['RANK'] == '1':",
        "    print('the cause', file=sys.stderr, flush=True)",
        "    sys.exit(3)",
        "time.sleep(600)",
    )
    async with running_host(tmp_path, host_spec(tmp_path, *fail)) as ear:
        await ear.starts()
        failed = await ear.hears(Failed)
        (failure,) = failed.failures
        assert (failure.rank, failure.exit_code, failure.signal) == (1, 3, None)
        assert failure.stderr_tail == "the cause\n"
        assert failure.log_dir == str(tmp_path / "round_1" / "1")
        await ear.hears(Exited, 2)
        assert {exit_.rank: exit_.torn_down for exit_ in ear.all(Exited)} == {0: True, 1: False}
        assert ear.handle is not None
        ear.handle.send(StopRound(round=1))
        again = await ear.hears(Ready, 2)
        assert again.round == 1
        assert again.master_port != ear.all(Ready)[0].master_port


async def test_a_stopped_round_is_gone_before_ready_is_said(tmp_path: Path) -> None:
    async with running_host(tmp_path, host_spec(tmp_path)) as ear:
        first = await ear.starts(1)
        assert ear.handle is not None
        ear.handle.send(StopRound(round=1))
        await ear.hears(Ready, 2)
        assert all(is_gone(worker.pid) for worker in first.workers)
        second = await ear.starts(2)
        assert {worker.pid for worker in second.workers}.isdisjoint({worker.pid for worker in first.workers})
        ear.handle.send(FinishHost(state="stopped", grace_s=5.0))
        await ear.hears(Ended)
        assert all(is_gone(worker.pid) for worker in second.workers)


async def test_a_program_that_cannot_start_fails_the_round_and_says_why(tmp_path: Path) -> None:
    async with running_host(tmp_path, host_spec(tmp_path, "/no/such/program")) as ear:
        await ear.hears(Ready)
        assert ear.handle is not None
        ear.handle.send(place(1, 2))
        failed = await ear.hears(Failed)
        assert failed.failures == ()
        assert "/no/such/program" in failed.reason
        ear.handle.send(FinishHost(state="failed", reason="no program"))
        ended = await ear.hears(Ended)
        assert (ended.state, ended.reason) == ("failed", "no program")


@pytest.mark.parametrize("phase", ["before welcome", "rendezvous", "running", "failed"])
async def test_finish_ends_the_host_in_every_state(tmp_path: Path, phase: str) -> None:
    program = python("raise SystemExit(1)") if phase == "failed" else ("sleep", "600")
    finish = FinishHost(state="stopped", reason="asked", grace_s=5.0)
    ear = Ear()
    async with open_door(tmp_path) as door:
        handle = ear.handle = await door.start_host(host_spec(tmp_path, *program), str(tmp_path), ear)
        if phase == "before welcome":
            handle.send(finish)
        handle.admit()
        if phase != "before welcome":
            await ear.hears(Ready)
        if phase in ("running", "failed"):
            await ear.starts()
        if phase == "failed":
            await ear.hears(Failed)
        handle.send(finish)
        ended = await ear.hears(Ended)
        assert await ear.ends() == "exit code 0"
    assert (ended.state, ended.reason) == ("stopped", "asked")


STUBBORN = python(
    "import signal, subprocess, sys, time",
    "signal.signal(signal.SIGTERM, lambda *a: print('asked', flush=True))",
    "child = subprocess.Popen(['sleep', '600'], start_new_session=True)",
    "print(child.pid, flush=True)",
    "while True: time.sleep(600)",
)


async def test_a_second_finish_shortens_the_grace_of_workers_that_ignore_sigterm(tmp_path: Path) -> None:
    spec = host_spec(tmp_path, *STUBBORN, local_world_size=1, env={"PATH": os.environ["PATH"]})
    out = tmp_path / "round_1" / "0" / "stdout.log"
    async with running_host(tmp_path, spec) as ear:
        started = await ear.starts()
        await wait_until_async(lambda: out.read_text().count("\n") == 1)
        grandchild = int(out.read_text())
        assert ear.handle is not None
        ear.handle.send(FinishHost(state="stopped", grace_s=600.0))
        await wait_until_async(lambda: "asked" in out.read_text())
        assert not is_gone(started.workers[0].pid)
        ear.handle.send(FinishHost(state="stopped", grace_s=0.0))
        await ear.ends()
    assert is_gone(started.workers[0].pid)
    assert is_gone(grandchild)


async def test_a_signal_reaches_the_named_ranks_only(tmp_path: Path) -> None:
    program = python(
        "import signal",
        "signal.signal(signal.SIGUSR1, lambda *a: print('got it', flush=True))",
        "print('set', flush=True)",
        "while True: signal.pause()",
    )
    outs = [tmp_path / "round_1" / str(rank) / "stdout.log" for rank in range(2)]
    async with running_host(tmp_path, host_spec(tmp_path, *program)) as ear:
        await ear.starts()
        await wait_until_async(lambda: all("set" in out.read_text() for out in outs))
        assert ear.handle is not None
        ear.handle.send(SignalWorkers(signal=int(signal.SIGUSR1), ranks=(1,)))
        await wait_until_async(lambda: "got it" in outs[1].read_text())
        assert "got it" not in outs[0].read_text()


async def test_workers_die_with_a_host_that_is_killed(tmp_path: Path) -> None:
    async with running_host(tmp_path, host_spec(tmp_path)) as ear:
        started = await ear.starts()
        assert ear.handle is not None
        ear.handle.kill()
        assert await ear.ends() == "SIGKILL"
        await wait_until_async(lambda: all(is_gone(worker.pid) for worker in started.workers))


async def test_a_host_that_is_terminated_stops_its_workers_and_says_so(tmp_path: Path) -> None:
    async with running_host(tmp_path, host_spec(tmp_path)) as ear:
        started = await ear.starts()
        assert ear.handle is not None
        assert ear.handle.identity is not None
        os.kill(ear.handle.identity.pid, signal.SIGTERM)
        ended = await ear.hears(Ended)
        assert "SIGTERM" in ended.reason
        await ear.ends()
        assert all(is_gone(worker.pid) for worker in started.workers)


async def test_a_lost_terminal_ends_nothing(tmp_path: Path) -> None:
    async with running_host(tmp_path, host_spec(tmp_path)) as ear:
        started = await ear.starts()
        assert ear.handle is not None
        assert ear.handle.identity is not None
        os.kill(ear.handle.identity.pid, signal.SIGHUP)
        ear.handle.send(StopRound(round=1))
        await ear.hears(Ready, 2)
        assert len(started.workers) == 2


async def test_in_mode_stop_the_workers_end_with_the_connection(tmp_path: Path) -> None:
    ear = Ear()
    async with open_door(tmp_path) as door:
        ear.handle = await door.start_host(host_spec(tmp_path), str(tmp_path), ear)
        ear.handle.admit()
        started = await ear.starts()
    # The door is closed: as far as the host knows its agentd has died.
    assert await ear.ends() == "exit code 0"
    assert all(is_gone(worker.pid) for worker in started.workers)
    last = json.loads((tmp_path / "host.jsonl").read_text().splitlines()[-1])
    assert (last["type"], last["state"]) == ("ended", "stopped")


async def test_in_mode_keep_the_host_dials_the_next_agentd(tmp_path: Path) -> None:
    ear, spec = Ear(), host_spec(tmp_path, mode="keep")
    async with open_door(tmp_path) as door:
        ear.handle = await door.start_host(spec, str(tmp_path), ear)
        ear.handle.admit()
        started = await ear.starts()
    hellos = await _next_agentd_hears_hello(tmp_path)
    assert hellos["token"] == spec.token
    # What it recorded last may have come when nobody listened any more.
    written = (tmp_path / "host.jsonl").read_text().splitlines()
    assert len(ear.reports) <= int(str(hellos["last_sequence"])) <= len(written)
    assert not any(is_gone(worker.pid) for worker in started.workers)
    ear.handle.kill()
    await ear.ends()


async def _next_agentd_hears_hello(root: Path) -> dict[str, object]:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(root / "hosts.sock"))
        listening.listen()
        listening.setblocking(False)
        accepted = await wait_until_async(lambda: _accept(listening))
        assert accepted is not None
        with contextlib.closing(accepted) as connection:
            data = wait_until(lambda: connection.recv(65_536))
    hello: dict[str, object] = json.loads(data[4:])
    return hello


def _accept(listening: socket.socket) -> socket.socket | None:
    try:
        return listening.accept()[0]
    except BlockingIOError:
        return None


async def test_a_host_that_nobody_knows_ends_and_starts_nothing(tmp_path: Path) -> None:
    ear, spec = Ear(), host_spec(tmp_path)
    async with open_door(tmp_path) as door:
        ear.handle = await door.start_host(spec, str(tmp_path), ear)
        door._forget(spec.token)
        end = await ear.ends()
    assert end.startswith("exit code 1: host: ")
    assert "knows no such host" in end
    assert ear.reports == []


async def test_the_held_port_is_never_handed_to_others_and_free_for_a_worker(tmp_path: Path) -> None:
    async with running_host(tmp_path, host_spec(tmp_path)) as ear:
        port = (await ear.hears(Ready)).master_port
        for family in (socket.AF_INET, socket.AF_INET6):
            with socket.socket(family) as worker:
                worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                worker.bind(("", port))
                worker.listen()
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("", port))


async def test_a_very_long_state_directory_is_no_obstacle(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    async with running_host(deep, host_spec(deep, *python("pass"))) as ear:
        await ear.starts()
        await ear.hears(Done)


async def test_a_deleted_socket_is_there_again_for_the_next_host(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        ears = []
        for _ in range(2):
            (tmp_path / SOCKET_NAME).unlink()
            ear = Ear()
            ear.handle = await door.start_host(host_spec(tmp_path), str(tmp_path), ear)
            ear.handle.admit()
            await ear.starts()
            ears.append(ear)
        for ear in ears:
            # The first one is still heard, though its socket's name is another's now.
            assert ear.handle is not None
            ear.handle.send(FinishHost(state="STOPPED", reason="enough", grace_s=5.0))
            assert await ear.ends() == "exit code 0"
            assert len(ear.all(Ended)) == 1


async def test_a_round_file_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "round.json.new").mkdir()
    async with running_host(tmp_path, host_spec(tmp_path, *python("pass"))) as ear:
        await ear.starts()
        await ear.hears(Done)
        assert await ear.ends() == "exit code 0"


async def test_a_later_host_of_the_group_goes_on_with_the_numbers(tmp_path: Path) -> None:
    for _ in range(2):
        async with running_host(tmp_path, host_spec(tmp_path, *python("pass"))) as ear:
            await ear.starts()
            await ear.ends()
            with (tmp_path / "host.jsonl").open("a") as file:
                file.write('{"half a line')
    lines = (tmp_path / "host.jsonl").read_text().splitlines()
    numbers = [json.loads(line)["sequence"] for line in lines if "half" not in line]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_a_host_is_small(tmp_path: Path) -> None:
    async with running_host(tmp_path, host_spec(tmp_path)) as ear:
        await ear.starts()
        assert ear.handle is not None
        assert ear.handle.identity is not None
        status = Path(f"/proc/{ear.handle.identity.pid}/status").read_text()
        resident = int(status.split("VmRSS:")[1].split()[0]) * 1024
        threads = int(status.split("Threads:")[1].split()[0])
    assert resident < 25 * 1024 * 1024
    assert threads == 1
