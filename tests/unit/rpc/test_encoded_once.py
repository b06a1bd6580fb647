"""A message that goes to many streams is encoded for the first of them only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc
import grpc.aio
import pytest

from agentd.rpc.server import make_server

pytestmark = pytest.mark.asyncio
STREAMS = 5


class Message(NamedTuple):
    text: str


class Encoder:
    """Encodes messages, and notes which."""

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def __call__(self, message: Message) -> bytes:
        self.encoded.append(message.text)
        return message.text.encode()


def news(items: list[Message]) -> Any:
    async def tell(request: bytes, context: Any) -> AsyncIterator[Message]:
        for item in items:
            yield item

    return tell


async def collect(target: str) -> list[bytes]:
    async with grpc.aio.insecure_channel(target) as channel:
        tell: Any = channel.unary_stream("/test.News/Tell")
        return [answer async for answer in tell(b"", timeout=30)]


async def test_one_message_to_many_streams_is_encoded_once_and_each_gets_it_whole() -> None:
    encoder, items = Encoder(), [Message("first")]
    handler: Any = grpc.unary_stream_rpc_method_handler(
        news(items), request_deserializer=bytes, response_serializer=encoder
    )
    server = make_server("n")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.News", {"Tell": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        told = await asyncio.gather(*(collect(f"127.0.0.1:{port}") for _ in range(STREAMS)))
        assert told == [[b"first"]] * STREAMS
        assert encoder.encoded == ["first"]
        items.append(Message("second"))
        assert await collect(f"127.0.0.1:{port}") == [b"first", b"second"]
        assert await collect(f"127.0.0.1:{port}") == [b"first", b"second"], "another one in between"
        assert encoder.encoded == ["first", "second", "first", "second"]
    finally:
        await server.stop(None)
