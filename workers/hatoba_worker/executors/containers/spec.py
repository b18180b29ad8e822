"""What a container is started with, beyond what any command is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hatoba_worker.keeper.messages import Spawn

HOME = "/hatoba/attempt"
"""Where a container finds its attempt's or replica's directory."""
LIBRARY = "/hatoba/lib"
"""Where it finds our packages, if its image has none of its own."""
KEPT_LOG = "1g"
"""As the engine takes it; it keeps this twice at most."""
PORT = 8080
"""Where a replica listens in its container."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A directory or file of the host, and where a container sees it."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpawn(Spawn):
    """A container to start: `argv`, `env` and `cwd` are as seen in it; logs are files of the host.

    `image` is the engine's id of it, `home` the directory that is mounted at HOME. `user` is empty
    where the image names one. `publish` is the address of this host at which PORT of the container
    shall be reached, at `publish_port` or, 0, at any; with `host_network` it shares the host's. Of
    its output the engine keeps at least `kept_log`: that is read at once, and for ever.
    """

    image: str
    home: str
    user: str = ""
    mounts: tuple[Mount, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    cpus: float = 0.0
    gpus: tuple[str, ...] = ()
    host_network: bool = False
    publish: str = ""
    publish_port: int = 0
    kept_log: str = KEPT_LOG
