"""Devices at the edge, shown: three machines behind a NAT router, whose links and power fail.

Each machine is in namespaces of its own, with a disk that loses what was not synced. One has a
Docker engine of its own and runs its model in an image, which it fetches from a registry on this
side of the router; one has a Debian for arm64, whose programs QEMU runs; one is mostly away. On the
last two models run as processes. Prints each step with its time and a table of the devices, and
fails when a step does not show what it should. Needs root. Where no engine can be had, or nothing
for arm64 can run, it says so, and such a machine is an ordinary one.
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
from typing import Any, NamedTuple, TypeVar

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "testbed")]

import bed_device  # noqa: E402
import bed_edge  # noqa: E402
import bed_edge_registry  # noqa: E402
from bed_device import FarMachine  # noqa: E402
from bed_edge import EdgeNetwork  # noqa: E402
from bed_edge_registry import EdgeRegistry  # noqa: E402
from bed_engine import SOCKET, EngineMachine  # noqa: E402
from bed_place import Broken, Unavailable  # noqa: E402
from bed_processes import free_port  # noqa: E402
from demo import Demo, DemoFailed  # noqa: E402
from edge_machines import ARM64, ENGINE, NAMES, PATH, EdgeMachines  # noqa: E402
from edge_table import table  # noqa: E402

T = TypeVar("T")
VERSIONS = ("weak", "strong", "leaky", "best")
PYTHON = "python3"
"""What models run in: each machine has its own."""
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


class Release(NamedTuple):
    """A deployment of the demo: its model, and the devices that it is for."""

    name: str
    model: str
    selectors: tuple[str, ...]

    @property
    def selected(self) -> list[str]:
        """Them, as options."""
        return [word for one in self.selectors for word in ("--selector", one)]


EVERYWHERE = Release("reader", "digits", ("site=tokyo",))
PROCESSES = Release("reader", "digits", ("site=tokyo", "!engine"))
CONTAINERS = Release("reader-image", "digits-image", ("site=tokyo", "engine"))


class EdgeDemo(Demo):
    """The steps, on one server and its machines."""

    def __init__(
        self, work: Path, hatoba: Sequence[str], network: EdgeNetwork, stack: ExitStack
    ) -> None:
        """What is to be ended goes to the stack."""
        super().__init__(work, hatoba)
        self.env["PATH"] = PATH
        self.network = network
        self.models = work / "models"
        stack.callback(self.stop)
        made = EdgeMachines(network, work, self.data, stack, self.say)
        self.machines, self.registry, self.left_out = made.all, made.registry, made.left_out
        self.line: tuple[str, str] = "", ""
        """What makes a machine a device: the server's address and a token."""

    def stop(self) -> None:
        """End everything on the directory, also what would not be asked."""
        super().stop()
        _end_all(self.data)

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
        wanted = {name: self.revision(self.release(name), version) for name in names}

        def holds() -> bool:
            return all(
                (slot := self.slot(name)).get("running") == revision and slot.get("phase") == "GOOD"
                for name, revision in wanted.items()
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

    @property
    def releases(self) -> tuple[Release, ...]:
        """What is deployed."""
        return (CONTAINERS, PROCESSES) if self.registry else (EVERYWHERE,)

    def release(self, name: str) -> Release:
        """What is deployed on a device."""
        return self.releases[0 if name == ENGINE else -1]

    def here(self, name: str) -> dict[str, Any]:
        """What a device's agent wrote last of its deployment."""
        return self.machines[name].slot(self.release(name).name)

    def revision(self, release: Release, version: str) -> int:
        """The newest revision of a deployment with a version."""
        told = self.read("deployments", "revisions", release.name)["revisions"]
        return max(
            int(one["revision"]) for one in told if one["model_version"].endswith(f"/{version}")
        )

    def table(self) -> str:
        """How devices are now."""
        rows = table(self.read("devices", "list")["devices"], self.machines)
        fetched = f"\n    fetched from the registry so far: {self.fetched():,} bytes"
        return rows + (fetched if self.registry else "")

    def fetched(self) -> int:
        """Bytes that have come from the registry, as they were on the wire."""
        return self.registry.fetched() if self.registry else 0

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
            f"the model on {name} to answer", lambda: self.here(name).get("address")
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


def _end_all(data: Path) -> None:
    """kill -9 of whatever runs on a server's directory; returns when nothing does."""
    while found := list(_running_on(data)):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _running_on(data: Path) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(data).encode() in path.read_bytes().split(b"\0"):
                yield int(path.parent.name)


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
    for release in demo.releases:
        _register(demo, release.model)
    if demo.registry:
        _record(demo, demo.registry, CONTAINERS.model)


def _register(demo: EdgeDemo, model: str) -> None:
    for name in VERSIONS:
        demo.run(
            *("models", "register", model, str(demo.models / name)),
            *("--handler", "serve:Digits", "--code", str(HERE / "edge_digits")),
            *("--example", str(demo.models / "example.json"), "--python", PYTHON),
        )
    demo.say(f"registered {model}:1 to {model}:4, each of which answered its example")
    demo.run("models", "alias", model, "production", "1")


def _record(demo: EdgeDemo, registry: EdgeRegistry, model: str) -> None:
    """Their replicas on devices run in the image."""
    image = registry.image
    versions = [f"{model}:{number}" for number in range(1, len(VERSIONS) + 1)]
    script = str(HERE / "edge_record.py")
    command = [sys.executable, script, image.name, image.digest, *versions]
    subprocess.run(command, env=demo.env, check=True)
    demo.say(f"they run in {image.reference}, of {image.size:,} bytes")


def enroll(demo: EdgeDemo) -> None:
    """Three machines become devices by one line, which is good for no fourth."""
    told = demo.read("devices", "add", "--uses", "3", "--label", "site=tokyo")
    demo.line = told["address"], told["secret"]
    for name, machine in demo.machines.items():
        if not machine.on:
            machine.power_on()
        done = _enroll(demo, machine, name)
        if done.returncode:
            raise DemoFailed(f"{name} did not become a device: {done.stderr}")
        if demo.registry and name == ENGINE:
            _reach(machine, demo.registry)
        machine.start_agent()
    demo.until_connected(*NAMES)
    if demo.registry:
        demo.run("devices", "label", ENGINE, "engine=docker")
    demo.show("three machines became devices, each by a key that it made itself")
    _look_at_arm64(demo)
    refused = _enroll(demo, demo.machines["shop-1"], "shop-4", "elsewhere")
    if not refused.returncode:
        raise DemoFailed("a token for three devices made a fourth")
    demo.say(f"a fourth one was refused: {refused.stderr.strip()}")


def _reach(machine: FarMachine, registry: EdgeRegistry) -> None:
    """Its owner says how the registry is spoken to."""
    words = ("agent", "registry", registry.address, "--plain", "--data", machine.data)
    done = machine.hatoba(*words)
    if done.returncode:
        raise DemoFailed(f"the registry is not for the device: {done.stderr}")


def _look_at_arm64(demo: EdgeDemo) -> None:
    """The server knows what it is told, and programs there see the same."""
    machine = demo.machines[ARM64]
    if not machine.system.layers:
        return
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
        *(("--engine", SOCKET) if isinstance(machine, EngineMachine) else ()),
    )


