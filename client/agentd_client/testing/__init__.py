"""A fake agentd for tests of programs that use `agentd_client`: real gRPC, scripted answers, no process.

    with FakeFleet(3) as fakes, Fleet(fakes.targets) as fleet:
        run = fleet.run(spec)
        fakes.write_log("demo", rank=2, data=b"loss 0.5\\n")
        fakes.finish("demo", exit_code=3, rank=2)
        assert run.wait().status.first_failure.exit_code == 3

A `FakeAgent` answers on a real server (loopback TCP or a Unix socket), so what is tested is the whole client,
its channels, deadlines and errors included. It can be told to refuse, to be slow, to break its streams, to
vanish and to come back at the same address.
"""

from agentd_client.testing.agent import FakeAgent, FakeFleet
from agentd_client.testing.world import World

__all__ = ["FakeAgent", "FakeFleet", "World"]
