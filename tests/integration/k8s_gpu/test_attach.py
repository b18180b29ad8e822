"""Into pods on a real kubelet, with the least rights: commands, a terminal, a port."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from opened_backend import launch_spec, observe, opened, ref
from testbed_kubernetes import Kubernetes
from waiting import eventually

from hatoba.v1 import job_pb2
from hatoba_plugins.backend import AttachBackend
from hatoba_plugins.backends.k8s_gpu import K8sType
from hatoba_plugins.clock import SystemClock
from hatoba_plugins.errors import Retry
from hatoba_plugins.values import Phase

pytestmark = pytest.mark.timeout(600)

PATIENCE = 240.0
SERVES = "mkdir /tmp/w; echo inside > /tmp/w/index.html; cd /tmp/w; exec httpd -f -p 8097"
Input = job_pb2.AttachInput


async def said(*pieces: Input) -> AsyncIterator[Input]:
    for piece in pieces:
        yield piece
    # Whoever sits there does not go away.
    await asyncio.Event().wait()


async def ran(
    jobs: AttachBackend, *command: str, stdin: bytes = b"", terminal: bool = False
) -> tuple[bytes, bytes, int]:
    """What a command wrote, and its exit code."""
    start = job_pb2.ExecStart(command=command, terminal=terminal)
    if terminal:
        start.size.CopyFrom(job_pb2.TerminalSize(rows=31, columns=97))
    out, error = b"", b""
    inputs = said(Input(data=stdin), Input(end=True)) if stdin else said(Input(end=True))
    async with asyncio.timeout(PATIENCE):
        async with contextlib.aclosing(jobs.exec(ref("pod"), start, inputs)) as told:
            async for output in told:
                out += output.data
                error += output.stderr
                if output.HasField("ended"):
                    return out, error, output.ended.exit_code
    raise AssertionError("it has no end")


async def asked(jobs: AttachBackend, port: int) -> bytes:
    """What a port answers."""
    inputs = said(Input(data=b"GET / HTTP/1.0\r\n\r\n"))
    answer = b""
    async with asyncio.timeout(PATIENCE):
        async with contextlib.aclosing(jobs.forward(ref("pod"), port, inputs)) as told:
            async for output in told:
                answer += output.data
                if output.end:
                    return answer
    raise AssertionError("it has no end")


async def test_into_a_pod(kubernetes: Kubernetes, busybox_image: str) -> None:
    with kubernetes.namespace() as namespace:
        options = {"kubeconfig": namespace.kubeconfig, "namespace": namespace.name}
        async with opened(K8sType(), SystemClock(), **options) as (_, jobs):
            assert isinstance(jobs, AttachBackend)
            spec = job_pb2.JobSpec(name="x", command=["sh", "-c", SERVES])
            spec.environment.image = busybox_image
            await launch_spec(jobs, "pod", spec)

            async def running() -> bool:
                return (await observe(jobs, "pod")).phase is Phase.RUNNING

            await eventually(running, PATIENCE)
            await _look(jobs)
            await jobs.stop([ref("pod")], 0.0)

            async def refused() -> bool:
                try:
                    await ran(jobs, "true")
                except Retry as error:
                    return "does not run" in error.message
                return False

            await eventually(refused, PATIENCE)


async def _look(jobs: AttachBackend) -> None:
    script = "cat; echo no >&2; exit 9"
    out, error, code = await ran(jobs, "sh", "-c", script, stdin=b"said\n" * 20_000)
    assert (out, error, code) == (b"said\n" * 20_000, b"no\n", 9)
    # An interactive shell would throw away what was typed before it was ready; and a kubelet tells
    # the terminal's size once the command runs.
    sized = 'until [ "$(stty size 2>/dev/null)" = "31 97" ]; do sleep 0.1; done'
    script = f"read typed; echo $typed; {sized}; stty size; tty; exit 4"
    out, _, code = await ran(jobs, "sh", "-c", script, stdin=b"keys\n", terminal=True)
    assert (b"keys\r\n31 97\r\n/dev/pts/" in out, code) == (True, 4), out
    _, error, code = await ran(jobs, "no-such-program")
    assert (b"no-such-program" in error, code) == (True, 127), error
    assert (await asked(jobs, 8097)).endswith(b"inside\n")
    with pytest.raises(Retry, match="8098"):
        await asked(jobs, 8098)
