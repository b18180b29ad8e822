"""A real GPU: given to one at a time, hidden from others, given back; trained and served on.

These run where NVIDIA's driver names a GPU and this interpreter has PyTorch. Nothing is pretended
elsewhere: there they are skipped.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from command_line import CommandLine
from server_process import HatobaServer
from serving_house import router_of
from waiting import eventually
from wire import Wire

from hatoba.v1 import common_pb2

PATIENCE = 120.0
EPOCHS = 60
SUCCEEDED = common_pb2.JOB_STATE_SUCCEEDED
TRAIN = """
import time, torch, hatoba
from torch import nn

job = hatoba.current_job()
assert torch.cuda.device_count() == 1, torch.cuda.device_count()
print(f"on {torch.cuda.get_device_name(0)}", flush=True)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 10)).cuda()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
data = torch.randn(65536, 64, device="cuda")
labels = data[:, :10].argmax(1)
done = 0
if job.latest_checkpoint is not None:
    saved = torch.load(job.latest_checkpoint / "state.pt", weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    done = saved["epoch"]
for epoch in range(done + 1, int(job.params["epochs"]) + 1):
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(data), labels)
        loss.backward()
        optimizer.step()
        torch.cuda.synchronize()
    job.log_metrics({"loss": float(loss)}, step=epoch)
    job.progress(epoch, int(job.params["epochs"]), f"epoch {epoch}")
    print(f"epoch {epoch} loss {float(loss):.4f}", flush=True)
    with job.checkpoint(epoch) as directory:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        torch.save(state, directory / "state.pt")
job.outputs.mkdir(parents=True, exist_ok=True)
torch.save(model.state_dict(), job.outputs / "weights.pt")
job.log_model("rows", job.outputs, handler="serve:Rows", example={"row": [0.0] * 64})
"""
SERVE = """
import torch
from torch import nn


class Rows:
    def __init__(self, model_dir):
        self.model = nn.Sequential(nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 10))
        self.model.load_state_dict(torch.load(model_dir / "weights.pt", weights_only=True))
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(self.device).eval()

    @torch.inference_mode()
    def predict(self, inputs):
        row = torch.tensor(inputs["row"], device=self.device)
        where = torch.cuda.get_device_name(0) if self.device == "cuda" else "cpu"
        return {"largest": int(self.model(row).argmax()), "where": where}
"""
SEES = "import torch; print('sees', torch.cuda.device_count())"
TOO_MUCH = "import torch; torch.empty(1 << 44, device='cuda')"


def products() -> list[str]:
    """What the driver calls its GPUs; none without a driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout.splitlines() if done.returncode == 0 else []


PRODUCTS = products() if find_spec("torch") else []
pytestmark = [
    pytest.mark.skipif(not PRODUCTS, reason="needs a GPU of NVIDIA's and PyTorch"),
    pytest.mark.timeout(300),
]


@dataclass
class Site:
    """A server with this machine as its host, and the command line of a user of it."""

    server: HatobaServer
    wire: Wire
    type: CommandLine

    async def told(self, *arguments: str) -> Any:
        """What a command that has to end well says as JSON."""
        done = await self.type(*arguments, "-o", "json")
        assert done.code == 0, f"{arguments}:\n{done.out}\n{done.err}"
        return json.loads(done.out)

    async def host(self) -> Any:
        """This machine, once its worker has said what it has."""

        async def there() -> Any:
            return next(iter((await self.told("hosts", "list")).get("hosts", ())), None)

        return await eventually(there, PATIENCE)

    async def begun(self, *arguments: str) -> str:
        """A job that nobody waits for; its name."""
        done = await self.type("run", "-d", *arguments)
        assert done.code == 0, done
        return f"projects/default/jobs/{done.out.strip()}"

    async def python(self, script: str, *options: str) -> str:
        """A job of a few lines that brings no code along; its name."""
        return await self.begun("--no-code", *options, "--", sys.executable, "-c", script)

    async def training(self, code: Path) -> str:
        """Training on one GPU has begun; its name."""
        command = ["-p", f"epochs={EPOCHS}", "--code", str(code), "--", sys.executable, "train.py"]
        return await self.begun("--name", "rows", "--gpus", "1", *command)

    async def until_saved(self, job: str, step: int) -> None:
        """Return when the newest attempt has a checkpoint of at least that step."""

        async def there() -> bool:
            newest = (await self.wire.attempts(job))[-1:]
            return any(each.checkpoint.step >= step for each in newest)

        await eventually(there, PATIENCE)

    async def explained(self, job: str) -> str:
        """What `hatoba explain` says of it."""
        done = await self.type("explain", job)
        assert done.code == 0, done
        return done.out


