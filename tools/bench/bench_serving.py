"""How long a replica takes from its start until it is ready."""

from __future__ import annotations

import contextlib
import http.client
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench_report import Figure, Measured
from server_process import clean_environment

RUNS = 7
READY_SECONDS = 1.5
PATIENCE = 30.0
LOOK_SECONDS = 0.002

HANDLER = """
import numpy as np


class Doubles:
    def __init__(self, model_dir):
        self.weights = np.load(model_dir / "weights.npy")

    def predict(self, inputs):
        return {"y": self.weights @ np.asarray(inputs["x"])}
"""
WEIGHTS = "import numpy, sys; numpy.save(sys.argv[1], 2 * numpy.eye(64))"


async def replica_start(work: Path) -> list[Figure]:
    """From the start of the process to `/readyz`, example included, with numpy; the median.

    The floor is an interpreter that imports numpy.
    """
    _prepare(work)
    ready = [_ready(work) for _ in range(RUNS)]
    floor = [_import_numpy() for _ in range(RUNS)]
    value, least = statistics.median(ready), statistics.median(floor)
    return [Measured("replica_ready", value, "s", least).at_most(READY_SECONDS)]


def _prepare(work: Path) -> None:
    (work / "doubles.py").write_text(HANDLER)
    (work / "example").write_text(json.dumps({"x": [1.0] * 64}))
    subprocess.run([sys.executable, "-c", WEIGHTS, str(work / "weights.npy")], check=True)


def _import_numpy() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import numpy"], check=True)
    return time.perf_counter() - began


def _ready(work: Path) -> float:
    began = time.perf_counter()
    with _replica(work) as ready_file:
        while time.perf_counter() < began + PATIENCE:
            if ready_file.exists() and _is_ready(json.loads(ready_file.read_text())["port"]):
                return time.perf_counter() - began
            time.sleep(LOOK_SECONDS)
    raise RuntimeError(f"no replica was ready within {PATIENCE:g} s")


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    finally:
        connection.close()


@contextlib.contextmanager
def _replica(work: Path) -> Iterator[Path]:
    """A model server that begins to start; yields the file that tells where it listens."""
    ready_file, config = work / "ready.json", work / "config.json"
    ready_file.unlink(missing_ok=True)
    settings = {
        "model_dir": str(work),
        "code_dir": str(work),
        "handler": "doubles:Doubles",
        "example": {"path": str(work / "example"), "media_type": "application/json"},
        "ready_file": str(ready_file),
    }
    config.write_text(json.dumps(settings))
    process = subprocess.Popen(
        [sys.executable, "-m", "hatoba_worker.serving", "serve", "--config", str(config)],
        env=clean_environment(),
    )
    try:
        yield ready_file
    finally:
        process.kill()
        process.wait()
