"""The main job, shown: a real training run that does not notice its scheduler being killed.

Works in a fresh directory with a server of its own; prints each step with its time, and fails when
a step does not show what it should.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ACCURACY = 0.95
STEP_SECONDS = 60.0


class DemoFailed(Exception):
    """A step did not show what it should."""


class Demo:
    """The steps, on one data directory."""

    def __init__(self, work: Path, hatoba: Sequence[str]) -> None:
        self.work = work
        self.data = work / "data"
        self.began = time.monotonic()
        self.hatoba = list(hatoba)
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("HATOBA_")},
            "HATOBA_DATA": str(self.data),
            "XDG_CONFIG_HOME": str(work / "config"),
        }

    def say(self, text: str) -> None:
        """Print a step with the time since the start."""
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", flush=True)

    def run(self, *args: str, cwd: Path | None = None, code: int = 0) -> str:
        """One `hatoba` command; its output. Fails on another exit code."""
        done = subprocess.run(
            [*self.hatoba, *args],
            env=self.env,
            cwd=cwd or self.work,
            capture_output=True,
            text=True,
            timeout=STEP_SECONDS,
            check=False,
        )
        if done.returncode != code:
            raise DemoFailed(f"hatoba {' '.join(args)}: {done.returncode}\n{done.stderr}")
        return done.stdout

    def job(self, name: str) -> dict[str, Any]:
        """A job as the server knows it."""
        found: dict[str, Any] = json.loads(self.run("jobs", "get", name, "-o", "json"))
        return found

    def submit(self, *params: str) -> str:
        """Submit the training with these parameters; its name."""
        args = [item for param in params for item in ("-p", param)]
        out = self.run(
            *("run", "--name", "digits", "--detach", *args, "--", "python", "train.py"),
            cwd=self.work / "digits",
        )
        return out.strip().splitlines()[-1].split("/")[-1]

    def wait(self, what: str, name: str, state: str) -> dict[str, Any]:
        """Poll until a job is in a state."""
        deadline = time.monotonic() + STEP_SECONDS
        while time.monotonic() < deadline:
            job = self.job(name)
            if job["state"] == state:
                return job
            if job["state"] in ("FAILED", "CANCELLED", "TIMED_OUT"):
                raise DemoFailed(f"{name} ended {job['state']}: {job.get('cause')}")
            time.sleep(0.1)
        raise DemoFailed(f"{name}: waited {STEP_SECONDS:.0f} s for {what}")

    def kill_server(self) -> int:
        """kill -9, as a crash would; the pid that is no more."""
        pid = int(json.loads((self.data / "server.json").read_text())["pid"])
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists() and "State:\tZ" not in _status(pid):
            time.sleep(0.01)
        return pid


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "State:\tZ"


def train(demo: Demo) -> str:
    """A job that trains while its server is killed and started again."""
    shutil.copytree(ROOT / "examples" / "digits", demo.work / "digits")
    demo.run("status")
    demo.say("a server runs in a fresh directory")
    name = demo.submit("lr=0.003", "epochs=40")
    demo.say(f"submitted {name}")
    job = demo.wait("it to run", name, "RUNNING")
    while not job.get("progress", {}).get("done"):
        time.sleep(0.1)
        job = demo.job(name)
    demo.say(f"{name} trains: {job['progress']['message']}")
    demo.say(f"killed the server (pid {demo.kill_server()}) with SIGKILL")
    demo.run("status")
    demo.say("started it again")
    job = demo.wait("it to succeed", name, "SUCCEEDED")
    lines = demo.run("events", name, "--cursor", "0", "-o", "json").splitlines()
    count = sum(json.loads(line)["reason"] == "launch" for line in lines)
    if count != 1:
        raise DemoFailed(f"{name} needed {count} attempts; it should not have noticed")
    demo.say(f"{name} succeeded in one attempt; it did not notice")
    return name


def check_metrics(demo: Demo, name: str) -> None:
    """Metrics read back and plotted; the accuracy is what it should be."""
    plot = demo.work / "metrics.png"
    text = demo.run("jobs", "metrics", name, "-o", "json")
    series = {one["key"]: one["points"] for one in json.loads(text)["series"]}
    steps = [point.get("step", 0) for point in series["accuracy"]]
    accuracy = float(series["accuracy"][-1]["value"])
    demo.run("jobs", "metrics", name, "--plot", str(plot))
    if not plot.read_bytes().startswith(b"\x89PNG"):
        raise DemoFailed(f"{plot} is no PNG")
    if len(steps) != 40 or accuracy < ACCURACY:
        raise DemoFailed(f"{len(steps)} epochs, accuracy {accuracy:.4f} (at least {ACCURACY})")
    kept = ROOT / "build" / "demo-metrics.png"
    kept.parent.mkdir(exist_ok=True)
    shutil.copy(plot, kept)
    demo.say(f"40 epochs, accuracy {accuracy:.4f}; the plot is {kept.relative_to(ROOT)}")


def check_trace(demo: Demo, name: str) -> None:
    """One trace from the command's call to the process, over the server's death."""
    spans = json.loads(demo.run("jobs", "trace", name, "-o", "json"))["spans"]
    traces = {span["trace_id"] for span in spans}
    processes = {span["process"] for span in spans}
    print(demo.run("jobs", "trace", name))
    if len(traces) != 1 or len(processes) < 3:
        raise DemoFailed(f"{len(traces)} trace ids, spans from {sorted(processes)}")
    demo.say(f"one trace of {len(spans)} spans from {len(processes)} processes")


def check_compare(demo: Demo, first: str) -> None:
    """A second run with other parameters, beside the first."""
    second = demo.submit("lr=0.0005", "epochs=10")
    demo.wait("it to succeed", second, "SUCCEEDED")
    text = demo.run("jobs", "compare", first, second)
    print(text)
    if not re.search(r"lr", text):
        raise DemoFailed("the comparison does not show the parameters")
    demo.say(f"compared {first} and {second}")


def check_outputs(demo: Demo, name: str) -> None:
    """The model comes back."""
    demo.run("jobs", "outputs", name, str(demo.work / "model"))
    size = (demo.work / "model" / "model.pkl").stat().st_size
    demo.say(f"fetched the model, {size:,} bytes")


def main() -> int:
    """Run the demo; 0 when everything was shown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hatoba", default=f"{sys.executable} -m hatoba", help="command to use")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hatoba-demo-") as work:
        demo = Demo(Path(work), options.hatoba.split())
        try:
            name = train(demo)
            check_metrics(demo, name)
            check_trace(demo, name)
            check_compare(demo, name)
            check_outputs(demo, name)
            demo.run("server", "stop", "--all")
            demo.say("stopped; done")
        except (DemoFailed, subprocess.TimeoutExpired) as failure:
            demo.say(f"FAILED: {failure}")
            print(_tail(demo.data / "server.log"), file=sys.stderr)
            subprocess.run(
                [*demo.hatoba, "server", "stop", "--all", "--grace", "1"],
                env=demo.env,
                check=False,
            )
            return 1
    return 0


def _tail(path: Path) -> str:
    try:
        return "\n".join(path.read_text().splitlines()[-30:])
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
