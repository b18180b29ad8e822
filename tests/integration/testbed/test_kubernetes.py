"""The testbed's Kubernetes: a real control plane and kubelet, apart from any other here."""

from __future__ import annotations

import http.server
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bed_place import Place
from testbed_fixtures import own_testbed
from testbed_kubernetes import Kubernetes, Namespace
from testbed_traces import commands_with, traces

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
PATIENCE = 90.0


def pod(image: str, *command: str, **limits: str) -> dict[str, Any]:
    """A pod that runs a command once."""
    resources = {"limits": {key.replace("gpu", "nvidia.com/gpu"): limits[key] for key in limits}}
    main = {"name": "main", "image": image, "command": list(command), "resources": resources}
    return {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [main]}


def create(cluster: Kubernetes, space: Namespace, name: str, spec: dict[str, Any]) -> None:
    about = {"name": name, "namespace": space.name}
    cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": about, "spec": spec})


def until(ready: Callable[[], bool]) -> None:
    """kubectl has no signal for what these tests wait for; it is asked twice a second."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def ended(cluster: Kubernetes, space: Namespace, name: str) -> dict[str, Any]:
    """How the pod's container ended, once it has."""
    found: list[dict[str, Any]] = []

    def look() -> bool:
        status = cluster.get("pod", name, "-n", space.name)["status"]
        states = [one["state"] for one in status.get("containerStatuses", [])]
        found[:] = [state["terminated"] for state in states if "terminated" in state]
        return bool(found)

    until(look)
    return found[0]


@pytest.fixture
def space(kubernetes: Kubernetes) -> Iterator[Namespace]:
    with kubernetes.namespace(rights=None) as one:
        yield one


def test_a_pod_runs_with_gpus_and_its_end_and_log_are_told(
    kubernetes: Kubernetes, space: Namespace
) -> None:
    spec = pod(kubernetes.busybox, "sh", "-c", "echo hello; exit 3", gpu="2")
    create(kubernetes, space, "works", {**spec, "runtimeClassName": "nvidia"})
    assert ended(kubernetes, space, "works")["exitCode"] == 3
    assert kubernetes.kubectl("logs", "works", "-n", space.name) == "hello\n"


def test_more_memory_than_allowed_and_more_gpus_than_there_are(
    kubernetes: Kubernetes, space: Namespace
) -> None:
    hungry = ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"]
    create(kubernetes, space, "hungry", pod(kubernetes.busybox, *hungry, memory="20Mi"))
    create(kubernetes, space, "greedy", pod(kubernetes.busybox, "true", gpu="99"))
    assert ended(kubernetes, space, "hungry")["reason"] == "OOMKilled"

    def refused() -> bool:
        status = kubernetes.get("pod", "greedy", "-n", space.name)["status"]
        told = [one.get("message", "") for one in status.get("conditions", [])]
        return any("Insufficient nvidia.com/gpu" in message for message in told)

    until(refused)


@contextmanager
def serving(address: str) -> Iterator[str]:
    """A server of this machine at an address that pods reach."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.client_address[0].encode())

        def log_message(self, *_: object) -> None:
            """Not a word."""

    with http.server.ThreadingHTTPServer((address, 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://{address}:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_a_pod_reaches_a_server_at_the_gateway_as_itself(
    kubernetes: Kubernetes, space: Namespace
) -> None:
    with serving(kubernetes.gateway) as url:
        create(kubernetes, space, "asks", pod(kubernetes.busybox, "wget", "-qO-", url))
        assert ended(kubernetes, space, "asks")["exitCode"] == 0
    own = kubernetes.get("pod", "asks", "-n", space.name)["status"]["podIP"]
    assert kubernetes.kubectl("logs", "asks", "-n", space.name) == own


def test_a_namespace_has_the_rights_of_its_file_and_no_others(
    kubernetes: Kubernetes, tmp_path: Path
) -> None:
    rights = tmp_path / "rights.yaml"
    role = {"kind": "Role", "name": "reads", "apiGroup": "rbac.authorization.k8s.io"}
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    version = {"apiVersion": "rbac.authorization.k8s.io/v1"}
    objects = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader"}},
        {**version, "kind": "Role", "metadata": {"name": "reads"}, "rules": rules},
        {
            **version,
            "kind": "RoleBinding",
            "metadata": {"name": "reads"},
            "roleRef": role,
            "subjects": [{"kind": "ServiceAccount", "name": "reader"}],
        },
    ]
    rights.write_text("\n---\n".join(map(json.dumps, objects)))
    with kubernetes.namespace(rights) as space:
        command = [str(kubernetes.programs / "kubectl"), f"--kubeconfig={space.kubeconfig}"]
        subprocess.run([*command, "get", "pods"], check=True, capture_output=True)
        denied = subprocess.run([*command, "get", "secrets"], capture_output=True, text=True)
    assert "Forbidden" in denied.stderr


def test_a_cluster_of_ones_own_is_drained_loses_its_store_and_goes_without_a_trace(
    bed_place: Path, tmp_path: Path
) -> None:
    with own_testbed(bed_place) as bed:
        own = bed.kubernetes(tmp_path)
        with own.namespace(rights=None) as space:
            create(own, space, "long", pod(own.busybox, "sleep", "600"))
            until(lambda: own.get("pod", "long", "-n", space.name)["status"]["phase"] == "Running")
            own.stop("kube-apiserver")
            own.stop("etcd")
            with pytest.raises(subprocess.CalledProcessError):
                own.kubectl("get", "nodes", "--request-timeout=2s")
            own.start("etcd")
            own.start("kube-apiserver")
            assert own.get("pod", "long", "-n", space.name)["status"]["phase"] == "Running"
            own.drain("node-1", "--timeout=60s")
            assert own.get("pods", "-n", space.name)["items"] == []
            own.uncordon("node-1")
            create(own, space, "again", pod(own.busybox, "sleep", "600"))
            until(lambda: own.get("pod", "again", "-n", space.name)["status"]["phase"] == "Running")
    assert traces(bed_place) == []
    assert commands_with(Place(bed_place).tag) == []


def test_pods_on_nodes_that_are_none_run_by_kwoks_word(
    kubernetes: Kubernetes, space: Namespace
) -> None:
    tolerated = [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}]
    with kubernetes.fake_nodes(3) as nodes:
        for number in range(20):
            spec = {**pod(kubernetes.busybox, "true", gpu="1"), "tolerations": tolerated}
            spec["nodeSelector"] = {"kwok.x-k8s.io/node": "fake"}
            create(kubernetes, space, f"pretends-{number}", spec)

        def all_told() -> bool:
            pods = kubernetes.get("pods", "-n", space.name)["items"]
            return all(one["status"]["phase"] in ("Running", "Succeeded") for one in pods)

        until(all_told)
        pods = kubernetes.get("pods", "-n", space.name)["items"]
        assert {one["spec"]["nodeName"] for one in pods} <= set(nodes)


def test_a_second_node_takes_what_the_first_one_lets_go(
    kubernetes: Kubernetes, space: Namespace
) -> None:
    second = kubernetes.second_node()
    spec = {**pod(kubernetes.busybox, "true"), "nodeSelector": {"kubernetes.io/hostname": second}}
    create(kubernetes, space, "there", spec)
    assert ended(kubernetes, space, "there")["exitCode"] == 0
