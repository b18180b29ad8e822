"""A far machine with a Docker engine of its own, which lives and dies with the machine.

It starts when the machine boots, as systemd would have it; its data is on the machine's disk, its
network and its processes are the machine's, and so are those of its containers.
"""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import bed_docker
import bed_groups
from bed_device import FarMachine, until
from bed_place import Broken
from bed_processes import LOG_TAIL, run

SOCKET = "/run/docker.sock"
DISK_MIB = 2048
RUN = Path("/run")
"""What is there of this machine's own is nothing of that one's: it is empty at each boot."""
_DIES = ("dockerd", "containerd")


@dataclass
class EngineMachine(FarMachine):
    """One with an engine, which has power as long as the machine has."""

    disk_mib: int = DISK_MIB
    _engine: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        """An empty disk."""
        self.hidden = (*self.hidden, RUN)
        super().__post_init__()

    def power_on(self) -> None:
        """Boot it, without its agent; the engine is not waited for."""
        super().power_on()
        self.start_engine()

    def start_engine(self) -> None:
        """Start the engine; it is not waited for."""
        with self.engine_log.open("ab") as log:
            self._engine = subprocess.Popen(
                self.command(*self._words()),
                env=self._environ(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _words(self) -> list[str]:
        return [
            "dockerd",
            f"--host=unix://{SOCKET}",
            f"--data-root={self._disk / 'engine'}",
            f"--config-file={bed_docker.empty_settings(self.root)}",
            "--storage-driver=overlay2",
            "--exec-opt=native.cgroupdriver=cgroupfs",
            f"--cgroup-parent={self._group}/docker",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-masq=false",
            "--ip=127.0.0.1",
        ]

    def until_engine(self) -> None:
        """Wait until the engine answers. Raises Broken, with the end of its log."""
        try:
            until(self._answers, bed_docker.READY_WITHIN, "an engine")
        except Broken as failure:
            told = self.engine_log.read_text(errors="replace")[-LOG_TAIL:]
            raise Broken(f"{failure}\n{told}") from None

    def _answers(self) -> bool:
        ended = self._engine is None or self._engine.poll() is not None
        if ended:
            raise Broken("an engine ended")
        return subprocess.run(self._client("version"), capture_output=True).returncode == 0

    def kill_engine(self) -> None:
        """kill -9 of the engine; its containers go on until it is started anew."""
        for pid in self.processes():
            if _program(pid) in _DIES:
                os.kill(pid, signal.SIGKILL)
        self._reap_engine()

    def containers(self) -> list[str]:
        """Ids of the containers that run."""
        return run(*self._client("ps", "--quiet", "--no-trunc")).split()

    def _client(self, *words: str) -> list[str]:
        return self.command("docker", "--host", f"unix://{SOCKET}", *words)

    @property
    def engine_log(self) -> Path:
        """What its engines wrote; it outlives the power."""
        return self.root / "engine.log"

    def _kill(self) -> None:
        super()._kill()
        self._reap_engine()

    def _reap_engine(self) -> None:
        if self._engine is not None:
            self._engine.wait()
            self._engine = None


def prepare() -> None:
    """Have the engine's programs. Raises Unavailable."""
    bed_groups.tracked()
    bed_docker.prepare()


def _program(pid: int) -> str:
    try:
        return Path(os.readlink(f"/proc/{pid}/exe")).name
    except OSError:
        return ""
