"""RendezvousService: decode, call, encode. The hub itself is `agentd.hub`."""
