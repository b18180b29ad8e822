"""What an attempt or replica is in a container: its command, variables and mounts as seen there."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hatoba_worker.executors.containers import rights, states
from hatoba_worker.executors.containers.images import Image
from hatoba_worker.executors.containers.spec import (
    HOME,
    KEPT_LOG,
    LIBRARY,
    ContainerSpawn,
    Mount,
)
from hatoba_worker.failures import staging_failed
from hatoba_worker.keeper.messages import Limits
from hatoba_worker.logs import FILES

TEMPORARY = "/tmp"
_PACKAGES = ("hatoba", "hatoba_worker", "h11")


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to run in a container, with paths as seen in it; `env` without what we add."""

    name: str
    home: str
    image: Image
    command: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    cpus: float = 0.0
    memory_bytes: int = 0
    gpus: tuple[str, ...] = ()
    host_network: bool = False
    publish: str = ""
    publish_port: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    """What it alone sees of this machine, beside its home."""
    needs_library: bool = False
    """Our packages are needed in any case, in the version of this worker."""


class ImageSource(Protocol):
    """Where images come from."""

    def prepare(self) -> None:
        """Make what is needed; blocks."""
        ...

    async def resolve(self, reference: str, build_log: str) -> Image:
        """The image, once it is here. Raises AttemptFailed."""
        ...


class Contained:
    """Makes containers of this host; `mounts` are directories that all of them see, `kept_log` is
    how much of their output the engine keeps at least.
    """

    def __init__(
        self, images: ImageSource, mounts: Sequence[Mount], kept_log: str = KEPT_LOG
    ) -> None:
        self._images = images
        self._mounts = tuple(mounts)
        self._kept_log = kept_log
        self._library: tuple[Mount, ...] = ()

    def prepare(self) -> None:
        """Find our packages; blocks."""
        self._images.prepare()
        self._library = tuple(
            Mount(home, f"{LIBRARY}/{name}") for name in _PACKAGES if (home := _home_of(name))
        )

    async def image(self, reference: str, build_log: str) -> Image:
        """The image, once it is here. Raises AttemptFailed."""
        return await self._images.resolve(reference, build_log)

    async def spawn(self, wish: Wish) -> ContainerSpawn:
        """The container, ready to start; its directory belongs to its user. Raises
        AttemptFailed."""
        user = rights.user_for(wish.image.user)
        try:
            await asyncio.to_thread(rights.hand_over, wish.home, user)
        except OSError as error:
            raise staging_failed(f"its directory cannot be given to {user}: {error}") from error
        return ContainerSpawn(
            attempt=wish.name,
            argv=_argv(wish.command),
            env=self._environment(wish),
            cwd=wish.cwd,
            stdout=f"{wish.home}/{FILES['stdout']}",
            stderr=f"{wish.home}/{FILES['stderr']}",
            limits=Limits(memory_bytes=wish.memory_bytes or None),
            image=wish.image.id,
            home=wish.home,
            user=user,
            mounts=(*self._library, *self._mounts, *wish.mounts),
            labels={**wish.labels, states.IMAGE: wish.image.name},
            cpus=wish.cpus,
            gpus=wish.gpus,
            host_network=wish.host_network,
            publish=wish.publish,
            publish_port=wish.publish_port,
            kept_log=self._kept_log,
        )

    def _environment(self, wish: Wish) -> dict[str, str]:
        env = {"PYTHONUNBUFFERED": "1", **wish.env}
        if not wish.image.has_home and not wish.image.user:
            # A number has no home; the root directory, which it would get, cannot be written.
            env.setdefault("HOME", TEMPORARY)
        if not wish.gpus:
            # Images for GPUs ask for all of them, and some engines give them.
            env["NVIDIA_VISIBLE_DEVICES"] = "void"
        if wish.needs_library or not wish.image.has_client:
            parts = [env.get("PYTHONPATH", wish.image.python_path), LIBRARY]
            env["PYTHONPATH"] = ":".join(part for part in parts if part)
        return env


def inside(path: str, home: str) -> str:
    """A path below the home as its container sees it."""
    return f"{HOME}{path.removeprefix(home)}"


def _argv(command: Sequence[str]) -> list[str]:
    program = command[0]
    return ["python3", *command] if program.endswith(".py") else list(command)


def _home_of(package: str) -> str:
    found = importlib.util.find_spec(package)
    return str(Path(found.origin).resolve().parent) if found and found.origin else ""
