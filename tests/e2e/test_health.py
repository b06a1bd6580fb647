"""Health as outsiders see it: a Go client with reflection (buf curl), a JavaScript client, and agentctl."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.fleet import Node, agentctl, agentd, write_script
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.node, pytest.mark.timeout(120)]

NODE_HOME = Path(__file__).parents[2] / "build" / "node"
BUF = NODE_HOME / "node_modules" / ".bin" / "buf"

# Prints one line for each answer of Watch, and "open" once the stream is there.
WATCHER = """
const grpc = require('@grpc/grpc-js'), loader = require('@grpc/proto-loader');
const [proto, target, service] = process.argv.slice(2);
const health = grpc.loadPackageDefinition(loader.loadSync(proto, {enums: String})).grpc.health.v1;
const client = new health.Health(target, grpc.credentials.createInsecure());
const stream = client.watch({service});
stream.on('data', (answer) => console.log(answer.status));
stream.on('error', (error) => { console.log('end ' + error.code); process.exit(0); });
stream.on('end', () => { console.log('end'); process.exit(0); });
"""
HEALTH_PROTO = """
syntax = "proto3";
package grpc.health.v1;
message HealthCheckRequest { string service = 1; }
message HealthCheckResponse {
  enum ServingStatus { UNKNOWN = 0; SERVING = 1; NOT_SERVING = 2; SERVICE_UNKNOWN = 3; }
  ServingStatus status = 1;
}
message HealthListRequest {}
message HealthListResponse { map<string, HealthCheckResponse> statuses = 1; }
service Health {
  rpc Check(HealthCheckRequest) returns (HealthCheckResponse);
  rpc Watch(HealthCheckRequest) returns (stream HealthCheckResponse);
  rpc List(HealthListRequest) returns (HealthListResponse);
}
"""


@pytest.fixture
def health_proto(tmp_path: Path) -> Path:
    """The health protocol as its own page defines it, for clients that want a file."""
    path = tmp_path / "health.proto"
    path.write_text(HEALTH_PROTO)
    return path


def buf_curl(node: Node, method: str, request: object, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge", *flags),
            *("--data", json.dumps(request), f"http://{node.target}/{method}"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "BUF_CACHE_DIR": str(node.log.parent / "buf"), "HOME": str(node.log.parent)},
    )


def check(node: Node, service: str) -> str:
    done = buf_curl(node, "grpc.health.v1.Health/Check", {"service": service}, "--reflect")
    if done.returncode == 0:
        return str(json.loads(done.stdout)["status"])
    return str(json.loads(done.stderr)["code"])


SLEEPER = ("import time", "time.sleep(1000)")


def test_a_go_client_checks_every_name_by_reflection(tmp_path: Path) -> None:
    script = write_script(tmp_path / "s.py", *SLEEPER)
    with agentd(tmp_path) as node:
        assert check(node, "") == "SERVING"
        assert check(node, "agentd.v1.AgentService") == "SERVING"
        assert check(node, "agentd.v1.RendezvousService") == "SERVING"
        assert check(node, "agentd.run/r") == "not_found"
        assert (
            agentctl("run", "--detach", "--nodes", node.target, "--run-id", "r", str(script)).returncode == 0
        )
        wait_until(lambda: check(node, "agentd.run/r") == "SERVING", 60)
        assert check(node, "agentd.run/r/default") == "SERVING"
        assert check(node, "agentd.run/r/nobody") == "not_found"
        assert agentctl("stop", "r", "--nodes", node.target).returncode == 0
        wait_until(lambda: check(node, "agentd.run/r") in ("NOT_SERVING", "not_found"), 60)


def test_a_client_with_the_newest_protocol_lists_all_names(tmp_path: Path, health_proto: Path) -> None:
    with agentd(tmp_path) as node:
        schema = ("--schema", str(health_proto))
        done = buf_curl(node, "grpc.health.v1.Health/List", {}, *schema)
        assert done.returncode == 0, done.stderr
        statuses = json.loads(done.stdout)["statuses"]
    assert {name: one["status"] for name, one in statuses.items()} == {
        "": "SERVING",
        "agentd.v1.AgentService": "SERVING",
        "agentd.v1.RendezvousService": "SERVING",
    }


def test_a_javascript_watcher_sees_the_drain_before_the_end(tmp_path: Path, health_proto: Path) -> None:
    script = write_script(
        tmp_path / "s.py", "import signal, sys, time, pathlib",
        "signal.signal(signal.SIGTERM, lambda *a: None)",
        "pathlib.Path(sys.argv[1]).touch()",
        "while not pathlib.Path(sys.argv[1] + '.end').exists(): time.sleep(0.02)",
    )  # fmt: skip
    up = tmp_path / "up"
    watcher, seen = tmp_path / "watch.js", tmp_path / "seen"
    watcher.write_text(WATCHER)
    with agentd(tmp_path) as node, seen.open("wb") as output:
        run = ["run", "--detach", "--nodes", node.target, "--stop-grace", "60", str(script), str(up)]
        assert agentctl(*run).returncode == 0
        wait_until(up.exists, 60)
        watching = subprocess.Popen(
            ["node", watcher, health_proto, node.target, ""],
            stdout=output,
            env={**os.environ, "NODE_PATH": str(NODE_HOME / "node_modules")},
        )
        try:
            wait_until(lambda: seen.read_text() == "SERVING\n", 60)
            node.process.terminate()
            # The worker still has its grace: the daemon answers, and says that it must not be used.
            wait_until(lambda: seen.read_text().startswith("SERVING\nNOT_SERVING\n"), 60)
            assert node.process.poll() is None
            Path(f"{up}.end").touch()
            assert node.process.wait(60) == 0
            wait_until(lambda: "end" in seen.read_text(), 60)
        finally:
            watching.kill()
            watching.wait()


def test_agentctl_health_answers_as_grpc_health_probe_does(tmp_path: Path) -> None:
    patient = ("--connect-timeout", "30", "--rpc-timeout", "30")
    with agentd(tmp_path) as node:
        assert agentctl("health", node.target, *patient).returncode == 0
        known = agentctl("health", node.target, *patient, "--service", "agentd.v1.AgentService")
        assert known.returncode == 0
        unknown = agentctl("health", node.target, *patient, "--service", "nobody")
        assert unknown.returncode == 3
    assert agentctl("health", node.target).returncode == 2


def test_the_service_names_are_described_by_reflection(tmp_path: Path) -> None:
    with agentd(tmp_path) as node:
        done = buf_curl(node, "agentd.v1.AgentService/GetNode", {}, "--reflect")
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
    assert answer["nodeId"] == "a"
    assert answer["advertisedAddress"] == node.target
