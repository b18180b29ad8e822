"""A device of tests, its power, its link, and models that it may be wanted to run."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from replica_house import HANDLER, predict
from waiting import until
from worker_house import marked

from hatoba.artifacts.manifest import CHUNK_BYTES
from hatoba.artifacts.pack import pack_tree
from hatoba.artifacts.scan import Selection
from hatoba.v1 import common_pb2, worker_pb2

PROGRAM = Path(__file__).with_name("edge_device.py")
NAME = "default.adder"
DEPLOYMENT = "projects/default/deployments/adder"
PATIENCE = 120.0


class EdgeHouse:
    """One device; what it has on its disk outlives its power."""

    def __init__(self, root: Path) -> None:
        self.data, self.shop = root / "device", root / "shop"
        for path in (self.data, self.shop / "chunks", self.shop / "manifests"):
            path.mkdir(parents=True)
        self._trees = root / "made"
        self._trees.mkdir()
        self._process: asyncio.subprocess.Process | None = None
        self._boots = 0
        self._generation = 0

    # -- power ----------------------------------------------------------------------------------

    async def boot(self) -> None:
        """Switch it on."""
        self._boots += 1
        await self._start()

    async def _start(self) -> None:
        log = await asyncio.to_thread((self.data / "agent.log").open, "ab")
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(str(PROGRAM), str(self.data), str(self.shop)),
            env={**os.environ, "BOOT_ID": f"boot-{self._boots}"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        log.close()
        pid = self._process.pid
        await until(lambda: self._told().get("pid") == pid, PATIENCE)

    async def kill_agent(self) -> None:
        """kill -9 of the agent alone; what it runs goes on."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def restart_agent(self) -> None:
        """The same boot, another agent."""
        await self.kill_agent()
        await self._start()

    async def power_cut(self) -> None:
        """Everything on the device is gone at once."""
        assert self._process is not None
        await asyncio.to_thread(self._kill_all)
        await self._process.wait()

    def _kill_all(self) -> None:
        # The agent first: it would start another keeper.
        assert self._process is not None
        for pid in (self._process.pid, self._keeper()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while left := self.marked():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _keeper(self) -> int:
        return int((self.data / "keeper.lock").read_text())

    def marked(self) -> list[int]:
        """Processes of the device's keeper that still run; blocks."""
        return marked(self.data)

    async def close(self) -> None:
        """Leave nothing behind."""
        if self._process is not None and self._process.returncode is None:
            await self.power_cut()

    # -- the link -------------------------------------------------------------------------------

    async def cut(self) -> None:
        """No byte comes any more."""
        await asyncio.to_thread((self.shop / "away").touch)

    async def mend(self) -> None:
        """They come again."""
        await asyncio.to_thread((self.shop / "away").unlink, True)

    async def want(self, *specs: worker_pb2.ReplicaSpec, bake: float = 1.0, tries: int = 0) -> None:
        """What the device is to run from now on."""
        self._generation += 1
        wants = {
            one.deployment: {
                "spec": base64.b64encode(one.SerializeToString()).decode(),
                "tries": tries,
                "bake": bake,
            }
            for one in specs
        }
        told = {"generation": self._generation, "wants": wants}
        fresh = self.shop / "desired.new"
        await asyncio.to_thread(fresh.write_text, json.dumps(told))
        await asyncio.to_thread(fresh.replace, self.shop / "desired.json")

    def spec(
        self, revision: int, bias: int, *, golden: str = "", **env: str
    ) -> worker_pb2.ReplicaSpec:
        """A model that adds `bias`, with golden cases, a line each; blocks."""
        files = {"bias.txt": f"{bias}".encode()}
        if golden:
            files["golden.jsonl"] = golden.encode()
        spec = worker_pb2.ReplicaSpec(
            deployment=DEPLOYMENT,
            revision=revision,
            model_version=f"projects/default/models/adder/versions/{revision}",
            model=self._stored(f"model-{revision}", files),
            env=env,
        )
        spec.serving.handler, spec.serving.golden = "model:Model", len(golden.splitlines())
        spec.serving.code.CopyFrom(self._stored(f"code-{revision}", {"model.py": HANDLER.encode()}))
        spec.serving.environment.caller_interpreter = sys.executable
        spec.serving.example.data = json.dumps({"x": 1}).encode()
        spec.serving.example.media_type = "application/json"
        spec.drain.FromSeconds(1)
        return spec

    def _stored(self, name: str, files: dict[str, bytes]) -> common_pb2.ManifestRef:
        root = self._trees / name
        root.mkdir()
        for path, data in files.items():
            (root / path).write_bytes(data)
        packed = pack_tree(root, Selection.EVERYTHING)
        packed.load()
        for entry in packed.manifest.entries:
            data = (root / entry.path).read_bytes()
            for number, chunk in enumerate(entry.chunks):
                start = number * CHUNK_BYTES
                content = data[start : start + chunk.size]
                (self.shop / "chunks" / chunk.sha256.hex()).write_bytes(content)
        body = packed.manifest.SerializeToString(deterministic=True)
        (self.shop / "manifests" / packed.ref.digest[7:]).write_bytes(body)
        return packed.ref

    # -- what it tells --------------------------------------------------------------------------

    def _told(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.data / "status.json").read_text())
            return found
        except (FileNotFoundError, ValueError):
            return {}

    def status(self) -> dict[str, Any]:
        """What it says of the adder; blocks."""
        found: dict[str, Any] = self._told().get("slots", {}).get(NAME, {})
        return found

    async def until(self, **fields: Any) -> dict[str, Any]:
        """Wait until it says this of the adder."""

        def holds() -> bool:
            now = self.status()
            return all(now.get(key) == value for key, value in fields.items())

        await until(holds, PATIENCE)
        return await asyncio.to_thread(self.status)

    async def answers(self, x: int) -> dict[str, Any]:
        """Ask the model that runs, once it answers."""
        await until(lambda: self.status().get("address"), PATIENCE)
        status = await asyncio.to_thread(self.status)
        return await predict(status["address"], x=x)
