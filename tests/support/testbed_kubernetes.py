"""The testbed's Kubernetes as tests use it: namespaces with the product's rights, nodes, GPUs."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml
from bed_kubernetes import access

ROOT = Path(__file__).resolve().parents[2]
RIGHTS = ROOT / "deploy" / "kubernetes" / "rbac.yaml"
FAKE = {"kwok.x-k8s.io/node": "fake"}
FAKE_TAINT = {"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}


class Bed(Protocol):
    """The testbed that a cluster is part of."""

    def up(self, *components: str) -> None: ...
    def act(self, action: str, *names: str) -> None: ...


@dataclass(frozen=True)
class Namespace:
    """A namespace of a test's own, and a kubeconfig that may do there what rbac.yaml grants."""

    name: str
    kubeconfig: str


@dataclass
class Kubernetes:
    """A cluster with a real node; `gateway` is where its pods find servers of this machine."""

    bed: Bed
    programs: Path
    kubeconfig: str
    server: str
    authority: str
    gateway: str
    busybox: str
    directory: Path
    nodes: list[str] = field(default_factory=lambda: ["node-1"])

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        """What the administrator's kubectl prints; CalledProcessError with its words in it."""
        command = [str(self.programs / "kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(command, input=input, capture_output=True, text=True)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get ... -o json`."""
        return dict(json.loads(self.kubectl("get", *arguments, "-o", "json")))

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Create or change objects."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "-f", "-", input=json.dumps(listed))

    @contextmanager
    def namespace(self, rights: Path | None = RIGHTS) -> Iterator[Namespace]:
        """A namespace with the rights of a file (none: the administrator's); gone at the end."""
        name = f"test-{uuid.uuid4().hex[:10]}"
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        cluster_wide = self.grant(name, rights) if rights else []
        try:
            yield Namespace(name, self.access_for(name, rights))
        finally:
            for kind, its_name in cluster_wide:
                self.kubectl("delete", kind, its_name, "--ignore-not-found")
            self.kubectl("delete", "namespace", name, "--wait=false")

    def grant(self, namespace: str, rights: Path) -> list[tuple[str, str]]:
        """Apply the file's objects in this namespace; answers those outside of any namespace."""
        objects = [moved(one, namespace) for one in yaml.safe_load_all(rights.read_text()) if one]
        self.apply(*(one for one in objects if one["kind"] != "Namespace"))
        return [
            (one["kind"], one["metadata"]["name"])
            for one in objects
            if one["kind"] in ("ClusterRole", "ClusterRoleBinding")
        ]

    def access_for(self, namespace: str, rights: Path | None) -> str:
        """A kubeconfig of the file's service account, or of the administrator, in a namespace."""
        if rights is None:
            config = json.loads(Path(self.kubeconfig).read_text())
            config["contexts"][0]["context"]["namespace"] = namespace
            return self.write_access(namespace, json.dumps(config))
        account = next(
            one["metadata"]["name"]
            for one in yaml.safe_load_all(rights.read_text())
            if one and one["kind"] == "ServiceAccount"
        )
        token = self.token(namespace, account)
        return self.write_access(namespace, access(self.server, self.authority, token, namespace))

    def token(self, namespace: str, account: str, duration: str = "12h") -> str:
        """A service account's token."""
        made = self.kubectl("create", "token", account, "-n", namespace, f"--duration={duration}")
        return made.strip()

    def write_access(self, name: str, config: str) -> str:
        """Keep a kubeconfig beside the test's other things."""
        path = self.directory / f"{name}.kubeconfig"
        path.write_text(config)
        path.chmod(0o600)
        return str(path)

    def stop(self, process: str) -> None:
        """Stop `etcd`, `kube-apiserver`, ...; only in a cluster of the test's own."""
        self.bed.act("stop", process)

    def start(self, process: str) -> None:
        """Start it again; returns when the cluster answers."""
        self.bed.act("start", process)

    def second_node(self) -> str:
        """Bring up another node; answers its name."""
        self.bed.up("node-2")
        self.nodes = ["node-1", "node-2"]
        return "node-2"

    def cordon(self, node: str) -> None:
        """No new pods on it."""
        self.kubectl("cordon", node)

    def uncordon(self, node: str) -> None:
        """New pods again."""
        self.kubectl("uncordon", node)

    def drain(self, node: str, *arguments: str) -> None:
        """Cordon it and evict its pods; returns once they are gone, or with `--timeout=...`."""
        usual = ["--ignore-daemonsets", "--delete-emptydir-data", "--force"]
        self.kubectl("drain", node, *usual, *arguments)

    @contextmanager
    def fake_nodes(self, count: int) -> Iterator[list[str]]:
        """So many of kwok's nodes, tainted so that only pods that tolerate it go there."""
        self.bed.up("kwok")
        names = [f"fake-{uuid.uuid4().hex[:6]}-{number}" for number in range(count)]
        self.apply(*map(fake_node, names))
        try:
            yield names
        finally:
            self.kubectl("delete", "node", "--wait=false", *names)


def moved(thing: dict[str, Any], namespace: str) -> dict[str, Any]:
    """An object of the rights' file as this namespace gets it; what is cluster-wide is renamed."""
    about = thing["metadata"]
    if thing["kind"] in ("ClusterRole", "ClusterRoleBinding"):
        about["name"] += f"-{namespace}"
    else:
        about["namespace"] = namespace
    for subject in thing.get("subjects", []):
        subject["namespace"] = namespace
    reference = thing.get("roleRef", {})
    if reference.get("kind") == "ClusterRole":
        reference["name"] += f"-{namespace}"
    return thing


def fake_node(name: str) -> dict[str, Any]:
    """A node that kwok plays."""
    room = {"cpu": "32", "memory": "256Gi", "pods": "110", "nvidia.com/gpu": "8"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": FAKE, "labels": FAKE},
        "spec": {"taints": [FAKE_TAINT]},
        "status": {"allocatable": room, "capacity": room},
    }


def pods_of(items: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Phase by name."""
    return {one["metadata"]["name"]: one["status"]["phase"] for one in items}
