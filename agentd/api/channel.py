"""gRPC channel and server options as data, and why each is set."""

from __future__ import annotations

from typing import Final

MESSAGE_LIMIT: Final = 4 * 1024 * 1024
"""Bytes of one message, both ways."""

CHUNK_LIMIT: Final = 256 * 1024
"""Bytes of one piece of a log."""

PENDING_LIMIT: Final = 10_000
"""Calls that a server has heard of and not looked at."""

_PENDING_S: Final = 600
"""How long they wait for that. A caller with less patience has a deadline of its own."""

_KEEPALIVE_MS: Final = 10_000

_ATTEMPT: Final = "grpc.min_reconnect_backoff_ms"

Options = tuple[tuple[str, int | str], ...]

CLIENT_OPTIONS: Final[Options] = (
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 3_000),
    # Without this a frozen peer is noticed after 70 s whatever the two above say.
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    # Not a pause: how long one attempt may take. A lost SYN comes again after 1 s, and so may the answer of a
    # server that a thousand peers dial at once, or that is far away.
    (_ATTEMPT, 3_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # http_proxy would hijack even calls to localhost.
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
)

_NO_BANDWIDTH_PROBE: Final = ("grpc.http2.bdp_probe", 0)
"""By default what comes on a connection is followed by pings that measure it, for windows as wide as logs
want them: a fourth of all that a stream with four small messages costs both its sides."""

HUB_OPTIONS: Final[Options] = (
    *(option for option in CLIENT_OPTIONS if option[0] != _ATTEMPT),
    # Whoever dials has a patience of its own. A hub that thousands dial at once answers each of them late,
    # and would have to answer all again that gave up.
    (_ATTEMPT, 10_000),
    # Channels of a process share connections, and with them how long is waited before the next try: a hub
    # that was away for some seconds would be dialled again up to 5 s after it is back, by new channels too.
    ("grpc.use_local_subchannel_pool", 1),
    _NO_BANDWIDTH_PROBE,
)
"""For a node's way to the hub of a run: few and small words, and a connection of its own."""

SERVER_OPTIONS: Final[Options] = (
    # Two daemons on one port would share its calls silently.
    ("grpc.so_reuseport", 0),
    # By default calls beyond the first thousand that wait to be looked at are cancelled by chance: a hub that
    # the nodes of a large run dial at once would turn them away, and they would come again.
    ("grpc.server.max_pending_requests", PENDING_LIMIT),
    ("grpc.server.max_pending_requests_hard_limit", 2 * PENDING_LIMIT),
    # By default one that has waited for 30 s is cancelled: a hub that is slow would be a hub that fails.
    ("grpc.server_max_unrequested_time_in_server", _PENDING_S),
    # What comes in is small.
    _NO_BANDWIDTH_PROBE,
    # The default policy kills a client that pings every 10 s after 30 s.
    ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
)
