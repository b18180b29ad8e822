"""Devices at the edge, shown: three machines behind a NAT router, whose links and power fail.

Each machine is in namespaces of its own, with a disk that loses what was not synced; one has a
Debian for arm64, whose programs QEMU runs. Prints each step with its time and a table of the
devices, and fails when a step does not show what it should. Needs root. Where nothing for arm64 can
run it says so, and all machines are of this one's architecture. Models run as processes: images
from a registry are not shown here.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "testbed")]

import bed_device  # noqa: E402
import bed_edge  # noqa: E402
import bed_system  # noqa: E402
import testbed  # noqa: E402
from bed_device import FarMachine, System  # noqa: E402
from bed_edge import EdgeNetwork  # noqa: E402
from bed_place import Broken, Place, Unavailable, default_directory  # noqa: E402
from bed_processes import free_port  # noqa: E402
from demo import Demo, DemoFailed  # noqa: E402
from edge_table import table  # noqa: E402

T = TypeVar("T")
NAMES = ("shop-1", "shop-2", "shop-3")
ARM64 = "shop-2"
PYTHON = "python3"
"""What models run in: each machine has its own."""
PATH = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
STEP_SECONDS = 90.0
ACCURACY = 0.9
SMALL = 0.1
"""Of a model's size: what a version may move that differs in its head alone."""
WHOLE = 1.4
"""Of a model's size: what may come with all headers, and what was on its way at two cuts."""
SLOW = 25_000_000
CONFIG = """
[server]
listen = "{address}:0"

[devices]
listen = "{address}:{port}"
alive_every = 2

[backends.local]
type = "hosts"

[backends.edge]
type = "iot-edge-arm"
"""
Step = Callable[["EdgeDemo"], None]


class EdgeDemo(Demo):
    """The steps, on one server and its machines."""

    def __init__(self, work: Path, hatoba: Sequence[str], network: EdgeNetwork) -> None:
        super().__init__(work, hatoba)
        self.env["PATH"] = PATH
        self.network = network
        self.models = work / "models"
        own = System(path=PATH)
        self.left_out = ""
        """Why no machine is one for arm64; empty: one is."""
        systems = {name: self._arm64() or own if name == ARM64 else own for name in NAMES}
        self.machines = {
            name: FarMachine(work / name, network.add(name), hidden=(self.data,), system=system)
            for name, system in systems.items()
        }
        self.line: tuple[str, str] = "", ""
        """What makes a machine a device: the server's address and a token."""

    def _arm64(self) -> System | None:
        """What is on the disk of a machine for arm64; None where none can be had."""
        if not bed_system.is_made():
            self.say("makes a Debian for arm64 (once, minutes)")
        try:
            testbed.bring_up(Place(default_directory()), ["arm64"])
            return bed_system.system(self.work)
        except (Broken, Unavailable) as reason:
            self.left_out = str(reason)
            self.say(f"THE DEVICE FOR ARM64 IS LEFT OUT, {ARM64} is an ordinary one: {reason}")
            return None

    def stop(self) -> None:
        """End everything on the directory, also what would not be asked."""
        super().stop()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if str(self.data).encode() in path.read_bytes().split(b"\0"):
                    os.kill(int(path.parent.name), signal.SIGKILL)

    # -- waiting --------------------------------------------------------------------------------

    def until(self, what: str, holds: Callable[[], T | None], within: float = STEP_SECONDS) -> T:
        """The first answer that is one; fails when none comes."""
        deadline = time.monotonic() + within
        while not (found := holds()):
            if time.monotonic() > deadline:
                raise DemoFailed(f"waited {within:.0f} s for {what}\n{self.table()}")
            time.sleep(0.2)
        return found

    def until_connected(self, *names: str, there: bool = True) -> None:
        """Wait until the server has these devices, or misses them."""
        self.until(
            f"{', '.join(names)} to be {'connected' if there else 'missed'}",
            lambda: all(bool(self.device(name).get("connected")) is there for name in names),
        )

    def until_runs(self, version: str, *names: str) -> None:
        """Wait until these devices say that a version works there, and nothing else is wanted."""
        revision = self.revision(version)

        def holds() -> bool:
            slots = [self.slot(name) for name in names]
            return all(
                slot.get("running") == revision and slot.get("phase") == "GOOD" for slot in slots
            )

        self.until(f"{version} on {', '.join(names)}", holds)

    # -- looking --------------------------------------------------------------------------------

    def device(self, name: str) -> dict[str, object]:
        """A device as the server knows it."""
        return self.read("devices", "get", name)

    def slot(self, name: str) -> dict[str, object]:
        """What the server was told last of the deployment on a device."""
        report = self.device(name).get("report", {})
        assert isinstance(report, dict)
        return dict(next(iter(report.get("slots", ())), {}))

    def revision(self, version: str) -> int:
        """The newest revision of the deployment with a version."""
        told = self.read("deployments", "revisions", "reader")["revisions"]
        return max(
            int(one["revision"]) for one in told if one["model_version"].endswith(f"/{version}")
        )

    def table(self) -> str:
        """How devices are now."""
        return table(self.read("devices", "list")["devices"], self.machines)

    def show(self, title: str) -> None:
        """Print how devices are now."""
        self.say(title)
        print(self.table(), flush=True)

    def down(self, name: str) -> int:
        """Bytes that have come to a device, as they were on its wire."""
        link = self.machines[name].link
        assert link is not None
        return link.carried().down

    def accuracy(self, name: str) -> float:
        """What the model on a device recognises, asked there."""
        machine = self.machines[name]
        address = self.until(
            f"the model on {name} to answer", lambda: machine.slot("reader").get("address")
        )
        done = subprocess.run(
            machine.beside(
                sys.executable, HERE / "edge_ask.py", str(address), self.models / "held-out.json"
            ),
            capture_output=True,
            text=True,
            check=False,
            timeout=STEP_SECONDS,
        )
        if done.returncode:
            raise DemoFailed(f"the model on {name} does not answer: {done.stderr}")
        return float(done.stdout)


