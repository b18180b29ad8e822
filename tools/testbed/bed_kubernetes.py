"""Kubernetes' control plane on the bridge's gateway address: etcd, API server, controllers.

Its one node is a component of its own (bed_node), as are kwok's thousands.
"""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import bed_build
from bed_debian import install
from bed_place import Facts, Place, State
from bed_processes import end, free_port, lives, run, start, until

READY_WITHIN = 90.0
ADMIN, NODE, DNS = "admin", "system:node:node-{}", "dns"
USERS = {
    ADMIN: "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
    DNS: "",
}
NODES = 2
# By default controllers ask 20 times a second, which is one job in a third of one.
UNTHROTTLED = ("--kube-api-qps=1000", "--kube-api-burst=2000")
RUNTIME_CLASS = {
    "apiVersion": "node.k8s.io/v1",
    "kind": "RuntimeClass",
    "metadata": {"name": "nvidia"},
    "handler": "nvidia",
}


def prepare() -> None:
    """Have the programs."""
    install("etcd-server", "openssl")
    bed_build.kubernetes()


def up(place: Place, network: Facts) -> Facts:
    """Start an empty cluster."""
    programs = bed_build.kubernetes()
    base = place.make("kubernetes")
    shutil.rmtree(base)
    base.mkdir()
    address = network["gateway"]
    facts: Facts = {
        "programs": str(programs),
        "server": f"https://{address}:{free_port(address)}",
        "tokens": make_users(base),
        "processes": [],
    }
    try:
        begin(place, facts, base)
    except BaseException:
        down(place, facts)
        raise
    return facts


def begin(place: Place, facts: Facts, base: Path) -> None:
    """Start what a cluster consists of, one after the other."""
    programs, started = Path(facts["programs"]), facts["processes"]
    etcd = [free_port("127.0.0.1"), free_port("127.0.0.1")]
    keys(base)
    started.append(launch(place, "etcd", etcd_command(base, *etcd)))
    server = server_command(programs, base, facts["server"], etcd[0])
    started.append(launch(place, "kube-apiserver", server))
    until((base / "certificates" / "apiserver.crt").exists, started, READY_WITHIN, "API server")
    write_access(facts, base)
    until(lambda: answers(facts), started, READY_WITHIN, "API server")
    controllers = controllers_command(programs, base)
    started.append(launch(place, "kube-controller-manager", controllers))
    started.append(launch(place, "kube-scheduler", scheduler_command(programs, base)))
    kubectl(facts, "apply", "-f", "-", input=json.dumps(RUNTIME_CLASS))
    until(lambda: accounts_are_made(facts), started, READY_WITHIN, "service accounts")


def launch(place: Place, name: str, command: Sequence[str]) -> Facts:
    """Start one process of it, in a way that it can be started again."""
    return {**start(place, name, command), "command": list(command)}


def etcd_command(base: Path, client: int, peer: int) -> list[str]:
    """Its store, on loopback."""
    here, there = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    return [
        "etcd",
        f"--data-dir={base / 'etcd'}",
        f"--listen-client-urls={here}",
        f"--advertise-client-urls={here}",
        f"--listen-peer-urls={there}",
        f"--initial-advertise-peer-urls={there}",
        f"--initial-cluster=default={there}",
        "--log-level=warn",
        "--logger=zap",
    ]


def server_command(programs: Path, base: Path, server: str, etcd: int) -> list[str]:
    """The API server; who a token is stands in a file, what he may do in RBAC."""
    address, _, port = server.removeprefix("https://").partition(":")
    return [
        str(programs / "kube-apiserver"),
        f"--etcd-servers=http://127.0.0.1:{etcd}",
        f"--bind-address={address}",
        f"--advertise-address={address}",
        f"--secure-port={port}",
        f"--cert-dir={base / 'certificates'}",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={base / 'accounts.key'}",
        f"--service-account-signing-key-file={base / 'accounts.key'}",
        f"--token-auth-file={base / 'tokens.csv'}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--kubelet-preferred-address-types=InternalIP",
        "--event-ttl=2h",
        # Debian's etcd is too old for watches that begin with a list: kwok, whose watches ask for
        # them, would be refused each time, and be blind until it lists again half a minute later.
        "--feature-gates=WatchList=false",
    ]


def controllers_command(programs: Path, base: Path) -> list[str]:
    """The controllers."""
    name = "system:kube-controller-manager"
    return [
        str(programs / "kube-controller-manager"),
        f"--kubeconfig={base / f'{name}.json'}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--secure-port={free_port('127.0.0.1')}",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={base / 'accounts.key'}",
        f"--root-ca-file={base / 'certificates' / 'apiserver.crt'}",
        # A node that is silent for so long is unreachable: minutes are for larger clusters.
        "--node-monitor-grace-period=20s",
        *UNTHROTTLED,
    ]


