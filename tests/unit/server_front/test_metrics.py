"""The metrics page and the loop's lag."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from hatoba_scheduler.telemetry.metrics import (
    ServerMetrics,
    metrics_app,
    serve_http,
    watch_loop_lag,
)


async def _get(port: int, path: str, token: str = "") -> tuple[int, str]:
    headers = {"Authorization": token} if token else {}
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}{path}", headers=headers) as reply,
    ):
        return reply.status, await reply.text()


async def test_the_page_shows_calls_by_method_and_status() -> None:
    metrics = ServerMetrics()
    metrics.started("a.B/C")
    metrics.ended("a.B/C", "OK", 0.02)
    metrics.refused("a.B/C", "UNAUTHENTICATED")
    async with serve_http(metrics_app(metrics), "127.0.0.1", 0) as port:
        status, text = await _get(port, "/metrics")
    labels = 'rpc_method="a.B/C",rpc_response_status_code="OK"'
    assert status == 200
    assert f'rpc_server_call_duration_seconds_bucket{{le="0.025",{labels}}} 1.0' in text
    assert f'rpc_server_call_duration_seconds_bucket{{le="0.01",{labels}}} 0.0' in text
    assert 'rpc_response_status_code="UNAUTHENTICATED"' in text
    assert 'rpc_server_active_calls{rpc_method="a.B/C"} 0.0' in text
    assert "process_resident_memory_bytes" in text


async def test_the_port_has_the_metrics_and_nothing_else() -> None:
    async with serve_http(metrics_app(ServerMetrics()), "127.0.0.1", 0) as port:
        for path in ("/", "/metrics/", "/debug"):
            assert (await _get(port, path))[0] == 404


async def test_where_others_reach_it_the_page_needs_a_token() -> None:
    app = metrics_app(ServerMetrics(), lambda header: header == "Bearer good")
    async with serve_http(app, "127.0.0.1", 0) as port:
        assert (await _get(port, "/metrics"))[0] == 401
        assert (await _get(port, "/metrics", "Bearer bad"))[0] == 401
        assert (await _get(port, "/metrics", "Bearer good"))[0] == 200


async def test_figures_that_others_count_are_read_when_asked_for() -> None:
    metrics, dropped = ServerMetrics(), [1.0]
    metrics.watch("hatoba_spans_dropped", "Spans.", lambda: dropped[0])
    dropped[0] = 7.0
    assert metrics.registry.get_sample_value("hatoba_spans_dropped") == 7.0


async def test_a_late_loop_shows() -> None:
    metrics, now, measured = ServerMetrics(), [0.0], asyncio.Event()

    async def late(seconds: float) -> None:
        if now[0]:
            measured.set()
            await asyncio.Event().wait()
        now[0] += seconds + 0.25

    async with asyncio.TaskGroup() as tasks:
        watcher = tasks.create_task(watch_loop_lag(metrics, late, lambda: now[0]))
        async with asyncio.timeout(5):
            await measured.wait()
        watcher.cancel()
    lag = metrics.registry.get_sample_value("hatoba_loop_lag_seconds")
    assert lag == pytest.approx(0.25)