def begin(demo: EdgeDemo) -> None:
    """A server, and four versions of a model."""
    demo.data.mkdir(mode=0o700)
    address = demo.network.address
    text = CONFIG.format(address=address, port=free_port(address))
    (demo.data / "hatoba.toml").write_text(text)
    subprocess.run([sys.executable, HERE / "edge_models.py", demo.models], check=True)
    demo.run("status")
    demo.say(
        f"a server runs at {address}; the machines are behind a router, {demo.network.outside}"
    )
    for name in ("weak", "strong", "leaky", "best"):
        demo.run(
            *("models", "register", "digits", str(demo.models / name)),
            *("--handler", "serve:Digits", "--code", str(HERE / "edge_digits")),
            *("--example", str(demo.models / "example.json"), "--python", PYTHON),
        )
    demo.say("registered digits:1 to digits:4, each of which answered its example")
    demo.run("models", "alias", "digits", "production", "1")


def enroll(demo: EdgeDemo) -> None:
    """Three machines become devices by one line, which is good for no fourth."""
    told = demo.read("devices", "add", "--uses", "3", "--label", "site=tokyo")
    demo.line = told["address"], told["secret"]
    for name, machine in demo.machines.items():
        machine.power_on()
        done = _enroll(demo, machine, name)
        if done.returncode:
            raise DemoFailed(f"{name} did not become a device: {done.stderr}")
        machine.start_agent()
    demo.until_connected(*NAMES)
    demo.show("three machines became devices, each by a key that it made itself")
    _look_at_arm64(demo)
    refused = _enroll(demo, demo.machines["shop-1"], "shop-4", "elsewhere")
    if not refused.returncode:
        raise DemoFailed("a token for three devices made a fourth")
    demo.say(f"a fourth one was refused: {refused.stderr.strip()}")


def _look_at_arm64(demo: EdgeDemo) -> None:
    """The server knows what it is told, and programs there see the same."""
    if demo.left_out:
        return
    machine = demo.machines[ARM64]
    asked = machine.command(machine.system.python, "-c", "import os; print(os.uname().machine)")
    found = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    platform = demo.device(ARM64)["platform"]
    assert isinstance(platform, dict)
    demo.say(f"{ARM64} is {platform['architecture']}; its Python, run by QEMU, says {found}")
    if (platform["architecture"], found) != ("arm64", "aarch64"):
        raise DemoFailed("it should be one for arm64")


def _enroll(
    demo: EdgeDemo, machine: FarMachine, name: str, place: str = ""
) -> subprocess.CompletedProcess[str]:
    server, token = demo.line
    data = machine.data.with_name(place) if place else machine.data
    return machine.hatoba(
        *("agent", "enroll", "--server", server, "--token", token),
        *("--name", name, "--data", data),
    )


