"""The whole loop, shown: data, training, models, a deployment, inference, and a server that dies.

Works in a fresh directory with a server of its own; prints each step with its time, and fails when
a step does not show what it should. Its pictures are kept in `build/`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from traffic import Address, Caller, Traffic, accuracy

ROOT = Path(__file__).resolve().parents[2]
ACCURACY = 0.95
STEP_SECONDS = 90.0
CLIENTS = 8
WEAK = ("lr=0.0005", "epochs=2", "hidden=12")
STRONG = ("lr=0.003", "epochs=40")


class DemoFailed(Exception):
    """A step did not show what it should."""


class Demo:
    """The steps, on one data directory."""

    def __init__(self, work: Path, hatoba: Sequence[str]) -> None:
        self.work = work
        self.code = work / "digits"
        self.data = work / "data"
        self.began = time.monotonic()
        self.hatoba = list(hatoba)
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("HATOBA_")},
            "HATOBA_DATA": str(self.data),
            "XDG_CONFIG_HOME": str(work / "config"),
            "XDG_CACHE_HOME": str(work / "cache"),
        }

    def say(self, text: str) -> None:
        """Print a step with the time since the start."""
        print(f"[{time.monotonic() - self.began:6.1f} s] {text}", flush=True)

    def run(self, *args: str, cwd: Path | None = None) -> str:
        """One `hatoba` command; its output. Fails when it fails."""
        done = subprocess.run(
            [*self.hatoba, *args],
            env=self.env,
            cwd=cwd or self.work,
            capture_output=True,
            text=True,
            timeout=STEP_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise DemoFailed(
                f"hatoba {' '.join(args)}: {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def read(self, *args: str) -> dict[str, Any]:
        """What a `hatoba` command tells, as JSON."""
        found: dict[str, Any] = json.loads(self.run(*args, "-o", "json"))
        return found

    def submit(self, *params: str) -> str:
        """Submit the training with these parameters; its name."""
        options = [item for param in ("log=1", *params) for item in ("-p", param)]
        options += ["--input", "data=datasets/digits", "--name", "train", "--detach"]
        out = self.run("run", *options, "--", "python", "train.py", cwd=self.code)
        return out.strip().splitlines()[-1].split("/")[-1]

    def wait(self, what: str, name: str, state: str) -> dict[str, Any]:
        """Poll until a job is in a state."""
        deadline = time.monotonic() + STEP_SECONDS
        while time.monotonic() < deadline:
            job = self.read("jobs", "get", name)
            if job["state"] == state:
                return job
            if job["state"] in ("FAILED", "CANCELLED", "TIMED_OUT"):
                raise DemoFailed(f"{name} ended {job['state']}: {job.get('cause')}")
            time.sleep(0.1)
        raise DemoFailed(f"{name}: waited {STEP_SECONDS:.0f} s for {what}")

    def address(self, deployment: str) -> Address:
        """Where a deployment answers."""
        ready = json.loads((self.data / "server.json").read_text())
        token = (self.data / "admin.token").read_text().strip()
        return Address(ready["router"], f"/{deployment}/predict", token)

    def kill_server(self) -> int:
        """kill -9, as a crash would; the pid that is no more."""
        pid = int(json.loads((self.data / "server.json").read_text())["pid"])
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists() and "State:\tZ" not in _status(pid):
            time.sleep(0.01)
        return pid

    def stop(self) -> None:
        """End everything on the directory, whatever state it is in; twice is the same as once."""
        command = [*self.hatoba, "server", "stop", "--all", "--grace", "1"]
        subprocess.run(command, env=self.env, check=False, capture_output=True)

    def keep(self, picture: Path) -> str:
        """Keep a picture where it outlives the demo; its path from here."""
        if not picture.read_bytes().startswith(b"\x89PNG"):
            raise DemoFailed(f"{picture} is no PNG")
        kept = ROOT / "build" / f"demo-{picture.name}"
        kept.parent.mkdir(exist_ok=True)
        shutil.copy(picture, kept)
        return str(kept.relative_to(ROOT))


def push_data(demo: Demo) -> None:
    """The images become a dataset whose items have labels and splits."""
    shutil.copytree(ROOT / "examples" / "digits", demo.code)
    subprocess.run([sys.executable, "prepare.py", str(demo.work / "images")], cwd=demo.code)
    demo.run("status")
    demo.say("a server runs in a fresh directory")
    folders = ("--split-from", "folders", "--labels-from", "folders")
    demo.run("datasets", "push", "images", "--name", "digits", *folders)
    version = demo.read("datasets", "get", "digits:1")
    demo.say(f"pushed datasets/digits:1: {version['item_count']} items, splits {version['splits']}")


def train(demo: Demo) -> tuple[str, str]:
    """Two candidates; the server dies while the second one trains."""
    weak = demo.submit(*WEAK)
    strong = demo.submit(*STRONG)
    demo.say(f"submitted {weak} ({' '.join(WEAK)}) and {strong} ({' '.join(STRONG)})")
    job = demo.wait("it to run", strong, "RUNNING")
    while not job.get("progress", {}).get("done"):
        time.sleep(0.1)
        job = demo.read("jobs", "get", strong)
    demo.say(f"{strong} trains: {job['progress']['message']}")
    demo.say(f"killed the server (pid {demo.kill_server()}) with SIGKILL")
    demo.run("status")
    demo.say("started it again")
    models = [demo.wait("it to succeed", name, "SUCCEEDED")["models"][0] for name in (weak, strong)]
    attempts = demo.run("events", strong, "--cursor", "0", "-o", "json").splitlines()
    count = sum(json.loads(line)["reason"] == "launch" for line in attempts)
    if count != 1:
        raise DemoFailed(f"{strong} needed {count} attempts; it should not have noticed")
    plot = demo.work / "metrics.png"
    demo.run("jobs", "metrics", strong, "--plot", str(plot))
    first, second = (_short(name) for name in models)
    demo.say(f"both succeeded in one attempt; they logged {first} and {second}")
    demo.say(f"metrics of {strong}: {demo.keep(plot)}")
    print(demo.run("models", "compare", first, second))
    return first, second


def deploy(demo: Demo, weak: str, held_out: Sequence[Path]) -> float:
    """The weaker one goes into production first, on two replicas."""
    demo.run("models", "alias", "digits", "production", weak.partition(":")[2])
    demo.run(
        *("deploy", "digits@production", "--name", "reader", "--replicas", "2", "--bake", "1s"),
        *("--capture", "reader-inputs", "--capture-rate", "0.05"),
    )
    share = accuracy(demo.address("reader"), held_out)
    demo.say(f"reader serves {weak} on 2 replicas: held-out accuracy over HTTP {share:.4f}")
    return share


def promote(demo: Demo, strong: str, images: Sequence[Path]) -> None:
    """The better one takes over while requests flow, and the server dies meanwhile."""
    bodies = [path.read_bytes() for path in images]
    with Traffic(demo.address("reader"), bodies, CLIENTS) as traffic:
        demo.run("models", "alias", "digits", "production", strong.partition(":")[2])
        demo.say(f"moved digits@production to {strong} under load of {CLIENTS} clients")
        demo.say(f"killed the server (pid {demo.kill_server()}) with SIGKILL")
        demo.run("status")
        demo.run("deployments", "watch", "reader")
        served = demo.read("deployments", "get", "reader")["revisions"]
        time.sleep(1.0)
    tally = traffic.tally
    demo.say(f"promoted: {tally}; slowest {tally.slowest * 1e3:.0f} ms")
    if tally.failures:
        raise DemoFailed(f"{len(tally.failures)} requests failed, such as {tally.failures[0]}")
    if not tally.models[strong] or [_short(one["model_version"]) for one in served] != [strong]:
        raise DemoFailed(f"{strong} does not serve: {served}")


def check_accuracy(demo: Demo, before: float, held_out: Sequence[Path]) -> None:
    """What users get now."""
    share = accuracy(demo.address("reader"), held_out)
    demo.say(f"held-out accuracy over HTTP {share:.4f} (it was {before:.4f})")
    if share < ACCURACY or share <= before:
        raise DemoFailed(f"accuracy {share:.4f}; it should be at least {ACCURACY}")


def infer_batch(demo: Demo) -> None:
    """All images at once, in four shards; the predictions become a dataset version."""
    demo.run(
        *("predict", "digits@production", "--dataset", "digits:1", "--shards", "4"),
        *("--on-item-error", "record", "--max-errors", "0"),
    )
    job = demo.read("jobs", "get", "predict-digits-1")
    version = demo.read("datasets", "get", "digits-predictions:1")
    if job["summary"] != "1,797 of 1,797, 0 errors" or version["item_count"] != "1797":
        raise DemoFailed(f"the predictions are not complete: {job}")
    demo.say(f"batch inference over 4 shards: {job['summary']}; {_short(version['name'])}")


def commit_captured(demo: Demo) -> None:
    """What users sent becomes data to learn from."""
    deadline = time.monotonic() + STEP_SECONDS
    while not any(
        int(one.get("head_items", 0)) for one in demo.read("datasets", "list")["datasets"]
    ):
        if time.monotonic() > deadline:
            raise DemoFailed("no captured input arrived")
        time.sleep(0.2)
    demo.run("datasets", "commit", "reader-inputs", "--message", "what users sent")
    version = demo.read("datasets", "get", "reader-inputs:1")
    demo.say(f"committed {version['item_count']} captured inputs as reader-inputs:1")


def explain(demo: Demo, strong: str, image: Path) -> None:
    """From one prediction back to the code and the data, and the whole lineage as a picture."""
    caller = Caller(demo.address("reader"))
    trace = caller.ask(image.read_bytes()).trace_id
    caller.close()
    text = explanation(demo, trace)
    print(text)
    if strong not in text or "digits:1" not in text or "train-2" not in text:
        raise DemoFailed("the explanation does not name model, job and data")
    picture = demo.work / "lineage.png"
    print(demo.run("models", "lineage", strong, "--plot", str(picture)))
    demo.say(f"a prediction explained; the lineage is {demo.keep(picture)}")


def explanation(demo: Demo, trace: str) -> str:
    """What stands behind a prediction, once the router has told of it."""
    deadline = time.monotonic() + STEP_SECONDS
    while True:
        try:
            return demo.run("explain", f"predictions/{trace}")
        except DemoFailed:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _short(name: str) -> str:
    parts = name.split("/")
    return f"{parts[-3]}:{parts[-1]}"


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "State:\tZ"


def show(demo: Demo) -> None:
    """Every step, in order."""
    push_data(demo)
    weak, strong = train(demo)
    held_out = sorted((demo.work / "images" / "test").glob("*/*.png"))
    before = deploy(demo, weak, held_out)
    promote(demo, strong, held_out)
    check_accuracy(demo, before, held_out)
    infer_batch(demo)
    commit_captured(demo)
    explain(demo, strong, held_out[0])
    demo.stop()


def main() -> int:
    """Run the demo; 0 when everything was shown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hatoba", default=f"{sys.executable} -m hatoba", help="command to use")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hatoba-demo-") as work:
        demo = Demo(Path(work), options.hatoba.split())
        try:
            show(demo)
            demo.say("stopped; done")
        except (DemoFailed, subprocess.TimeoutExpired) as failure:
            demo.say(f"FAILED: {failure}")
            for name in ("server.log", "worker.log", "router.log"):
                print(f"-- {name}\n{_tail(demo.data / name)}", file=sys.stderr)
            return 1
        finally:
            demo.stop()
    return 0


def _tail(path: Path) -> str:
    try:
        return "\n".join(path.read_text().splitlines()[-30:])
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
