"""A device with the agent as it is shipped, and a `DeviceSite` that it dials."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from agent_process import AgentProcess
from device_site import DeviceSite
from replica_house import HANDLER, predict
from waiting import until
from worker_house import marked

from hatoba.v1 import device_pb2, worker_pb2

DEPLOYMENT = "projects/default/deployments/adder"
PATIENCE = 120.0


class AgentHouse(AgentProcess):
    """What is on the device's disk outlives agent and power."""

    def __init__(self, root: Path) -> None:
        super().__init__(root / "device")
        self.site = DeviceSite(root)

    # -- the agent ------------------------------------------------------------------------------

    async def enroll(self) -> None:
        """Make it a device of the site."""
        done = await self.command("enroll", "--server", self.site.api, "--token", self.site.token)
        assert done.code == 0, done.err

    @property
    def pid(self) -> int:
        """The agent's process."""
        assert self._process is not None
        return self._process.pid

    async def kill(self) -> None:
        """kill -9 of the agent alone."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def power_cut(self) -> None:
        """Everything on the device is gone at once."""
        await self.kill()
        await asyncio.to_thread(self._kill_all)

    def _kill_all(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((self.data / "keeper.lock").read_text()), signal.SIGKILL)
        while left := self.marked():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def marked(self) -> list[int]:
        """Processes of the device's keeper that still run; blocks."""
        return marked(self.data)

    async def close(self) -> None:
        """Leave nothing behind."""
        if self._process is not None:
            await self.power_cut()
        await self.site.stop()

    # -- what is wanted -------------------------------------------------------------------------

    def spec(self, revision: int, bias: int, **env: str) -> worker_pb2.ReplicaSpec:
        """A model that adds `bias`; blocks."""
        spec = worker_pb2.ReplicaSpec(
            deployment=DEPLOYMENT,
            revision=revision,
            model_version=f"projects/default/models/adder/versions/{revision}",
            model=self.site.store(f"model-{revision}", {"bias.txt": f"{bias}".encode()}),
            env=env,
        )
        code = self.site.store(f"code-{revision}", {"model.py": HANDLER.encode()})
        spec.serving.handler = "model:Model"
        spec.serving.code.CopyFrom(code)
        spec.serving.environment.caller_interpreter = sys.executable
        spec.serving.example.data = json.dumps({"x": 1}).encode()
        spec.serving.example.media_type = "application/json"
        spec.drain.FromSeconds(1)
        return spec

    async def settled(self, generation: int) -> device_pb2.DeviceReport:
        """What it reports once all of a generation is decided."""

        def holds() -> bool:
            report = self.site.report
            return report.settled and report.generation == generation

        await self.site.news.until(holds, PATIENCE)
        return self.site.report

    # -- on the device itself -------------------------------------------------------------------

    def slot(self) -> dict[str, Any]:
        """What it wrote of its one model; blocks."""
        slots = self.told().get("report", {}).get("slots", [])
        found: dict[str, Any] = slots[0] if slots else {}
        return found

    async def answers(self, x: int) -> dict[str, Any]:
        """Ask the model on the device, once it answers."""
        return await self.asks(x=x)

    async def asks(self, **inputs: Any) -> dict[str, Any]:
        """Ask whatever model is on the device, once it answers."""
        await until(lambda: self.slot().get("address"), PATIENCE)
        slot = await asyncio.to_thread(self.slot)
        return await predict(slot["address"], **inputs)
