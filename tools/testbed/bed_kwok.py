"""kwok: nodes that exist in the API server alone, and pods on them that start and end at once."""

from __future__ import annotations

import bed_build
from bed_place import Facts, Place
from bed_processes import end, free_port, listens, lives, start, until

READY_WITHIN = 60.0
# A node with this annotation is kwok's.
MARK = "kwok.x-k8s.io/node=fake"


def prepare() -> None:
    """Have the program."""
    bed_build.kwok()


def up(place: Place, cluster: Facts) -> Facts:
    """Start it for the cluster; who wants fake nodes creates them with its annotation."""
    port = free_port("127.0.0.1")
    programs = bed_build.kwok()
    command = [
        str(programs / "kwok"),
        f"--config={programs / 'stages.yaml'}",
        "--node-lease-duration-seconds=40",
        f"--kubeconfig={cluster['kubeconfig']}",
        "--manage-all-nodes=false",
        f"--manage-nodes-with-annotation-selector={MARK}",
        f"--server-address=127.0.0.1:{port}",
    ]
    process = start(place, "kwok", command)
    try:
        until(lambda: listens("127.0.0.1", port), [process], READY_WITHIN, "kwok")
    except BaseException:
        end(process)
        raise
    return {"annotation": MARK, "processes": [process]}


def down(place: Place, facts: Facts) -> None:
    """End it."""
    for process in facts["processes"]:
        end(process)


def healthy(facts: Facts) -> bool:
    """Whether it runs."""
    return all(map(lives, facts["processes"]))