@pytest.fixture
async def site(own_server: HatobaServer, own_wire: Wire, tmp_path: Path) -> Site:
    """All that a newcomer has after `hatoba server start`."""
    return Site(own_server, own_wire, CommandLine(own_server, tmp_path))


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """The directory of who trains."""
    home = tmp_path / "rows"
    home.mkdir()
    (home / "train.py").write_text(TRAIN)
    (home / "serve.py").write_text(SERVE)
    return home


async def test_a_gpu_is_found_given_to_one_hidden_from_others_and_given_back(site: Site) -> None:
    host = await site.host()
    assert len(host["gpus"]) == len(PRODUCTS)
    assert all(gpu.startswith("GPU-") for gpu in host["gpus"])
    product = "-".join(PRODUCTS[0].split())
    assert host["labels"]["hatoba/gpu-product"] == product

    every = str(len(PRODUCTS))
    holder = await site.python("import time; time.sleep(600)", "--gpus", every)
    await site.wire.in_state(holder, common_pb2.JOB_STATE_RUNNING)
    waiting = await site.python(SEES, "--gpus", every, "--require", f"hatoba/gpu-product={product}")
    without = await site.python(SEES)
    assert (await site.wire.ended(without, PATIENCE)).state == SUCCEEDED
    assert b"sees 0" in await site.wire.log(without)
    assert "gpu" in await site.explained(waiting)
    assert (await site.wire.job(waiting)).state == common_pb2.JOB_STATE_QUEUED
    await site.wire.cancel(holder)
    assert (await site.wire.ended(waiting, PATIENCE)).state == SUCCEEDED
    assert f"sees {every}".encode() in await site.wire.log(waiting)


async def test_what_asks_for_more_memory_than_a_gpu_has_ends_and_gives_it_back(site: Site) -> None:
    greedy = await site.python(TOO_MUCH, "--gpus", "1")
    ended = await site.wire.ended(greedy, PATIENCE)
    assert ended.state == common_pb2.JOB_STATE_FAILED
    assert ended.cause.code == common_pb2.CAUSE_CODE_EXIT_CODE, ended.cause
    assert "CUDA out of memory" in "\n".join(ended.cause.last_log_lines)
    after = await site.python(SEES, "--gpus", "1")
    assert (await site.wire.ended(after, PATIENCE)).state == SUCCEEDED


async def test_training_survives_deaths_and_a_drain_and_its_model_is_served(
    site: Site, code: Path
) -> None:
    job = await site.training(code)
    await site.until_saved(job, 2)
    await site.server.restart()
    await site.until_saved(job, 6)
    (first,) = await site.wire.attempts(job)
    assert not first.HasField("end_time"), first

    host = await site.host()
    drained = await site.type("hosts", "drain", host["name"])
    assert drained.code == 0, drained
    await _ended(site, job)
    assert (await site.type("hosts", "uncordon", host["name"])).code == 0
    assert (await site.wire.ended(job, PATIENCE)).state == SUCCEEDED
    first, second = await site.wire.attempts(job)
    assert first.cause.code == common_pb2.CAUSE_CODE_DRAINED, first.cause
    assert (len(first.gpus), len(second.gpus)) == (1, 1)
    assert second.usage.gpu_peak > 0.2, second.usage
    log = (await site.wire.log(job)).decode()
    assert f"on {PRODUCTS[0]}" in log
    assert "epoch 1 " not in log, "the second attempt went on from the checkpoint"
    print(f"use of the GPU at its peak {second.usage.gpu_peak:.2f}")
    await _served(site)


async def _ended(site: Site, job: str) -> None:
    async def over() -> bool:
        attempts = await site.wire.attempts(job)
        return attempts[0].HasField("end_time")

    await eventually(over, PATIENCE)


async def _served(site: Site) -> None:
    """Its model is answered for on the GPU."""
    made = await site.told("models", "get", "rows:1")
    assert (made["state"], made["attempt"]) == ("READY", 2), made
    deployed = await site.type("deploy", "rows:1", "--gpus", "1", "--bake", "1s")
    assert deployed.code == 0, deployed
    row = [0.0] * 64
    row[7] = 3.0
    url = f"http://{router_of(site.server)}/rows/predict"
    headers = {"authorization": f"Bearer {await asyncio.to_thread(site.server.token)}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(url, json={"row": row}) as reply,
    ):
        answer = await reply.json()
    assert answer == {"largest": 7, "where": PRODUCTS[0]}, answer
    (replica,) = (await site.told("deployments", "get", "rows"))["replicas"]
    assert len(replica["gpus"]) == 1
