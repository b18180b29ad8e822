"""The engine itself goes and comes again: nothing is said of containers meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from container_house import ContainerHouse
from testbed_fixtures import Testbed, own_testbed
from waiting import until

from hatoba.v1 import runner_pb2

LINES = b"".join(b"line %d\n" % number for number in range(20_000))
NUMBERED = """
seq 0 9999 | sed 's/^/line /'
while [ ! -e $HATOBA_OUTPUTS/gate ]; do sleep 0.02; done
seq 10000 19999 | sed 's/^/line /'
exit 5
"""


class OwnEngine:
    """An engine that nobody else uses, to be killed and started again."""

    def __init__(self, bed: Testbed, root: Path) -> None:
        self.bed = bed
        self.house = ContainerHouse(root, bed.docker_engine())
        (process,) = bed.facts("docker")["processes"][:1]
        self.pid = int(process["pid"])
        told = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        self._command = [word.decode() for word in told.rstrip(b"\0").split(b"\0")]
        self._log = root / "engine.log"
        self._mine: subprocess.Popen[bytes] | None = None

    def keep_containers(self) -> None:
        """Have containers outlive the engine from now on."""
        settings = self.bed.directory / "docker" / "daemon.json"
        told = json.loads(settings.read_text())
        settings.write_text(json.dumps({**told, "live-restore": True}))
        os.kill(self.pid, signal.SIGHUP)

    @property
    def keeps_containers(self) -> bool:
        """Whether they would."""
        told = self.house.engine.docker("info", "--format", "{{.LiveRestoreEnabled}}")
        return told.strip() == "true"

    def kill(self) -> None:
        """kill -9."""
        os.kill(self.pid, signal.SIGKILL)

    def start(self) -> None:
        """As it was: the testbed would clear away first what a dead one left."""
        self._setting("--pidfile=").unlink(missing_ok=True)
        # Its containerd died with it, and is taken for alive until somebody has reaped it.
        containerd = self._setting("--exec-root=") / "containerd" / "containerd.pid"
        containerd.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self._mine = subprocess.Popen(self._command, stdout=log, stderr=log)
        self.pid = self._mine.pid

    def _setting(self, name: str) -> Path:
        (path,) = [word.removeprefix(name) for word in self._command if word.startswith(name)]
        return Path(path)

    def end(self) -> None:
        """End the one that we started."""
        if self._mine is not None:
            self._mine.terminate()
            self._mine.wait(30)
        # One that was killed leaves its data mounted on themselves.
        data = self.bed.directory / "docker" / "data"
        while data.is_mount():
            subprocess.run(["umount", data], check=True)


@pytest.fixture
async def own(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OwnEngine]:
    """A host that is connected, and an engine of its own."""
    root = tmp_path_factory.mktemp("own")
    bed_place = root / "bed"
    with own_testbed(bed_place) as bed:
        engine = await asyncio.to_thread(OwnEngine, bed, root)
        await engine.house.server.start()
        try:
            await engine.house.start_worker()
            yield engine
        finally:
            try:
                await engine.house.close()
                await engine.house.clear()
            finally:
                await asyncio.to_thread(engine.end)


async def away(own: OwnEngine) -> None:
    """Wait until the host says that it runs no containers now."""
    heard = own.house.heard
    await heard.until(lambda: not heard.all("hello")[-1].labels)


async def again(own: OwnEngine) -> None:
    """Start the engine, and wait until the host says that it runs containers."""
    await asyncio.to_thread(own.start)
    heard = own.house.heard
    await heard.until(lambda: bool(heard.all("hello")[-1].labels))


@pytest.mark.timeout(240)
async def test_containers_that_outlive_the_engine_go_on(own: OwnEngine) -> None:
    house = own.house
    await asyncio.to_thread(own.keep_containers)
    await until(lambda: own.keeps_containers)
    house.contained(house.a, NUMBERED)
    await house.logged(house.a, b"line 9000\n")
    await asyncio.to_thread(own.kill)
    await away(own)
    assert house.heard.all("commit") == []
    await again(own)
    gate = house.home(house.a) / "outputs" / "gate"
    await asyncio.to_thread(gate.touch)
    commit = await house.commit(house.a)
    assert (commit.kind, commit.exit_code) == (runner_pb2.EXIT_KIND_EXITED, 5)
    await house.forgotten(house.a)
    assert house.server.log(house.a) == LINES
    await house.nothing_left()


@pytest.mark.timeout(240)
async def test_containers_that_the_engine_takes_along_are_lost_and_not_their_own_fault(
    own: OwnEngine,
) -> None:
    house = own.house
    house.contained(house.a, NUMBERED)
    await house.logged(house.a, b"line 9000\n")
    await asyncio.to_thread(own.kill)
    await away(own)
    assert house.heard.all("commit") == []
    late = f"{house.a}-late"
    house.contained(late, "exit 3")
    await again(own)
    commit = await house.commit(house.a)
    assert (commit.kind, commit.gone) == (runner_pb2.EXIT_KIND_LOST, True)
    assert (await house.commit(late)).exit_code == 3
    await house.nothing_left()
