"""Machines that become hosts of a server under test: real workers, started as people start them."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server_process import clean_environment
from waiting import PATIENCE, eventually, until
from wire import Wire

from hatoba.v1 import worker_pb2


@dataclass
class Machine:
    """A data directory of a host, and the workers that work there one after another.

    `within` comes before each command: what enters another network namespace, for example.
    """

    data: Path
    within: Sequence[str] = ()
    environ: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What its workers wrote."""
        return self.data.with_suffix(".log")

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """`hatoba worker start OPTIONS` on this directory; blocks."""
        command = [*self.within, sys.executable, "-m", "hatoba", "worker", "start"]
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [*command, "--data", str(self.data), *options],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**clean_environment(), **self.environ},
                start_new_session=True,
                cwd="/",
            )
        return self.process

    async def stop(self) -> int:
        """`hatoba worker stop`: what runs there goes on. The worker's exit code."""
        assert self.process is not None
        self.process.terminate()
        await until(lambda: self.process is not None and self.process.poll() is not None)
        return int(self.process.returncode)

    def refused(self, *options: str) -> str:
        """What a start says that fails; blocks."""
        process = self.start(*options)
        try:
            code = process.wait(PATIENCE)
        finally:
            process.kill()
        assert code == 2, (code, self.log.read_text())
        return self.log.read_text()

    async def close(self) -> None:
        """End worker, keeper and all that runs there."""
        if self.process is not None and self.process.poll() is None:
            await self.stop()
        if not (self.data / "keeper.json").exists():
            return
        command = [*self.within, sys.executable, "-m", "hatoba", "worker", "stop", "--all"]
        ended = [*command, "--data", str(self.data), "--grace", "0"]
        await asyncio.to_thread(subprocess.run, ended, check=True, timeout=PATIENCE)


@contextlib.asynccontextmanager
async def machine(data: Path, within: Sequence[str] = ()) -> AsyncIterator[Machine]:
    """A machine on which nothing is left at the end."""
    made = Machine(data, within)
    try:
        yield made
    finally:
        await made.close()


async def join_token(wire: Wire, host: str = "", seconds: int = 0) -> worker_pb2.JoinToken:
    """What `hatoba hosts add` asks for."""
    request = worker_pb2.CreateJoinTokenRequest(host=host)
    if seconds:
        request.ttl.seconds = seconds
    return await wire.once(request, worker_pb2.JoinToken)


async def connected(wire: Wire, name: str) -> worker_pb2.Host:
    """The host, once its stream is open."""

    async def there() -> worker_pb2.Host | None:
        listed = await wire.call(worker_pb2.ListHostsRequest(), worker_pb2.ListHostsResponse)
        found = [one for one in listed.hosts if one.name == f"hosts/{name}" and one.connected]
        return found[0] if found else None

    return await eventually(there)
