"""A far machine for an agent: a disk of its own, its own processes, and power that can fail.

It lives in namespaces of this machine. Its disk is a file with a file system: when the power fails
every process is killed at once, and what was not synced is gone, as it would be. Where this machine
mounts no files, the disk is a directory, and only the processes die.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bed_groups
from bed_edge import PREFIX, EdgeLink
from bed_place import Broken
from bed_processes import run

KEEPER = Path(__file__).with_name("bed_keeper.py")
DISK_MIB = 256
STARTS_WITHIN = 60.0
# Of ext4: as if the power had failed, with what its journal has not on the disk yet.
_SHUTDOWN, _WITHOUT_FLUSH = 0x8004587D, struct.pack("I", 2)
# Nothing is committed to the disk but by who asks for it.
_OPTIONS = "loop,noatime,commit=600"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
# Mounted where nobody else sees it: whoever copied the mount would keep the disk in use.
_INIT = f"""
mount --bind "$1" {_BOOT_ID} || exit 1
image=$2 disk=$3 top=$4 layers=$5 shown=$6
shift 6
for each in "$@"; do mount -t tmpfs none "$each"; done
if [ -n "$layers" ]; then
    mount -t tmpfs none "$top" && mkdir "$top/new" "$top/work" "$top/root" || exit 1
    over="lowerdir=$layers,upperdir=$top/new,workdir=$top/work"
    mount -t overlay -o "$over" none "$top/root" || exit 1
    for each in dev proc sys; do mount --rbind "/$each" "$top/root/$each" || exit 1; done
    mkdir -p "$top/root$disk" && mount --bind "$disk" "$top/root$disk" || exit 1
    disk=$top/root$disk
    [ -z "$shown" ] || {{ mkdir -p "$top/root$shown" && mount --bind "$shown" "$top/root$shown"; }}
