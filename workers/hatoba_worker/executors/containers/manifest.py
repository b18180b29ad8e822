"""The container that a spawn becomes, in the engine's words. Pure."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from hatoba_worker.executors.containers.spec import HOME, PORT, ContainerSpawn

HOST = "hatoba.dev/host"
"""Label: which host's worker it belongs to; two workers may share an engine."""
ATTEMPT = "hatoba.dev/attempt"
HOME_LABEL = "hatoba.dev/home"
SPEC = "hatoba.dev/spec"
PIDS = 4096
"""Processes and threads of one container."""
SHARED_MEMORY = 1 << 30
"""Bytes of /dev/shm where no memory limit says otherwise; data loaders need more than 64 MiB."""
_TMP = "rw,exec,nosuid,nodev,mode=1777"

Json = dict[str, Any]


def config_of(spawn: ContainerSpawn, host: str, *, init: bool) -> Json:
    """What the engine is asked to create; `init`: it has one of its own to put before the command.

    Without it a command that handles no SIGTERM is only ended once its grace is over.
    """
    config: Json = {
        "Image": spawn.image,
        # The command is the program: an image's own entry point would take it for arguments.
        "Entrypoint": list(spawn.argv[:1]),
        "Cmd": list(spawn.argv[1:]),
        "Env": [f"{name}={value}" for name, value in sorted(spawn.env.items())],
        "WorkingDir": spawn.cwd,
        "Tty": False,
        "OpenStdin": False,
        # An image's own check would only spend what the job has.
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": _host_config(spawn, init=init),
    }
    if spawn.user:
        config["User"] = spawn.user
    if spawn.publish:
        config["ExposedPorts"] = {f"{PORT}/tcp": {}}
    config["Labels"] = {
        **spawn.labels,
        HOST: host,
        ATTEMPT: spawn.attempt,
        HOME_LABEL: spawn.home,
        SPEC: digest_of(config),
    }
    return config


def digest_of(config: Json) -> str:
    """What tells two manifests apart, without what is secret in them."""
    shown = {key: value for key, value in config.items() if key != "Env"}
    body = json.dumps(shown, sort_keys=True, separators=(",", ":")).encode()
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def _host_config(spawn: ContainerSpawn, *, init: bool) -> Json:
    memory = spawn.limits.memory_bytes or 0
    config: Json = {
        "Init": init,
        "ReadonlyRootfs": True,
        "Tmpfs": {"/tmp": _TMP},
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Privileged": False,
        "PidsLimit": PIDS,
        "ShmSize": memory or SHARED_MEMORY,
        "IpcMode": "private",
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
        "LogConfig": {"Type": "json-file", "Config": {"max-size": spawn.kept_log, "max-file": "2"}},
        "NetworkMode": "host" if spawn.host_network else "bridge",
        "Mounts": [_mount(spawn.home, HOME, read_only=False)]
        + [_mount(one.source, one.target, read_only=one.read_only) for one in spawn.mounts],
    }
    if memory:
        # No swap: over its limit it is ended, wherever it runs.
        config |= {"Memory": memory, "MemorySwap": memory}
    if spawn.cpus:
        config["NanoCpus"] = round(spawn.cpus * 1e9)
    if spawn.gpus:
        config["DeviceRequests"] = [_devices(spawn.gpus)]
    if spawn.publish:
        place = {"HostIp": spawn.publish, "HostPort": str(spawn.publish_port or "")}
        config["PortBindings"] = {f"{PORT}/tcp": [place]}
    return config


def _mount(source: str, target: str, *, read_only: bool) -> Json:
    return {"Type": "bind", "Source": source, "Target": target, "ReadOnly": read_only}


def _devices(gpus: tuple[str, ...]) -> Json:
    return {"Driver": "nvidia", "DeviceIDs": list(gpus), "Capabilities": [["gpu"]]}
