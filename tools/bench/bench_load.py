"""Load on one unary method over one HTTP/2 connection: h2load, or Python where it is not there."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0
_RATE = re.compile(r"^finished in [^,]+, ([0-9.]+) req/s", re.MULTILINE)
_DONE = re.compile(r"^requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded", re.MULTILINE)

RawMethod = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Target:
    """Where calls go, and with which token."""

    address: str
    method: str
    token: str


def framed(message: bytes) -> bytes:
    """A message as gRPC puts it on the wire, not compressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def have_h2load() -> bool:
    """Whether h2load is there; Debian's is installed where that is possible."""
    if shutil.which("h2load"):
        return True
    subprocess.run([ROOT / "tools" / "build" / "apt.sh", "nghttp2-client"], check=False)
    return shutil.which("h2load") is not None


class H2load:
    """Sends the same message over and over, so many calls in flight, from one core."""

    def __init__(self, message: bytes, at_once: int, core: int, work: Path) -> None:
        self._command = ["taskset", "-c", str(core), "h2load"]
        self._at_once = at_once
        self._body = work / "message.grpc"
        self._body.write_bytes(framed(message))

    def run(self, target: Target, count: int) -> float:
        """`count` calls; the rate a second.

        Raises RuntimeError unless each was answered; h2load does not see a call's own status.
        """
        done = subprocess.run(
            [
                *self._command,
                *("-n", str(count), "-c", "1", "-t", "1", "-m", str(self._at_once)),
                *("-d", str(self._body), "-H", "content-type: application/grpc"),
                *("-H", "te: trailers", "-H", f"authorization: Bearer {target.token}"),
                f"http://{target.address}{target.method}",
            ],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return rate_of(done.stdout, count)


def rate_of(output: str, count: int) -> float:
    """The rate that h2load printed. Raises RuntimeError unless all `count` calls were answered."""
    rate, done = _RATE.search(output), _DONE.search(output)
    if rate is None or done is None or {int(one) for one in done.groups()} != {count}:
        raise RuntimeError(f"h2load did not get {count} answers:\n{output}")
    return float(rate[1])


def method_of(channel: grpc.aio.Channel, target: Target) -> RawMethod:
    """The target's method, whose messages stay bytes."""
    method: RawMethod = channel.unary_unary(target.method)
    return method


async def python_load(target: Target, message: bytes, count: int, at_once: int) -> float:
    """As h2load, from this process, which should be pinned; its own cost limits the rate."""
    left = iter(range(count))
    async with grpc.aio.insecure_channel(target.address) as channel:
        method = method_of(channel, target)
        metadata = (("authorization", f"Bearer {target.token}"),)

        async def caller() -> None:
            for _ in left:
                await method(message, metadata=metadata)

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(at_once):
                group.create_task(caller(), name=f"caller-{number}")
        return count / (time.perf_counter() - began)
