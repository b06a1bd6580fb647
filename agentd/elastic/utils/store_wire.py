"""How `TcpStore` and its server speak: small frames of byte fields, each with its length. No pickle.

A frame is the length of what follows, then fields, each with its length; lengths are 32 bits, big-endian.
The client opens with `MAGIC` and its random id, the server answers `MAGIC` and its own. Then requests
(operation, sequence number, fields...) and answers (status, fields...) take turns.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

MAGIC: Final = b"agentd-store-1\n\n"
ID_BYTES: Final = 16
HELLO_BYTES: Final = len(MAGIC) + ID_BYTES

MAX_FRAME_BYTES: Final = 16 << 20
"""No frame is longer; a value that does not fit is refused by name before it is sent."""
MAX_FIELDS: Final = 1 << 16

WAIT: Final = "wait"
"""Takes milliseconds and keys; answered with `DONE` when all are there, with `LATER` when the time is up."""
MAX_WAIT_MS: Final = 10_000

DONE: Final = b"done"
LATER: Final = b"later"
REFUSED: Final = b"refused"
"""One field: why."""

_LENGTH = struct.Struct(">I")


class BadFrame(ValueError):
    """What came is no frame."""


def pack(fields: Sequence[bytes]) -> bytes:
    """A frame of these fields. `BadFrame` if it is longer than a frame may be."""
    parts = [b""]
    for field in fields:
        parts += (_LENGTH.pack(len(field)), field)
    size = sum(map(len, parts))
    if size > MAX_FRAME_BYTES or len(fields) > MAX_FIELDS:
        raise BadFrame(f"{size} bytes in {len(fields)} fields are more than a frame takes: {MAX_FRAME_BYTES}")
    parts[0] = _LENGTH.pack(size)
    return b"".join(parts)


def frame_size(start: bytes | bytearray) -> int | None:
    """The size of the frame that begins here, its own length included; `None` while that is not known.

    `BadFrame` for a length no frame has.
    """
    if len(start) < _LENGTH.size:
        return None
    size = int(_LENGTH.unpack_from(start)[0])
    if size > MAX_FRAME_BYTES:
        raise BadFrame(f"a frame of {size} bytes is announced; none is longer than {MAX_FRAME_BYTES}")
    return _LENGTH.size + size


def unpack(frame: bytes | bytearray) -> list[bytes]:
    """The fields of a whole frame. `BadFrame` if the lengths do not add up."""
    fields: list[bytes] = []
    at, end = _LENGTH.size, len(frame)
    while at < end:
        if end - at < _LENGTH.size or len(fields) >= MAX_FIELDS:
            raise BadFrame("a field has no length, or there are too many")
        size = int(_LENGTH.unpack_from(frame, at)[0])
        at += _LENGTH.size
        if size > end - at:
            raise BadFrame(f"a field of {size} bytes is announced and {end - at} follow")
        fields.append(bytes(frame[at : at + size]))
        at += size
    return fields
