"""A Docker engine of the testbed's own: socket, data, bridge and cgroup; no real one is touched."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import bed_groups
import bed_network
from bed_place import ROOT, Facts, Place, Unavailable
from bed_processes import end, lives, run, start, until

BUSYBOX = "hatoba.test/busybox:1"
READY_WITHIN = 40.0
# Mounts of the engine's stay with its processes, and are gone with them.
OWN_MOUNTS = ["unshare", "--mount", "--propagation", "slave", "--"]


def up(place: Place) -> Facts:
    """Start the engine, with a busybox image in it."""
    install("docker.io", "iptables", "busybox-static")
    network = bed_network.up(place)
    try:
        return {**serve(place, network), "busybox": BUSYBOX}
    except BaseException:
        bed_network.down(network)
        raise


def serve(place: Place, network: Facts) -> Facts:
    """The engine's process, ready."""
    socket = place.run / "docker.sock"
    command = [*bed_groups.entering(bed_groups.name(place, "docker")), *OWN_MOUNTS]
    process = start("dockerd", [*command, *engine(place, network, socket)], place.log("dockerd"))
    facts = {"socket": str(socket), "network": network, "processes": [process]}
    try:
        until(lambda: answers(facts), [process], READY_WITHIN, "Docker engine")
        import_busybox(str(socket))
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
    """End containers, engine and network."""
    if healthy(facts):
        running = docker(facts["socket"], "ps", "--all", "--quiet").split()
        if running:
            docker(facts["socket"], "rm", "--force", "--volumes", *running)
    stop(place, facts)
    bed_network.down(facts["network"])


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


def import_busybox(socket: str) -> None:
    """Make the busybox image, once."""
    if docker(socket, "image", "ls", "--quiet", BUSYBOX).strip():
        return
    settings = ['CMD ["/bin/sh"]', "ENV PATH=/bin"]
    changes = [f"--change={setting}" for setting in settings]
    docker(socket, "import", *changes, "-", BUSYBOX, input=busybox_files())


def busybox_files() -> bytes:
    """A root file system with one static program under all its names."""
    files = io.BytesIO()
    with tarfile.open(fileobj=files, mode="w") as archive:
        add(archive, "bin/busybox", Path("/bin/busybox").read_bytes(), 0o755)
        for name in run("/bin/busybox", "--list").split():
            if name != "busybox":
                add_link(archive, f"bin/{name}", "busybox")
        add(
            archive,
            "etc/passwd",
            b"root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
            0o644,
        )
        add(archive, "etc/group", b"root:x:0:\nnogroup:x:65534:\n", 0o644)
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        archive.addfile(folder)
    return files.getvalue()


def add(archive: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    """Add a file."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))


def add_link(archive: tarfile.TarFile, name: str, target: str) -> None:
    """Add a symbolic link."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    archive.addfile(entry)


def install(*packages: str) -> None:
    """Have these packages of Debian's; Unavailable where that cannot be."""
    if os.geteuid() != 0:
        raise Unavailable("the testbed's components need root")
    done = subprocess.run(
        [ROOT / "tools" / "build" / "apt.sh", *packages], capture_output=True, text=True
    )
    if done.returncode:
        raise Unavailable(done.stderr.strip().rpartition("\n")[2])