fi
[ -z "$image" ] || mount -o {_OPTIONS} "$image" "$disk" || exit 1
echo up
while :; do sleep 3600 & wait $!; done
"""
_UNSHARE = ["unshare", "--pid", "--mount", "--fork", "--kill-child=SIGKILL", "--mount-proc"]


@dataclass(frozen=True)
class System:
    """What a machine's programs are: folders laid over each other, the uppermost first, its Python
    with Hatoba, and where others are looked for. Without folders: those of this machine. `shown` is
    a directory of this one's that it has as well.
    """

    layers: Sequence[Path] = ()
    python: str = sys.executable
    path: str = os.environ.get("PATH", os.defpath)
    shown: Path | None = None


@dataclass
class FarMachine:
    """One machine below `root`, at a link, or on this machine's own network.

    `hidden` are directories in which it sees nothing; `environ` is what its agent has beside PATH
    and HOME. Every call blocks.
    """

    root: Path
    link: EdgeLink | None = None
    disk_mib: int = DISK_MIB
    hidden: Sequence[Path] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    limits_memory: bool = True
    system: System = System()
    boots: int = 0
    _init: subprocess.Popen[bytes] | None = None
    _agent: subprocess.Popen[bytes] | None = None
    _keeper: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        """An empty disk."""
        self._disk.mkdir(parents=True)
        self._top.mkdir()
        # Below no common one, which might go while another is made in it.
        self._group = f"/{PREFIX}{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.mounts = self._format()

    # -- its disk -------------------------------------------------------------------------------

    @property
    def data(self) -> Path:
        """The agent's directory, as the machine itself knows it."""
        return self._disk / "agent"

    @property
    def _disk(self) -> Path:
        return self.root / "disk"

    @property
    def _image(self) -> Path:
        return self.root / "disk.img"

    @property
    def seen(self) -> Path:
        """The agent's directory, as it is seen from outside while there is power."""
        own = f"/proc/{self._first()}/root{self._root or ''}{self.data}"
        return Path(own) if self.mounts else self.data

    @property
    def _top(self) -> Path:
        return self.root / "system"

    @property
    def _root(self) -> Path | None:
        """What its programs take for the top of all files; None: what that is here."""
        return self._top / "root" if self.system.layers else None

    def _format(self) -> bool:
        """Make its disk; whether it is one."""
        with self._image.open("wb") as file:
            file.truncate(self.disk_mib << 20)
        try:
            run("mkfs.ext4", "-q", "-m", "0", self._image)
            run("unshare", "--mount", "mount", "-o", _OPTIONS, self._image, self._disk)
        except (Broken, FileNotFoundError):
            return False
        self._released()
        return True

    def _released(self) -> None:
        """Wait until the kernel has let go of the disk."""
        until(lambda: not run("losetup", "-j", self._image).strip(), STARTS_WITHIN, "a disk")

    @contextlib.contextmanager
    def opened(self) -> Iterator[Path]:
        """Its agent's directory, while it has no power."""
        assert self._init is None, "it has power"
        if self.mounts:
            run("mount", "-o", _OPTIONS, self._image, self._disk)
        try:
            yield self.data
        finally:
            if self.mounts:
                run("umount", self._disk)
                self._released()

    # -- power ----------------------------------------------------------------------------------

    @property
    def on(self) -> bool:
        """Whether it has power."""
        return self._init is not None

    def power_on(self) -> None:
        """Boot it, without its agent."""
        self.boots += 1
        boot = self.root / f"boot-{self.boots}"
        boot.write_text(f"{uuid.uuid4()}\n")
        network = self.link.entered if self.link is not None else []
        image = str(self._image) if self.mounts else ""
        hidden = [str(one) for one in self.hidden] + self._without_limits()
        layers, shown = ":".join(map(str, self.system.layers)), self.system.shown or ""
        system = [str(self._top), layers, str(shown)]
        first = ["sh", "-c", _INIT, "sh", str(boot), image, str(self._disk), *system, *hidden]
        self._init = subprocess.Popen(
            [*bed_groups.entering(self._group), *network, *_UNSHARE, *first],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._init.stdout is not None
        if self._init.stdout.readline() != b"up\n":
            raise Broken("a machine does not boot")

    def _without_limits(self) -> list[str]:
        """What hides the groups of a kernel that enforces limits."""
        return [] if self.limits_memory else [str(bed_groups.TOP)]

    def power_cut(self) -> None:
        """kill -9 of everything on it, and what its disk had not taken yet is gone."""
        if not self.mounts:
            self._kill()
            return
        # As long as this is open the disk is in use, and nothing is written to it at an end.
        handle = os.open(self.seen.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._kill()
            fcntl.ioctl(handle, _SHUTDOWN, _WITHOUT_FLUSH)
        finally:
            os.close(handle)
        self._released()

    def _kill(self) -> None:
        if self._init is None:
            return
        # The first of its processes takes all others with it.
        self._init.kill()
        self._init.communicate()
        self._init = None
        self.reap()
        if self._keeper is not None:
            self._keeper.wait()
            self._keeper = None
        bed_groups.kill(self._group)

    def close(self) -> None:
        """Nothing of it is left but its directory's files."""
        self._kill()
        if self.mounts:
            self._released()
        bed_groups.empty(self._group)
        self._image.unlink(missing_ok=True)

    # -- what runs on it ------------------------------------------------------------------------

    def command(self, *words: str | Path) -> list[str]:
        """What runs these words on it."""
        first = self._first()
        root = [f"--root=/proc/{first}/root{self._root}"] if self._root else []
        return self._entered(first, *root, *map(str, words))

    def beside(self, *words: str | Path) -> list[str]:
        """What runs these words on its network, with the files of this machine."""
        return self._entered(self._first(), *map(str, words))

    def _entered(self, first: int, *words: str) -> list[str]:
        inside = ["nsenter", f"--target={first}", "--pid", "--mount", "--net"]
        return [*bed_groups.entering(self._group), *inside, *words]

    def _first(self) -> int:
        """The process that is its first."""
        if self._init is None:
            raise FileNotFoundError("it has no power")
        told = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text()
        return int(told.split()[0])

    def hatoba(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """`hatoba` on it, to its end."""
        return subprocess.run(
            self.command(self.system.python, "-m", "hatoba", *words),
            env=self._environ(),
            capture_output=True,
            text=True,
            check=False,
            timeout=STARTS_WITHIN,
        )

    def _environ(self) -> dict[str, str]:
        own = {"PATH": self.system.path, "HOME": os.environ.get("HOME", "/")}
        # The agent's unit has it, too.
        return {**own, "MALLOC_ARENA_MAX": "2", "HATOBA_DEBUG": "1", **self.environ}

    def start_agent(self) -> None:
        """Start its agent; it is not waited for."""
        if self._root and self._keeper is None:
            words = KEEPER, self._root, self.system.python, self.data
            first = self._first()
            self._keeper = self._started(self._entered(first, sys.executable, *map(str, words)))
        agent = self.command(
            self.system.python, "-m", "hatoba", "agent", "run", "--data", self.data
        )
        self._agent = self._started(agent)

    def _started(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, env=self._environ(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def boot(self) -> None:
        """Switch it on, and its agent with it."""
        self.power_on()
        self.start_agent()

    def kill_agent(self) -> None:
        """kill -9 of the agent alone; what it runs goes on."""
        os.kill(self.agent_pid(), signal.SIGKILL)
        self.reap()

    def reap(self) -> None:
        """Wait for the agent's end."""
        if self._agent is not None:
            self.resume_agent()
            self._agent.wait()
            self._agent = None

    def resume_agent(self) -> None:
        """Have an agent go on that stands still: who waits for it does so, too, and wakes it."""
        if self._agent is not None:
            self._agent.send_signal(signal.SIGCONT)

    def stands_still(self) -> bool:
        """Whether its agent was stopped, and who waits for it has seen that."""
        waits = [self._agent.pid] if self._agent is not None else []
        return all(_is_stopped(pid) for pid in [*waits, self.agent_pid()])

    @property
    def log(self) -> Path:
        """What its agents wrote; it outlives the power."""
        return self.root / "agent.log"

    def processes(self) -> dict[int, str]:
        """Command lines of what runs on it, by this machine's numbers."""
        found = {}
        for pid in bed_groups.members(self._group):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                found[pid] = words.decode(errors="replace").strip()
        return found

    def agent_pid(self) -> int:
        """The agent, by this machine's numbers."""
        return next(self._pids("-m hatoba agent run"))

    def model_pids(self) -> list[int]:
        """Its model servers, by this machine's numbers."""
        return sorted(self._pids("hatoba_worker.serving serve"))

    def _pids(self, words: str) -> Iterator[int]:
        outside = {one.pid for one in (self._agent, self._init) if one is not None}
        found = self.processes().items()
        return (pid for pid, command in found if words in command and pid not in outside)

    # -- how it is ------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What its agent wrote last; empty: nothing yet."""
        try:
            found: dict[str, Any] = json.loads((self.seen / "status.json").read_text())
            return found
        except (OSError, ValueError):
            # It has no power, or nothing was written yet.
            return {}

    def slot(self, deployment: str = "") -> dict[str, Any]:
        """What its agent wrote last of a deployment, or of the first one; empty: nothing."""
        for one in self.status().get("report", {}).get("slots", ()):
            if deployment in ("", one["deployment"].rpartition("/")[2]):
                return dict(one)
        return {}


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def until(holds: Any, within: float, what: str) -> Any:
    """The first answer of `holds()` that is one. Raises Broken."""
    deadline = time.monotonic() + within
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise Broken(f"{what}: not within {within:g} s")
        time.sleep(0.05)
    return found


def sweep(directory: Path) -> None:
    """Unmount what is below a directory, and remove it."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for point in reversed(mounts):
        if Path(point).is_relative_to(directory):
            run("umount", "--lazy", point, check=False)
    shutil.rmtree(directory, ignore_errors=True)
