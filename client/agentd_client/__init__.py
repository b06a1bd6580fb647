"""The client library of agentd: one node or a whole fleet, synchronous or asyncio."""