def deploy(demo: EdgeDemo) -> None:
    """The first version comes to all, over a link that is cut while it does."""
    shop = demo.machines["shop-2"]
    assert shop.link is not None
    shop.link.slow(SLOW)
    before = demo.down("shop-2")
    for each in demo.releases:
        print(demo.run("plan", "--deployment", each.name, *each.selected), flush=True)
        demo.run(
            *("deploy", f"{each.model}@production", "--name", each.name, *each.selected),
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
    _look_at_image(demo)
    share = demo.accuracy("shop-1")
    demo.say(f"asked on shop-1 itself, it recognises {share:.0%} of unseen images")


def _look_at_image(demo: EdgeDemo) -> None:
    """It came once, and a container of it answers."""
    if not demo.registry:
        return
    came, size = demo.fetched(), demo.registry.image.size
    running = _containers(demo.machines[ENGINE])
    demo.say(f"{ENGINE} runs it in {_short(running)}; {came:,} bytes of its image came")
    if not running or not size < came < WHOLE * size:
        raise DemoFailed(f"{came:,} bytes came of an image of {size:,}")


def _size(demo: EdgeDemo) -> int:
    return sum(path.stat().st_size for path in (demo.models / "weak").iterdir())


def promote(demo: EdgeDemo) -> None:
    """A better version: shop-3 has no power, and of the others' links only the change is asked."""
    demo.machines["shop-3"].power_cut()
    demo.until_connected("shop-3", there=False)
    before, fetched = {name: demo.down(name) for name in NAMES}, demo.fetched()
    for each in demo.releases:
        demo.run("models", "alias", each.model, "production", "2")
    demo.say("shop-3 has no power; moved digits@production to the better version")
    demo.until_runs("2", "shop-1", "shop-2")
    moved = max(demo.down(name) - before[name] for name in ("shop-1", "shop-2"))
    size = _size(demo)
    demo.show(
        f"digits:2 runs on two: {moved:,} bytes came to each, of {size:,} ({moved / size:.1%})"
    )
    if moved > SMALL * size:
        raise DemoFailed(f"{moved:,} bytes are more than {SMALL:.0%} of the model")
    _expect_no_image(demo, fetched)
    right = demo.accuracy("shop-2")
    demo.say(f"asked on shop-2 itself, it recognises {right:.0%}")
    if right < ACCURACY:
        raise DemoFailed(f"that should be {ACCURACY:.0%} at least")


def _expect_no_image(demo: EdgeDemo, before: int) -> None:
    """Nothing was asked of the registry since."""
    if not demo.registry:
        return
    came = demo.fetched() - before
    demo.say(f"meanwhile {came:,} bytes came from the registry: {ENGINE} has the image")
    if came:
        raise DemoFailed("an image that is there came again")


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
    for each in demo.releases[:-1]:
        demo.run("deploy", f"{each.model}:3", "--name", each.name, "--bake", "8s", "--no-wait")
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
    causes = [_why_back(demo, each) for each in demo.releases]
    demo.until_runs("2", "shop-1", "shop-2")
    demo.show(f"digits:3 was rolled back: {causes[-1]}")
    if demo.accuracy("shop-1") < ACCURACY:
        raise DemoFailed("what ran before does not answer as before")


def _why_back(demo: EdgeDemo, release: Release) -> str:
    """Why a deployment's newest roll-out was given up, once it was."""

    def told() -> str:
        rollout = demo.read("deployments", "get", release.name)["rollout"]
        return str(rollout.get("cause", {}).get("message", ""))

    return demo.until(f"{release.name} to be rolled back", told)


def fail_power(demo: EdgeDemo) -> None:
    """kill -9 of everything on shop-1 in the middle of an update, and a boot without a link."""
    shop = demo.machines["shop-1"]
    assert shop.link is not None
    fetched, before = demo.fetched(), _containers(shop)
    for each in demo.releases:
        demo.run("deploy", f"{each.model}:4", "--name", each.name, "--bake", "6s", "--no-wait")
    phases = ("SLOT_PHASE_STARTING", "SLOT_PHASE_BAKING")
    demo.until("the update to begin", lambda: demo.here(ENGINE).get("phase") in phases)
    shop.power_cut()
    shop.link.cut()
    demo.say("the power of shop-1 failed while it tried digits:4; its wire is pulled as well")
    shop.boot()
    share = demo.until("shop-1 to answer", lambda: _answers(demo, "shop-1"))
    phase = demo.here(ENGINE).get("phase", "").removeprefix("SLOT_PHASE_").lower()
    demo.say(f"booted without a link, it answers: {share:.0%} recognised; the update is {phase}")
    if demo.registry:
        _expect_new(demo, before, _containers(shop))
    shop.link.mend()
    demo.until_connected("shop-1", "shop-2")
    demo.until_runs("4", "shop-1", "shop-2")
    demo.show("the wire is back, and digits:4 runs on both")
    _expect_no_image(demo, fetched)


def _containers(machine: FarMachine) -> list[str]:
    return machine.containers() if isinstance(machine, EngineMachine) else []


def _expect_new(demo: EdgeDemo, before: Sequence[str], after: Sequence[str]) -> None:
    """No container has outlived the power."""
    demo.say(f"its engine died with it and was started at the boot; it runs {_short(after)} now")
    if not after or set(before) & set(after):
        raise DemoFailed(f"{_short(before)} ran before")


def _short(containers: Sequence[str]) -> str:
    return "container " + ", ".join(one[:12] for one in containers)


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
            _end_all(path / "data")
            bed_edge_registry.clear_away(path)
            bed_device.sweep(path)


def show(hatoba: Sequence[str]) -> int:
    """Every step, in order; the exit code."""
    with ExitStack() as stack:
        work = stack.enter_context(place())
        network = stack.enter_context(bed_edge.edge_network())
        demo = EdgeDemo(work, hatoba, network, stack)
        try:
            for step in STEPS:
                step(demo)
        except (DemoFailed, Broken, subprocess.TimeoutExpired) as failure:
            demo.say(f"FAILED: {failure}")
            _tell_logs(demo)
            return 1
        demo.say("; ".join(["done", *(f"without {one}" for one in demo.left_out)]))
    return 0


def _tell_logs(demo: EdgeDemo) -> None:
    machines = demo.machines.values()
    engines = [one.engine_log for one in machines if isinstance(one, EngineMachine)]
    for path in (demo.data / "server.log", *(one.log for one in machines), *engines):
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
