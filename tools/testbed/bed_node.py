"""Nodes of the cluster: each with a containerd, a kubelet and a network namespace of its own.

GPUs are a number that the node advertises; no device stands behind it.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import bed_archives
import bed_dns
import bed_groups
import bed_kubernetes
import bed_network
from bed_debian import install
from bed_place import Broken, Facts, Place, Unavailable
from bed_processes import end, lives, run, start, until

READY_WITHIN = 90.0
LONGEST_SOCKET = 107
"""Characters of a socket's path (sun_path, unix(7))."""
GPUS = 4
RESOLVER, MOST_SERVERS = Path("/etc/resolv.conf"), 3
"""Of names, and how many servers of them a pod may be told (resolv.conf(5))."""
GPU_PRODUCT = "NVIDIA-A100-SXM4-80GB"
CONTAINERD = """\
version = 2
root = "{base}/containerd"
state = "{run}/state"
[grpc]
  address = "{run}/containerd.sock"
[ttrpc]
  address = "{run}/containerd.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{base}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{base}/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{base}/registries"
"""

HOSTS = """\
server = "{server}"
[host."{server}"]
  capabilities = ["pull", "resolve"]
"""


def prepare() -> None:
    """Have containerd, and what connects its pods."""
    install("docker.io", "containernetworking-plugins", "iptables")


def first_up(place: Place, network: Facts, registry: Facts, cluster: Facts) -> Facts:
    """Start the node that every cluster has."""
    return up(place, network, registry, cluster, 1)


def second_up(place: Place, network: Facts, registry: Facts, cluster: Facts) -> Facts:
    """Start the one that some tests want."""
    return up(place, network, registry, cluster, 2)


def up(place: Place, network: Facts, registry: Facts, cluster: Facts, number: int) -> Facts:
    """Start node-N, ready for pods."""
    name = f"node-{number}"
    shutil.rmtree(place.make(name) / "kubelet", ignore_errors=True)
    facts: Facts = {
        "name": name,
        "group": bed_groups.name(place, name),
        "run": str(place.run / str(number)),
        "processes": [],
    }
    try:
        facts["network"] = bed_network.node_up(place, network, number)
        begin(place, facts, cluster, registry["address"])
        join(facts, cluster)
    except BaseException:
        down(place, facts)
        raise
    return facts


def begin(place: Place, facts: Facts, cluster: Facts, registry: str) -> None:
    """Start containerd, give it the images that it needs, and then the kubelet."""
    name = facts["name"]
    base, short = place.make(name), Path(facts["run"])
    check_length(base)
    short.mkdir(exist_ok=True)
    configure(base, short, facts, registry)
    enter = facts["network"]["enter"]
    own_mounts = ["unshare", "--mount", "--propagation", "slave", "--"]
    command = [*enter, *own_mounts, "containerd", f"--config={base / 'containerd.toml'}"]
    containerd = start(place, f"{name}-containerd", command, engine=name)
    facts["processes"].append(containerd)
    facts["containerd"] = f"{short}/containerd.sock"
    until(lambda: listening(facts), [containerd], READY_WITHIN, "containerd")
    ctr(facts, "images", "import", "-", input=bed_archives.busybox())
    pause = bed_archives.pause(Path(cluster["programs"], "pause"))
    ctr(facts, "images", "import", "-", input=pause)
    same_mounts = ["nsenter", f"--mount=/proc/{containerd['pid']}/ns/mnt"]
    kubelet = [*enter, *same_mounts, *kubelet_command(base, facts, cluster)]
    facts["processes"].append(start(place, f"{name}-kubelet", kubelet, engine=name))


def check_length(base: Path) -> None:
    """Raises Unavailable where the kubelet's own sockets could not be named."""
    over = len(str(base / "kubelet" / "pod-resources" / "1234567890")) - LONGEST_SOCKET
    if over > 0:
        raise Unavailable(
            f"sockets below {base} have too long names, by {over} characters: put HATOBA_TESTBED"
            " into a directory with a shorter path"
        )


def configure(base: Path, short: Path, facts: Facts, registry: str) -> None:
    """Write the settings of containerd, of the pods' network and of the kubelet."""
    settings = CONTAINERD.format(base=base, run=short, pause=bed_archives.PAUSE)
    (base / "containerd.toml").write_text(settings)
    hosts = base / "registries" / registry
    hosts.mkdir(parents=True, exist_ok=True)
    (hosts / "hosts.toml").write_text(HOSTS.format(server=f"http://{registry}"))
    cni = base / "cni"
    cni.mkdir(exist_ok=True)
    (cni / "10-pods.conflist").write_text(json.dumps(pod_network(base, facts["network"]["pods"])))
    (base / "kubelet.json").write_text(json.dumps(kubelet_settings(base, facts)))