def scheduler_command(programs: Path, base: Path) -> list[str]:
    """Kubernetes' scheduler."""
    return [
        str(programs / "kube-scheduler"),
        f"--kubeconfig={base / 'system:kube-scheduler.json'}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--secure-port={free_port('127.0.0.1')}",
        *UNTHROTTLED,
    ]


def make_users(base: Path) -> dict[str, str]:
    """A token for each user of the cluster's own, as the API server reads them."""
    groups = {**USERS, **{NODE.format(n + 1): "system:nodes" for n in range(NODES)}}
    tokens = {user: secrets.token_hex(16) for user in groups}
    lines = [f'{tokens[user]},{user},{user},"{group}"' for user, group in groups.items()]
    (base / "tokens.csv").write_text("\n".join(lines) + "\n")
    return tokens


def keys(base: Path) -> None:
    """The key that service accounts' tokens are signed with."""
    run("openssl", "genrsa", "-out", base / "accounts.key", "2048")


def write_access(facts: Facts, base: Path) -> None:
    """One kubeconfig for each user, by name."""
    authority = (base / "certificates" / "apiserver.crt").read_text()
    facts["authority"] = authority
    facts["kubeconfig"] = str(base / f"{ADMIN}.json")
    for user, token in facts["tokens"].items():
        (base / f"{user}.json").write_text(access(facts["server"], authority, token))


def access(server: str, authority: str, token: str, namespace: str = "default") -> str:
    """A kubeconfig (JSON is YAML) for whoever holds this token."""
    encoded = base64.b64encode(authority.encode()).decode()
    cluster = {"server": server, "certificate-authority-data": encoded}
    context = {"cluster": "testbed", "user": "own", "namespace": namespace}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "testbed", "cluster": cluster}],
        "users": [{"name": "own", "user": {"token": token}}],
        "contexts": [{"name": "testbed", "context": context}],
        "current-context": "testbed",
    }
    return json.dumps(config, indent=1)


def answers(facts: Facts) -> bool:
    """Whether the API server says that it is ready."""
    context = ssl.create_default_context(cadata=facts["authority"])
    request = urllib.request.Request(f"{facts['server']}/readyz")
    request.add_header("Authorization", f"Bearer {facts['tokens'][ADMIN]}")
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(request, timeout=5) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False


def accounts_are_made(facts: Facts) -> bool:
    """Whether pods can be created: without a service account none is admitted."""
    command = kubectl_command(facts, "get", "serviceaccount", "default")
    return subprocess.run(command, capture_output=True).returncode == 0


def kubectl_command(facts: Facts, *arguments: str) -> list[str]:
    """A command line of the cluster's administrator."""
    return [f"{facts['programs']}/kubectl", f"--kubeconfig={facts['kubeconfig']}", *arguments]


def kubectl(facts: Facts, *arguments: str, input: str = "") -> str:
    """Run it; Broken when it fails."""
    return run(*kubectl_command(facts, *arguments), input=input.encode())


def down(place: Place, facts: Facts) -> None:
    """End it, and forget what it knew."""
    for process in reversed(facts["processes"]):
        end(process)
    shutil.rmtree(place.directory / "kubernetes", ignore_errors=True)


def healthy(facts: Facts) -> bool:
    """Whether its processes run, but for those that a test has stopped, and it answers."""
    wanted = [one for one in facts["processes"] if not one.get("stopped")]
    if not all(map(lives, wanted)):
        return False
    return len(wanted) < len(facts["processes"]) or answers(facts)


def stop_one(state: State, name: str) -> None:
    """Stop one process of the control plane until it is started again."""
    facts, process = one(state, name)
    end(process)
    process["stopped"] = True
    state.put("control-plane", facts)


def start_one(place: Place, name: str) -> None:
    """Start a stopped one again, as it was; an API server answers then, if etcd runs."""
    facts, process = one(place.state, name)
    if not process.get("stopped"):
        return
    process.update(launch(place, name, process["command"]))
    process["stopped"] = False
    place.state.put("control-plane", facts)
    if not any(other.get("stopped") for other in facts["processes"]):
        until(lambda: answers(facts), [process], READY_WITHIN, name)


def one(state: State, name: str) -> tuple[Facts, Facts]:
    """The cluster's facts, and those of one process in them."""
    facts = state.read()["control-plane"]
    return facts, next(process for process in facts["processes"] if process["name"] == name)
