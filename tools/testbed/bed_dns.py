"""Names for the cluster's services and their pods, as real clusters have them: CoreDNS.

The nodes' kubelets name its address to every pod, whether it runs or not (bed_node): where it does
not, or is asked for something else, pods ask the machine's own servers next.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import bed_build
import bed_kubernetes
from bed_place import Facts, Place
from bed_processes import end, free_port, lives, start, until

READY_WITHIN = 60.0
DOMAIN = "cluster.local"
SETTINGS = """\
{domain} {{
    bind {address}
    errors
    ready 127.0.0.1:{port}
    kubernetes {domain} {{
        kubeconfig {access}
    }}
}}
"""
READS = [
    {"apiGroups": [""], "resources": ["services", "namespaces"], "verbs": ["list", "watch"]},
    {
        "apiGroups": ["discovery.k8s.io"],
        "resources": ["endpointslices"],
        "verbs": ["list", "watch"],
    },
]


def prepare() -> None:
    """Have the program."""
    bed_build.coredns()


def up(place: Place, network: Facts, cluster: Facts) -> Facts:
    """Start it where the kubelets tell pods that it is."""
    program = bed_build.coredns() / "coredns"
    bed_kubernetes.kubectl(cluster, "apply", "-f", "-", input=json.dumps(rights()))
    port = free_port("127.0.0.1")
    settings = place.make("dns") / "Corefile"
    access = Path(cluster["kubeconfig"]).parent / f"{bed_kubernetes.DNS}.json"
    settings.write_text(
        SETTINGS.format(domain=DOMAIN, address=network["gateway"], port=port, access=access)
    )
    process = start(place, "dns", [program, "-conf", settings])
    try:
        until(lambda: answers(port), [process], READY_WITHIN, "CoreDNS")
    except BaseException:
        end(process)
        raise
    return {"address": network["gateway"], "processes": [process]}


def rights() -> Facts:
    """What it may do in the cluster: to read services, and where they lead."""
    about = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "testbed-dns"}}
    group = "rbac.authorization.k8s.io"
    binding = {
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "testbed-dns"},
        "subjects": [{"apiGroup": group, "kind": "User", "name": bed_kubernetes.DNS}],
    }
    role = {**about, "kind": "ClusterRole", "rules": READS}
    items = [role, {**about, "kind": "ClusterRoleBinding", **binding}]
    return {"apiVersion": "v1", "kind": "List", "items": items}


def answers(port: int) -> bool:
    """Whether it has read all services that there are."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/ready", timeout=5) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False


def down(place: Place, facts: Facts) -> None:
    """End it."""
    for process in facts["processes"]:
        end(process)


def healthy(facts: Facts) -> bool:
    """Whether it runs."""
    return all(map(lives, facts["processes"]))
