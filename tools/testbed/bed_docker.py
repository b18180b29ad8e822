"""A Docker engine of the testbed's own: socket, data, bridge and cgroup; no real one is touched."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import bed_archives
import bed_groups
from bed_debian import install
from bed_place import Facts, Place
from bed_processes import end, lives, run, start, until

READY_WITHIN = 40.0
# Mounts of the engine's stay with its processes, and are gone with them.
OWN_MOUNTS = ["unshare", "--mount", "--propagation", "slave", "--"]


def prepare() -> None:
    """Have the engine."""
    install("docker.io")


def up(place: Place, network: Facts) -> Facts:
    """Start the engine, with a busybox image in it."""
    socket = place.run / "docker.sock"
    # It would give the bridge the addresses that it had when the engine ran before.
    shutil.rmtree(place.make("docker") / "data" / "network", ignore_errors=True)
    command = [*OWN_MOUNTS, *engine(place, network, socket)]
    process = start(place, "dockerd", command, engine="docker")
    facts = {
        "socket": str(socket),
        "gateway": network["gateway"],
        "busybox": bed_archives.BUSYBOX,
        "processes": [process],
    }
    try:
        until(lambda: answers(facts), [process], READY_WITHIN, "Docker engine")
        load_busybox(str(socket))
    except BaseException:
        stop(place, facts)
        raise
    return facts


def engine(place: Place, network: Facts, socket: Path) -> list[str]:
    """The engine's command line; ports are published on loopback only."""
    base = place.make("docker")
    return [
        "dockerd",
        f"--host=unix://{socket}",
        f"--data-root={base / 'data'}",
        f"--exec-root={place.run / 'docker'}",
        f"--pidfile={place.run / 'dockerd.pid'}",
        f"--config-file={empty_settings(base)}",
        "--storage-driver=overlay2",
        "--exec-opt=native.cgroupdriver=cgroupfs",
        f"--cgroup-parent={bed_groups.name(place, 'docker')}",
        f"--bridge={network['bridge']}",
        f"--fixed-cidr={network['containers']}",
        f"--host-gateway-ip={network['gateway']}",
        "--iptables=false",
        "--ip6tables=false",
        "--ip-masq=false",
        "--ip=127.0.0.1",
        f"--insecure-registry={network['subnet']}",
        "--shutdown-timeout=3",
    ]


def empty_settings(base: Path) -> Path:
    """This machine's own settings of an engine are none of ours."""
    settings = base / "daemon.json"
    settings.write_text("{}\n")
    return settings


def down(place: Place, facts: Facts) -> None:
    """End containers and engine."""
    if healthy(facts):
        running = docker(facts["socket"], "ps", "--all", "--quiet").split()
        if running:
            docker(facts["socket"], "rm", "--force", "--volumes", *running)
    stop(place, facts)


def stop(place: Place, facts: Facts) -> None:
    """End the engine, and what a killed one left."""
    for process in facts["processes"]:
        end(process, within=30)
    bed_groups.empty(bed_groups.name(place, "docker"))
    shutil.rmtree(place.run / "docker", ignore_errors=True)
    for left in ("docker.sock", "dockerd.pid"):
        (place.run / left).unlink(missing_ok=True)


def healthy(facts: Facts) -> bool:
    """Whether the engine runs and answers."""
    return all(map(lives, facts["processes"])) and answers(facts)


def answers(facts: Facts) -> bool:
    """Whether its socket does."""
    command = ["docker", "--host", f"unix://{facts['socket']}", "version"]
    return subprocess.run(command, capture_output=True).returncode == 0


def docker(socket: str, *arguments: str, input: bytes | None = None) -> str:
    """One command of the engine's client; Broken when it fails."""
    return run("docker", "--host", f"unix://{socket}", *arguments, input=input)


def load_busybox(socket: str) -> None:
    """Have the busybox image in it."""
    if not docker(socket, "image", "ls", "--quiet", bed_archives.BUSYBOX).strip():
        docker(socket, "load", "--quiet", input=bed_archives.busybox())
