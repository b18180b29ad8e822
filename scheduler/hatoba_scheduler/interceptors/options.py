"""Arguments for grpc.aio.server; clients, workers and (later) devices share one port."""

from __future__ import annotations

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
# Messages up to this many times the limit are read, so that the refusal can say what to do.
HARD_LIMIT_FACTOR = 4


MAX_PENDING_CALLS = 20_000
STREAM_WINDOW_BYTES = 2 * 1024 * 1024


def server_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> list[tuple[str, int]]:
    """Channel arguments; `max_message_bytes` is the limit that Front enforces on each message."""
    return [
        # Without this a second server binds the same port and takes half of the calls, silently.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", max_message_bytes * HARD_LIMIT_FACTOR),
        ("grpc.max_send_message_length", max_message_bytes * HARD_LIMIT_FACTOR),
        ("grpc.max_metadata_size", 16 * 1024),
        ("grpc.max_concurrent_streams", 100),
        # Above 1,000 that nobody has looked at yet, grpc ends calls at random as CANCELLED. Those
        # are what thousands of watchers send when the server is back.
        ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", 2 * MAX_PENDING_CALLS),
        # A dead path shows in 80 s, not in the 2 hours that are the default.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Agents ping every 45 s; the default of 300 s would answer them with GOAWAY.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 2),
        # Nobody asks for this. Together with the end of idle connections, which are left alone as
        # long as their path lives, it would take 3 KB of each of thousands of devices.
        ("grpc.enable_channelz", 0),
        # A table of headers that callers sent before takes half a KB of each connection, and spares
        # a device, which has one call in days, nothing.
        ("grpc.http2.hpack_table_size.decoder", 0),
        # What a connection has in flight is lost when it breaks: left alone, that grows to 30 MiB.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", STREAM_WINDOW_BYTES),
    ]