def deploy(demo: EdgeDemo) -> None:
    """The first version comes to all, over a link that is cut while it does."""
    shop = demo.machines["shop-2"]
    assert shop.link is not None
    shop.link.slow(SLOW)
    print(demo.run("plan", "--deployment", "reader", "--selector", "site=tokyo"), flush=True)
    before = demo.down("shop-2")
    demo.run(
        *("deploy", "digits@production", "--name", "reader", "--selector", "site=tokyo"),
        *("--bake", "2s", "--abort-least", "1", "--retries", "0", "--no-wait"),
    )
    size = _size(demo)
    for share in (0.3, 0.6):
        mark = before + share * size
        demo.until(f"{share:.0%} of the model", lambda mark=mark: demo.down("shop-2") > mark)  # type: ignore[misc]
        shop.link.cut()
        demo.say(f"pulled the wire of shop-2 at {share:.0%} of the model")
        demo.until_connected("shop-2", there=False)
        shop.link.mend()
    demo.until_runs("1", *NAMES)
    shop.link.slow(0)
    came = demo.down("shop-2") - before
    demo.show(f"digits:1 runs on all; shop-2 fetched {came:,} bytes for {size:,}")
    if came > WHOLE * size:
        raise DemoFailed(f"{came:,} bytes came for {size:,}")
    share = demo.accuracy("shop-1")
    demo.say(f"asked on shop-1 itself, it recognises {share:.0%} of unseen images")


def _size(demo: EdgeDemo) -> int:
    return sum(path.stat().st_size for path in (demo.models / "weak").iterdir())


def promote(demo: EdgeDemo) -> None:
    """A better version: shop-3 has no power, and of the others' links only the change is asked."""
    demo.machines["shop-3"].power_cut()
    demo.until_connected("shop-3", there=False)
    before = {name: demo.down(name) for name in NAMES}
    demo.run("models", "alias", "digits", "production", "2")
    demo.say("shop-3 has no power; moved digits@production to the better version")
    demo.until_runs("2", "shop-1", "shop-2")
    moved = max(demo.down(name) - before[name] for name in ("shop-1", "shop-2"))
    size = _size(demo)
    demo.show(
        f"digits:2 runs on two: {moved:,} bytes came to each, of {size:,} ({moved / size:.1%})"
    )
    if moved > SMALL * size:
        raise DemoFailed(f"{moved:,} bytes are more than {SMALL:.0%} of the model")
    right = demo.accuracy("shop-2")
    demo.say(f"asked on shop-2 itself, it recognises {right:.0%}")
    if right < ACCURACY:
        raise DemoFailed(f"that should be {ACCURACY:.0%} at least")


def rebind(demo: EdgeDemo) -> None:
    """The router forgets whom it translated: links are made anew, and nothing is started anew."""
    pids = {name: demo.machines[name].model_pids() for name in ("shop-1", "shop-2")}
    dialled = {name: _connections(demo, name) for name in pids}
    demo.network.rebind()
    demo.until(
        "the links to be made anew",
        lambda: all(_connections(demo, name) > dialled[name] for name in pids),
    )
    demo.until_connected(*pids)
    if {name: demo.machines[name].model_pids() for name in pids} != pids:
        raise DemoFailed("what runs was started anew by a link that came back")
    demo.say(f"the router is {demo.network.outside} now; links came back, models ran on untouched")


def _connections(demo: EdgeDemo, name: str) -> int:
    link = demo.machines[name].status().get("link", {})
    return int(link.get("connections", 0)) if link.get("connected") else 0


def roll_back(demo: EdgeDemo) -> None:
    """A version that passed its check, and dies on devices after seconds."""
    done = subprocess.run(
        [*demo.hatoba, "deploy", "digits:3", "--name", "reader", "--bake", "8s", "--wait"],
        env=demo.env,
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * STEP_SECONDS,
    )
    if done.returncode != 24:
        raise DemoFailed(f"a bad roll-out ended with {done.returncode}: {done.stdout}{done.stderr}")
    told = demo.read("deployments", "get", "reader")["rollout"]
    demo.until_runs("2", "shop-1", "shop-2")
    demo.show(f"digits:3 was rolled back: {told['cause']['message']}")
    if demo.accuracy("shop-1") < ACCURACY:
        raise DemoFailed("what ran before does not answer as before")