def pod_network(base: Path, addresses: str) -> Facts:
    """A bridge for the node's pods; the way to them and back is routed, not translated."""
    bridge = {
        "type": "bridge",
        "bridge": "pods",
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(base / "kubelet" / "addresses"),
            "ranges": [[{"subnet": addresses}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, ports]}


def kubelet_settings(base: Path, facts: Facts) -> Facts:
    """The kubelet's configuration; what is odd in it is for a machine that is no node."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": facts["network"]["address"],
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": facts["group"],
        "clusterDNS": name_servers(facts["network"]["gateway"]),
        "clusterDomain": bed_dns.DOMAIN,
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "localStorageCapacityIsolation": False,
        "containerRuntimeEndpoint": f"unix://{facts['run']}/containerd.sock",
        "evictionHard": {"memory.available": "50Mi"},
        "imageGCHighThresholdPercent": 100,
        "maxPods": 200,
        # A kubelet sweeps the logs of pods that it does not know: those of all others here.
        "podLogsDir": str(base / "kubelet" / "logs"),
        "nodeStatusUpdateFrequency": "4s",
        "nodeLeaseDurationSeconds": 15,
        "registerWithTaints": [],
        "syncFrequency": "10s",
        "serializeImagePulls": False,
    }


def name_servers(cluster: str) -> list[str]:
    """Whom pods ask for names: the cluster's server, and this machine's own where it has none."""
    lines = [line.split() for line in RESOLVER.read_text().splitlines()]
    own = [line[1] for line in lines if line[:1] == ["nameserver"]]
    return [cluster, *own][:MOST_SERVERS]


def kubelet_command(base: Path, facts: Facts, cluster: Facts) -> list[str]:
    """The kubelet."""
    user = bed_kubernetes.NODE.format(facts["name"].rpartition("-")[2])
    access = Path(cluster["kubeconfig"]).parent / f"{user}.json"
    return [
        f"{cluster['programs']}/kubelet",
        f"--config={base / 'kubelet.json'}",
        f"--kubeconfig={access}",
        f"--root-dir={base / 'kubelet'}",
        f"--cert-dir={base / 'kubelet' / 'pki'}",
        f"--hostname-override={facts['name']}",
        f"--node-ip={facts['network']['address']}",
    ]


def join(facts: Facts, cluster: Facts) -> None:
    """Wait until the node is ready, and give it its GPUs and the labels that speak of them."""
    until(lambda: ready(facts, cluster), facts["processes"], READY_WITHIN, facts["name"])
    labels = [f"nvidia.com/gpu.product={GPU_PRODUCT}", "nvidia.com/gpu.present=true"]
    bed_kubernetes.kubectl(cluster, "label", "--overwrite", "node", facts["name"], *labels)
    path = "/status/capacity/nvidia.com~1gpu"
    patch = json.dumps([{"op": "add", "path": path, "value": str(GPUS)}])
    node = ["patch", "node", facts["name"], "--subresource=status", "--type=json", "-p", patch]
    bed_kubernetes.kubectl(cluster, *node)
    until(lambda: gpus(facts, cluster), facts["processes"], READY_WITHIN, f"{facts['name']}'s GPUs")


def ready(facts: Facts, cluster: Facts) -> bool:
    """Whether the node says so of itself."""
    pattern = '{.items[*].status.conditions[?(@.type=="Ready")].status}'
    which = f"--field-selector=metadata.name={facts['name']}"
    answer = bed_kubernetes.kubectl(cluster, "get", "nodes", which, "-o", f"jsonpath={pattern}")
    return answer.strip() == "True"


def gpus(facts: Facts, cluster: Facts) -> bool:
    """Whether they may be claimed."""
    pattern = r"jsonpath={.status.allocatable.nvidia\.com/gpu}"
    answer = bed_kubernetes.kubectl(cluster, "get", "node", facts["name"], "-o", pattern)
    return answer.strip() == str(GPUS)


def listening(facts: Facts) -> bool:
    """Whether containerd takes calls."""
    try:
        ctr(facts, "version")
    except Broken:
        return False
    return True


def ctr(facts: Facts, *arguments: str, input: bytes | None = None) -> str:
    """One command of containerd's client, in the kubelet's namespace."""
    address = facts["containerd"]
    return run("ctr", f"--address={address}", "--namespace=k8s.io", *arguments, input=input)


def down(place: Place, facts: Facts) -> None:
    """End the kubelet, all pods and containerd; its images stay for the next time."""
    for process in reversed(facts["processes"]):
        if process["name"].endswith("kubelet"):
            end(process)
    if facts["processes"] and lives(facts["processes"][0]):
        forget_pods(facts)
    for process in facts["processes"]:
        end(process)
    bed_groups.empty(facts["group"])
    if "network" in facts:
        bed_network.node_down(facts["network"])
    shutil.rmtree(facts["run"], ignore_errors=True)
    shutil.rmtree(place.make(facts["name"]) / "kubelet", ignore_errors=True)


def forget_pods(facts: Facts) -> None:
    """Kill what runs, and drop it from containerd's memory: the next cluster has other pods."""
    bed_groups.kill(facts["group"] + "/kubepods")
    deadline = time.monotonic() + READY_WITHIN
    while "RUNNING" in ctr(facts, "tasks", "ls"):
        if time.monotonic() > deadline:
            raise Broken("containerd has tasks that do not end")
        time.sleep(0.1)
    for name in ctr(facts, "tasks", "ls", "--quiet").split():
        ctr(facts, "tasks", "rm", "--force", name)
    for name in ctr(facts, "containers", "ls", "--quiet").split():
        ctr(facts, "containers", "rm", name)


def healthy(facts: Facts) -> bool:
    """Whether its processes run and containerd answers."""
    return all(map(lives, facts["processes"])) and listening(facts)
