"""Clusters that are none, are not ours, or do not know us: what is said, what is promised."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from hatoba_plugins.backends.k8s_gpu import K8sType
from hatoba_plugins.backends.k8s_gpu.client import Kube, Refusal, Unreached, connected
from hatoba_plugins.backends.k8s_gpu.options import K8sOptions
from hatoba_plugins.conformance.harness import OpenHarness
from hatoba_plugins.errors import (
    BackendError,
    Conflict,
    Denied,
    Fatal,
    Invalid,
    NoCapacity,
    Throttled,
)
from hatoba_plugins.values import HealthStatus

Answering = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def cluster(tmp_path: Path, answering: Answering) -> AsyncIterator[K8sOptions]:
    """A server on loopback, and options that lead there."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answering)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield options_for(tmp_path, f"http://{host}:{port}")
    finally:
        await runner.cleanup()


def options_for(tmp_path: Path, server: str) -> K8sOptions:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": server}}],
        "users": [{"name": "me", "user": {"token": "old"}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    return K8sOptions(kubeconfig=str(path))


def saying(status: int, reason: str, message: str, **details: object) -> Answering:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.headers["authorization"] == "Bearer old"
        told = {"kind": "Status", "reason": reason, "message": message, "code": status}
        headers = {"Retry-After": "7"} if status == 429 else {}
        return web.json_response({**told, "details": details}, status=status, headers=headers)

    return answer


TERMINATING = {"causes": [{"reason": "NamespaceTerminating"}]}


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (saying(401, "Unauthorized", "Unauthorized"), Denied, "credentials"),
        (saying(403, "Forbidden", "may not create jobs"), Denied, "rbac.yaml"),
        (saying(403, "Forbidden", "exceeded quota: gpus"), NoCapacity, "exceeded quota"),
        (saying(403, "Forbidden", "no new content", **TERMINATING), Fatal, "being deleted"),
        (saying(404, "NotFound", 'namespaces "ml" not found'), Fatal, "create it"),
        (saying(409, "AlreadyExists", "exists"), Conflict, "exists"),
        (saying(422, "Invalid", "spec.template: too long"), Invalid, "too long"),
        (saying(429, "TooManyRequests", "slowly"), Throttled, "slowly"),
        (saying(500, "InternalError", "etcd is away"), None, ""),
    ],
)
async def test_refusals_promise_only_what_is_certain(
    tmp_path: Path, answer: Answering, kind: type[BackendError] | None, words: str
) -> None:
    async with cluster(tmp_path, answer) as options, connected(options) as kube:
        with pytest.raises(Refusal) as refused:
            await kube.create("/apis/batch/v1/namespaces/ml/jobs", {})
        error = refused.value.error()
        assert type(error) is (kind or type(None))
        if error is not None:
            assert words in error.message
        if kind is Throttled:
            assert refused.value.after == 7.0


async def test_something_else_than_kubernetes_answers(tmp_path: Path) -> None:
    async def portal(request: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>Welcome</html>", content_type="text/html")

    async with cluster(tmp_path, portal) as options, connected(options) as kube:
        with pytest.raises(Unreached, match="something else"):
            await kube.get("/api/v1/nodes")


async def test_nobody_answers(tmp_path: Path) -> None:
    async with connected(options_for(tmp_path, "http://127.0.0.1:1")) as kube:
        with pytest.raises(Unreached) as failed:
            await kube.get("/api/v1/nodes")
        assert not failed.value.sent, "nothing happened"


async def test_a_connection_that_breaks_has_perhaps_been_heard(tmp_path: Path) -> None:
    async def breaks(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with cluster(tmp_path, breaks) as options, connected(options) as kube:
        with pytest.raises(Unreached) as failed:
            await kube.create("/apis/batch/v1/namespaces/ml/jobs", {})
        assert failed.value.sent


async def test_a_follow_of_what_is_not_there_is_no_line(tmp_path: Path) -> None:
    async def follow(kube: Kube) -> list[bytes]:
        async with kube.lines("/api/v1/namespaces/ml/pods/x/log", {}, 5.0) as lines:
            return [line async for line in lines]

    missing = saying(404, "NotFound", 'pods "x" not found')
    async with cluster(tmp_path, missing) as options, connected(options) as kube:
        with pytest.raises(Refusal, match="not found"):
            await follow(kube)


async def test_a_line_that_goes_on_for_hours_comes_in_pieces(tmp_path: Path) -> None:
    """A progress bar is one line; an object of a watch is one too, and comes whole."""
    bar, thing = b"\r 7 % done" * 500_000, b'{"object": "' + b"x" * 1_500_000 + b'"}\n'

    async def writes(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for part in (thing, bar, b"\n", thing):
            await answer.write(part)
        return answer

    async with (
        cluster(tmp_path, writes) as options,
        connected(options) as kube,
        kube.lines("/api/v1/namespaces/ml/pods/x/log", {}, 5.0) as lines,
    ):
        pieces = [line async for line in lines]
    assert pieces[0] == pieces[-1] == thing
    assert b"".join(pieces[1:-1]) == bar + b"\n"
    assert len(pieces) > 3
    assert max(len(piece) for piece in pieces) < 3 << 20


@pytest.mark.parametrize(
    "broken",
    [
        K8sOptions(kubeconfig="/nowhere/kubeconfig"),
        K8sOptions(),
    ],
)
async def test_a_configuration_that_leads_nowhere(broken: K8sOptions) -> None:
    with pytest.raises(Fatal, match="configuration cannot be used"):
        async with connected(broken):
            raise AssertionError("it cannot be opened")


async def test_a_context_that_is_not_there(tmp_path: Path) -> None:
    known = options_for(tmp_path, "http://127.0.0.1:1")
    with pytest.raises(Fatal, match="nowhere"):
        async with connected(K8sOptions(kubeconfig=known.kubeconfig, context="nowhere")):
            raise AssertionError("it cannot be opened")


async def test_a_backend_without_rights_says_which(tmp_path: Path) -> None:
    """It opens, tells that it is not well, and stops nobody else."""
    denied = saying(403, "Forbidden", 'User "x" cannot list resource "jobs" in namespace "default"')
    async with cluster(tmp_path, denied) as options:
        opened = OpenHarness(K8sType(), {"kubeconfig": options.kubeconfig})
        async with opened as harness:
            health = await harness.backend.health()
    assert health.status is HealthStatus.UNHEALTHY
    assert "cannot list resource" in health.message
