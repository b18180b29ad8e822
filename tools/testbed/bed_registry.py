"""A registry of images, on the bridge's gateway address, plain HTTP."""

from __future__ import annotations

import shutil

from bed_debian import install
from bed_place import Facts, Place
from bed_processes import end, free_port, listens, lives, start, until

READY_WITHIN = 20.0


def prepare() -> None:
    """Have the registry."""
    install("docker-registry")


def up(place: Place, network: Facts) -> Facts:
    """Start Debian's registry on an empty store."""
    base, address = place.make("registry"), network["gateway"]
    shutil.rmtree(base / "data", ignore_errors=True)
    port = free_port(address)
    settings = base / "settings.yml"
    settings.write_text(
        "version: 0.1\n"
        "log: {level: warn}\n"
        f"storage: {{filesystem: {{rootdirectory: {base / 'data'}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '{address}:{port}'}}\n"
    )
    process = start(place, "registry", ["docker-registry", "serve", settings])
    try:
        until(lambda: listens(address, port), [process], READY_WITHIN, "registry")
    except BaseException:
        end(process)
        raise
    return {"address": f"{address}:{port}", "processes": [process]}


def down(place: Place, facts: Facts) -> None:
    """End it, and drop what was pushed."""
    for process in facts["processes"]:
        end(process)
    shutil.rmtree(place.directory / "registry", ignore_errors=True)


def healthy(facts: Facts) -> bool:
    """Whether it runs and listens."""
    address, _, port = facts["address"].partition(":")
    return all(map(lives, facts["processes"])) and listens(address, int(port))