def fail_power(demo: EdgeDemo) -> None:
    """kill -9 of everything on shop-1 in the middle of an update, and a boot without a link."""
    shop = demo.machines["shop-1"]
    assert shop.link is not None
    demo.run("deploy", "digits:4", "--name", "reader", "--bake", "6s", "--no-wait")
    phases = ("SLOT_PHASE_STARTING", "SLOT_PHASE_BAKING")
    demo.until("the update to begin", lambda: shop.slot("reader").get("phase") in phases)
    shop.power_cut()
    shop.link.cut()
    demo.say("the power of shop-1 failed while it tried digits:4; its wire is pulled as well")
    shop.boot()
    share = demo.until("shop-1 to answer", lambda: _answers(demo, "shop-1"))
    phase = shop.slot("reader").get("phase", "").removeprefix("SLOT_PHASE_").lower()
    demo.say(f"booted without a link, it answers: {share:.0%} recognised; the update is {phase}")
    shop.link.mend()
    demo.until_connected("shop-1", "shop-2")
    demo.until_runs("4", "shop-1", "shop-2")
    demo.show("the wire is back, and digits:4 runs on both")


def _answers(demo: EdgeDemo, name: str) -> float:
    try:
        return demo.accuracy(name)
    except DemoFailed:
        return 0.0


def come_back(demo: EdgeDemo) -> None:
    """shop-3 was away over three releases: it fetches the newest, and no other."""
    shop, before = demo.machines["shop-3"], demo.down("shop-3")
    shop.boot()
    demo.until_runs("4", "shop-3")
    moved, size = demo.down("shop-3") - before, _size(demo)
    switched = [line for line in shop.log.read_text().splitlines() if "agent.refused" in line]
    demo.show(f"shop-3 came back after three releases and fetched one: {moved:,} bytes")
    if moved > SMALL * size or switched:
        raise DemoFailed(f"{moved:,} bytes came, and this was said: {switched}")


def decommission(demo: EdgeDemo) -> None:
    """One leaves: it ends what it runs, and is forgotten."""
    shop = demo.machines["shop-2"]
    demo.run("devices", "decommission", "shop-2", "--yes")
    demo.until("shop-2 to be forgotten", lambda: len(demo.read("devices", "list")["devices"]) == 2)
    demo.until("shop-2 to run nothing", lambda: not shop.model_pids())
    demo.show("shop-2 was decommissioned: it ended all that it ran, and is forgotten")


STEPS: tuple[Step, ...] = (
    begin,
    enroll,
    deploy,
    promote,
    rebind,
    roll_back,
    fail_power,
    come_back,
    decommission,
)


@contextmanager
def place() -> Iterator[Path]:
    """A directory of our own, gone at the end; so is what one that was killed has left."""
    _clear_away(Path(tempfile.gettempdir()))
    work = Path(tempfile.mkdtemp(prefix=f"{bed_edge.PREFIX}{os.getpid()}-"))
    try:
        yield work
    finally:
        bed_device.sweep(work)


def _clear_away(folder: Path) -> None:
    """What a demo that was killed has left."""
    for path in folder.glob(f"{bed_edge.PREFIX}*"):
        if bed_edge.is_left(path.name):
            bed_device.sweep(path)


def show(hatoba: Sequence[str]) -> int:
    """Every step, in order; the exit code."""
    with ExitStack() as stack:
        work = stack.enter_context(place())
        network = stack.enter_context(bed_edge.edge_network())
        demo = EdgeDemo(work, hatoba, network)
        stack.callback(demo.stop)
        for machine in demo.machines.values():
            stack.callback(machine.close)
        try:
            for step in STEPS:
                step(demo)
        except (DemoFailed, Broken, subprocess.TimeoutExpired) as failure:
            demo.say(f"FAILED: {failure}")
            _tell_logs(demo)
            return 1
        demo.say(f"done, without a device for arm64: {demo.left_out}" if demo.left_out else "done")
    return 0


def _tell_logs(demo: EdgeDemo) -> None:
    for path in (demo.data / "server.log", *(one.log for one in demo.machines.values())):
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        print(f"-- {path.name} of {path.parent.name}", *lines[-30:], sep="\n", file=sys.stderr)


def main() -> int:
    """Run the demo; 0 when everything was shown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hatoba", default=f"{sys.executable} -m hatoba", help="command to use")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        bed_edge.prepare()
    except Unavailable as error:
        print(f"demo-edge cannot run here: {error}", file=sys.stderr)
        return 1
    try:
        return show(options.hatoba.split())
    except KeyboardInterrupt:
        print("interrupted; all is cleared away", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
