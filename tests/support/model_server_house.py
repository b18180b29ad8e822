"""A model server of tests: a process of its own, asked over plain sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waiting import PATIENCE, eventually, until

HANDLER = """
import asyncio, pathlib, time
from hatoba import handlers

PLACE = pathlib.Path(__file__).parent


def wait_for(name):
    (PLACE / (name + ".waits")).touch()
    while not (PLACE / name).exists():
        time.sleep(0.002)


class Model:
    def __init__(self, model_dir):
        self.name = (model_dir / "name").read_text()
        if self.name == "slow":
            wait_for("made")

    def predict(self, inputs):
        if isinstance(inputs, bytes):
            return inputs[::-1], "application/x-reversed"
        if "wait" in inputs:
            wait_for(inputs["wait"])
        if "refuse" in inputs:
            raise handlers.BadInput("I do not take that")
        if "cancel" in inputs:
            raise asyncio.CancelledError
        if "fail" in inputs:
            raise RuntimeError("weights of another model")
        if "large" in inputs:
            return "x" * inputs["large"]
        return {"x": inputs.get("x"), "trace": handlers.current_trace()}


class Picky(Model):
    def predict(self, inputs):
        if not (PLACE / "content").exists():
            raise RuntimeError("not before there is content")
        return super().predict(inputs)


class Batches(Model):
    def predict_batch(self, inputs):
        with open(PLACE / "batches", "a") as file:
            file.write(f"{len(inputs)}\\n")
        for each in inputs:
            if "wait" in each:
                wait_for(each["wait"])
            if "spoil" in each:
                raise RuntimeError("a batch is spoiled")
        return [{"x": each["x"]} for each in inputs]
"""


@dataclass
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """What the body says."""
        return json.loads(self.body)


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, *, head: bool = False) -> Answer:
        """The next answer."""
        async with asyncio.timeout(PATIENCE):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            pairs = [line.split(": ", 1) for line in lines[1:] if line]
            headers = {name.lower(): value for name, value in pairs}
            length = 0 if head else int(headers.get("content-length", 0))
            body = await self.reader.readexactly(length)
        return Answer(int(lines[0].split(" ")[1]), headers, body)

    async def ask(self, body: object = None, path: str = "/predict", **headers: str) -> Answer:
        """POST something as JSON, bytes as they are; without a body GET."""
        await self.send(request(body, path, **headers))
        return await self.answer()

    async def ended(self) -> bool:
        """Whether the server closes the connection, waited for."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await self.reader.read(1) == b""
            except ConnectionResetError:
                return True

    async def close(self) -> None:
        """Hang up."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


def request(body: object = None, path: str = "/predict", **headers: str) -> bytes:
    """A request as bytes."""
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is None:
        lines = [f"GET {path} HTTP/1.1"]
        data = b""
    else:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"POST {path} HTTP/1.1"]
        told = {"content-type": "application/json", "content-length": str(len(data)), **told}
    lines += ["host: model", *(f"{name}: {value}" for name, value in told.items()), "", ""]
    return "\r\n".join(lines).encode() + data


class Replica:
    """One model server; its settings may be changed before it is started."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.code = root / "code"
        self.ready_file = root / "run" / "ready.json"
        self.config: dict[str, Any] = {
            "name": "r-1",
            "model_version": "projects/default/models/echo/versions/7",
            "model_dir": str(root / "model"),
            "code_dir": str(self.code),
            "handler": "serving_model:Model",
            "example": {"path": str(root / "example"), "media_type": "application/json"},
            "ready_file": str(self.ready_file),
            "limits": {},
            "batching": {},
            "drain_seconds": 10,
        }
        self.process: asyncio.subprocess.Process | None = None
        self._clients: list[Client] = []
        self._probe: Client | None = None

    def prepare(self) -> None:
        """Write model, code and example."""
        for name in ("code", "model", "run"):
            (self.root / name).mkdir()
        (self.code / "serving_model.py").write_text(HANDLER)
        (self.root / "model" / "name").write_text("echo")
        (self.root / "example").write_text('{"x": 1}')

    async def start(self, *, ready: bool = True, **config: Any) -> None:
        """Start it, and wait until it listens or is ready."""
        await self.spawn(**config)
        await until(self.ready_file.exists)
        if ready:
            await self.ready()

    async def spawn(self, **config: Any) -> None:
        """Start it."""
        self.config |= config
        path = self.root / "config.json"
        await asyncio.to_thread(path.write_text, json.dumps(self.config))
        log = await asyncio.to_thread((self.root / "log").open, "ab")
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "hatoba_worker.serving", "serve", "--config", str(path)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        log.close()

    async def ready(self) -> None:
        """Wait until it says so."""
        await self.says("/readyz", 200)

    async def says(self, path: str, status: int, kind: str = "") -> Answer:
        """Ask until it answers like this; returns the answer."""

        async def said() -> Answer | None:
            found = await self.probe(path)
            fits = found.status == status and (not kind or found.json["kind"] == kind)
            return found if fits else None

        return await eventually(said)

    async def probe(self, path: str) -> Answer:
        """A look at it, on a connection that is kept."""
        if self._probe is None:
            self._probe = await self.client()
        found = await self._probe.ask(path=path)
        if found.headers.get("connection") == "close":
            self._probe = None
        return found

    async def client(self) -> Client:
        """A new connection."""
        told = json.loads(await asyncio.to_thread(self.ready_file.read_text))
        client = Client(*await asyncio.open_connection(told["host"], told["port"]))
        self._clients.append(client)
        return client

    async def ask(self, body: object = None, path: str = "/predict", **headers: str) -> Answer:
        """One request on a connection of its own."""
        client = await self.client()
        return await client.ask(body, path, **headers)

    async def metric(self, name: str) -> float:
        """A value of `/metrics`."""
        text = (await self.probe("/metrics")).body.decode()
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        return float(line.rpartition(" ")[2])

    async def counts(self, name: str, count: int) -> None:
        """Wait until a gauge has this value."""

        async def holds() -> bool:
            return await self.metric(f"hatoba_serving_{name}") == count

        await eventually(holds)

    def open(self, gate: str) -> None:
        """Let a prediction go on that waits for this."""
        (self.code / gate).touch()

    async def waits(self, gate: str) -> None:
        """Wait until a prediction does."""
        await until((self.code / f"{gate}.waits").exists)

    def tell(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    async def ended(self) -> int:
        """The exit code, waited for."""
        assert self.process is not None
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()

    def log(self) -> str:
        """What it wrote."""
        return (self.root / "log").read_text()

    def failures(self) -> list[Any]:
        """Lines about requests that failed."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    async def close(self) -> None:
        """End all."""
        for client in self._clients:
            await client.close()
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
